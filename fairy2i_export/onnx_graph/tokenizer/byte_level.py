"""tokenizer.onnx for byte-level BPE (GPT-2, LLaMA 3, Qwen): the operator HfJsonTokenizer, which carries tokenizer.json.

The operator looks a word up in the vocabulary before it merges anything, as ``ignore_merges`` does. Where a tokenizer does
not want that, tokens that no merges lead to are left out of the operator's copy: neither would ever produce them.

The operator is given stretches of text without added tokens: left to find them itself, it loses whatever follows a text
that begins like one and goes on otherwise ("a < b" where there is a token "<|x|>"). So marks are put around added tokens, and
around digits where a tokenizer sets them apart (SmolLM); texts are split at the marks, and added tokens are looked up.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from fairy2i_export.onnx_graph.tokenizer.description import Description
from fairy2i_export.onnx_graph.tokenizer.frame import Ragged, framed_model
from fairy2i_export.onnx_graph.tokenizer.nodes import GraphBuilder, any_of

_MARK = b"\xff"  # not in any UTF-8 text; one byte, since StringSplit splits at every byte of a longer separator


def byte_level_tokenizer(description: Description, metadata: dict[str, str]) -> onnx.ModelProto:
    """The graph: text string [batch] -> input_ids, attention_mask int64 [batch, sequence]."""
    graph = GraphBuilder("tokenizer")
    text = graph.input("text", ir.DataType.STRING, ["batch"])
    apart = "|".join(filter(None, (any_of(description.added.values()), description.digits)))
    marked = graph.replace(text, f"({apart})", _MARK + rb"\1" + _MARK) if apart else text
    places, pieces, _ = graph.extension(
        "StringSplit", marked, graph.strings([_MARK]), graph.constant([True], np.bool_), outputs=3
    )
    # an empty piece of one more text joins in, so that there always is a piece
    count = graph.node("Shape", text)
    rows = graph.node("Concat", graph.node("Gather", places, graph.constant(0), axis=1), count, axis=0)
    pieces = graph.node("Concat", pieces, graph.strings([""]), axis=0)
    ids, mask = graph.extension(
        "HfJsonTokenizer",
        pieces,
        outputs=2,
        tokenizer_vocab=json.dumps(_embedded(description), ensure_ascii=False),
        # the class decides about leading spaces and the like; the frame adds special tokens
        tokenizer_config=json.dumps({"tokenizer_class": "GPT2Tokenizer", "add_bos_token": False, "add_eos_token": False}),
    )
    if description.added:
        ids, mask = _with_added(graph, description, pieces, ids, mask)
    of_piece = graph.node("ReduceSum", mask, graph.constant([1]), keepdims=0)
    none = graph.node(
        "ConstantOfShape", graph.node("Add", count, graph.constant([1])), value=ir.tensor(np.zeros(1, np.int64))
    )
    lengths = graph.node("ScatterElements", none, rows, of_piece, axis=0, reduction="add")
    lengths = graph.node("Slice", lengths, graph.constant([0]), count, graph.constant([0]))
    starts = graph.node("CumSum", lengths, graph.constant(0), exclusive=1)
    flat = graph.constant([-1])
    kept = graph.node("Cast", graph.node("Reshape", mask, flat), to=int(ir.DataType.BOOL))
    values = graph.node("Compress", graph.node("Reshape", ids, flat), kept)
    return framed_model(graph, description, Ragged(values, starts, lengths), metadata)


def _with_added(
    graph: GraphBuilder, description: Description, pieces: ir.Value, ids: ir.Value, mask: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Ids and mask [pieces, length + 1], where a piece that is an added token has its id in the first column and no more."""
    axis = graph.constant([1])
    names = graph.node("Unsqueeze", graph.strings(list(description.added.values())), graph.constant([0]))
    equal = graph.node("Equal", graph.node("Unsqueeze", pieces, axis), names)
    numbers = graph.constant([[index + 1 for index in description.added]])
    matches = graph.node("Mul", graph.node("Cast", equal, to=int(ir.DataType.INT64)), numbers)
    found = graph.node("ReduceMax", matches, axis)
    first = graph.node("Min", found, graph.constant([1]))  # 1 for added tokens, else 0
    others = graph.node("Mul", mask, graph.node("Sub", graph.constant([1]), first))
    return (
        graph.node("Concat", graph.node("Sub", found, graph.constant([1])), ids, axis=1),
        graph.node("Concat", first, others, axis=1),
    )


def _embedded(description: Description) -> dict[str, Any]:
    data = {**description.json, "post_processor": None, "truncation": None, "padding": None, "added_tokens": []}
    model = dict(data["model"])
    if not model.get("ignore_merges"):
        added = set(description.added)
        reached = reachable(model)
        model["vocab"] = {token: index for token, index in model["vocab"].items() if token in reached or index in added}
    data["model"] = model
    return data


def reachable(model: dict[str, Any]) -> set[str]:
    """Tokens of a BPE model (as in tokenizer.json) that its merges make of their own characters."""
    from tokenizers import Tokenizer

    bare = {"version": "1.0", "added_tokens": [], "model": {**model, "byte_fallback": False, "unk_token": None}}
    bpe: Any = Tokenizer.from_str(json.dumps(bare)).model
    return {token for token in model["vocab"] if [found.value for found in bpe.tokenize(token)] == [token]}
