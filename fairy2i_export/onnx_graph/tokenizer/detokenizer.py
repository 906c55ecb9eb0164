"""detokenizer.onnx: every id becomes the bytes of its token, looked up in a table; the bytes of a row are joined to a text.

onnxruntime-extensions' own BpeDecoder cannot spell out added tokens with other characters than its alphabet's, nor several
texts at once. The table holds bytes, not text: a character may be spread over several tokens.
"""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnx_ir as ir

from fairy2i_export.onnx_graph.tokenizer.description import META, Description
from fairy2i_export.onnx_graph.tokenizer.nodes import GraphBuilder

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_MARK = r"\x{FFFF}"  # no character, so no text has it
_MARK_TEXT = "\uffff"


def detokenizer(description: Description, metadata: dict[str, str]) -> onnx.ModelProto:
    """The graph: ids int64 [batch, sequence], skip_special_tokens bool [1] (true by default) -> text string [batch].

    Ids that are no tokens, negative ones included, give nothing. Bytes that are no UTF-8 become U+FFFD, one for each.
    """
    graph = GraphBuilder("detokenizer")
    ids = graph.input("ids", ir.DataType.INT64, ["batch", "sequence"])
    skip = graph.input("skip_special_tokens", ir.DataType.BOOL, [1], np.array([True]))
    tokens = [token_bytes(description, index) for index in range(description.size)]
    visible = [b"" if index in description.special else token for index, token in enumerate(tokens)]
    nothing = graph.constant([description.size])
    known = graph.node("Min", ids, nothing)
    known = graph.node("Where", graph.node("Less", known, graph.constant([0])), nothing, known)
    offset = graph.node("Mul", graph.node("Cast", skip, to=int(ir.DataType.INT64)), graph.constant([description.size + 1]))
    table = graph.strings([*tokens, b"", *visible, b""])
    pieces = graph.node("Gather", table, graph.node("Add", known, offset), axis=0)
    text = graph.extension("StringJoin", pieces, graph.strings([""]), graph.constant([1]))
    text = _repaired(graph, text)
    start, stop = description.strip
    if start:
        text = graph.replace(text, rf"\A {{1,{start}}}", "")
    if stop:
        text = graph.replace(text, rf" {{1,{stop}}}\z", "")
    return graph.model({"text": (text, ir.DataType.STRING, ["batch"])}, metadata)


def token_bytes(description: Description, index: int) -> bytes:
    """What a token adds to the bytes of a text; nothing if there is no such token."""
    token = description.vocabulary.get(index, "")
    if description.kind == "byte_level":
        alphabet = _byte_alphabet()
        if all(character in alphabet for character in token):
            return bytes(alphabet[character] for character in token)
        return token.encode()  # an added token, written out
    byte = _BYTE_TOKEN.fullmatch(token)
    return bytes.fromhex(byte[1]) if byte else token.replace(META, " ").encode()


def _byte_alphabet() -> dict[str, int]:
    r"""The characters that stand for bytes in byte-level BPE: printable ones for themselves, U+0100 and up for the rest."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


def _repaired(graph: GraphBuilder, text: ir.Value) -> ir.Value:
    r"""Replace bytes that are no UTF-8 by U+FFFD: in RE2 a dot matches characters only, and \C any byte."""
    marked = graph.replace(text, r"((?s:.)+)|\C", rf"\1{_MARK_TEXT}")  # good stretch -> stretch, mark; bad byte -> mark
    clean = graph.replace(marked, f"([^{_MARK}]){_MARK}", r"\1")
    return graph.replace(clean, _MARK, "\ufffd")
