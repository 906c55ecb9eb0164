"""How much processor time Linux's control groups grant this process, as containers and services are given it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_V2 = "cgroup2"


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Processors' worth of time that the process's control groups grant it; None where nothing limits it, or it is unknown.

    Both versions of control groups are read, and every group above the process's own: the smallest quota counts.

    Args:
        root: of the tree that has /proc and, below it, what /proc/self/mountinfo names.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text(errors="replace").splitlines()
        mounts = (root / "proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:  # not Linux
        return None
    found = [
        quota
        for kind, top, group in _cpu_groups(groups, mounts)
        for folder in _with_parents(root / top.lstrip("/"), group)
        if (quota := _quota(folder, kind)) is not None
    ]
    return min(found, default=None)


def _cpu_groups(groups: list[str], mounts: list[str]) -> Iterator[tuple[str, str, str]]:
    """(version, mount point, group relative to it) of every hierarchy that limits processors."""
    names = {}  # version -> the process's group in it
    for line in groups:
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            names[_V2] = path
        elif "cpu" in controllers.split(","):
            names["cgroup"] = path
    for line in mounts:
        fields, _, rest = line.partition(" - ")
        kind, _, options = [*rest.split(" "), "", ""][:3]
        if kind not in names or (kind != _V2 and "cpu" not in options.split(",")) or len(fields.split(" ")) < 5:
            continue
        within, top = (_unescaped(field) for field in fields.split(" ")[3:5])
        path = names[kind]
        # a container that sees its group by its full name has that group alone mounted
        inside = path.removeprefix(within) if within != "/" and path.startswith(within) else path if within == "/" else "/"
        yield kind, top, inside


def _with_parents(top: Path, group: str) -> Iterator[Path]:
    parts = [part for part in group.split("/") if part not in ("", ".", "..")]
    for length in range(len(parts), -1, -1):
        yield top.joinpath(*parts[:length])


def _quota(folder: Path, kind: str) -> float | None:
    try:
        if kind == _V2:
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        granted, every = int(quota), int(period)
    except (OSError, ValueError):  # no such file at the top; "max" says that there is no limit
        return None
    return granted / every if granted > 0 and every > 0 else None


def _unescaped(field: str) -> str:
    """A path of mountinfo, where spaces and the like are written as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
