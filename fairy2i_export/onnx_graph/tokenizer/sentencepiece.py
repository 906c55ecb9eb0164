"""tokenizer.onnx for SentencePiece-like BPE (LLaMA 1 and 2, Mistral, TinyLlama, Gemma): the operator SentencepieceTokenizer.

The operator wants a SentencePiece model, which is made here from tokenizer.json: the rank of a merge becomes the score of
the token that it makes. The operators that read tokenizer.json itself cut texts into pieces of 100 characters, at the
expense of tokens across the cut, and treat runs of spaces otherwise; they are not used. SentencePiece knows one leading
space per text; the places where the tokenizers library puts them are made by replacing regular expressions before.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from fairy2i_export.errors import TokenizerError, install_hint
from fairy2i_export.onnx_graph.tokenizer.description import META, Description
from fairy2i_export.onnx_graph.tokenizer.frame import Ragged, framed_model
from fairy2i_export.onnx_graph.tokenizer.nodes import GraphBuilder, any_of

_NORMAL, _UNKNOWN, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 4, 5, 6  # types of pieces
_BPE = 2  # type of model
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


def sentencepiece_tokenizer(description: Description, metadata: dict[str, str]) -> onnx.ModelProto:
    """The graph: text string [batch] -> input_ids, attention_mask int64 [batch, sequence].

    Raises:
        TokenizerError: the package sentencepiece, which defines the model's format, is missing.
    """
    graph = GraphBuilder("tokenizer")
    text = _with_prefixes(graph, description, graph.input("text", ir.DataType.STRING, ["batch"]))
    no = graph.constant([False], np.bool_)
    ids, bounds = graph.extension(
        "SentencepieceTokenizer",
        text,
        graph.constant([0]),
        graph.constant([0], np.float32),
        *[no] * 4,
        outputs=2,
        binary=sentencepiece_model(description),
    )
    values = graph.node("Cast", ids, to=int(ir.DataType.INT64))
    # the piece for unknown characters is one of its own, so that the token can also be spelled out in a text
    unknown = graph.constant([description.size])
    token = description.json["model"].get("unk_token")
    replacement = next((index for index, name in description.vocabulary.items() if name == token), description.pad)
    values = graph.node("Where", graph.node("Equal", values, unknown), graph.constant([replacement]), values)
    one, axes = graph.constant([1]), graph.constant([0])
    starts = graph.node("Slice", bounds, graph.constant([0]), graph.constant([-1]), axes)
    ends = graph.node("Slice", bounds, one, graph.constant([np.iinfo(np.int64).max]), axes)
    return framed_model(graph, description, Ragged(values, starts, graph.node("Sub", ends, starts)), metadata)


def sentencepiece_model(description: Description) -> bytes:
    """A SentencePiece model with the vocabulary and the merges of a tokenizer.json, and one more piece for the unknown.

    Raises:
        TokenizerError: the package sentencepiece is missing.
    """
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise TokenizerError(
            f"--tokenizer-onnx needs the package sentencepiece for this tokenizer: {install_hint('tokenizer-onnx')}"
        ) from error
    format_: Any = sentencepiece_model_pb2  # its classes are made at run time
    data = description.json["model"]
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(data["merges"]):
        ranks.setdefault(left + right, rank)
    model = format_.ModelProto()
    for index in range(description.size):
        token = description.vocabulary.get(index)
        piece = model.pieces.add()
        piece.piece, piece.score, piece.type = f"\x02{index}", 0.0, _UNUSED  # a gap, or never produced: a name of its own
        if token is None or not token:
            continue
        if index in description.added:
            piece.piece, piece.type = token, _USER_DEFINED
        elif data["byte_fallback"] and _BYTE_TOKEN.fullmatch(token):
            piece.piece, piece.type = token, _BYTE
        elif token in ranks:
            piece.piece, piece.score, piece.type = token, -float(ranks[token]), _NORMAL
        elif len(token) == 1:
            piece.piece, piece.score, piece.type = token, -float(len(data["merges"])), _NORMAL
    unknown = model.pieces.add()
    unknown.piece, unknown.type = "\x02unknown", _UNKNOWN
    trainer = model.trainer_spec
    trainer.model_type, trainer.unk_id, trainer.byte_fallback = _BPE, description.size, bool(data["byte_fallback"])
    trainer.bos_id = trainer.eos_id = trainer.pad_id = -1
    normalizer = model.normalizer_spec
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = normalizer.remove_extra_whitespaces = False
    normalizer.escape_whitespaces = True
    return bytes(model.SerializeToString())


def _with_prefixes(graph: GraphBuilder, description: Description, text: ir.Value) -> ir.Value:
    """Write the leading spaces into the text, as META, where the tokenizer puts them."""
    if description.prefix == "never":
        return text
    tokens = any_of(description.added.values())
    every = description.prefix != "first"
    if every and tokens:
        text = graph.replace(text, f"((?:{tokens})+)", rf"\1{META}")
        text = graph.replace(text, rf"({tokens}){META}\z", r"\1")  # nothing follows
        if description.prefix == "always":
            text = graph.replace(text, f"({tokens}){META}([ {META}])", r"\1\2")  # has one already
    text = graph.replace(text, r"\A", META)
    text = graph.replace(text, rf"\A{META}\z", "")  # an empty text stays empty
    if tokens:
        text = graph.replace(text, rf"\A{META}({tokens})", r"\1")
    return text if description.prefix == "prepend" else graph.replace(text, rf"\A{META}([ {META}])", r"\1")
