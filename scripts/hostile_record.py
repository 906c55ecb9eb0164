"""Count what becomes of hostile input, and write the table of docs/security.md: ``python scripts/hostile_record.py [--write]``.

Runs the tests of every row of :data:`ROWS` with this file as a plugin of pytest. An input is a case of a test, or one that
hypothesis drew for it. It counts as refused if an error of ours was made, or one of ONNX Runtime was expected and came; as
right if the test passed without; as wrong if an assertion failed; as a traceback if anything else came out; as a crash if
the process died; as a hang if it took longer than :data:`SECONDS`. Needs what the tests need, and some ten minutes;
``test_hostile_record.py`` tries it with one test of each kind.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from marked_page import replaced

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
PAGE = ROOT / "docs" / "security.md"
BEGIN, END = "<!-- hostile: scripts/hostile_record.py -->\n", "<!-- end of hostile -->\n"
SECONDS = 300  # until a test counts as a hang
LOG = "FAIRY2I_HOSTILE_LOG"  # environment: file that the plugin writes to
OUTCOMES = ("refused", "right", "wrong", "traceback", "crash", "hang")
ROWS: dict[str, tuple[str, ...]] = {  # kind of input: files of tests, or single ones
    "the operator's attributes, operands, packed weights and scales": (
        "library/test_ort_op.py::test_hostile_models_are_refused",
        "library/test_ort_op.py::test_wrong_types_and_shapes_of_x",
        "library/test_ort_several.py::test_wrong_operands_are_refused",
        "library/test_ort_several.py::test_wrong_x_and_types_are_refused",
        "library/test_kernels.py::test_contradictions_are_refused",
        "compiler/codes/test_layout.py::test_contradictions_are_refused",
    ),
    "activations: not finite, extreme, at the ends of memory": (
        "library/test_kernels.py::test_a_row_that_is_not_finite_gives_a_row_of_nan",
        "library/test_kernels.py::test_extreme_activations",
        "library/test_kernels.py::test_sizes_far_from_one_do_not_matter",
        "library/test_kernels.py::test_rows_of_all_sizes_together",
        "library/test_kernels.py::test_beyond_the_largest_float",
        "library/test_kernels.py::test_nothing_is_read_or_written_beyond_the_buffers",
    ),
    "graphs of a model folder": ("hostile/test_hostile_load_graph.py", "hostile/test_ifairy_hostile.py"),
    "files of a model folder": ("hostile/test_hostile_load_files.py", "runtime/model/test_runtime_folder.py"),
    "checkpoints, their numbers, external data": ("hostile/test_hostile_inputs.py",),
    "links, and what others have put in the way": (
        "hostile/test_hostile_outside.py",
        "compiler/output/test_output_place.py",
    ),
    "chat templates": ("hostile/test_hostile_load_templates.py",),
    "tokenizers": ("hostile/test_hostile_load_tokenizer.py",),
    "names, paths, arguments": ("hostile/test_given_names.py",),
    "ONNX models to rewrite": (
        "compiler/rewrite/test_rewrite_damaged.py",
        "compiler/rewrite/test_rewrite_constants.py",
    ),
    "files changed or made by chance": ("hostile/test_properties_files.py", "hostile/test_fuzz_files.py"),
    "killed, interrupted, full or failing disks": ("faults",),
}


# ---- the plugin: one line of JSON for every event


def _log(**event: Any) -> None:
    with open(os.environ[LOG], "a", encoding="utf-8") as file:
        file.write(json.dumps(event) + "\n")


class _Refusals:
    """How many errors for users have been made so far."""

    count = 0

    @classmethod
    def counted(cls, made: Callable[..., None]) -> Callable[..., None]:
        def init(error: Exception, *args: Any, **options: Any) -> None:
            cls.count += 1
            made(error, *args, **options)

        return init


def pytest_configure(config: pytest.Config) -> None:
    """Count errors where they are made, as commands catch them; those of ONNX Runtime where a test catches them."""
    from fairy2i_export.errors import Fairy2iError
    from fairy2i_runtime.errors import Fairy2iRuntimeError

    for kind in {Fairy2iError, Fairy2iRuntimeError}:
        kind.__init__ = _Refusals.counted(kind.__init__)  # type: ignore[method-assign]
    expected = type(pytest.raises(Exception))
    leave = expected.__exit__

    def exit(self: Any, kind: Any, value: Any, trace: Any) -> bool:
        came = bool(leave(self, kind, value, trace))
        _Refusals.count += came
        return came

    expected.__exit__ = exit  # type: ignore[method-assign, assignment]


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """Log what each input of a test came to; of hypothesis' tests the failures are left to the report of the test."""
    _log(begins=pyfuncitem.nodeid)
    handle = getattr(pyfuncitem.obj, "hypothesis", None)
    drawn: Counter[str] = Counter()
    if handle is not None:
        inner = handle.inner_test

        def one(*args: Any, **options: Any) -> None:
            before = _Refusals.count
            inner(*args, **options)
            drawn["refused" if _Refusals.count > before else "right"] += 1

        handle.inner_test = one
    before = _Refusals.count
    yield
    _log(passed=dict(drawn) or {"refused" if _Refusals.count > before else "right": 1})


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Log what failed, and how, and that a test is over, also one that was left out."""
    if report.when == "teardown":
        _log(over=report.nodeid)
    if report.failed:
        words = str(report.longrepr)
        last = words.rstrip().splitlines()[-1] if words.strip() else ""
        kind = "hang" if "Timeout (>" in words else "wrong" if "AssertionError" in last or "Failed" in last else "traceback"
        _log(failed=kind, test=report.nodeid)


# ---- the program


def count(targets: Sequence[str], root: Path = TESTS, seconds: int = SECONDS) -> tuple[Counter[str], list[str]]:
    """Outcomes of the inputs of some tests, and which tests did not pass.

    Args:
        targets: files, folders or single tests, relative to ``root``.
        root: a folder of tests.
        seconds: until a test counts as a hang.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        log.touch()
        paths = [str(Path(__file__).parent), *(path for path in sys.path if path)]
        environment = {**os.environ, LOG: str(log), "PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, "-m", "pytest", "-q", "-p", Path(__file__).stem, "-p", "no:cacheprovider"]
        command += [f"--timeout={seconds}", *(str(root / target) for target in targets)]
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
        events = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    outcomes: Counter[str] = Counter()
    bad = []
    running = None
    for event in events:
        running = None if "over" in event else event.get("begins", running)
        outcomes.update(event.get("passed", {}))
        if "failed" in event:
            outcomes[event["failed"]] += 1
            bad.append(f"{event['test']}: {event['failed']}")
    if running is not None:
        outcomes["crash"] += 1
        bad.append(f"{running}: crash (exit code {done.returncode})")
    elif done.returncode not in (0, 1):
        raise SystemExit(f"pytest {' '.join(targets)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return outcomes, bad


def table(found: dict[str, Counter[str]]) -> str:
    """The rows, and their sum."""
    total = sum(found.values(), Counter[str]())
    lines = ["| input | tried | " + " | ".join(OUTCOMES) + " |", "|---|" + "--:|" * (len(OUTCOMES) + 1)]
    for name, outcomes in [*found.items(), ("together", total)]:
        cells = [f"{number:,}" for number in (outcomes.total(), *(outcomes[kind] for kind in OUTCOMES))]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Exit code 1 if anything was not refused or right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table into docs/security.md")
    write: bool = parser.parse_args().write
    found: dict[str, Counter[str]] = {}
    problems: list[str] = []
    for name, targets in ROWS.items():
        found[name], bad = count(targets)
        problems += bad
        print(f"{name}: {dict(found[name])}", flush=True)
    print("\n".join(problems))
    if write:
        PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8"), BEGIN, END, table(found)), encoding="utf-8")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
