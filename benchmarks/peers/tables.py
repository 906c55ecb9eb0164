"""Markdown tables of the records that contest.py makes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

Record = dict[str, Any]
BASELINES = ("TQ2_0", "Q4_0")  # what ratios are given to, where it was measured
MEASURES = {  # key of seconds -> heading, column
    "decode": ("decoding, {new} tokens after {short}", "tokens/s"),
    "first": ("first token after a prompt of {short}", "ms"),
    "prompt": ("prompt of {long}, last token's logits", "tokens/s"),
}


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, lower and upper quartile."""
    low, high = np.percentile(values, [25, 75])
    return statistics.median(values), float(low), float(high)


def shown(record: Record, measure: str) -> list[float]:
    """What a table shows of every round: tokens per second, or milliseconds."""
    lengths, seconds = record["lengths"], record["seconds"][measure]
    if measure == "first":
        return [1e3 * value for value in seconds]
    tokens = lengths["new"] - 1 if measure == "decode" else lengths["long"]
    return [tokens / value for value in seconds]


def ratio(record: Record, base: Record, measure: str) -> str:
    """How many times as fast as the base, of rounds: median and quartiles. Both had their turns in the same rounds."""
    pairs = zip(base["seconds"][measure], record["seconds"][measure], strict=True)
    median, low, high = quartiles([other / own for other, own in pairs])
    return f"{median:.2f} ({low:.2f} to {high:.2f})"


def speed_table(records: list[Record], measure: str, baselines: Sequence[str]) -> list[str]:
    """Lines of one table, fastest first. All records have the same number of threads."""
    by_name = {record["name"]: record for record in records}
    bases = [name for name in baselines if name in by_name]
    unit = MEASURES[measure][1]
    lines = [
        f"| engine | {' | '.join([unit, 'spread', *(f'times as fast as {name}' for name in bases)])} |",
        "|---" + "|--:" * (2 + len(bases)) + "|",
    ]
    for record in sorted(records, key=lambda record: statistics.median(record["seconds"][measure])):
        median, low, high = quartiles(shown(record, measure))
        cells = [label(record), f"{median:.1f}", f"{100 * (high - low) / median:.0f} %"]
        cells += [ratio(record, by_name[name], measure) for name in bases]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def label(record: Record) -> str:
    """Ours in bold."""
    return f"**{record['name']}**" if "stages" in record["stored"]["layers"] else str(record["name"])


def stored_table(records: list[Record]) -> list[str]:
    """What every engine runs, with the memory it took at the end, by number of threads."""
    threads = sorted({record["threads"] for record in records})
    memory = [f"memory, MB, {count} thread{'s' * (count > 1)}" for count in threads]
    lines = [
        f"| engine | layers | bits | output layer | file, MB | {' | '.join(memory)} | |",
        "|---|---|--:|---|--:" + "|--:" * len(threads) + "|---|",
    ]
    for name in dict.fromkeys(record["name"] for record in records):
        found = {record["threads"]: record for record in records if record["name"] == name}
        one = next(iter(found.values()))
        stored, worker = one["stored"], one["worker"]
        resident = [found[count]["resident_bytes"] if count in found else None for count in threads]
        repacked = worker.get("buffers", {}).get("CPU_REPACK")
        notes = [worker["runs"], stored["note"], f"{repacked:.0f} MiB repacked" if repacked else ""]
        if "buffers" in worker:
            notes[0] = ""  # the same for all of llama.cpp, and above the table
        cells = [
            label(one), stored["layers"], f"{stored['bits']:.2f}", stored["head"], f"{stored['bytes'] / 1e6:.0f}",
            *("" if size is None else f"{size / 1e6:.0f}" for size in resident), "; ".join(filter(None, notes)),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def markdown(records: list[Record], baselines: Sequence[str] = BASELINES) -> str:
    """All tables of one run."""
    first = records[0]
    rounds = len(first["seconds"]["decode"])
    versions = sorted({r["worker"]["runs"] for r in records if "buffers" in r["worker"]})
    features = sorted({name for r in records for name in r["worker"].get("features", ())})
    peer = f" {versions[0]}, compiled with {', '.join(features)}." if versions else ""
    idle = max(record["idle_processor_seconds"] for record in records)
    lines = [
        f"Machine: {first['machine']}.{peer} Rounds: {rounds}. "
        f"Between its turns no process took more than {1e3 * idle:.0f} ms of a processor.",
        "",
        *stored_table(records),
    ]
    for threads in sorted({record["threads"] for record in records}):
        alike = [record for record in records if record["threads"] == threads]
        for measure, (heading, _) in MEASURES.items():
            title = f"{heading.format(**first['lengths'])}, {threads} thread{'s' * (threads > 1)}"
            lines += ["", f"**{title}**", "", *speed_table(alike, measure, baselines)]
    return "\n".join([*lines, ""])
