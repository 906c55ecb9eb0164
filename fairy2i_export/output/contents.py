"""The files that exports and rewrites write into their folder, by name: --force replaces these and nothing else."""

from __future__ import annotations

from pathlib import Path

from fairy2i_export.onnx_graph.tokenizer.write import DETOKENIZER, TOKENIZER
from fairy2i_export.output.companions import COPIED as COPIED_BY_REWRITE
from fairy2i_export.output.data_file import DATA, MODEL
from fairy2i_export.output.genai_config import GENAI_CONFIG, LIBRARY
from fairy2i_export.source.text.tokenizer import TOKENIZER as SOURCE_TOKENIZER
from fairy2i_export.source.text.tokenizer_files import COPIED, MORE_TEMPLATES
from fairy2i_runtime.engine.integrity import SUMS_FILE

CARD = "README.md"
REPORT = "rewrite.json"
EXPORT_MARKERS = (MODEL, GENAI_CONFIG)  # what makes a folder recognizable as an earlier export
REWRITE_MARKERS = (MODEL, REPORT)  # the same for the output of fairy2i_export.rewrite
# the library is no output, but docs/export.md tells to copy it there
_WRITTEN = {MODEL, DATA, GENAI_CONFIG, CARD, REPORT, TOKENIZER, DETOKENIZER, LIBRARY, SUMS_FILE, *COPIED, *COPIED_BY_REWRITE}
_WRITTEN |= {SOURCE_TOKENIZER}
_TEMPLATES = "*.jinja"  # in the folder of further chat templates


def is_export(folder: Path, markers: tuple[str, ...]) -> bool:
    """Whether a folder is recognizable as an earlier export."""
    return folder.is_dir() and all((folder / marker).is_file() for marker in markers)


def foreign_names(folder: Path) -> list[str]:
    """Names of what lies in a folder and was not put there by an export, sorted."""
    return sorted(path.name for path in folder.iterdir() if not _is_ours(path))


def _is_ours(path: Path) -> bool:
    if path.is_dir() and not path.is_symlink():
        return path.name == MORE_TEMPLATES and all(inside.match(_TEMPLATES) for inside in path.iterdir())
    return path.name in _WRITTEN


def remove_export(folder: Path) -> None:
    """Remove the files of an export, and the folder if that empties it."""
    for path in folder.iterdir():
        if path.name == MORE_TEMPLATES and path.is_dir() and not path.is_symlink():
            _remove_templates(path)
        elif _is_ours(path):
            path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def _remove_templates(folder: Path) -> None:
    for path in folder.glob(_TEMPLATES):
        path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()
