"""The C and the C++ host of examples/, built with this machine's compiler, once per test session."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import onnxruntime
import pytest

import fairy2i_runtime
from conftest import ROOT
from runtime_models import copy_of_stories, edit_config

EXAMPLES = ROOT / "examples"
SHARED = EXAMPLES / "c" / "shared"
HEADERS = ROOT / "custom_ops" / "third_party" / "onnxruntime"
WARNINGS = (
    "-O1",
    "-g",
    "-Wall",
    "-Wextra",
    "-Werror",
    f"-I{EXAMPLES / 'c'}",
    f"-isystem{HEADERS}",
    "-D_GNU_SOURCE",
)
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def compiler(*names: str) -> str:
    """The first of these compilers that there is, else the test is skipped."""
    found = next((name for name in names if name and shutil.which(name)), None)
    if found is None:
        pytest.skip(f"no compiler: {', '.join(filter(None, names))}")
    return found


def onnxruntime_library() -> Path:
    """The shared library in the wheel."""
    (path,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    return path


def genai_library() -> Path:
    """The shared library in onnxruntime-genai's wheel, else the test is skipped."""
    return Path(pytest.importorskip("onnxruntime_genai").__file__).parent / "libonnxruntime-genai.so"


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="fairy2i-hosts-")  # removed when the interpreter ends


def compiled(*command: str | Path) -> None:
    done = subprocess.run(
        list(map(str, command)), cwd=_scratch().name, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


@functools.cache
def _sanitizers(program: str) -> tuple[str, ...]:
    """What finds wrong addresses and leaks, where the compiler has it."""
    source = Path(_scratch().name) / "empty.c"
    source.write_text("int main(void) { return 0; }\n")
    command = [program, *SANITIZERS, str(source), "-o", str(source.with_suffix(""))]
    return SANITIZERS if subprocess.run(command, capture_output=True, check=False).returncode == 0 else ()


@functools.cache
def c_host() -> Path:
    """fairy2i_tokens, with sanitizers."""
    return _c_host("fairy2i_tokens", sanitized=True)


@functools.cache
def plain_c_host() -> Path:
    """The same without them: they want terabytes of address space."""
    (Path(_scratch().name) / "plain").mkdir()
    return _c_host("plain/fairy2i_tokens", sanitized=False)


def _c_host(name: str, sanitized: bool) -> Path:
    cc = compiler(os.environ.get("CC", ""), "cc", "gcc", "clang")
    target = Path(_scratch().name) / name
    sources = [*(EXAMPLES / "c").glob("*.c"), *SHARED.glob("*.c"), SHARED / "third_party" / "cjson" / "cJSON.c"]
    library = f'-DDEFAULT_ONNXRUNTIME="{onnxruntime_library()}"'
    flags = _sanitizers(cc) if sanitized else ()
    compiled(cc, "-std=c11", *WARNINGS, *flags, library, *sources, "-o", target, "-ldl", "-lm")
    return target


@functools.cache
def cpp_host() -> Path:
    """fairy2i_chat."""
    genai = genai_library()
    cc, cxx = (
        compiler(os.environ.get("CC", ""), "cc", "gcc", "clang"),
        compiler(os.environ.get("CXX", ""), "c++", "g++", "clang++"),
    )
    target = Path(_scratch().name) / "fairy2i_chat"
    compiled(cc, "-std=c11", *WARNINGS, "-c", *SHARED.glob("*.c"), SHARED / "third_party" / "cjson" / "cJSON.c")
    libraries = (f'-DDEFAULT_ONNXRUNTIME="{onnxruntime_library()}"', f'-DDEFAULT_GENAI="{genai}"')
    objects = Path(_scratch().name).glob("*.o")
    compiled(
        cxx, "-std=c++17", *WARNINGS, *libraries, *(EXAMPLES / "cpp").glob("*.cpp"), *objects, "-o", target, "-ldl", "-lm"
    )
    return target


def stub_onnxruntime(target: Path, version: str) -> Path:
    """A library that says it is onnxruntime of that version, and has no interface at all."""
    source = target.with_suffix(".c")
    source.write_text(
        '#include "onnxruntime_c_api.h"\n#include <stddef.h>\n'
        "static const OrtApi *api(uint32_t version) { return version ? NULL : NULL; }\n"
        f'static const char *version(void) {{ return "{version}"; }}\n'
        "static const OrtApiBase base = {api, version};\n"
        "const OrtApiBase *OrtGetApiBase(void) { return &base; }\n"
    )
    cc = compiler(os.environ.get("CC", ""), "cc", "gcc", "clang")
    compiled(cc, "-shared", "-fPIC", *WARNINGS, "-Wl,-soname,libonnxruntime.so.1", source, "-o", target)
    return target


def for_another_processor(library: str | Path, target: Path) -> Path:
    """A copy whose ELF header names another processor than this one's."""
    data = bytearray(Path(library).read_bytes())
    data[18:20] = (183 if data[18] == 62 else 62).to_bytes(2, "little")
    target.write_bytes(data)
    return target


def run_host(
    program: Path, *arguments: object, text: str = "", cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run one with the installed operator library, unless a variable or an argument names another."""
    environment = {**os.environ, "FAIRY2I_LIBRARY": fairy2i_runtime.library_path(), **variables}
    command = [str(program), *map(str, arguments)]
    return subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=300, check=False, cwd=cwd, env=environment
    )


def refused(program: Path, *arguments: object, **variables: str) -> str:
    """The one line of a program that refuses to run."""
    done = run_host(program, *arguments, **variables)
    assert done.returncode == 2, done.stderr
    assert done.stdout in ("", "> ")  # the chat may have asked for a question
    assert done.stderr.startswith(f"{program.name}: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def without_memory(program: Path, scratch: Path, *arguments: object) -> str:
    """The one line of a program that gets a model whose cache is larger than the process may become."""
    resource = pytest.importorskip("resource")
    folder = copy_of_stories(scratch / "large")
    most = 1 << 24  # tokens, of 5 layers with 4 heads of 8 numbers: 21 GB
    edit_config(folder, "model", "context_length", value=most)
    done = subprocess.run(
        list(map(str, (program, folder, *arguments, "--context", most, "--threads", 1))),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "FAIRY2I_LIBRARY": fairy2i_runtime.library_path()},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)),
    )
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr
