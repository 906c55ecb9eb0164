"""What the linker and the compiler were asked for is in the library: docs/security.md."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fairy2i_runtime import library_path

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ELF files of Linux")


def test_the_library_is_hardened() -> None:
    elffile = pytest.importorskip("elftools.elf.elffile")
    with Path(library_path()).open("rb") as file:
        elf = elffile.ELFFile(file)
        segments = {segment["p_type"]: segment for segment in elf.iter_segments()}
        dynamic = {tag.entry.d_tag: tag.entry.d_val for tag in segments["PT_DYNAMIC"].iter_tags()}
        needed = {
            symbol.name for symbol in elf.get_section_by_name(".dynsym").iter_symbols() if symbol["st_shndx"] == "SHN_UNDEF"
        }
        assert "PT_GNU_RELRO" in segments
        assert dynamic.get("DT_FLAGS", 0) & 8 or dynamic.get("DT_FLAGS_1", 0) & 1, "bound now"
        assert segments["PT_GNU_STACK"]["p_flags"] & 1 == 0, "no executable stack"
        assert not [s for s in elf.iter_segments() if s["p_type"] == "PT_LOAD" and s["p_flags"] & 3 == 3], "write or execute"
    if not any("san_" in name for name in needed):  # sanitizers replace what follows
        assert "__stack_chk_fail" in needed
        assert any(name.endswith("_chk") for name in needed), "checked functions"
