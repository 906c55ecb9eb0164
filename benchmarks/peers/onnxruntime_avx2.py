"""A copy of the installed onnxruntime that takes the processor for one without AVX-512.

onnxruntime chooses its kernels by what the processor says of itself, and has no setting for that. An x86 program may use the
registers of AVX-512 if XGETBV says that the system keeps them (Intel SDM volume 1, 14.3): in the copy every XGETBV is replaced by
an instruction that says it keeps those of SSE and AVX alone. So the same release can be measured as it runs on a processor with
AVX2:

    python benchmarks/peers/onnxruntime_avx2.py FOLDER
    PYTHONPATH=FOLDER python benchmarks/bench_linear.py --engine lut:avx2 --engine auto:avx2 --engine ort-q2 ...

Needs objdump. Our own library still finds AVX-512 there; engines of it name the instruction set. For measuring only.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from typing import Annotated

import typer

XGETBV = bytes.fromhex("0f01d0")
SSE_AND_AVX = bytes.fromhex("b00690")  # mov al, 6; nop. The bits of AVX-512 are 5 to 7 (SDM volume 1, 13.3)


def objdump(*options: str) -> str:
    return subprocess.run(["objdump", *options], capture_output=True, text=True, check=True).stdout


def places(library: Path) -> list[int]:
    """Where in the file XGETBV stands; the same bytes inside other instructions are left alone."""
    sections = re.findall(r"^ *\d+ (\.\S+) +(\w{8,}) +(\w{8,}) +\w+ +(\w{8,})", objdump("-h", str(library)), re.M)
    found = []
    for name, size, address, offset in sections:
        if not name.startswith(".text"):
            continue
        code = objdump("-d", "--no-show-raw-insn", "-j", name, str(library))
        for place in re.findall(r"^ *(\w+):\s+xgetbv", code, re.M):
            assert int(address, 16) <= int(place, 16) < int(address, 16) + int(size, 16)
            found.append(int(place, 16) - int(address, 16) + int(offset, 16))
    return found


def main(folder: Annotated[Path, typer.Argument(help="Where the copy goes; must not exist.")]) -> None:
    """Copy and change the package."""
    package = importlib.util.find_spec("onnxruntime")
    if package is None or package.origin is None:
        raise typer.BadParameter("expected onnxruntime to be installed, found no such package")
    if folder.exists():
        raise typer.BadParameter(f"expected no such folder yet, found {folder}", param_hint="FOLDER")
    if shutil.which("objdump") is None:
        raise typer.BadParameter("expected objdump, found no such program; install binutils")
    installed = Path(package.origin).parent
    (library,) = installed.glob("capi/onnxruntime_pybind11_state*.so")
    code = bytearray(library.read_bytes())
    found = places(library)
    for place in found:
        assert code[place : place + 3] == XGETBV
        code[place : place + 3] = SSE_AND_AVX
    if not found:
        raise typer.BadParameter(f"expected XGETBV in {library}, found none: is it for x86-64?")
    copy = folder / "onnxruntime"
    shutil.copytree(installed, copy)
    (copy / library.relative_to(installed)).write_bytes(code)
    typer.echo(f"{folder}: {len(found)} places changed; put it first into PYTHONPATH")


if __name__ == "__main__":
    typer.run(main)
