"""tokenizer.onnx for byte-level BPE (GPT-2, LLaMA 3, Qwen): the operator HfJsonTokenizer, which carries tokenizer.json.

The operator looks a word up in the vocabulary before it merges anything, as ``ignore_merges`` does. Where a tokenizer does
not want that, tokens that no merges lead to are left out of the operator's copy: neither would ever produce them.
"""

from __future__ import annotations

import json
from typing import Any

import onnx
import onnx_ir as ir

from fairy2i_export.tokenizer_graph.description import Description
from fairy2i_export.tokenizer_graph.frame import Ragged, framed_model
from fairy2i_export.tokenizer_graph.nodes import GraphBuilder


def byte_level_tokenizer(description: Description, metadata: dict[str, str]) -> onnx.ModelProto:
    """The graph: text string [batch] -> input_ids, attention_mask int64 [batch, sequence]."""
    graph = GraphBuilder("tokenizer")
    text = graph.input("text", ir.DataType.STRING, ["batch"])
    ids, mask = graph.extension(
        "HfJsonTokenizer",
        text,
        outputs=2,
        tokenizer_vocab=json.dumps(_embedded(description), ensure_ascii=False),
        # the class decides about leading spaces and the like; the frame adds special tokens
        tokenizer_config=json.dumps({"tokenizer_class": "GPT2Tokenizer", "add_bos_token": False, "add_eos_token": False}),
    )
    shape = graph.node("Shape", ids)
    rows = graph.node("Gather", shape, graph.constant(0))
    width = graph.node("Gather", shape, graph.constant(1))
    starts = graph.node("Mul", graph.node("Range", graph.constant(0), rows, graph.constant(1)), width)
    lengths = graph.node("ReduceSum", mask, graph.constant([1]), keepdims=0)
    values = graph.node("Reshape", ids, graph.constant([-1]))
    return framed_model(graph, description, Ragged(values, starts, lengths), metadata)


def _embedded(description: Description) -> dict[str, Any]:
    data = {**description.json, "post_processor": None, "truncation": None, "padding": None}
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
