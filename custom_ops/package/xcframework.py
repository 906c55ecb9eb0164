r"""Lay static archives out as an xcframework, as `xcodebuild -create-xcframework` does on a Mac, and check them first.

    python custom_ops/package/xcframework.py -o Fairy2iOps.xcframework build/ios-arm64/libfairy2i_ops.a \
      build/ios-simulator-arm64/libfairy2i_ops.a build/ios-simulator-x86_64/libfairy2i_ops.a

Each archive is of one architecture; those for the same platform are joined with lipo. In Swift, `import Fairy2iOps` then
gives Fairy2i_RegisterCustomOps. Needs lief and arpy.
"""

from __future__ import annotations

import argparse
import plistlib
import shutil
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

try:
    from macho import AppleArchive, check_archive
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}; pip install lief arpy")
from public_names import CUSTOM_OPS, Refused

LIBRARY = "libfairy2i_ops.a"
MODULE_MAP = 'module Fairy2iOps {\n  header "fairy2i.h"\n  export *\n}\n'
LIPO = ("lipo", "llvm-lipo", *(f"llvm-lipo-{version}" for version in range(30, 13, -1)))


def name_of(platform: tuple[str, str]) -> str:
    """Platform and variant in one word."""
    return "-".join(filter(None, platform))


def grouped(archives: list[AppleArchive]) -> dict[tuple[str, str], list[AppleArchive]]:
    """Archives by platform, architectures in alphabetical order.

    Raises:
        Refused: the same architecture twice.
    """
    groups: dict[tuple[str, str], list[AppleArchive]] = {}
    for archive in archives:
        groups.setdefault(archive.platform, []).append(archive)
    for group in groups.values():
        group.sort(key=lambda archive: archive.architecture)
        for first, second in pairwise(group):
            if first.architecture == second.architecture:
                raise Refused(f"{first.path} and {second.path}: both are {first.architecture} for {name_of(first.platform)}")
    return groups


def join(archives: list[AppleArchive], output: Path) -> None:
    """One file of archives of several architectures.

    Raises:
        Refused: there is no lipo, or it fails.
    """
    if len(archives) == 1:
        shutil.copyfile(archives[0].path, output)
        return
    lipo = next((found for name in LIPO if (found := shutil.which(name))), None)
    if lipo is None:
        raise Refused("joining two architectures needs lipo (Xcode's, or llvm-lipo), found none; or leave one of them out")
    command = [lipo, "-create", *(str(archive.path) for archive in archives), "-output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Refused(f"{' '.join(command)} failed: {done.stderr.strip()}")


def lay_out(archives: list[AppleArchive], folder: Path) -> None:
    """Write an xcframework's folder, which must not exist."""
    available: list[dict[str, Any]] = []
    for (platform, variant), group in sorted(grouped(archives).items()):
        architectures = [archive.architecture for archive in group]
        identifier = "-".join(filter(None, [platform, "_".join(architectures), variant]))
        headers = folder / identifier / "Headers"
        headers.mkdir(parents=True)
        join(group, folder / identifier / LIBRARY)
        shutil.copyfile(CUSTOM_OPS / "include" / "fairy2i.h", headers / "fairy2i.h")
        (headers / "module.modulemap").write_text(MODULE_MAP, encoding="utf-8")
        entry = {
            "BinaryPath": LIBRARY,
            "HeadersPath": "Headers",
            "LibraryIdentifier": identifier,
            "LibraryPath": LIBRARY,
            "SupportedArchitectures": architectures,
            "SupportedPlatform": platform,
        }
        available.append(entry | ({"SupportedPlatformVariant": variant} if variant else {}))
    info = {"AvailableLibraries": available, "CFBundlePackageType": "XFWK", "XCFrameworkFormatVersion": "1.0"}
    (folder / "Info.plist").write_bytes(plistlib.dumps(info))
    shutil.copyfile(CUSTOM_OPS.parent / "LICENSE", folder / "LICENSE")
    shutil.copyfile(CUSTOM_OPS / "third_party" / "onnxruntime" / "LICENSE", folder / "LICENSE.onnxruntime")


def main() -> None:
    """Check, then write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archives", nargs="+", type=Path, metavar="ARCHIVE", help="a built libfairy2i_ops.a")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the .xcframework to write; must not exist")
    arguments = parser.parse_args()
    output: Path = arguments.output
    try:
        if output.suffix != ".xcframework":
            raise Refused(f"{output}: expected a name that ends with .xcframework, Xcode knows it by that")
        if output.exists():
            raise Refused(f"{output}: exists; remove it, or name another")
        if not output.absolute().parent.is_dir():
            raise Refused(f"{output}: expected an existing folder {output.parent}; create it first")
        archives = [check_archive(path) for path in arguments.archives]
        for archive in archives:
            kind = f"{archive.architecture}, {name_of(archive.platform)} {archive.minimum}"
            print(f"{archive.path}: {kind}, imports {' '.join(archive.imports)}")
        with tempfile.TemporaryDirectory(dir=output.absolute().parent, prefix=output.name) as unfinished:
            lay_out(archives, Path(unfinished) / output.name)
            (Path(unfinished) / output.name).rename(output)
    except (Refused, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{output}: {', '.join(sorted(path.name for path in output.iterdir() if path.is_dir()))}")


if __name__ == "__main__":
    main()
