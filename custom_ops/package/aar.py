"""Lay the Android library out as an AAR, the archive that an app's Gradle build takes.

    python custom_ops/package/aar.py -o fairy2i-ops.aar arm64-v8a=build/android-arm64-v8a/libfairy2i_ops.so ...

Every library is checked first: machine, pages of 16 KiB, the names it exports, and that Android has what it imports. The
same libraries give the same bytes. Needs pyelftools.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import zipfile
from pathlib import Path

try:
    from elf import API_LEVEL, LIBRARY, MACHINES, AndroidLibrary, check_android
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}; pip install pyelftools")
from public_names import CUSTOM_OPS, Refused

DATE = (1980, 1, 1, 0, 0, 0)  # the first that a zip file can name
MANIFEST = f"""<?xml version="1.0" encoding="utf-8"?>
<manifest xmlns:android="http://schemas.android.com/apk/res/android" package="ai.fairy2i.ops">
    <uses-sdk android:minSdkVersion="{API_LEVEL}" />
</manifest>
"""
METADATA = "aarFormatVersion=1.0\naarMetadataVersion=1.0\n"
PROGUARD = "# No Java classes, so nothing to keep.\n"
ROOT = CUSTOM_OPS.parent


def zipped(entries: dict[str, bytes]) -> bytes:
    """A zip file of named contents, stored in the order of their names: the same entries give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(entries):
            info = zipfile.ZipInfo(name, DATE)
            info.create_system, info.external_attr = 3, 0o100644 << 16
            archive.writestr(info, entries[name])
    return buffer.getvalue()


def contents(libraries: dict[str, Path]) -> dict[str, bytes]:
    """Everything in the AAR: name -> bytes. `libraries` has a file for each ABI."""
    onnxruntime = CUSTOM_OPS / "third_party" / "onnxruntime"
    return {
        "AndroidManifest.xml": MANIFEST.encode(),
        "META-INF/com/android/build/gradle/aar-metadata.properties": METADATA.encode(),
        "R.txt": b"",  # no resources
        "classes.jar": zipped({"META-INF/MANIFEST.MF": b"Manifest-Version: 1.0\r\n\r\n"}),  # no classes
        "proguard.txt": PROGUARD.encode(),
        "headers/fairy2i.h": (CUSTOM_OPS / "include" / "fairy2i.h").read_bytes(),
        "LICENSE": (ROOT / "LICENSE").read_bytes(),
        "third_party/onnxruntime/LICENSE": (onnxruntime / "LICENSE").read_bytes(),
        **{f"jni/{abi}/{LIBRARY}": path.read_bytes() for abi, path in libraries.items()},
    }


def parse(words: list[str]) -> dict[str, Path]:
    """ABI=PATH words.

    Raises:
        Refused: a word is something else, or an ABI comes twice.
    """
    libraries: dict[str, Path] = {}
    for word in words:
        abi, equals, path = word.partition("=")
        if not equals or abi not in MACHINES:
            raise Refused(f"expected ABI=PATH with an ABI out of {', '.join(MACHINES)}, got {word}")
        if abi in libraries:
            raise Refused(f"expected one library for each ABI, got two for {abi}: {libraries[abi]} and {path}")
        libraries[abi] = Path(path)
    return libraries


def describe(path: Path, found: AndroidLibrary) -> str:
    """A line about a library that passed."""
    line = f"{found.abi}: {path}, {found.bytes} bytes, segments at {found.alignment}, {found.exports} names exported, "
    line += f"imports {' '.join(found.imports)}"
    if found.debug_bytes:
        line += f"\n  {found.debug_bytes} bytes are debug information; cmake --install BUILD --strip removes them"
    return line


def write(whole: bytes, output: Path) -> None:
    """Write a file that appears complete or not at all."""
    if not output.absolute().parent.is_dir():
        raise Refused(f"{output}: expected an existing folder {output.parent}; create it first")
    unfinished = output.with_name(output.name + ".part")
    try:
        unfinished.write_bytes(whole)
        os.replace(unfinished, output)
    finally:
        unfinished.unlink(missing_ok=True)


def main() -> None:
    """Check, then write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("libraries", nargs="+", metavar="ABI=PATH", help=f"a built library; ABI: {', '.join(MACHINES)}")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the AAR to write; one that is there is replaced")
    arguments = parser.parse_args()
    try:
        libraries = parse(arguments.libraries)
        for abi, path in libraries.items():
            print(describe(path, check_android(path, abi)))
        whole = zipped(contents(libraries))
        write(whole, arguments.output)
    except (Refused, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{arguments.output}: {len(whole)} bytes, {', '.join(libraries)}")


if __name__ == "__main__":
    main()
