"""The files that exports and rewrites write into their folder, by name: --force replaces these and nothing else."""

from __future__ import annotations

from pathlib import Path

from fairy2i_export.onnx_graph.tokenizer.write import DETOKENIZER, TOKENIZER
from fairy2i_export.output.companions import COPIED as COPIED_BY_REWRITE
from fairy2i_export.output.data_file import DATA, MODEL
from fairy2i_export.output.genai_config import GENAI_CONFIG, LIBRARY
from fairy2i_export.source.tokenizer_files import COPIED

CARD = "README.md"
REPORT = "rewrite.json"
EXPORT_MARKERS = (MODEL, GENAI_CONFIG)  # what makes a folder recognizable as an earlier export
REWRITE_MARKERS = (MODEL, REPORT)  # the same for the output of fairy2i_export.rewrite
# the library is no output, but docs/export.md tells to copy it there
_WRITTEN = {MODEL, DATA, GENAI_CONFIG, CARD, REPORT, TOKENIZER, DETOKENIZER, LIBRARY, *COPIED, *COPIED_BY_REWRITE}


def is_export(folder: Path, markers: tuple[str, ...]) -> bool:
    """Whether a folder is recognizable as an earlier export."""
    return folder.is_dir() and all((folder / marker).is_file() for marker in markers)


def foreign_names(folder: Path) -> list[str]:
    """Names of what lies in a folder and was not put there by an export, sorted."""
    return sorted(
        path.name for path in folder.iterdir() if path.name not in _WRITTEN or (path.is_dir() and not path.is_symlink())
    )


def remove_export(folder: Path) -> None:
    """Remove the files of an export, and the folder if that empties it."""
    for path in folder.iterdir():
        if path.name in _WRITTEN and (path.is_symlink() or not path.is_dir()):
            path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()
