"""The fuzz targets of custom_ops/fuzz without libFuzzer: fixed seeds, against the library that is installed."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from conftest import ROOT
from fairy2i_runtime import library_path
from fairy2i_runtime.ops.library import library_folder

FUZZ = ROOT / "custom_ops" / "fuzz"
TARGETS = sorted(path.stem for path in FUZZ.glob("fuzz_*.c"))
CC = shlex.split(os.environ.get("CC", "")) or [found for name in ("gcc", "clang") if (found := shutil.which(name))][:1]


@pytest.mark.skipif(os.name != "posix" or not CC, reason="needs a C compiler that takes gcc's options")
@pytest.mark.parametrize("target", TARGETS)
def test_seeds(target: str, tmp_path: Path) -> None:
    library = Path(library_path())
    # the header lies beside the library that is installed; FAIRY2I_LIBRARY may name another one
    command = [*CC, "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{library_folder()}"]
    command += [str(FUZZ / f"{target}.c"), str(FUZZ / "seeds.c"), str(library), f"-Wl,-rpath,{library.parent}", "-lm"]
    built = subprocess.run([*command, "-o", str(tmp_path / target)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([str(tmp_path / target), "500"], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "500 seeds\n"), ran.stderr
    # what is written for libFuzzer are the same inputs, and a file is run as one
    folder = tmp_path / "seeds"
    folder.mkdir()
    subprocess.run([str(tmp_path / target), "20", str(folder)], check=True, capture_output=True)
    files = sorted(map(str, folder.iterdir()))
    assert len(files) == 20
    again = subprocess.run([str(tmp_path / target), *files], capture_output=True, text=True, check=False)
    assert (again.returncode, again.stdout) == (0, "20 files\n"), again.stderr
