"""How many processors a process may use: affinity, control groups, and the choice of threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fairy2i_runtime.engine import threads
from fairy2i_runtime.engine.cgroup import cpu_quota
from fairy2i_runtime.errors import Fairy2iWarning

V2 = "30 23 0:26 {root} {top} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "31 23 0:27 {root} {top} rw - cgroup cgroup rw,cpu,cpuacct"


def tree(root: Path, groups: list[str], mounts: list[str], files: dict[str, str]) -> Path:
    """A system's files about control groups."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("".join(f"{line}\n" for line in groups))
    (root / "proc/self/mountinfo").write_text("".join(f"{line}\n" for line in mounts))
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "expected"),
    [
        pytest.param(["0::/"], [V2.format(root="/", top="/g")], {"g/cpu.max": "150000 100000\n"}, 1.5, id="a container"),
        pytest.param(["0::/"], [V2.format(root="/", top="/g")], {"g/cpu.max": "max 100000\n"}, None, id="no limit"),
        pytest.param(["0::/"], [V2.format(root="/", top="/g")], {}, None, id="the top has no such file"),
        pytest.param(
            ["0::/system.slice/a.service"],
            [V2.format(root="/", top="/g")],
            {"g/system.slice/cpu.max": "200000 100000", "g/system.slice/a.service/cpu.max": "max 100000"},
            2.0,
            id="the group above",
        ),
        pytest.param(
            ["0::/a/b"],
            [V2.format(root="/", top="/g")],
            {"g/a/cpu.max": "400000 100000", "g/a/b/cpu.max": "50000 100000"},
            0.5,
            id="the smallest counts",
        ),
        pytest.param(
            ["0::/docker/1f"], [V2.format(root="/docker/1f", top="/g")], {"g/cpu.max": "300000 100000"}, 3.0, id="by full name"
        ),
        pytest.param(
            ["4:memory:/x", "1:cpu,cpuacct:/x"],
            [V1.format(root="/", top="/g"), "32 23 0:28 / /m rw - cgroup cgroup rw,memory"],
            {"g/x/cpu.cfs_quota_us": "250000", "g/x/cpu.cfs_period_us": "100000", "g/cpu.cfs_quota_us": "-1"},
            2.5,
            id="version 1",
        ),
        pytest.param(
            ["1:cpu:/", "0::/"],
            [V1.format(root="/", top="/one"), V2.format(root="/", top="/two")],
            {"one/cpu.cfs_quota_us": "-1", "one/cpu.cfs_period_us": "100000", "two/cpu.max": "7 0"},
            None,
            id="both versions, no limit",
        ),
        pytest.param(["0::/"], [V2.format(root="/", top="/a\\040b")], {"a b/cpu.max": "100000 50000"}, 2.0, id="a blank"),
        pytest.param(["", "0", "x:y"], ["", "1 2 3", " - "], {}, None, id="nonsense"),
        pytest.param(["0::/"], [V2.format(root="/", top="/g")], {"g/cpu.max": "many"}, None, id="a nonsensical limit"),
        pytest.param(["0::/../up"], [V2.format(root="/", top="/g")], {"g/up/cpu.max": "100000 100000"}, 1.0, id="dots"),
    ],
)  # fmt: skip
def test_the_quota_of_control_groups(
    tmp_path: Path, groups: list[str], mounts: list[str], files: dict[str, str], expected: float | None
) -> None:
    assert cpu_quota(tree(tmp_path, groups, mounts, files)) == expected


def test_systems_without_control_groups_have_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None


@pytest.mark.parametrize(("quota", "expected"), [(0.2, 1), (1.0, 1), (1.5, 2), (64.0, None)])
def test_the_quota_counts_for_processors_threads_and_warnings(
    monkeypatch: pytest.MonkeyPatch, quota: float, expected: int | None
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(threads, "_physical_cores", lambda *_: {(0, core): 0 for core in range(8)})
    monkeypatch.setattr(threads, "cpu_quota", lambda: quota)
    assert threads.processors() == threads.default_threads() == (expected or 8)
    if expected is not None:
        words = rf"3 threads on {expected} processors? \(the control group grants the time of {quota:g}\): more threads"
        with pytest.warns(Fairy2iWarning, match=words):
            threads.check_threads(3)
    monkeypatch.setattr(threads, "_physical_cores", lambda *_: {})  # a system that does not tell cores
    assert threads.default_threads() == (expected or 8)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity of processes")
def test_affinity_counts_and_is_named() -> None:
    code = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
        "from fairy2i_runtime.engine.threads import check_threads, default_threads, processors\n"
        "print(processors(), default_threads() <= 1); check_threads(2); check_threads(2); check_threads(1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "True"]
    assert done.stderr.count("2 threads on 1 processor") == 1
    if (os.cpu_count() or 1) > 1:
        assert f"(of {os.cpu_count()}, those this process may run on)" in done.stderr
