"""The AAR for Android: what is in it, and what is refused. The library itself is linked and packed by .ci/android."""

from __future__ import annotations

import io
import os
import platform
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fairy2i_runtime import library_path
from package_helpers import link_android, public_names, refusal, run_tool

pytest.importorskip("elftools")
ABIS = {"x86_64": "x86_64", "aarch64": "arm64-v8a"}
MACHINE_OFFSET = 18  # of e_machine in an ELF header, 2 bytes
AARCH64, X86_64 = b"\xb7\x00", b"\x3e\x00"


@pytest.fixture(scope="module")
def abi() -> str:
    if platform.system() != "Linux" or platform.machine() not in ABIS:
        pytest.skip("links libraries for 64-bit Linux")
    return ABIS[platform.machine()]


def of_the_other_machine(path: Path, output: Path) -> Path:
    """A copy whose header names the other 64-bit processor."""
    content = bytearray(path.read_bytes())
    machine = slice(MACHINE_OFFSET, MACHINE_OFFSET + 2)
    content[machine] = AARCH64 if content[machine] == X86_64 else X86_64
    output.write_bytes(content)
    return output


def test_layout(tmp_path: Path, abi: str) -> None:
    library = link_android(tmp_path / "library", public_names())
    (other_abi,) = {"x86_64", "arm64-v8a"} - {abi}
    other = of_the_other_machine(library, tmp_path / "other.so")
    aar = tmp_path / "fairy2i-ops.aar"
    done = run_tool("aar.py", "-o", aar, f"{abi}={library}", f"{other_abi}={other}")
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(aar) as archive:
        assert archive.testzip() is None
        names = set(archive.namelist())
        assert {"AndroidManifest.xml", "R.txt", "classes.jar", "proguard.txt", "LICENSE"} <= names
        assert {name for name in names if name.startswith("jni/")} == {
            f"jni/{abi}/libfairy2i_ops.so",
            f"jni/{other_abi}/libfairy2i_ops.so",
        }
        assert archive.read(f"jni/{abi}/libfairy2i_ops.so") == library.read_bytes()
        assert archive.read(f"jni/{other_abi}/libfairy2i_ops.so") == other.read_bytes()
        manifest = ElementTree.fromstring(archive.read("AndroidManifest.xml"))
        assert (manifest.tag, manifest.get("package")) == ("manifest", "ai.fairy2i.ops")
        (sdk,) = manifest.findall("uses-sdk")
        assert sdk.get("{http://schemas.android.com/apk/res/android}minSdkVersion") == "24"
        with zipfile.ZipFile(io.BytesIO(archive.read("classes.jar"))) as jar:
            assert jar.namelist() == ["META-INF/MANIFEST.MF"]


def test_the_same_libraries_give_the_same_bytes(tmp_path: Path, abi: str) -> None:
    library = link_android(tmp_path / "library", public_names())
    first, second = tmp_path / "first.aar", tmp_path / "second.aar"
    run_tool("aar.py", "-o", first, f"{abi}={library}")
    os.utime(library, (1, 1))
    run_tool("aar.py", "-o", second, f"{abi}={library}")
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("names", "calls", "changes", "reason"),
    [
        (
            public_names(),
            ("memcpy",),
            {"page": "4096"},
            "expected segments for pages of 16384 bytes, found an alignment of 4096",
        ),
        ([*public_names(), "helper"], ("memcpy",), {}, "exports names that are not in src/exports.map: helper"),
        (public_names()[1:], ("memcpy",), {}, "does not export RegisterCustomOps"),
        (public_names(), ("memcpy", "secure_getenv"), {}, "imports secure_getenv, which package/bionic.txt does not list"),
        (public_names(), ("memcpy",), {"needed": "libc.so.6"}, "needs libc.so.6, expected nothing but libc.so"),
        (
            public_names(),
            ("memcpy",),
            {"soname": "libother.so"},
            "(DT_SONAME) libfairy2i_ops.so, found libother.so",
        ),
    ],
    ids=["pages", "export", "missing", "import", "needed", "name"],
)
def test_a_wrong_library_is_refused(
    tmp_path: Path, abi: str, names: list[str], calls: tuple[str, ...], changes: dict[str, str], reason: str
) -> None:
    library = link_android(tmp_path / "library", names, calls, **changes)
    message = refusal(run_tool("aar.py", "-o", tmp_path / "x.aar", f"{abi}={library}"))
    assert reason in message
    assert str(library) in message
    assert {path.name for path in tmp_path.iterdir()} == {"library"}


def test_another_machine_is_refused(tmp_path: Path, abi: str) -> None:
    library = of_the_other_machine(link_android(tmp_path / "library", public_names()), tmp_path / "other.so")
    message = refusal(run_tool("aar.py", "-o", tmp_path / "x.aar", f"{abi}={library}"))
    assert f"expected a library for {abi}, found one for {'x86_64' if abi != 'x86_64' else 'arm64-v8a'}" in message


def test_the_library_for_linux_is_refused(tmp_path: Path, abi: str) -> None:
    message = refusal(run_tool("aar.py", "-o", tmp_path / "x.aar", f"{abi}={library_path()}"))
    assert "libraries for Android are built with the presets android-*" in message


@pytest.mark.parametrize("content", [None, b"", b"\x7fELF", b"#!/bin/sh\n"])
def test_files_that_are_no_library_are_refused(tmp_path: Path, abi: str, content: bytes | None) -> None:
    path = tmp_path / "libfairy2i_ops.so"
    if content is not None:
        path.write_bytes(content)
    assert "expected a shared library" in refusal(run_tool("aar.py", "-o", tmp_path / "x.aar", f"{abi}={path}"))
    assert not (tmp_path / "x.aar").exists()


@pytest.mark.parametrize("cut", [100, 1000, 9000])
def test_a_library_that_was_cut_off_is_refused(tmp_path: Path, abi: str, cut: int) -> None:
    library = link_android(tmp_path / "library", public_names())
    library.write_bytes(library.read_bytes()[:cut])
    refusal(run_tool("aar.py", "-o", tmp_path / "x.aar", f"{abi}={library}"))


def test_words_that_are_no_library_of_an_abi(tmp_path: Path) -> None:
    for words, reason in (
        (["x.so"], "expected ABI=PATH"),
        (["x86=x.so"], "expected ABI=PATH with an ABI out of arm64-v8a, x86_64, armeabi-v7a"),
        (["x86_64=a.so", "x86_64=b.so"], "got two for x86_64: a.so and b.so"),
    ):
        assert reason in refusal(run_tool("aar.py", "-o", tmp_path / "x.aar", *words))
