"""Failures that a user will meet: one clear message each, in Python and on the command line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnxruntime as ort
import pytest

from fairy2i_export import export
from fairy2i_export.commands.tools import main
from fairy2i_runtime import genai, load
from fairy2i_runtime.engine import decoder, failures
from fairy2i_runtime.errors import LibraryError, ModelFolderError
from fairy2i_runtime.ops.library import library_path
from runtime_models import CHECKPOINT, copy_of_stories, stories_folder

linux = pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space, ELF")
SOURCES = os.pathsep.join(path for path in sys.path if path)
LIMIT = """
import resource
def leave(megabytes):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 1_000_000, resource.RLIM_INFINITY))
"""
# memory ends when onnxruntime is about to open the model: the tokenizers library, which was there before, would abort
AT_OPENING = (
    LIMIT
    + """
import fairy2i_runtime.engine.session as session
register = session.register
session.register = lambda options: (register(options), leave(2))
"""
)


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one message of a command that fails."""
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def run_python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": SOURCES, "OPENBLAS_NUM_THREADS": "1", **variables}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


# --- a folder that was moved ---


def test_weights_that_were_left_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy_of_stories(tmp_path / "model")
    (folder / "model.onnx.data").unlink()
    message = error_of(capsys, "generate", str(folder), "Once")
    assert f"{folder / 'model.onnx.data'} is missing" in message
    assert "copy the whole folder" in message


def test_weights_that_were_left_behind_in_genai(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_genai")
    folder = copy_of_stories(tmp_path / "model")
    (folder / "model.onnx.data").unlink()
    with pytest.raises(ModelFolderError, match=r"model\.onnx\.data is missing: .* copy the whole folder"):
        genai.load(folder)


@pytest.mark.parametrize("size", [0, 1000, 150_000])
def test_weights_that_were_not_copied_to_the_end(tmp_path: Path, size: int) -> None:
    folder = copy_of_stories(tmp_path / "model")
    os.truncate(folder / "model.onnx.data", size)
    with pytest.raises(ModelFolderError, match=rf"model\.onnx\.data ends too early, after {size} bytes: .* copied"):
        load(folder)


def test_a_folder_that_is_elsewhere_and_whole_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy_of_stories(tmp_path / "first")
    moved = tmp_path / "a blank" / "ünï"
    moved.parent.mkdir()
    shutil.move(folder, moved)
    monkeypatch.chdir(moved.parent)
    assert load("ünï").generate("Once upon a time", max_new_tokens=5).text


# --- an onnxruntime that is too old, and a library for another machine ---


def test_a_model_that_an_old_onnxruntime_does_not_open(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = copy_of_stories(tmp_path / "model")
    (folder / "model.onnx").write_bytes(b"something that this release does not know")
    monkeypatch.setattr(ort, "__version__", "1.20.1")
    words = r"model\.onnx: expected onnxruntime 1\.24 or newer, found 1\.20\.1: run pip install --upgrade onnxruntime"
    with pytest.raises(LibraryError, match=words):
        load(folder, trust_graph=True)  # else it is not given to onnxruntime


def test_an_int8_cache_needs_a_newer_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """1.26 opens such a model and fails in the first run; 1.24 does not open it."""
    report = export(CHECKPOINT, tmp_path / "model", kv_cache="int8")
    assert load(report.path).generate("Once", max_new_tokens=2).text
    monkeypatch.setattr(decoder, "ort_version", lambda: (1, 26))
    monkeypatch.setattr(ort, "__version__", "1.26.0")
    words = r"expected onnxruntime 1\.27 or newer, found 1\.26\.0: .* for its int8 key-value cache"
    with pytest.raises(LibraryError, match=words):
        load(report.path)
    said = 'In Node ("past_key_values.0.key": tensor(int8))'
    assert "1.27 or newer" in str(failures.opening_failure("m", RuntimeError(said), None))


def test_an_onnxruntime_that_cannot_be_imported_is_one_message(tmp_path: Path) -> None:
    """As one for another numpy, whose import fails without a word."""
    (tmp_path / "onnxruntime").mkdir()
    for words, expected in (("", "it does not say why; install it again"), ("std::bad_alloc", "there is not enough memory")):
        (tmp_path / "onnxruntime" / "__init__.py").write_text(f"raise ImportError({words!r})\n")
        command = [sys.executable, "-m", "fairy2i_runtime", "generate", str(stories_folder()), "Once"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), SOURCES])}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("fairy2i: error: ")
        assert expected in done.stderr
        assert done.stderr.count("\n") == 1


@linux
def test_a_library_for_another_processor_is_named_by_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = bytearray(Path(library_path()).read_bytes())
    other = 183 if int.from_bytes(data[18:20], "little") != 183 else 62
    data[18:20] = other.to_bytes(2, "little")
    (tmp_path / "other.so").write_bytes(data)
    environment = {**os.environ, "PYTHONPATH": SOURCES, "FAIRY2I_LIBRARY": str(tmp_path / "other.so")}
    for arguments in (["info"], ["generate", str(stories_folder()), "Once"]):  # in processes without the right one
        command = [sys.executable, "-m", "fairy2i_runtime", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        shown = done.stdout + done.stderr
        assert f"other.so: it is built for {'aarch64' if other == 183 else 'x86_64'} and this is" in shown
        assert "install the build for this machine" in shown
        assert "Traceback" not in shown


# --- a session without the library ---


def test_plain_onnxruntime_runs_the_model_without_the_library() -> None:
    """docs/runtime.md says so, and how: with the definition that the model carries."""
    import numpy as np

    ids = [1, 403, 407]
    expected = load(stories_folder(), kernel="exact").logits(ids)
    session = ort.InferenceSession(
        str(stories_folder() / "model.onnx"), providers=["CPUExecutionProvider"], disabled_optimizers=["ConstantFolding"]
    )
    feeds = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, 3), np.int64)}
    for value in session.get_inputs()[2:]:
        feeds[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
    np.testing.assert_allclose(session.run(["logits"], feeds)[0][0], expected, atol=1e-3)


def test_genai_without_the_library_says_which_one_it_misses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime_genai")
    done = run_python(f"import onnxruntime_genai; onnxruntime_genai.Model({str(stories_folder())!r})")
    assert "libfairy2i_ops.so: cannot open shared object file" in done.stderr  # what docs/runtime.md quotes


# --- memory ---


@linux
@pytest.mark.parametrize(
    ("code", "words"),
    [
        pytest.param(
            AT_OPENING + "m.load(folder)", r"OutOfMemoryError: .*model\.onnx: there is not enough memory to load it \(the process "
            r"may use \d+ MB of addresses: ulimit -v\); fairy2i info shows", id="a model"
        ),
        pytest.param(
            "model = m.load(folder); leave(60); model.generate_batch([[1, 5]] * 400, max_new_tokens=None)",
            r"ContextError: no memory for a context of 512 tokens \(\d+ MB\); choose a smaller context_length", id="a cache"
        ),
        pytest.param(
            "model = m.load(folder); leave(200); model.logits_batch([[1] * 500] * 250)",
            r"OutOfMemoryError: no memory for the logits of 125000 tokens \(256 MB\); run fewer or shorter texts", id="logits"
        ),
        pytest.param(
            "model = m.load(folder); ids = [[1] * 500] * 40; batch = Batch(model.decoder, ids); leave(60); batch.read()",
            r"OutOfMemoryError: onnxruntime gave up running 500 tokens after 0: memory is short \(.*\); a smaller", id="a run"
        ),
    ],
)  # fmt: skip
def test_too_little_memory_is_told_as_such(code: str, words: str) -> None:
    import re

    start = "import fairy2i_runtime.model as m\nfrom fairy2i_runtime.engine.batch import Batch\n"
    done = run_python(f"{LIMIT}{start}folder = {str(stories_folder())!r}\n{code}")
    assert done.returncode == 1
    assert re.search(words, done.stderr.splitlines()[-1]), done.stderr[-1500:]


@linux
def test_a_command_without_memory_ends_with_one_message() -> None:
    start = "import sys\nfrom fairy2i_runtime.commands.program import run\n"
    done = run_python(f"{AT_OPENING}{start}sys.exit(run(['generate', {str(stories_folder())!r}, 'Once']))")
    assert (done.returncode, done.stdout) == (2, "")  # onnxruntime itself would print a banner
    assert done.stderr.startswith("fairy2i: error: ")
    assert "not enough memory" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_package_that_finds_no_memory_is_told_as_such() -> None:
    from fairy2i_runtime.commands import console

    said = "/x/_pydantic_core.so: failed to map segment from shared object"
    assert console._import_problem(ImportError(said)) == f"{console.NO_MEMORY} ({said})"
    assert console._import_problem(ImportError("cannot import name 'x'")) == ""
