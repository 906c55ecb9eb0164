"""Let the float model answer questions: the text that conversions are measured with, not calibrated.

    python benchmarks/quality/speech/conversations.py CHECKPOINT [--into FILE] [--questions FILE] [--tokens 200] [--seed 7]

Questions are those of data/topics.json, none of which is in data/questions.json; examples/self_text.py, which writes text to
calibrate with, gives no question at all and samples in another way. Answers are sampled as ``fairy2i chat`` samples.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conversion.subjects import Subject, open_subject, sampling_of
from speech.dialogue import prompt_ids

DATA = Path(__file__).with_name("data")


def answers_of(subject: Subject, questions: list[str], seed: int, tokens: int) -> list[dict[str, Any]]:
    """Every question with its answer, and whether that came to its end.

    A model without a chat template goes on from the question as it stands.
    """
    options = sampling_of(subject.folder, seed, tokens)
    if subject.template is None:
        prompts = [subject.tokenizer.encode(question) for question in questions]
    else:
        prompts = [prompt_ids(subject.tokenizer, subject.template, question) for question in questions]
    ends = {subject.tokenizer.eos_id}
    written = subject.write(prompts, options)
    return [
        {
            "question": question,
            "answer": subject.tokenizer.decode(ids),
            "finished": len(ids) < tokens or ids[-1] in ends,
            "tokens": len(ids),
        }
        for question, ids in zip(questions, written, strict=True)
    ]


def main(
    checkpoint: Annotated[Path, typer.Argument(help="Float model.")],
    into: Annotated[Path, typer.Option(help="File to write.")] = DATA / "conversations.json",
    questions: Annotated[Path, typer.Option(help="JSON list of questions.")] = DATA / "topics.json",
    tokens: Annotated[int, typer.Option(help="Of an answer, at most.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the first answer.")] = 7,
    threads: Annotated[int | None, typer.Option(help="Threads.")] = None,
) -> None:
    """Write the conversations."""
    subject = open_subject(checkpoint, threads=threads)
    asked = json.loads(questions.read_text(encoding="utf-8"))
    options = sampling_of(checkpoint, seed, tokens)
    names = ("temperature", "top_k", "top_p", "repetition_penalty", "seed", "max_new_tokens")
    weights = hashlib.sha256()
    for path in sorted(checkpoint.glob("*.safetensors")):
        weights.update(path.read_bytes())
    result = {
        "made_by": "benchmarks/quality/speech/conversations.py",
        "model": checkpoint.name,
        "weights_sha256": weights.hexdigest(),
        "sampling": {name: getattr(options, name) for name in names},
        "conversations": answers_of(subject, asked, seed, tokens),
    }
    into.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{into}: {len(asked)} conversations, {sum(item['tokens'] for item in result['conversations'])} tokens of answers")


if __name__ == "__main__":
    typer.run(main)
