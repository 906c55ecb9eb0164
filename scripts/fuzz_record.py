"""How long the C library was fuzzed: ``custom_ops/fuzz/record.json``, and the table of docs/security.md that is written from it.

    python scripts/fuzz_record.py run [--record] LOG -- ./fuzz_pack CORPUS -max_total_time=60 # what make fuzz-library does
    python scripts/fuzz_record.py lines LOG --commit 2e41396 --processor "AMD EPYC (Zen 4)"
    python scripts/fuzz_record.py table                                                        # after a change by hand

``run`` starts a target of libFuzzer and measures its processor time; ``lines`` takes runs that were measured otherwise, one a line:
``fuzz_pack rc=0 wall=604 cpu=352.689 2.452 runs=619518 corpus=515 cov: 116 ft: 519`` (cpu: seconds as user and in the system). A
run that is in the record is not taken again. Needs nothing but Python; ``test_fuzz_record.py`` keeps the table current.
"""

from __future__ import annotations

import argparse
import datetime
import fcntl
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from marked_page import replaced

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "security.md"
RECORD = ROOT / "custom_ops" / "fuzz" / "record.json"
TARGETS = tuple(sorted(path.stem for path in RECORD.parent.glob("fuzz_*.c")))
BEGIN, END = "<!-- fuzzing: scripts/fuzz_record.py -->\n", "<!-- end of fuzzing -->\n"
INTERRUPTED = "72"  # libFuzzer's exit code if somebody ended it
LINE = re.compile(
    r"(?P<target>\w+) rc=(?P<code>\d+) wall=\d+ cpu=(?P<user>[\d.]+) (?P<system>[\d.]+) runs=(?P<executions>\d+) "
    r"corpus=(?P<corpus>\d+) cov: (?P<coverage>\d+) ft: (?P<features>\d+)"
)


@dataclass(frozen=True)
class Run:
    """One run of a target.

    Attributes:
        target: a name of :data:`TARGETS`.
        user, system: seconds of processor time.
        executions: how many inputs it ran.
        coverage, features: libFuzzer's cov and ft at its end: edges that were reached, and combinations of them.
        corpus: inputs that were kept at its end.
        findings: inputs that it ended for (0 or 1).
        commit: of what was fuzzed, with "-dirty" where that was changed.
        processor: its model.
        date: when it ended or was taken into the record, YYYY-MM-DD.
    """

    target: str
    user: float
    system: float
    executions: int
    coverage: int
    features: int
    corpus: int
    findings: int
    commit: str
    processor: str
    date: str

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise ValueError(f"expected a target of custom_ops/fuzz ({', '.join(TARGETS)}), found {self.target}")

    @property
    def key(self) -> tuple[object, ...]:
        """What no two runs have in common: processor time to the millisecond, and a number of inputs."""
        return self.target, self.user, self.system, self.executions


def read() -> list[Run]:
    """The runs of the record, as they came."""
    return [Run(**entry) for entry in json.loads(RECORD.read_text(encoding="utf-8"))]


def add(runs: Iterable[Run]) -> int:
    """Add runs to the record, and write the table; returns how many were not in it."""
    with RECORD.open("r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # targets that run at the same time end at the same time
        known = [Run(**entry) for entry in json.load(file)]
        taken = {run.key for run in known}
        new = list({run.key: run for run in runs if run.key not in taken}.values())
        lines = ",\n".join(json.dumps(asdict(run)) for run in [*known, *new])
        file.seek(0)
        file.truncate()
        file.write(f"[\n{lines}\n]\n" if lines else "[]\n")
        file.flush()
        PAGE.write_text(page(), encoding="utf-8")
    return len(new)


def of_log(log: str, target: str, user: float, system: float, corpus: int) -> Run:
    """A run here and now, of what libFuzzer wrote with -print_final_stats=1.

    Raises:
        ValueError: if that is not there.
    """
    executions = re.findall(r"^stat::number_of_executed_units: (\d+)", log, flags=re.M)
    reached = re.findall(r"^#\d+\s+\w+\s+cov: (\d+) ft: (\d+)", log, flags=re.M)
    if not executions or not reached:
        raise ValueError(
            f"{target}: expected cov:, ft: and stat::number_of_executed_units in its log, found an end without them"
        )
    coverage, features = map(int, reached[-1])
    findings = int(re.search(r"Test unit written to \S*-?(crash|leak|oom|timeout)-", log) is not None)  # slow units are none
    return Run(
        target, round(user, 3), round(system, 3), int(executions[-1]), coverage, features, corpus, findings,
        commit_here(), processor_here(), today(),
    )  # fmt: skip


def of_lines(text: str, commit: str, processor: str, date: str) -> list[Run]:
    """Runs of lines as the module's text shows one.

    Raises:
        ValueError: if a line is of another kind.
    """
    runs = []
    for number, line in enumerate(filter(str.strip, text.splitlines()), 1):
        found = LINE.fullmatch(line.strip())
        if found is None:
            raise ValueError(
                f"line {number}: expected TARGET rc= wall= cpu= runs= corpus= cov: ft:, found {line.strip()[:100]!r}"
            )
        numbers = {name: int(found[name]) for name in ("executions", "coverage", "features", "corpus")}
        findings = int(found["code"] not in ("0", INTERRUPTED))
        runs.append(
            Run(
                found["target"], float(found["user"]), float(found["system"]), **numbers, findings=findings,
                commit=commit, processor=processor, date=date,
            )
        )  # fmt: skip
    return runs


def commit_here() -> str:
    """The commit of this checkout, and whether the library of it was changed."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--", "custom_ops", ":!custom_ops/fuzz/record.json")
    return (git("rev-parse", "--short=7", "HEAD") or "unknown") + ("-dirty" if changed else "")


def processor_here() -> str:
    """The model of this machine's processor."""
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), flags=re.M)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def today() -> str:
    """The date in UTC."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def table() -> str:
    """The table in Markdown: the runs of a target together."""
    rows = [
        "| target | processor time | inputs run | edges | features | inputs kept | findings | commits | dates |\n",
        "|---|---|---|---|---|---|---|---|---|\n",
    ]
    runs = read()
    for target in TARGETS:
        of = [run for run in runs if run.target == target]
        if not of:
            rows.append(f"| `{target}` | none | | | | | | | |\n")
            continue
        hours = sum(run.user + run.system for run in of) / 3600
        commits, dates = (sorted({getattr(run, name) for run in of}) for name in ("commit", "date"))
        rows.append(
            f"| `{target}` | {hours:.2f} h | {sum(run.executions for run in of):,} | {max(run.coverage for run in of):,} | "
            f"{max(run.features for run in of):,} | {max(run.corpus for run in of):,} | {sum(run.findings for run in of)} | "
            f"{', '.join(commits)} | {' to '.join(dict.fromkeys((dates[0], dates[-1])))} |\n"
        )
    processors = sorted({run.processor for run in runs})
    return "".join(rows) + (f"\nOn: {'; '.join(processors)}.\n" if processors else "")


def page() -> str:
    """The page with the table as it should be."""
    text = PAGE.read_text(encoding="utf-8")
    return replaced(text, BEGIN, END, table())


def run(log: Path, command: Sequence[str], record: bool) -> int:
    """Run a target, its output into ``log``; prints the end of that and the processor time, and returns its exit status."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, stderr=file)
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    text = log.read_text(encoding="utf-8", errors="replace")
    target = Path(command[0]).name
    print(target, *text.splitlines()[-7:], sep="\n")
    print(f"{target}: {used.ru_utime:.3f} s as user, {used.ru_stime:.3f} s in the system")
    if record:
        kept = [path for argument in command[1:] if not argument.startswith("-") for path in Path(argument).iterdir()]
        add([of_log(text, target, used.ru_utime, used.ru_stime, len(kept))])
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _date(text: str) -> str:
    return datetime.date.fromisoformat(text).isoformat()


def main() -> int:
    """What the command line says; returns the exit status."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="task", required=True)
    one = commands.add_parser("run", help="run a target and measure it")
    one.add_argument("--record", action="store_true", help="add the run to the record")
    one.add_argument("log", type=Path, help="file for what it prints")
    one.add_argument("command", nargs="+", help="the target and its arguments, behind --")
    lines = commands.add_parser("lines", help="take runs that were measured otherwise")
    lines.add_argument("log", type=Path, help="file with a run in each line")
    lines.add_argument("--commit", required=True, help="that was fuzzed")
    lines.add_argument("--processor", required=True, help="its model")
    lines.add_argument("--date", default=today(), type=_date, help="YYYY-MM-DD; today if it is not given")
    commands.add_parser("table", help="write the table of docs/security.md")
    given = parser.parse_args()
    try:
        if given.task == "run":
            return run(given.log, given.command, given.record)
        if given.task == "lines":
            text = given.log.read_text(encoding="utf-8")
            print(f"{add(of_lines(text, given.commit, given.processor, given.date))} runs added")
        else:
            PAGE.write_text(page(), encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"fuzz_record: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
