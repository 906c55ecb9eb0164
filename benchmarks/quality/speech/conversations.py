"""Let the float model answer questions: the text that conversions are measured with, not calibrated.

    python benchmarks/quality/speech/conversations.py CHECKPOINT [--into FILE] [--questions FILE] [--tokens 200] [--seed 7]

Questions are those of data/topics.json, none of which is in data/questions.json; examples/self_text.py, which writes text to
calibrate with, gives no question at all and samples in another way. Answers are sampled as ``fairy2i chat`` samples, or, with
--temperature 1, from the model's own distribution: then the mean of the difference of losses is a divergence, of the
float model from the one that is measured.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conversion.subjects import open_subject, sampling_of
from speech.answers import DATA, answers_of


def main(
    checkpoint: Annotated[Path, typer.Argument(help="Float model.")],
    into: Annotated[Path, typer.Option(help="File to write.")] = DATA / "conversations.json",
    questions: Annotated[Path, typer.Option(help="JSON list of questions.")] = DATA / "topics.json",
    tokens: Annotated[int, typer.Option(help="Of an answer, at most.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the first answer.")] = 7,
    temperature: Annotated[
        float | None, typer.Option(help="Of sampling, without top-p and penalty; default: as chat.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads.")] = None,
) -> None:
    """Write the conversations."""
    subject = open_subject(checkpoint, threads=threads)
    asked = json.loads(questions.read_text(encoding="utf-8"))
    options = sampling_of(checkpoint, seed, tokens)
    if temperature is not None:
        options = replace(options, temperature=temperature, top_p=1.0, top_k=0, repetition_penalty=1.0)
    names = ("temperature", "top_k", "top_p", "repetition_penalty", "seed", "max_new_tokens")
    weights = hashlib.sha256()
    for path in sorted(checkpoint.glob("*.safetensors")):
        weights.update(path.read_bytes())
    result = {
        "made_by": "benchmarks/quality/speech/conversations.py",
        "model": checkpoint.name,
        "weights_sha256": weights.hexdigest(),
        "sampling": {name: getattr(options, name) for name in names},
        "conversations": answers_of(subject, asked, options),
    }
    into.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{into}: {len(asked)} conversations, {sum(item['tokens'] for item in result['conversations'])} tokens of answers")


if __name__ == "__main__":
    typer.run(main)
