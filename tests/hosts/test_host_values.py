"""scripts/host_values.py: what the C and C++ hosts share with the Python runtime is what Python says."""

from __future__ import annotations

import re
import sys

from conftest import ROOT
from fairy2i_runtime.commands.chat import CHAT_DEFAULTS

sys.path.insert(0, str(ROOT / "scripts"))
from host_values import HEADER, header, oldest_onnxruntime


def test_the_header_is_current() -> None:
    assert HEADER.read_text(encoding="utf-8") == header(), "run python scripts/host_values.py"


def test_the_values() -> None:
    found = dict(re.findall(r"^#define (\w+) ([\d.]+)$", header(), re.M))
    assert {name: float(found[f"CHAT_{name.upper()}"]) for name in CHAT_DEFAULTS} == CHAT_DEFAULTS
    version = tuple(int(found[f"OLDEST_ONNXRUNTIME_{part}"]) for part in ("MAJOR", "MINOR", "PATCH"))
    assert version == oldest_onnxruntime() >= (1, 24, 4)
