"""Static archives of Apple systems: architecture, platform, and the names they define and import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import lief
from archive import members
from public_names import FOLDER, Refused, check_archive_names, sentence

ARCHITECTURES = {"ARM64": "arm64", "X86_64": "x86_64"}  # as lief and as Apple calls them
PLATFORMS = {"IOS": ("ios", ""), "IOS_SIMULATOR": ("ios", "simulator")}  # SupportedPlatform, SupportedPlatformVariant


@dataclass(frozen=True)
class AppleArchive:
    """What there is to say of an archive that passed."""

    path: Path
    architecture: str
    platform: tuple[str, str]
    minimum: str  # the oldest system version
    imports: tuple[str, ...]


def darwin_names() -> set[str]:
    """Functions of libSystem that the library may need (darwin.txt)."""
    rows = (FOLDER / "darwin.txt").read_text(encoding="utf-8").splitlines()
    return {row for row in rows if row and not row.startswith("#")}


def _object(name: str, content: bytes) -> lief.MachO.Binary:
    parsed = lief.MachO.parse(content) if content[:4] == b"\xcf\xfa\xed\xfe" else None
    if parsed is None or parsed.at(0).header.file_type != lief.MachO.Header.FILE_TYPE.OBJECT:
        raise Refused(f"{name}: expected a 64-bit object file of an Apple system")
    return parsed.at(0)


def _kind(name: str, binary: lief.MachO.Binary) -> tuple[str, tuple[str, str], str]:
    """Architecture, platform and minimum version of an object."""
    architecture = ARCHITECTURES.get(binary.header.cpu_type.name)
    platform = binary.build_version.platform.name if binary.has_build_version else "unnamed"
    if architecture is None or platform not in PLATFORMS:
        raise Refused(
            f"{name}: expected arm64 or x86_64 for iOS or its simulator, found {binary.header.cpu_type.name.lower()} "
            f"for {platform.lower()}; build with the presets ios-*"
        )
    return architecture, PLATFORMS[platform], ".".join(str(part) for part in binary.build_version.minos[:2])


def check_archive(path: Path) -> AppleArchive:
    """Check that a file is the operator library as a static archive for iOS or its simulator, of one architecture.

    Raises:
        Refused: it is not, with the reason.
    """
    defined: set[str] = set()
    wanted: set[str] = set()
    kinds: dict[tuple[str, tuple[str, str], str], str] = {}
    for name, content in members(path).items():
        binary = _object(name, content)
        kinds.setdefault(_kind(name, binary), name)
        for symbol in binary.symbols:
            spelled = str(symbol.name).removeprefix("_")
            if symbol.category == lief.MachO.Symbol.CATEGORY.EXTERNAL:
                defined.add(spelled)
            elif symbol.category == lief.MachO.Symbol.CATEGORY.UNDEFINED:
                wanted.add(spelled)
    if len(kinds) != 1:
        raise Refused(f"{path}: expected objects of one kind, found {'; '.join(map(str, kinds)) or 'none'}")
    check_archive_names(path, defined, generic=False)
    imports = wanted - defined
    if imports - darwin_names():
        raise Refused(
            f"{path}: imports {sentence(imports - darwin_names())}, which package/darwin.txt does not list; "
            "if iOS has it, add it there"
        )
    ((architecture, platform, minimum),) = kinds
    return AppleArchive(path, architecture, platform, minimum, tuple(sorted(imports)))
