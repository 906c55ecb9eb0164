"""The command ``fairy2i tokenizer-onnx DIR``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fairy2i_export.errors import TokenizerError


def tokenizer_onnx_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Model folder, or any folder with a tokenizer.json.")],
) -> None:
    """Add tokenizer.onnx and detokenizer.onnx to a folder, for hosts that have ONNX Runtime and no tokenizer library.

    Earlier ones are replaced. The graphs need the operators of onnxruntime-extensions at run time.
    """
    from fairy2i_export.onnx_graph.tokenizer.write import DETOKENIZER, TOKENIZER, write_tokenizer_graphs

    if not (folder / "tokenizer.json").is_file():
        raise TokenizerError(f"{folder / 'tokenizer.json'}: missing; give a folder that holds one")
    texts = write_tokenizer_graphs(folder)
    print(f"{folder}: {TOKENIZER} and {DETOKENIZER}, equal to tokenizer.json on {texts} texts")
