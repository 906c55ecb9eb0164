"""Write tokenizer.onnx and detokenizer.onnx into a model folder: both or none."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import fairy2i_export
from fairy2i_export.errors import OutputError
from fairy2i_export.onnx_graph.tokenizer.byte_level import byte_level_tokenizer
from fairy2i_export.onnx_graph.tokenizer.check import check_graphs
from fairy2i_export.onnx_graph.tokenizer.description import describe_tokenizer
from fairy2i_export.onnx_graph.tokenizer.detokenizer import detokenizer
from fairy2i_export.onnx_graph.tokenizer.sentencepiece import sentencepiece_tokenizer

TOKENIZER = "tokenizer.onnx"
DETOKENIZER = "detokenizer.onnx"
_BUILDERS = {"byte_level": byte_level_tokenizer, "sentencepiece": sentencepiece_tokenizer}


def write_tokenizer_graphs(folder: Path, shown: Path | None = None) -> int:
    """Make both graphs of the tokenizer.json in a folder, check them, and write them beside it.

    Args:
        folder: holds tokenizer.json.
        shown: what messages call that folder, if it is a temporary copy.

    Returns:
        The number of texts on which they were compared with the tokenizers library.

    Raises:
        TokenizerError: the graphs cannot express the tokenizer; says why. Nothing is written then.
        OutputError: the folder cannot be written.
    """
    path = folder / "tokenizer.json"
    named = (shown or folder) / "tokenizer.json"
    description = describe_tokenizer(path, named)
    metadata = {
        "fairy2i.tokenizer_kind": description.kind,
        "fairy2i.tokenizer_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "fairy2i.tool_version": fairy2i_export.__version__,
    }
    encode = _BUILDERS[description.kind](description, metadata)
    decode = detokenizer(description, metadata)
    checked = check_graphs(path, named, description, encode, decode)
    try:
        with tempfile.TemporaryDirectory(prefix=".tokenizer.", dir=folder) as temporary:
            for name, model in ((TOKENIZER, encode), (DETOKENIZER, decode)):
                (Path(temporary) / name).write_bytes(model.SerializeToString())
            for name in (TOKENIZER, DETOKENIZER):
                os.replace(Path(temporary) / name, folder / name)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror or error}") from error
    return checked
