"""What a program does when its standard streams are closed or full, and when a signal ends it, at any moment."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from conftest import ROOT, heed_interrupts
from fairy2i_runtime.commands.console import new_app, run_app
from fairy2i_runtime.commands.process.startup import Terminated, interrupted, start
from fairy2i_runtime.commands.process.streams import Output, note_done
from runtime_models import stories_folder

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX shells and signals")
MODEL = ROOT / "examples" / "models" / "stories260K-fairy2i-w2"
TEXT = ROOT / "examples" / "data" / "tinystories" / "tinystories_sample.txt"
FAIRY2I = f"{sys.executable} -m fairy2i_export"
EXPORT = f"{sys.executable} -m fairy2i_export.commands.export"
RUNTIME = f"{sys.executable} -m fairy2i_runtime"
COMMANDS = {
    "help": f"{FAIRY2I} --help",
    "version": f"{EXPORT} --version",
    "info": f"{RUNTIME} info",
    "generate": f"{FAIRY2I} generate {{}} hi --max-new-tokens 2",
    "inspect": f"{FAIRY2I} inspect {{}}",
    "ppl": f"{FAIRY2I} ppl {{}} --text {TEXT} --tokens 400",
    "export": f"{EXPORT} {MODEL} -o out",
    "dry run": f"{EXPORT} {MODEL} -o out --dry-run",
}


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def shell(command: str, redirections: str, folder: Path) -> tuple[int, list[str]]:
    """Exit code and lines on standard error (as far as that is not redirected)."""
    script = f"{command.format(stories_folder())} {redirections}"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    return done.returncode, done.stderr.splitlines()


@pytest.mark.parametrize("name", COMMANDS)
def test_standard_output_is_full(name: str, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    code, lines = shell(COMMANDS[name], "> /dev/full", tmp_path)
    assert code == 2
    assert "error: standard output: cannot be written: No space left on device" in lines[-1]
    assert (tmp_path / "out" / "model.onnx").exists() == (name == "export")  # what was done is not undone
    assert ("The model itself is complete: " in lines[-1]) == (name == "export")


@pytest.mark.parametrize("name", COMMANDS)
def test_standard_output_is_closed(name: str, tmp_path: Path) -> None:
    code, lines = shell(COMMANDS[name], ">&-", tmp_path)
    assert code == 2
    assert lines == ["error: standard output is closed, expected somewhere to print to; > /dev/null drops it"]
    assert list(tmp_path.iterdir()) == []  # it is said before any work


@pytest.mark.parametrize("redirections", ["2>&-", "2>&- <&-", "2> /dev/full"])
@pytest.mark.parametrize("name", ["info", "export", "ppl"])
def test_the_work_is_done_without_standard_error(name: str, redirections: str, tmp_path: Path) -> None:
    if "full" in redirections and not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    assert shell(COMMANDS[name], redirections, tmp_path) == (0, [])
    assert (tmp_path / "out" / "model.onnx").exists() == (name == "export")


@pytest.mark.parametrize("command", ["generate {} -", "chat {}"])
def test_standard_input_is_closed(command: str, tmp_path: Path) -> None:
    code, lines = shell(f"{FAIRY2I} {command}", "<&-", tmp_path)
    assert code == 2
    assert sum("error: standard input" in line and "closed" in line for line in lines) == 1


def test_nothing_else_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    """A file that is opened as number 1 would be printed into."""
    code = "import os, sys; from fairy2i_runtime.commands.process import startup; startup._open_streams(); print(os.dup(0))"
    found = subprocess.run(
        ["bash", "-c", f"{sys.executable} -c '{code}' <&-"], capture_output=True, text=True, env=environment(), check=True
    )
    assert int(found.stdout) > 2


@pytest.mark.parametrize("reader", ["head -c 10", "true"])
@pytest.mark.parametrize("name", ["help", "inspect", "export"])
def test_a_reader_that_has_seen_enough(name: str, reader: str, tmp_path: Path) -> None:
    _, lines = shell(COMMANDS[name], f"| {reader}", tmp_path)
    assert not [line for line in lines if "rror" in line]


# ---- signals


def signalled(command: list[str], number: signal.Signals, delay: float, folder: Path) -> tuple[int, str]:
    with subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        preexec_fn=heed_interrupts,
    ) as process:
        time.sleep(delay)
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
        return process.returncode, error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "command",
    [
        ["fairy2i_export", "bench", "{}", "--repeat", "1000"],
        ["fairy2i_export", "verify", "{}", "--against", str(MODEL)],
        ["fairy2i_export.commands.export", str(MODEL), "-o", "out"],
        ["fairy2i_runtime", "ppl", "{}", "--text", str(TEXT), "--stride", "1"],
    ],
    ids=lambda command: command[1] if isinstance(command, list) else None,
)
def test_signals_at_any_moment(command: list[str], number: signal.Signals, tmp_path: Path) -> None:
    ended = 0
    for delay in (0.15, 0.3, 0.5, 0.8, 1.3):
        folder = tmp_path / str(delay)
        folder.mkdir()
        code, error = signalled([part.format(stories_folder()) for part in command], number, delay, folder)
        assert not ("Traceback" in error and "fairy2i_" in error), error  # what comes before the program is Python's
        if code == 128 + number:
            ended += 1
            assert error.count("interrupted: ") == 1
        else:  # before Python runs the program, or after its end
            assert code in (0, 1, -number), error
        assert any(folder.glob(".out*")) == ("stays in" in error)
    assert ended


def test_a_note_on_the_interruption_is_the_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Output, "done", "")
    stop = KeyboardInterrupt()
    assert interrupted(stop) == 130
    assert capsys.readouterr().err == "interrupted: nothing was written\n"
    note_done("The page is written: x")
    assert interrupted(stop) == 130
    assert capsys.readouterr().err == "interrupted: the page is written: x\n"
    stop.add_note("interrupted: two of three are kept")
    assert interrupted(stop) == 130
    assert capsys.readouterr().err == "interrupted: two of three are kept\n"
    told = Terminated(signal.SIGTERM)
    told.add_note("")
    assert interrupted(told) == 143
    assert capsys.readouterr().err == ""


def started(target: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A program of its own in a folder with its module."""
    program = f"import sys; from fairy2i_runtime.commands.process.startup import start; sys.exit(start('{target}'))"
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        capture_output=True,
        text=True,
        env=environment(),
        preexec_fn=heed_interrupts,
        timeout=60,
        check=False,
    )


TWO_SIGNALS = """
import os, signal, time
def run(arguments):
    try:
        try:
            os.kill(os.getpid(), signal.{first})
            time.sleep(30)
        except BaseException as stop:
            stop.add_note("interrupted: what the first one left")
            raise
    finally:
        os.kill(os.getpid(), signal.{second})
        time.sleep(30)
"""


AT_ONCE = """
import os, subprocess
def run(arguments):
    try:
        kill = subprocess.Popen(["bash", "-c", f"kill -s {first} {{os.getpid()}}; sleep 0.2; kill -s {second} {{os.getpid()}}"])
        sum(range(50_000_000))  # in C, where Python hears of no signal: both wait when it ends
        kill.wait()
    except BaseException as stop:
        stop.add_note("interrupted: what the first one left")
        raise
"""


@pytest.mark.parametrize("script", [TWO_SIGNALS, AT_ONCE], ids=["while the first one is heeded", "at once"])
@pytest.mark.parametrize(("first", "second"), [("SIGTERM", "SIGINT"), ("SIGINT", "SIGTERM"), ("SIGHUP", "SIGTERM")])
def test_a_program_ends_as_the_first_of_two_signals_says(script: str, first: str, second: str, tmp_path: Path) -> None:
    (tmp_path / "two_signals.py").write_text(script.format(first=first, second=second))
    done = started("two_signals:run", tmp_path)
    assert (done.returncode, done.stderr) == (128 + signal.Signals[first], "interrupted: what the first one left\n")


@pytest.mark.parametrize(
    ("raised", "code"), [(KeyboardInterrupt(), 130), (Terminated(signal.SIGTERM), 143), (Terminated(signal.SIGHUP), 129)]
)
def test_commands_end_with_the_number_of_the_signal(raised: BaseException, code: int) -> None:
    app = new_app("", completion=False)

    @app.command()
    def command() -> None:
        raise raised

    assert run_app(app, "program", ["--"]) == code


MODULE_IN_C = """
#include <Python.h>
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "in_c", NULL, -1, NULL};
PyMODINIT_FUNC PyInit_in_c(void)
{
    if (PyRun_SimpleString("import in_python")) /* prints, and drops, what comes out of it */
        abort();
    return PyModule_Create(&definition);
}
"""
SLOW_MODULE = """
import os, pathlib, signal
for number in ({numbers}):
    os.kill(os.getpid(), number)
for _ in range(1000):
    pass
pathlib.Path("imported").touch()
"""
IMPORTS = """
def run(arguments):
    try:
        import {module}
        import time
        while True:
            time.sleep(0.01)
    except BaseException as stop:
        stop.add_note("interrupted: after the import")
        raise
"""


@pytest.mark.parametrize("module", ["in_python", "in_c"])
@pytest.mark.parametrize("numbers", ["signal.SIGTERM,", "signal.SIGINT,", "signal.SIGTERM, signal.SIGINT"])
def test_a_signal_during_an_import_is_heeded_after_it(module: str, numbers: str, tmp_path: Path) -> None:
    """Modules in C abort, or lose an exception that comes out of what they import themselves."""
    if module == "in_c":
        compile_module(tmp_path)
    (tmp_path / "in_python.py").write_text(SLOW_MODULE.format(numbers=numbers))
    (tmp_path / "program.py").write_text(IMPORTS.format(module=module))
    done = started("program:run", tmp_path)
    first = signal.SIGINT if numbers.startswith("signal.SIGINT") else signal.SIGTERM
    assert (done.returncode, done.stderr) == (128 + first, "interrupted: after the import\n")
    assert (tmp_path / "imported").exists()


def compile_module(folder: Path) -> None:
    gcc = shutil.which("gcc")
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not gcc or not header.exists():
        pytest.skip("needs gcc and Python.h")
    (folder / "in_c.c").write_text(MODULE_IN_C)
    subprocess.run(
        [gcc, "-shared", "-fPIC", f"-I{header.parent}", "in_c.c", "-o", f"in_c{sysconfig.get_config_var('EXT_SUFFIX')}"],
        cwd=folder,
        check=True,
    )


def test_handlers_are_those_of_before_when_called_from_python() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert start("fairy2i_export.commands.program.tools:run", ["--version"]) == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    """As nohup and shells in the background have it."""
    script = f"trap '' INT; {FAIRY2I} info & sleep 0.4; kill -INT $!; wait $!"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0
    assert "operator library" in done.stdout


def test_an_interrupted_text_was_written(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from fairy2i_export.commands.tools import main

    for stop, code in ((KeyboardInterrupt(), 130), (Terminated(signal.SIGTERM), 143)):

        def write(text: str, stop: BaseException = stop) -> None:
            raise stop

        monkeypatch.setattr("fairy2i_runtime.commands.generate._print_piece", write)
        assert main(["generate", str(stories_folder()), "Once upon a time", "--max-new-tokens", "4"]) == code
        assert capsys.readouterr().err == "interrupted\n"


def test_the_options_of_completion_tell_what_cannot_be_printed(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{FAIRY2I} --show-completion bash > /dev/full"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment(), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "error" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
