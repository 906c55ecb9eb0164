"""Write tokenizer.onnx and detokenizer.onnx into a model folder: both or none."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx

from fairy2i_export.errors import OutputError
from fairy2i_export.onnx_graph.tokenizer.byte_level import byte_level_tokenizer
from fairy2i_export.onnx_graph.tokenizer.check import check_graphs
from fairy2i_export.onnx_graph.tokenizer.description import describe_tokenizer, read_tokenizer
from fairy2i_export.onnx_graph.tokenizer.detokenizer import detokenizer
from fairy2i_export.onnx_graph.tokenizer.sentencepiece import sentencepiece_tokenizer
from fairy2i_runtime.version import __version__

TOKENIZER = "tokenizer.onnx"
DETOKENIZER = "detokenizer.onnx"
_KIND = "fairy2i.tokenizer_kind"  # metadata by which a graph is known as ours
_BUILDERS = {"byte_level": byte_level_tokenizer, "sentencepiece": sentencepiece_tokenizer}


@dataclass(frozen=True)
class TokenizerGraphs:
    """Both graphs of a tokenizer, checked.

    Attributes:
        encode: text to ids.
        decode: ids to text.
        texts: on how many texts they were compared with the tokenizers library.
    """

    encode: onnx.ModelProto
    decode: onnx.ModelProto
    texts: int

    def write(self, folder: Path) -> None:
        """Write tokenizer.onnx and detokenizer.onnx: both or none.

        Raises:
            OutputError: the folder cannot be written, or has other files of these names.
        """
        try:
            with tempfile.TemporaryDirectory(prefix=".tokenizer.", dir=folder) as temporary:
                for name, model in ((TOKENIZER, self.encode), (DETOKENIZER, self.decode)):
                    (Path(temporary) / name).write_bytes(model.SerializeToString())
                check_replaceable(folder)
                for name in (TOKENIZER, DETOKENIZER):
                    os.replace(Path(temporary) / name, folder / name)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be written: {error.strerror or error}") from error


def check_replaceable(folder: Path) -> None:
    """Raise OutputError if a folder holds a tokenizer.onnx or detokenizer.onnx that is none of ours."""
    for name in (TOKENIZER, DETOKENIZER):
        if os.path.lexists(folder / name) and not _is_ours(folder / name):
            raise OutputError(
                f"{folder / name}: exists and was not made here, so it is not replaced; move it elsewhere, or give another folder"
            )


def _is_ours(path: Path) -> bool:
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception:  # no file, no ONNX model: the parser's exceptions have no common base
        return False
    return any(item.key == _KIND for item in model.metadata_props)


def make_tokenizer_graphs(folder: Path) -> TokenizerGraphs:
    """Make both graphs of the tokenizer in a folder, and check them; nothing is written.

    They have all of its tokens, as the tokenizer.json of an exported model has.

    Raises:
        TokenizerError: the tokenizer cannot be read, or the graphs cannot express it; says why.
    """
    path = folder / "tokenizer.json"
    text = read_tokenizer(path).text
    contents = path.read_bytes() if text is None else text.encode()
    description = describe_tokenizer(path)
    metadata = {
        _KIND: description.kind,
        "fairy2i.tokenizer_sha256": hashlib.sha256(contents).hexdigest(),
        "fairy2i.tool_version": __version__,
    }
    encode = _BUILDERS[description.kind](description, metadata)
    decode = detokenizer(description, metadata)
    return TokenizerGraphs(encode, decode, check_graphs(path, description, encode, decode))
