"""Build what the comparison with llama.cpp needs: llama-quantize, llama-imatrix, the library and its Python binding.

    python benchmarks/quality/conversion/rivals/build.py DIR [--jobs 1]

Everything comes from one source package of the package index, llama-cpp-python; nothing is installed outside DIR. Needs
cmake and a C++ compiler, about two minutes of processor time and 700 MB of disk.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Annotated

import typer

VERSION = "0.3.2"  # newer ones have the same types and more to compile
BINDING_NEEDS = ("diskcache", "typing_extensions")
OPTIONS = (
    "CMAKE_BUILD_TYPE=Release",
    "BUILD_SHARED_LIBS=ON",
    "LLAMA_BUILD_EXAMPLES=ON",
    "LLAMA_BUILD_TESTS=OFF",
    "LLAMA_CURL=OFF",
)


def library_folder(directory: Path) -> Path:
    return directory / "build" / "src"


def tool(directory: Path, name: str) -> Path:
    """Path of one of llama.cpp's programs.

    Raises:
        typer.BadParameter: it is not there.
    """
    path = directory / "build" / "bin" / name
    if not path.is_file():
        raise typer.BadParameter(f"{path} is missing: run benchmarks/quality/conversion/rivals/build.py {directory} first")
    return path


def binding_paths(directory: Path) -> list[Path]:
    """Folders from which Python imports llama_cpp and what that needs."""
    return [directory / f"llama_cpp_python-{VERSION}", directory / "python"]


def build(
    directory: Annotated[Path, typer.Argument(help="Where to build; a folder of its own.")],
    jobs: Annotated[int, typer.Option(help="Compilers at a time.")] = 1,
) -> None:
    """Download, unpack, compile."""
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    source, needed = binding_paths(directory)
    pip = [sys.executable, "-m", "pip"]
    if not source.is_dir():
        what = f"llama-cpp-python=={VERSION}"
        run([*pip, "download", "--no-deps", "--no-binary", "llama-cpp-python", "--dest", directory, what])
        with tarfile.open(directory / f"llama_cpp_python-{VERSION}.tar.gz") as archive:
            archive.extractall(directory, filter="data")
    run([*pip, "install", "--quiet", "--upgrade", "--target", needed, *BINDING_NEEDS])
    run(["cmake", "-S", source / "vendor" / "llama.cpp", "-B", directory / "build", *(f"-D{option}" for option in OPTIONS)])
    targets = ("llama-quantize", "llama-imatrix")
    run(["cmake", "--build", directory / "build", "-j", jobs, "--target", *targets])
    print(f"{directory}: {', '.join(targets)} and the library are built")


def run(command: list[object]) -> None:
    subprocess.run(list(map(str, command)), check=True)


if __name__ == "__main__":
    typer.run(build)
