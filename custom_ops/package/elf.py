"""Shared libraries of Android and static archives of Linux: machine, pages, and the names they export and import."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from public_names import FOLDER, Refused, public_names, sentence

LIBRARY = "libfairy2i_ops.so"
API_LEVEL = 24  # as in CMakePresets.json
MACHINES = {"arm64-v8a": "EM_AARCH64", "x86_64": "EM_X86_64", "armeabi-v7a": "EM_ARM"}
PAGE = {"arm64-v8a": 16384, "x86_64": 16384, "armeabi-v7a": 4096}  # 32-bit systems have small pages only
SYSTEM_LIBRARIES = {"libc.so", "libm.so", "libdl.so"}


@dataclass(frozen=True)
class AndroidLibrary:
    """What there is to say of a library that passed."""

    abi: str
    bytes: int
    alignment: int  # bytes, the least of all LOAD segments
    exports: int
    imports: tuple[str, ...]  # names of libc and libm
    debug_bytes: int  # of debug information


def bionic_names(level: int = API_LEVEL) -> set[str]:
    """Functions of Android's C library at an API level, of those that the library may need (bionic.txt)."""
    rows = (FOLDER / "bionic.txt").read_text(encoding="utf-8").splitlines()
    fields = [row.split() for row in rows if row and not row.startswith("#")]
    return {name for _, name, since in fields if int(since) <= level}


def open_elf(path: Path) -> ELFFile:
    """Read a whole file.

    Raises:
        Refused: there is none, or it is no ELF file.
    """
    try:
        return ELFFile(io.BytesIO(path.read_bytes()))
    except OSError as error:
        raise Refused(f"{path}: expected a shared library, found none ({error.strerror})") from None
    except ELFError:
        raise Refused(f"{path}: expected a shared library for Android, but this is no ELF file") from None


def check_android(path: Path, abi: str) -> AndroidLibrary:
    """Check that a file is the operator library as Android's loader wants it for an ABI.

    Raises:
        Refused: it is not, with the reason.
    """
    elf = open_elf(path)
    try:
        return _check(path, elf, abi)
    except (ELFError, LookupError, ValueError) as error:  # pyelftools, at contents that contradict each other
        raise Refused(f"{path}: a damaged library ({error}); build it again") from None


def _check(path: Path, elf: ELFFile, abi: str) -> AndroidLibrary:
    if elf["e_machine"] != MACHINES[abi]:
        found = next((name for name, value in MACHINES.items() if value == elf["e_machine"]), str(elf["e_machine"]))
        raise Refused(f"{path}: expected a library for {abi}, found one for {found}")
    dynamic, symbols = elf.get_section_by_name(".dynamic"), elf.get_section_by_name(".dynsym")
    if elf["e_type"] != "ET_DYN" or dynamic is None or symbols is None:
        raise Refused(f"{path}: expected a shared library, found an object file or a program")
    _check_dynamic(path, list(dynamic.iter_tags()))
    alignment = _check_pages(path, elf, PAGE[abi])
    exports, imports = _check_symbols(path, list(symbols.iter_symbols()))
    debug = sum(section["sh_size"] for section in elf.iter_sections() if section.name.startswith(".debug"))
    return AndroidLibrary(abi, path.stat().st_size, alignment, len(exports), tuple(sorted(imports)), debug)


def _check_pages(path: Path, elf: ELFFile, page: int) -> int:
    segments = [segment for segment in elf.iter_segments() if segment["p_type"] == "PT_LOAD"]
    alignment = min((int(segment["p_align"]) for segment in segments), default=0)
    fits = all((segment["p_vaddr"] - segment["p_offset"]) % page == 0 for segment in segments)
    if alignment < page or not fits:
        raise Refused(
            f"{path}: expected segments for pages of {page} bytes, found an alignment of {alignment}; "
            f"link with -Wl,-z,max-page-size={page}, as custom_ops/CMakeLists.txt does for Android"
        )
    return alignment


def _check_dynamic(path: Path, tags: list) -> None:  # type: ignore[type-arg]  # pyelftools has no types
    needed = {tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED"}
    if needed - SYSTEM_LIBRARIES:
        raise Refused(
            f"{path}: needs {sentence(needed - SYSTEM_LIBRARIES)}, expected nothing but {sentence(SYSTEM_LIBRARIES)}: "
            "libraries for Android are built with the presets android-* and the NDK"
        )
    names = [tag.soname for tag in tags if tag.entry.d_tag == "DT_SONAME"]
    if names != [LIBRARY]:
        raise Refused(f"{path}: expected the name (DT_SONAME) {LIBRARY}, found {', '.join(names) or 'none'}")
    if any(tag.entry.d_tag == "DT_TEXTREL" for tag in tags):
        raise Refused(f"{path}: has text relocations, which Android refuses; compile with -fPIC")


def _check_symbols(path: Path, symbols: list) -> tuple[set[str], set[str]]:  # type: ignore[type-arg]
    exports = {s.name for s in symbols if s["st_shndx"] != "SHN_UNDEF" and s["st_info"]["bind"] != "STB_LOCAL"}
    imports = {s.name for s in symbols if s["st_shndx"] == "SHN_UNDEF" and s["st_info"]["bind"] == "STB_GLOBAL"}
    public = public_names()
    if public - exports:
        raise Refused(f"{path}: expected the operator library, but it does not export {sentence(public - exports)}")
    if exports - public:
        raise Refused(f"{path}: exports names that are not in src/exports.map: {sentence(exports - public)}")
    unknown = imports - bionic_names()
    if unknown:
        raise Refused(
            f"{path}: imports {sentence(unknown)}, which package/bionic.txt does not list for Android {API_LEVEL}; "
            "if bionic has it at that level, add it there"
        )
    return exports, imports


def archive_names(members: dict[str, bytes]) -> set[str]:
    """External symbols that the objects of an ELF archive define.

    Raises:
        Refused: a member is no ELF object.
    """
    names: set[str] = set()
    for member, content in members.items():
        try:
            table = ELFFile(io.BytesIO(content)).get_section_by_name(".symtab")
        except ELFError:
            raise Refused(f"{member}: expected an ELF object in the archive") from None
        if table is not None:
            symbols = [s for s in table.iter_symbols() if s["st_info"]["bind"] != "STB_LOCAL"]
            names |= {s.name for s in symbols if s["st_shndx"] != "SHN_UNDEF"}
    return names
