"""The command ``fairy2i tokenizer-onnx DIR``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fairy2i_export.errors import TokenizerError
from fairy2i_runtime.commands.process.streams import note_done


def tokenizer_onnx_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Model folder, or any folder with a tokenizer.json.")],
) -> None:
    """Add tokenizer.onnx and detokenizer.onnx to a folder, for hosts that have ONNX Runtime and no tokenizer library.

    Earlier ones are replaced. The graphs need the operators of onnxruntime-extensions at run time.
    """
    from fairy2i_export.onnx_graph.tokenizer.write import DETOKENIZER, TOKENIZER, check_replaceable, make_tokenizer_graphs
    from fairy2i_export.output.disk.held_signals import signals_held

    if not (folder / "tokenizer.json").is_file():
        raise TokenizerError(f"{folder / 'tokenizer.json'}: missing; give a folder that holds one")
    check_replaceable(folder)
    graphs = make_tokenizer_graphs(folder)
    with signals_held():  # both or none
        graphs.write(folder)
        note_done(f"{TOKENIZER} and {DETOKENIZER} are written: {folder}")
    print(f"{folder}: {TOKENIZER} and {DETOKENIZER}, equal to tokenizer.json on {graphs.texts} texts")
