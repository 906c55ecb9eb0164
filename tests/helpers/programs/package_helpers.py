"""Small libraries that look like the operator library to whoever checks and packs it: the names, and functions without work."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT

PACKAGE = ROOT / "custom_ops" / "package"


def public_names() -> list[str]:
    """As the library's own test reads them: from its header, and the two names that onnxruntime calls."""
    header = (ROOT / "custom_ops" / "include" / "fairy2i.h").read_text(encoding="utf-8")
    return ["RegisterCustomOps", "Fairy2i_RegisterCustomOps", *sorted(set(re.findall(r"\b(f2i_\w+)\(", header)))]


def functions(names: list[str], calls: tuple[str, ...] = ()) -> str:
    """C source that defines `names` and calls other functions."""
    lines = [f"void {name}(void);" for name in (*calls, *names)]
    lines += [f"void {name}(void) {{ {''.join(f'{call}(); ' for call in calls)}}}" for name in names]
    return "\n".join(lines) + "\n"


def run_tool(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script of custom_ops/package."""
    command = [sys.executable, PACKAGE / name, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one line with which a script refused something."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def tool(name: str) -> str:
    """A program that the test cannot do without."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}")
    return found


def link_android(folder: Path, names: list[str], calls: tuple[str, ...] = ("memcpy",), **changes: str) -> Path:
    """A shared library of this machine's processor that needs Android's libc.so.

    Args:
        folder: where everything is made.
        names: what it exports.
        calls: what it imports, of a libc without contents.
        changes: instead of the usual ``page``, ``soname`` and ``needed``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    gcc = [tool("gcc"), "-shared", "-fPIC", "-nostdlib", "-fno-builtin", "-w"]
    needed, path = folder / changes.get("needed", "libc.so"), folder / "libfairy2i_ops.so"
    (folder / "libc.c").write_text(functions(list(calls)))
    (folder / "ops.c").write_text(functions(names, calls))
    subprocess.run([*gcc, f"-Wl,-soname,{needed.name}", "-o", needed, folder / "libc.c"], check=True)
    page = f"-Wl,-z,max-page-size={changes.get('page', '16384')}"
    soname = f"-Wl,-soname,{changes.get('soname', path.name)}"
    subprocess.run([*gcc, page, soname, "-o", path, folder / "ops.c", needed], check=True)
    return path
