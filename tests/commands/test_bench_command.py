"""fairy2i bench: what it reports, and how it fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import heed_interrupts
from fairy2i_export.commands.tools import main
from fairy2i_runtime import core
from fairy2i_runtime.errors import Fairy2iRuntimeError
from fairy2i_runtime.measure import bench
from runtime_models import copy_of_stories, stories_folder


@pytest.fixture(scope="module")
def report() -> dict:
    options = bench.BenchOptions(prompt_tokens=40, new_tokens=8, repeat=3, threads=1, kernel="exact", isa="scalar")
    return bench.bench(stories_folder(), options)


def test_the_report_is_complete_and_consistent(report):
    assert report["configuration"] == {
        "threads": 1,
        "kernel": "exact",
        "isa": "scalar",
        "prompt_kernel": "exact",
        "prompt_isa": "scalar",
        "prompt_tokens": 40,
        "new_tokens": 8,
        "repeat": 3,
        "onnxruntime": bench.ort.__version__,
    }
    for key in ("prompt_tokens_per_second", "decode_tokens_per_second", "first_token_seconds"):
        found = report[key]
        assert len(found["values"]) == 3
        assert 0 < found["min"] <= found["mean"] <= found["max"]
        assert found["standard_deviation"] >= 0
    speeds = zip(report["prompt_tokens_per_second"]["values"], report["first_token_seconds"]["values"], strict=True)
    assert all(speed * seconds == pytest.approx(40) for speed, seconds in speeds)
    assert report["load_seconds"] > 0
    assert report["start_seconds"] > 0.01  # Python and onnxruntime do not start in nothing
    assert report["cold_first_token_seconds"] > 0
    assert report["machine"]["processor"]
    assert report["machine"]["logical_processors"] >= 1
    memory = report["memory_bytes"]
    assert memory["peak"] >= memory["resident"] > 20e6
    assert memory["peak"] < 400e6  # of a process of its own: not what the tests have in memory
    json.dumps(report)


def test_statistics_by_hand():
    assert bench.statistics([1.0, 2.0, 6.0]) == {
        "mean": 3.0,
        "standard_deviation": pytest.approx(7**0.5),
        "min": 1.0,
        "max": 6.0,
        "values": [1.0, 2.0, 6.0],
    }
    assert bench.statistics([4.0])["standard_deviation"] is None


def test_the_command_prints_json_or_a_table(capsys):
    arguments = ["bench", str(stories_folder()), "--prompt-tokens", "4", "--new-tokens", "2", "--repeat", "1"]
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["configuration"]["kernel"] == "lut"
    assert report["decode_tokens_per_second"]["standard_deviation"] is None
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "prompt of 4, tokens/s" in out
    assert "decode of 1 after it, tokens/s" in out
    assert "resident memory" in out


def test_the_environment_chooses_the_kernel_that_is_reported(monkeypatch):
    monkeypatch.setenv("FAIRY2I_KERNEL", "exact")
    monkeypatch.setenv("FAIRY2I_ISA", "scalar")
    found = core.chosen_kernel(bench.BenchOptions().kernel, bench.BenchOptions().isa)
    assert (found.family, found.isa) == ("exact", "scalar")


def test_auto_is_reported_as_what_runs(capsys):
    kernels = core.chosen_kernels("auto")
    arguments = [
        "bench",
        str(stories_folder()),
        "--prompt-tokens",
        "16",
        "--new-tokens",
        "2",
        "--repeat",
        "1",
        "--kernel",
        "auto",
    ]
    assert main([*arguments, "--json"]) == 0
    used = json.loads(capsys.readouterr().out)["configuration"]
    first, *others = (kernel.family for kernel in kernels.values())
    assert (used["kernel"], used["prompt_kernel"]) == (first, [first, *others][-1])
    assert main(arguments) == 0
    assert ("for the prompt dot" in capsys.readouterr().out) == (len(kernels) > 1)


def test_a_worker_that_dies_gives_one_message(monkeypatch):
    real = subprocess.Popen

    def killed(command, **how):
        process = real(command, **how)
        process.kill()
        return process

    monkeypatch.setattr(bench.subprocess, "Popen", killed)
    with pytest.raises(Fairy2iRuntimeError, match=r"ended with code -9.*out of memory"):
        bench.bench(stories_folder(), bench.BenchOptions())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/absent"], "/absent does not exist"),
        (["{}", "--prompt-tokens", "0"], "prompt_tokens: expected"),
        (["{}", "--new-tokens", "1"], "new_tokens: expected"),
        (["{}", "--repeat", "0"], "repeat: expected"),
        (["{}", "--threads", "0"], "threads: expected"),
        (
            ["{}", "--prompt-tokens", "500"],
            "--prompt-tokens 500 and --new-tokens 64 are 564 tokens together",
        ),
        (["{}", "--kernel", "nope"], "unknown kernel"),
        (["{}", "--isa", "nope"], "nope"),
    ],
)
def test_mistakes_give_one_message(capsys, arguments, message):
    assert main(["bench", *(argument.format(stories_folder()) for argument in arguments)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_what_only_loading_finds_wrong_gives_one_message(capsys, tmp_path):
    folder = copy_of_stories(tmp_path / "model")
    (folder / "model.onnx.data").write_bytes(b"x" * 100)
    assert main(["bench", str(folder)]) == 2
    captured = capsys.readouterr()
    assert "export the model again" in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.skipif(
    not Path(f"/proc/self/task/{os.getpid()}/children").exists(), reason="no lists of child processes in /proc"
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGHUP])
def test_the_worker_ends_with_its_parent(number):
    command = [sys.executable, "-m", "fairy2i_export", "bench", str(stories_folder()), "--repeat", "1000"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=heed_interrupts
    ) as parent:
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        deadline = time.monotonic() + 60
        while not children.read_text() and time.monotonic() < deadline:
            time.sleep(0.02)
        (worker,) = children.read_text().split()
        time.sleep(0.5)  # in its imports, or at work
        parent.send_signal(number)
        said = parent.stdout.read()
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        if Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            break  # its new parent does not care for it
        time.sleep(0.02)
    else:
        assert not Path(f"/proc/{worker}").exists()
    assert said == ("" if number == signal.SIGKILL else "interrupted: nothing was written\n")
