"""fairy2i_runtime.genai: a folder in onnxruntime-genai as it is, with the tokens of our own runtime, and what goes wrong."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fairy2i_runtime
from conftest import ROOT
from fairy2i_export import export
from fairy2i_runtime import genai
from fairy2i_runtime.engine.threads import processors
from fairy2i_runtime.errors import Fairy2iWarning, LibraryError, ModelFolderError, OptionError
from fairy2i_runtime.ops import library
from runtime_models import CHECKPOINT, chat_folder, copy_of_stories, edit_config, stories_folder

PROMPT = [1, 403, 407, 261, 378]  # <s> Once upon a time
TOKENS = 60
SESSION = ("model", "decoder", "session_options")
LIBRARY = (*SESSION, "custom_ops_library")


@pytest.fixture(autouse=True)
def og() -> Any:
    return pytest.importorskip("onnxruntime_genai")


def generator_of(model: Any) -> Any:
    og = pytest.importorskip("onnxruntime_genai")
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(do_sample=False, max_length=len(PROMPT) + TOKENS)
    generator = og.Generator(model, parameters)
    generator.append_tokens(np.array([PROMPT], np.int32))
    return generator


def tokens_of(model: Any) -> list[int]:
    generator = generator_of(model)
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)][len(PROMPT) :]


def logits_of(model: Any) -> np.ndarray:
    """Logits behind the prompt's last token."""
    return np.array(generator_of(model).get_logits()).reshape(-1)


def own_tokens(folder: Path, **options: Any) -> list[int]:
    return fairy2i_runtime.load(folder, threads=1, **options).generate(PROMPT, max_new_tokens=TOKENS).token_ids


def own_logits(folder: Path, **options: Any) -> np.ndarray:
    return fairy2i_runtime.load(folder, threads=1, **options).logits(PROMPT)[-1]


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*")}


def run_python(code: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("kernel", [None, "exact", "lut", "dot"])
def test_same_tokens_and_logits_as_our_own_runtime(kernel: str | None) -> None:
    model = genai.load(stories_folder(), threads=1, kernel=kernel)
    expected = own_tokens(stories_folder(), kernel=kernel)
    assert len(expected) == TOKENS
    assert tokens_of(model) == expected
    # the integer sums and their order are the same whoever calls, so the logits show which kernel ran
    assert np.array_equal(logits_of(model), own_logits(stories_folder(), kernel=kernel or "lut"))
    assert not np.array_equal(logits_of(model), own_logits(stories_folder(), kernel="exact" if kernel != "exact" else "lut"))


def test_an_instruction_set() -> None:
    assert np.array_equal(
        logits_of(genai.load(stories_folder(), threads=1, kernel="dot", isa="scalar")),
        own_logits(stories_folder(), kernel="dot", isa="scalar"),
    )


def test_a_new_process_elsewhere_writes_nothing(tmp_path: Path) -> None:
    """In a process of its own: here other tests may have loaded the library, which is what makes its name known."""
    folder = copy_of_stories(tmp_path / "model")
    before, names = contents(folder), sorted(path.name for path in tmp_path.iterdir())
    code = (
        "import sys; from fairy2i_runtime import genai; assert 'onnxruntime_genai' not in sys.modules\n"
        "model = genai.load('model', threads=1, kernel='exact')\n"
        "from test_genai import tokens_of; print(*tokens_of(model))"
    )
    done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert [int(token) for token in done.stdout.split()] == own_tokens(folder, kernel="exact")
    assert contents(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_the_package_is_imported_when_it_is_used() -> None:
    code = (
        "import sys, fairy2i_runtime; fairy2i_runtime.genai.load, fairy2i_runtime.load, fairy2i_runtime.core.kernels\n"
        "assert fairy2i_runtime.core.__name__ == 'fairy2i_runtime.ops.core'; print('onnxruntime_genai' in sys.modules)"
    )
    assert run_python(code, ROOT).stdout.strip() == "False"


@pytest.mark.parametrize(
    "way", [{"backend": "matmulnbits", "accuracy_level": 0}, {"backend": "dense"}], ids=lambda way: way["backend"]
)
def test_other_backends_need_no_library(way: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(CHECKPOINT, tmp_path / "out", **way)
    monkeypatch.setenv("FAIRY2I_LIBRARY", str(tmp_path / "none.so"))  # looking for it would be an error
    expected = own_tokens(tmp_path / "out")
    assert len(expected) == TOKENS
    assert tokens_of(genai.load(tmp_path / "out", threads=1)) == expected
    with pytest.raises(OptionError, match="exported for hosts without it"):
        genai.load(tmp_path / "out", kernel="exact")


def test_the_processor_instead_of_a_provider_that_the_folder_names(tmp_path: Path) -> None:
    folder = copy_of_stories(tmp_path / "model")
    edit_config(folder, *SESSION, "provider_options", value=[{"nosuch": {}}])
    with pytest.raises(ModelFolderError, match="cannot open it: Unknown provider name 'nosuch'"):
        genai.load(folder, threads=1)
    assert tokens_of(genai.load(folder, threads=1, provider="cpu")) == own_tokens(folder)


def test_the_choice_of_the_kernel_has_one_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An explicit choice, then the environment, then the folder: as in our own runtime."""
    folder = copy_of_stories(tmp_path / "model")
    edit_config(folder, *SESSION, "fairy2i.kernel", value="exact")
    logits = {kernel: own_logits(folder, kernel=kernel) for kernel in ("exact", "lut", "dot")}
    assert np.array_equal(logits_of(genai.load(folder, threads=1)), logits["exact"])
    monkeypatch.setenv("FAIRY2I_KERNEL", "dot")
    assert np.array_equal(logits_of(genai.load(folder, threads=1)), logits["dot"])
    assert np.array_equal(logits_of(genai.load(folder, threads=1, kernel="lut")), logits["lut"])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("given", "written", "expected"), [(3, None, 3), (None, 4, 4), (2, 4, 2), (None, None, 5)])
def test_threads(
    given: int | None, written: int | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a session the calling thread is one."""
    monkeypatch.setattr(genai, "default_threads", lambda: 5)
    monkeypatch.setattr("fairy2i_runtime.engine.threads._available", lambda: (8, ""))
    folder = copy_of_stories(tmp_path / "model")
    if written is not None:
        edit_config(folder, *SESSION, "intra_op_num_threads", value=written)
    gc.collect()  # sessions of other tests end now, not in between
    before = len(os.listdir("/proc/self/task"))
    model = genai.load(folder, threads=given)
    assert len(os.listdir("/proc/self/task")) - before == expected - 1
    assert model.type == "llama"


def test_a_short_text_of_a_batch_goes_on_as_alone_in_the_room_that_padding_leaves(og: Any) -> None:
    """What docs/runtime.md says of batches there: ``max_length`` counts padding, here it does not."""
    rows, new = [PROMPT * 4, PROMPT[:2]], 12
    longest = max(len(row) for row in rows)
    model = genai.load(stories_folder(), threads=1, kernel="exact")
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(do_sample=False, max_length=longest + new, batch_size=2)
    generator = og.Generator(model, parameters)
    generator.append_tokens(np.array([row + [1] * (longest - len(row)) for row in rows], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    theirs = [[int(token) for token in generator.get_sequence(row)][longest:] for row in range(2)]
    own = fairy2i_runtime.load(stories_folder(), threads=1, kernel="exact")
    assert theirs == [own.generate(row, max_new_tokens=new, ignore_eos=True).token_ids for row in rows]
    more = own.generate_batch(rows, max_new_tokens=None, ignore_eos=True)
    assert [len(row) + len(result.token_ids) for row, result in zip(rows, more, strict=True)] == [513, 513]


def test_too_many_threads_are_warned_of_whoever_names_them(tmp_path: Path) -> None:
    folder, many = copy_of_stories(tmp_path / "model"), processors() + 1
    with pytest.warns(Fairy2iWarning, match=rf"{many} threads on {processors()} processor"):
        genai.config(folder, threads=many)
    edit_config(folder, *SESSION, "intra_op_num_threads", value=many)
    with pytest.warns(Fairy2iWarning, match=rf"{many} threads on {processors()} processor"):
        genai.config(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        genai.config(folder, threads=processors())


def test_a_configuration_can_be_changed_further(og: Any) -> None:
    chosen = genai.config(stories_folder(), threads=1, kernel="exact")
    expected = own_tokens(stories_folder(), kernel="exact")
    chosen.overlay(json.dumps({"model": {"eos_token_id": expected[10]}}))
    assert tokens_of(og.Model(chosen)) == expected[: expected.index(expected[10])]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads: expected an integer from 1 to 1024, got 0"),
        ({"threads": 1.0}, r"threads: expected an integer .* got 1\.0"),
        ({"threads": True}, "threads: expected an integer .* got True"),
        ({"kernel": "nosuch"}, 'unknown kernel "nosuch".*expected one of: lut exact dot'),
        ({"kernel": 3}, r"kernel: expected a name \(str\), got 3"),
        ({"isa": "nosuch"}, 'ISA "nosuch".*can run here with: .*scalar'),
        ({"provider": ""}, "provider: expected the name of an execution provider.*got an empty text"),
        ({"provider": 3}, r"provider: expected a text \(str\), got int 3"),
        ({"provider": "nosuch"}, "provider: .* cannot run .*stories on 'nosuch': .*; install .*or leave provider out"),
    ],
)
def test_impossible_options(options: dict[str, Any], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OptionError, match=message):
        genai.load(stories_folder(), **options)
    assert capfd.readouterr() == ("", "")


def test_a_kernel_of_the_folder_or_the_environment_that_does_not_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of_stories(tmp_path / "model")
    edit_config(folder, *SESSION, "fairy2i.kernel", value="nosuch")
    with pytest.raises(OptionError, match=r"fairy2i\.kernel.*expected one of: lut exact dot"):
        genai.config(folder)
    monkeypatch.setenv("FAIRY2I_KERNEL", "other")
    with pytest.raises(OptionError, match='unknown kernel "other"'):
        genai.config(stories_folder())


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match=r"absent does not exist; fairy2i-export SOURCE -o"):
        genai.load(tmp_path / "absent")
    with pytest.raises(ModelFolderError, match=r"it has no genai_config\.json; wrong folder\?"):
        genai.load(tmp_path)
    with pytest.raises(ModelFolderError, match="checkpoint to be exported first"):
        genai.load(CHECKPOINT)
    with pytest.raises(ModelFolderError, match=r"model\.onnx is a file: expected the folder"):
        genai.load(stories_folder() / "model.onnx")
    with pytest.raises(OptionError, match="folder: expected the path of a folder or file, got NoneType"):
        genai.load(None)  # type: ignore[arg-type]
    (tmp_path / "rewrite.json").write_text("{}")
    with pytest.raises(ModelFolderError, match="is a rewritten ONNX model"):
        genai.load(tmp_path)


def test_damaged_folders(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = copy_of_stories(tmp_path / "model")
    os.truncate(folder / "model.onnx.data", 100_000)
    with pytest.raises(ModelFolderError, match=r"model\.onnx\.data ends too early, after 100000 bytes: .*copied"):
        genai.load(folder)
    edit_config(folder, "model", "nosuch", value=1)
    with pytest.raises(ModelFolderError, match=r'genai_config\.json: onnxruntime-genai .* refuses it: .*"nosuch"'):
        genai.load(folder)
    (folder / "genai_config.json").write_text("{")
    with pytest.raises(ModelFolderError, match=r"genai_config\.json is not valid JSON"):
        genai.load(folder)
    assert capfd.readouterr() == ("", "")


def test_onnxruntime_genai_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", None)
    with pytest.raises(LibraryError, match=r"not installed: pip install --upgrade 'onnxruntime-genai>=0\.12'$"):
        genai.load(stories_folder())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "__version__ = '0.11.4'",
            r"expected onnxruntime_genai 0\.12 or newer, found 0\.11\.4 in .*: pip install --upgrade",
        ),
        ("", r"expected onnxruntime_genai 0\.12 or newer, found unknown in"),
        ("import no_such_package", "onnxruntime_genai needs the package no_such_package, which is missing: pip install"),
        ("raise ImportError('libm.so.9')", r"onnxruntime_genai cannot be imported: libm\.so\.9; try pip install"),
    ],
)
def test_onnxruntime_genai_that_does_not_do(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime_genai.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime_genai")
    with pytest.raises(LibraryError, match=message):
        genai.config(stories_folder())


def test_an_operator_library_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIRY2I_LIBRARY", str(tmp_path / "absent.so"))
    with pytest.raises(LibraryError, match=r"FAIRY2I_LIBRARY names .*absent\.so, which is not a file"):
        genai.load(stories_folder())
    (tmp_path / "bad.so").write_bytes(b"no library")
    monkeypatch.setenv("FAIRY2I_LIBRARY", str(tmp_path / "bad.so"))
    with pytest.raises(LibraryError, match=r"cannot load .*bad\.so: "):
        genai.load(stories_folder())
    monkeypatch.delenv("FAIRY2I_LIBRARY")
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    with pytest.raises(LibraryError, match=r"operator library is missing: expected .*lib.*Reinstall"):
        genai.load(stories_folder())


@pytest.mark.skipif(sys.platform != "linux", reason="sonames")
@pytest.mark.parametrize(
    ("loaded", "name", "found"),
    [(True, "libfairy2i_ops.so", "another library, which this process"), (False, "libfairy2i_opx.so", "nothing")],
)
def test_a_library_that_its_name_does_not_mean(loaded: bool, name: str, found: str, tmp_path: Path) -> None:
    """Another copy came first, or this one has another name: the wrong code or none would run."""
    data = Path(fairy2i_runtime.library_path()).read_bytes()
    (tmp_path / "mine.so").write_bytes(data.replace(b"\0libfairy2i_ops.so\0", b"\0" + name.encode() + b"\0"))
    code = (
        "import ctypes, os, sys, fairy2i_runtime; from fairy2i_runtime import genai\n"
        f"ctypes.CDLL(fairy2i_runtime.library_path()) if {loaded} else None\n"
        f"os.environ['FAIRY2I_LIBRARY'] = {str(tmp_path / 'mine.so')!r}\n"
        f"try: genai.load({str(stories_folder())!r})\n"
        "except fairy2i_runtime.Fairy2iRuntimeError as error: print(error)"
    )
    done = run_python(code, tmp_path)
    assert f"expected that the system knows {tmp_path / 'mine.so'} by the name libfairy2i_ops.so" in done.stdout, done.stderr
    assert f"found {found}" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="the name of a file")
def test_a_library_of_the_environment(tmp_path: Path) -> None:
    shutil.copy(fairy2i_runtime.library_path(), tmp_path / "mine.so")
    code = (
        f"from fairy2i_runtime import genai; genai.load({str(stories_folder())!r}, threads=1)\n"
        "print({line.split()[-1] for line in open('/proc/self/maps') if 'fairy2i' in line or 'mine.so' in line})"
    )
    done = run_python(code, tmp_path, FAIRY2I_LIBRARY=str(tmp_path / "mine.so"))
    assert str(tmp_path / "mine.so") in done.stdout, done.stderr
    assert "libfairy2i_ops" not in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="the name of a file")
def test_another_library_in_the_folder_or_beside_the_program_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of_stories(tmp_path / "model")
    shutil.copy(fairy2i_runtime.library_path(), folder)  # what earlier instructions asked for, and it is the same
    assert len(tokens_of(genai.load(folder, threads=1))) == TOKENS
    with (folder / "libfairy2i_ops.so").open("ab") as file:
        file.write(b"an older one")
    with pytest.raises(LibraryError, match=r"model/libfairy2i_ops\.so is another library than the installed .*remove it"):
        genai.load(folder)
    monkeypatch.chdir(folder)
    with pytest.raises(LibraryError, match=r"libfairy2i_ops\.so is another library .* work in another directory"):
        genai.load(stories_folder())


def test_a_library_that_the_folder_names_is_not_loaded(tmp_path: Path) -> None:
    folder = copy_of_stories(tmp_path / "model")
    edit_config(folder, *LIBRARY, value="evil.so")
    (folder / "evil.so").write_bytes(b"no library")
    assert len(tokens_of(genai.load(folder, threads=1))) == TOKENS  # ours took its place
    path = folder / "genai_config.json"
    good = path.read_text()
    path.write_text(
        good.replace('"model": {', '"model": {"encoder": {"session_options": {"custom_ops_library": "evil.so"}}, ')
    )
    with pytest.raises(ModelFolderError, match=r"expected custom_ops_library once.*found it 2 times.*remove it"):
        genai.load(folder)
    twice = good.replace(
        '"session_options": {', '"session_options": {"custom_ops_library": "evil.so"}, "session_options": {'
    )
    path.write_text(twice)  # of a key that comes twice, Python keeps one
    with pytest.raises(ModelFolderError, match="found it 2 times"):
        genai.load(folder)


def example(*arguments: str | Path, text: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "examples" / "genai_chat.py"), *map(str, arguments), "--threads", "1"]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=300, check=False)


def test_the_example_continues_a_text() -> None:
    expected = fairy2i_runtime.load(stories_folder(), threads=1).generate("Once upon a time", max_new_tokens=30).text
    done = example(stories_folder(), "--prompt", "Once upon a time", "--tokens", "30")
    assert (done.returncode, done.stdout, done.stderr) == (0, expected + "\n", "")
    assert (
        example(stories_folder(), "--prompt", "Once upon a time", "--tokens", "30", "--temperature", "3").stdout
        != done.stdout
    )


def test_the_example_converses(tmp_path: Path, og: Any) -> None:
    """The second question is asked behind the first and its answer, as the template writes them."""
    folder = chat_folder(tmp_path / "model")
    tokenizer = og.Tokenizer(genai.load(folder, threads=1))
    model = fairy2i_runtime.load(folder, threads=1)
    messages: list[dict[str, str]] = []
    for question in ("Hello", "And then?"):
        messages.append({"role": "user", "content": question})
        ids = [int(token) for token in tokenizer.encode(tokenizer.apply_chat_template(json.dumps(messages)))]
        messages.append({"role": "assistant", "content": model.generate(ids, max_new_tokens=12).text})
    done = example(folder, "--tokens", "12", text="Hello\nAnd then?\n\n")
    assert done.stdout == "> {}\n> {}\n> ".format(*(messages[n]["content"] for n in (1, 3)))


def test_the_example_says_what_is_wrong(tmp_path: Path) -> None:
    done = example(tmp_path / "absent")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("genai_chat.py: model folder ")
    assert "max_length" not in example(stories_folder(), "--prompt", "Once", "--tokens", "2").stderr
    assert "onnxruntime-genai: " in example(stories_folder(), "--prompt", "Once " * 600).stderr
