"""Kernels that are told what comes next from memory prefetch it: compilers drop prefetches without a word.

gcc takes a function that does nothing but prefetch for one without effect. Nothing but time tells, so the assembly is looked at.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from conftest import ROOT

SOURCES = ROOT / "custom_ops" / "src"
HERE = {"x86_64": "x86", "aarch64": "arm"}.get(platform.machine(), "")
FILES = sorted(
    path for path in (SOURCES / "kernels").glob(f"{HERE}/**/*.c") if "f2i_block_" in path.read_text(encoding="utf-8")
)
FLAGS = re.compile(r"/\* flags: (.*) \*/")
PREFETCH = re.compile(r"^\s*(prefetch\w*|prfm)\s", re.MULTILINE)


@pytest.mark.skipif(not HERE or not shutil.which("gcc"), reason="needs gcc, and kernels for this processor")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_prefetches_are_compiled(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    flags = FLAGS.fullmatch(first)
    assert flags, f"{path}: the first line says no flags"
    command = ["gcc", "-O3", "-fPIC", "-ffp-contract=off", *flags[1].split(), f"-I{SOURCES}", f"-I{SOURCES.parent}/include"]
    assembly = subprocess.run([*command, "-S", "-o", "-", str(path)], capture_output=True, text=True, check=True).stdout
    assert PREFETCH.search(assembly), f"{path.name}: no prefetch in its assembly"
