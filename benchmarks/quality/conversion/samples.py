"""Samples of text to convert with: a part of the prose that is given, and what the model writes with a seed of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

WRITER = Path(__file__).resolve().parents[3] / "examples" / "self_text.py"


def prose_part(text: str, part: int, parts: int) -> str:
    """One of several equal parts of a text, cut at the ends of lines.

    Args:
        text: the text.
        part: from 0.
        parts: how many there are.

    Raises:
        ValueError: the text has fewer lines than parts.
    """
    lines = text.splitlines(keepends=True)
    if len(lines) < parts:
        raise ValueError(f"expected at least {parts} lines of text, found {len(lines)}")
    sizes, total = 0, len(text)
    chosen = []
    for line in lines:
        if part * total <= sizes * parts < (part + 1) * total:  # by where a line begins
            chosen.append(line)
        sizes += len(line)
    return "".join(chosen)


def sample_texts(
    checkpoint: Path, prose: list[Path], sample: int, samples: int, conversations: int, work: Path
) -> list[Path]:
    """Files of a sample, made where they are missing: parts of the prose, and the model's conversations if it is to write some.

    Args:
        checkpoint: writes the conversations.
        prose: text files.
        sample: from 0; also the seed of the conversations.
        samples: how many there are; each reads another part of every prose file.
        conversations: of 256 tokens each; 0: none.
        work: where the files go.
    """
    files = []
    for path in prose:
        target = work / f"{path.stem}-{sample}.txt"
        if not target.exists():
            target.write_text(prose_part(path.read_text(encoding="utf-8"), sample, samples), encoding="utf-8")
        files.append(target)
    if conversations:
        target = work / f"self-{conversations}-{sample}.txt"
        if not target.exists():
            command = [sys.executable, WRITER, checkpoint, target, "--conversations", conversations, "--seed", sample]
            subprocess.run(list(map(str, command)), check=True)
        files.append(target)
    return files
