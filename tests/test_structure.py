"""How the source is divided: which folder may use which, and how large folders and files may become."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from conftest import ROOT

C_SOURCE = ROOT / "custom_ops" / "src"
C_RANKS = {"base": 0, "kernels": 1, "quantizer": 1, "layer": 2, "ort_glue.c": 3}
C_PUBLIC = {"fairy2i.h": set(C_RANKS), "onnxruntime_c_api.h": {"ort_glue.c"}}  # header outside: who may include it
C_LINES = 400
FOLDER_ENTRIES = 12


def c_files() -> list[Path]:
    return sorted(path for path in C_SOURCE.rglob("*") if path.suffix in (".c", ".h"))


def c_includes() -> Iterator[tuple[Path, str]]:
    """Files of our own C source, relative to it, with each name that they include in quotes."""
    for path in c_files():
        for name in re.findall(r'^\s*#\s*include\s*"([^"]+)"', path.read_text(encoding="utf-8"), re.M):
            yield path.relative_to(C_SOURCE), name


def may_include(path: Path, name: str) -> bool:
    """Whether a file may include a name: of its own folder, or of one below it."""
    own, other = path.parts[0], Path(name).parts[0]
    if name in C_PUBLIC:
        return own in C_PUBLIC[name]
    return (C_SOURCE / name).is_file() and (own == other or C_RANKS[other] < C_RANKS[own])


def test_c_includes_go_down() -> None:
    includes = list(c_includes())
    assert len(includes) > 50
    assert not [f"{path} includes {name}" for path, name in includes if not may_include(path, name)]


def test_c_only_dispatch_names_kernels() -> None:
    assert {str(path) for path, name in c_includes() if name.endswith("kernel_list.h")} == {"layer/dispatch.c"}


def test_c_files_and_folders_stay_small() -> None:
    long = {path.name for path in c_files() if len(path.read_text(encoding="utf-8").splitlines()) > C_LINES}
    assert long <= {"ort_glue.c"}
    folders = [C_SOURCE, *(path for path in C_SOURCE.rglob("*") if path.is_dir())]
    assert not [str(path) for path in folders if len(list(path.iterdir())) > FOLDER_ENTRIES]


def test_c_conditions_name_files() -> None:
    """A row or branch whose condition no file fulfils would be gone without a word."""
    files = {f"F2I_HAVE_{path.stem.upper()}" for path in c_files() if {"x86", "arm"} & set(path.parts)}
    texts = [path.read_text(encoding="utf-8") for path in [*c_files(), *(ROOT / "custom_ops" / "tests").glob("*.c")]]
    named = {name for text in texts for name in re.findall(r"defined\((F2I_HAVE_\w+)\)", text)}
    assert named
    assert named <= files
