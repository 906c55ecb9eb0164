"""Write what the C and C++ hosts share with the Python runtime: ``python scripts/host_values.py``, after a change of either.

The values are defined in Python alone. ``examples/c/shared/python_values.h`` is in the repository so that the hosts can be
built without Python; ``tests/hosts/test_host_values.py`` keeps it current.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

from fairy2i_runtime.commands.chat import CHAT_DEFAULTS

ROOT = Path(__file__).resolve().parent.parent
HEADER = ROOT / "examples" / "c" / "shared" / "python_values.h"


def oldest_onnxruntime() -> tuple[int, int, int]:
    """The lower bound of the Python package for onnxruntime: major, minor, patch."""
    project = tomllib.loads((ROOT / "runtime" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (wanted,) = (need for text in project["dependencies"] if (need := Requirement(text)).name == "onnxruntime")
    (bound,) = (specifier.version for specifier in wanted.specifier if specifier.operator == ">=")
    major, minor, patch = (int(number) for number in bound.split("."))
    return major, minor, patch


def header() -> str:
    """The whole text of the header."""
    lines = [
        "/* python_values.h - what is defined in the Python runtime and holds here, too. Written by scripts/host_values.py. */",
        "#ifndef PYTHON_VALUES_H",
        "#define PYTHON_VALUES_H",
        "",
        "/* runtime/pyproject.toml: the oldest onnxruntime */",
        *(
            f"#define OLDEST_ONNXRUNTIME_{part} {number}"
            for part, number in zip(("MAJOR", "MINOR", "PATCH"), oldest_onnxruntime(), strict=True)
        ),
        "",
        "/* fairy2i chat: how tokens are drawn in a conversation if the model recommends nothing */",
        *(f"#define CHAT_{name.upper()} {value}" for name, value in CHAT_DEFAULTS.items()),
        "",
        "#endif",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    HEADER.write_text(header(), encoding="utf-8")
