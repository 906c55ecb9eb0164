"""Help, version and completion: there at once, without what only the work itself needs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fairy2i_export import __version__
from fairy2i_export.commands.export import main as export_main
from fairy2i_export.commands.program.tools import COMMANDS as ADDED
from fairy2i_export.commands.tools import main
from fairy2i_runtime.__main__ import main as runtime_main
from fairy2i_runtime.commands.program import COMMANDS

EXPORTER = {
    "onnx",
    "onnx_ir",
    "sympy",
    "torch",
    "transformers",
    "datasets",
    "huggingface_hub",
    "safetensors",
    "lm_eval",
    "scipy",
}
RUNTIME = {"onnxruntime", "tokenizers", "jinja2", "cffi", "starlette", "uvicorn", "prometheus_client"}


def imported(program: str, arguments: list[str]) -> set[str]:
    """The modules that a program has imported at its end."""
    code = (
        "import sys\nfrom importlib import import_module\n"
        f"code = import_module('fairy2i_export.commands.{program}').main({arguments!r})\n"
        "print('modules:', *sys.modules)\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 2)
    assert "Traceback" not in done.stderr
    return set(done.stdout.rpartition("modules:")[2].split())


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        *(("tools", [command, "--help"]) for command in {**COMMANDS, **ADDED} if command != "lm-eval"),
        ("tools", ["--help"]),
        ("tools", ["chat"]),
        ("tools", ["--version"]),
        ("tools", ["verify", "--frobnicate"]),
        ("tools", ["ppl"]),
        ("export", ["--help"]),
        ("export", ["--version"]),
        ("export", ["--frobnicate"]),
        ("export", ["x", "--stages"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_nothing_heavy_is_imported(program: str, arguments: list[str]) -> None:
    assert not imported(program, arguments) & (EXPORTER | RUNTIME)


def test_a_program_imports_next_to_nothing_before_it_hears_signals() -> None:
    code = """
import sys
before = set(sys.modules)
import fairy2i_export.commands.tools, fairy2i_export.commands.export, fairy2i_runtime.__main__
print(*sorted(name for name in set(sys.modules) - before if not name.startswith("fairy2i_")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    small = (
        "enum functools collections itertools keyword operator signal reprlib types time _collections _functools _operator"
    )
    assert set(done.stdout.split()) <= {"__future__", "_signal", *small.split()}


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


@pytest.mark.parametrize(
    ("program", "name"), [(main, "fairy2i"), (export_main, "fairy2i-export"), (runtime_main, "fairy2i")]
)
def test_version(program, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert program(["--version"]) == 0
    assert capsys.readouterr().out == f"{name} {__version__}\n"


def test_help_of_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for command in {**COMMANDS, **ADDED}:
        assert command in shown
        if command == "lm-eval":
            continue  # lm_eval's own
        assert main([command, "--help"]) == 0
        assert capsys.readouterr().out


@pytest.mark.parametrize(("program", "name"), [("tools", "fairy2i"), ("export", "fairy2i-export")])
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_ask_for_completion(program: str, name: str, shell: str) -> None:
    module = f"fairy2i_export.commands.{program}"
    variable = f"_{name.replace('-', '_').upper()}_COMPLETE"
    done = subprocess.run(
        [sys.executable, "-m", module],
        env={**environment(), variable: f"source_{shell}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert name in done.stdout
    assert variable in done.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("fairy2i ver", {"verify"}),
        ("fairy2i t", {"tokenizer-onnx", "train", "tune"}),
        ("fairy2i verify --ag", {"--against"}),
    ],
)
def test_completion_knows_commands_and_options(words: str, expected: set[str]) -> None:
    asked = {"_FAIRY2I_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    done = subprocess.run(
        [sys.executable, "-m", "fairy2i_export"], env={**environment(), **asked}, capture_output=True, text=True, check=False
    )
    assert set(done.stdout.split()) == expected


@pytest.mark.parametrize(
    ("arguments", "code", "stream"), [(["--help"], 0, "out"), ([], 0, "out"), (["--model", "fairy2i"], 2, "err")]
)
def test_lm_eval_that_is_not_installed(
    arguments: list[str], code: int, stream: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert main(["lm-eval", *arguments]) == code
    printed = capsys.readouterr()
    assert "pip install '.[eval]' in a checkout" in getattr(printed, stream)
    assert ("--model_args" in printed.out) == (code == 0)


def test_the_module_for_lm_eval_says_what_is_missing() -> None:
    code = (
        "import sys, runpy; sys.modules['lm_eval'] = None; sys.argv = ['lm_eval_model', '--tasks', 'x']\n"
        "runpy.run_module('fairy2i_export.lm_eval_model', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 2
    assert "fairy2i: error: lm-eval needs the package lm_eval: pip install '.[eval]' in a checkout" in done.stderr
