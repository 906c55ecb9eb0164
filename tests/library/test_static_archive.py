"""The static archive: what it defines, and a program in which another library of operators is linked as well."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import onnx
import onnxruntime
import pytest
import test_ort_op

from conftest import HELPERS, ROOT
from fairy2i_export import pack
from package_helpers import functions, public_names, refusal, run_tool, tool

pytest.importorskip("elftools")
pytest.importorskip("arpy")
CUSTOM_OPS = ROOT / "custom_ops"
INCLUDES = [f"-I{CUSTOM_OPS / 'include'}", "-isystem", str(CUSTOM_OPS / "third_party" / "onnxruntime")]
OTHER = """
int other_was_called;
void *RegisterCustomOps(void *options, const void *base);
void *RegisterCustomOps(void *options, const void *base) { other_was_called = options != base; return 0; }
"""


def configure(build: Path, *options: str) -> None:
    """Let CMake prepare a build that does not optimize."""
    command = [tool("cmake"), "-S", CUSTOM_OPS, "-B", build, "-DF2I_BUILD_STATIC=ON", "-DCMAKE_BUILD_TYPE=Debug", *options]
    subprocess.run([*command, "-G", "Unix Makefiles"], check=True, capture_output=True)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive as CMake builds it for programs."""
    build = tmp_path_factory.mktemp("static")
    configure(build)
    subprocess.run(["cmake", "--build", build, "--target", "fairy2i_ops_static", "-j2"], check=True, capture_output=True)
    return build / "libfairy2i_ops.a"


@pytest.fixture(scope="module")
def common_name(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with RegisterCustomOps; of it only the object that is compiled in another way."""
    build = tmp_path_factory.mktemp("common_name")
    configure(build, "-DF2I_STATIC_REGISTER_CUSTOM_OPS=ON")
    subprocess.run(["cmake", "--build", build, "--target", "src/ort/register.c.o"], check=True, capture_output=True)
    path = build / archive.name
    shutil.copyfile(archive, path)
    glue = build / "CMakeFiles" / "fairy2i_ops_static.dir" / "src" / "ort" / "register.c.o"
    subprocess.run([tool("ar"), "r", path, glue], check=True, capture_output=True)
    return path


def link(archive: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Link tests/helpers/programs/static_host.c with an archive and with one that has RegisterCustomOps."""
    (folder / "other.c").write_text(OTHER)
    subprocess.run([tool("gcc"), "-c", "other.c", "-o", "other.o"], cwd=folder, check=True)
    subprocess.run([tool("ar"), "rcs", "other.a", "other.o"], cwd=folder, check=True)
    archives = ["-Wl,--whole-archive", archive, "other.a", "-Wl,--no-whole-archive"]
    command = [
        "gcc",
        "-std=c11",
        "-D_GNU_SOURCE",
        *INCLUDES,
        HELPERS / "programs" / "static_host.c",
        *archives,
        "-lm",
        "-ldl",
    ]
    return subprocess.run([*command, "-o", "host"], cwd=folder, capture_output=True, text=True, check=False)


def test_two_libraries_of_operators_in_one_program(archive: Path, tmp_path: Path) -> None:
    done = link(archive, tmp_path)
    assert done.returncode == 0, done.stderr
    (runtime,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    onnx.save(test_ort_op.build(pack(test_ort_op.layer())), tmp_path / "model.onnx")
    run = subprocess.run([tmp_path / "host", runtime, tmp_path / "model.onnx"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_the_common_name_would_collide(common_name: Path, tmp_path: Path) -> None:
    done = link(common_name, tmp_path)
    assert done.returncode != 0
    assert re.search(r"multiple definition of .RegisterCustomOps", done.stderr)


def test_names(archive: Path, common_name: Path) -> None:
    done = run_tool("archive_names.py", archive)
    assert done.returncode == 0, done.stderr
    assert f"{len(public_names()) - 1} public names" in done.stdout
    assert "collides with onnxruntime-extensions" in refusal(run_tool("archive_names.py", common_name))
    assert run_tool("archive_names.py", common_name, "--register-custom-ops").returncode == 0


def test_wrong_archives_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.a"
    assert "found none" in refusal(run_tool("archive_names.py", path))
    path.write_bytes(b"text")
    assert "expected a static archive" in refusal(run_tool("archive_names.py", path))
    for names, reason in (
        (public_names()[2:], "does not define Fairy2i_RegisterCustomOps"),
        ([*public_names()[1:], "helper"], "do not begin with f2i_ and may collide with a program's: helper"),
    ):
        (tmp_path / "x.c").write_text(functions(names))
        subprocess.run([tool("gcc"), "-c", "x.c", "-o", "x.o"], cwd=tmp_path, check=True)
        path.unlink()
        subprocess.run([tool("ar"), "rcs", path, tmp_path / "x.o"], check=True)
        assert reason in refusal(run_tool("archive_names.py", path))
