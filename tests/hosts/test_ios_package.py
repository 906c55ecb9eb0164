"""The xcframework for iOS: what is in it, and what is refused. The library itself is compiled and laid out by .ci/ios."""

from __future__ import annotations

import plistlib
import subprocess
from pathlib import Path

import pytest

from package_helpers import functions, public_names, refusal, run_tool, tool

pytest.importorskip("lief")
pytest.importorskip("arpy")
NAMES = public_names()[1:]  # all but RegisterCustomOps
PHONE, SIMULATOR = "arm64-apple-ios15.1", "arm64-apple-ios15.1-simulator"


def archive(folder: Path, target: str, names: list[str] | None = None, calls: tuple[str, ...] = ("memcpy",)) -> Path:
    """An archive of one object that defines `names`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ops.c").write_text(functions(NAMES if names is None else names, calls))
    subprocess.run([tool("clang"), f"--target={target}", "-w", "-fno-builtin", "-c", "ops.c"], cwd=folder, check=True)
    path = folder / "libfairy2i_ops.a"
    subprocess.run([tool("ar"), "rcS", path, folder / "ops.o"], check=True)
    return path


def test_layout(tmp_path: Path) -> None:
    phone, simulator = archive(tmp_path / "phone", PHONE), archive(tmp_path / "simulator", SIMULATOR)
    output = tmp_path / "Fairy2iOps.xcframework"
    done = run_tool("xcframework.py", "-o", output, simulator, phone)
    assert done.returncode == 0, done.stderr
    info = plistlib.loads((output / "Info.plist").read_bytes())
    assert (info["CFBundlePackageType"], info["XCFrameworkFormatVersion"]) == ("XFWK", "1.0")
    first, second = info["AvailableLibraries"]
    assert (first["LibraryIdentifier"], first["SupportedPlatform"]) == ("ios-arm64", "ios")
    assert "SupportedPlatformVariant" not in first
    assert (second["LibraryIdentifier"], second["SupportedPlatformVariant"]) == ("ios-arm64-simulator", "simulator")
    for entry, source in ((first, phone), (second, simulator)):
        folder = output / entry["LibraryIdentifier"]
        assert entry["SupportedArchitectures"] == ["arm64"]
        assert (folder / entry["LibraryPath"]).read_bytes() == source.read_bytes()
        headers = folder / entry["HeadersPath"]
        assert {path.name for path in headers.iterdir()} == {"fairy2i.h", "module.modulemap"}


@pytest.mark.parametrize(
    ("target", "names", "calls", "reason"),
    [
        ("arm64-apple-macosx13", NAMES, ("memcpy",), "found arm64 for macos; build with the presets ios-*"),
        ("x86_64-linux-gnu", NAMES, ("memcpy",), "expected a 64-bit object file of an Apple system"),
        (PHONE, NAMES[1:], ("memcpy",), "does not define Fairy2i_RegisterCustomOps"),
        (PHONE, public_names(), ("memcpy",), "defines RegisterCustomOps, which collides"),
        (PHONE, [*NAMES, "helper"], ("memcpy",), "may collide with a program's: helper"),
        (PHONE, NAMES, ("memcpy", "secure_getenv"), "imports secure_getenv, which package/darwin.txt does not list"),
    ],
    ids=["macos", "elf", "missing", "common", "export", "import"],
)
def test_a_wrong_archive_is_refused(
    tmp_path: Path, target: str, names: list[str], calls: tuple[str, ...], reason: str
) -> None:
    path = archive(tmp_path / "archive", target, names, calls)
    message = refusal(run_tool("xcframework.py", "-o", tmp_path / "x.xcframework", path))
    assert reason in message
    assert str(path) in message
    assert {item.name for item in tmp_path.iterdir()} == {"archive"}


def test_outputs_and_archives_that_do_not_fit(tmp_path: Path) -> None:
    path = archive(tmp_path / "archive", PHONE)
    assert "ends with .xcframework" in refusal(run_tool("xcframework.py", "-o", tmp_path / "x", path))
    assert "both are arm64 for ios" in refusal(run_tool("xcframework.py", "-o", tmp_path / "x.xcframework", path, path))
    (tmp_path / "x.xcframework").mkdir()
    assert "exists" in refusal(run_tool("xcframework.py", "-o", tmp_path / "x.xcframework", path))
    universal = tmp_path / "universal.a"
    universal.write_bytes(b"\xca\xfe\xba\xbe" + bytes(40))
    assert "universal file" in refusal(run_tool("xcframework.py", "-o", tmp_path / "y.xcframework", universal))
