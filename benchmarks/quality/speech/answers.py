"""Let models answer questions, and judge the answers by rules.

    python benchmarks/quality/speech/answers.py MODEL... --work DIR --vocabulary FILE... [--kernel exact] [--tokens 80] [--greedy]

Every model, an exported folder or a float checkpoint, answers data/questions.json in its chat template; one without a
template, a base model, goes on from data/openings.json. Answers are sampled as ``fairy2i chat`` samples, with fixed seeds.
They are kept in DIR, a file per model, and not asked for again. What the rules
are is in judge.py; --vocabulary are further English texts.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conversion.subjects import FLOAT, Subject, is_exported, open_subject, sampling_of
from marked import markdown_table
from speech.dialogue import prompt_ids, read_conversations
from speech.judge import CLASSES, Judge

from fairy2i_runtime.commands.measure import read_text
from fairy2i_runtime.text.options import GenerationOptions

DATA = Path(__file__).with_name("data")
# what the judge knows of English at least; more texts make it surer
ENGLISH = (DATA / "conversations.json", DATA.parents[3] / "examples" / "data" / "tinystories" / "tinystories_train_197k.txt")


def answers_of(subject: Subject, questions: list[str], options: GenerationOptions) -> list[dict[str, Any]]:
    """Every question with its answer, and whether that came to its end.

    A model without a chat template goes on from the question as it stands.
    """
    if subject.template is None:
        prompts = [subject.tokenizer.encode(question) for question in questions]
    else:
        prompts = [prompt_ids(subject.tokenizer, subject.template, question) for question in questions]
    return [
        {
            "question": question,
            "answer": subject.tokenizer.decode(ids),
            "finished": len(ids) < (options.max_new_tokens or 0) or ids[-1] == subject.tokenizer.eos_id,
            "tokens": len(ids),
        }
        for question, ids in zip(questions, subject.write(prompts, options), strict=True)
    ]


def kept_answers(
    work: Path, model: Path, kernel: str, tokens: int, greedy: bool, threads: int | None, seed: int = 0
) -> dict[str, Any]:
    """Answers of a model: those of an earlier call with the same settings, or new ones.

    Returns:
        model, kernel, sampling, seconds, and ``answers``: question, answer, finished, tokens and kind of each.
    """
    kernel = kernel if is_exported(model) else FLOAT
    style = "greedy" if greedy else f"seed{seed}"
    path = work / f"{model.resolve().name}-{kernel}-{style}-{tokens}.json"
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    subject = open_subject(model, kernel, threads)
    options = sampling_of(model, seed, tokens)
    if greedy:
        options = replace(options, temperature=0.0)
    asked = json.loads(
        (DATA / ("openings.json" if subject.template is None else "questions.json")).read_text(encoding="utf-8")
    )
    began = time.perf_counter()
    answers = answers_of(subject, [item["question"] for item in asked], options)
    names = ("temperature", "top_k", "top_p", "repetition_penalty", "seed", "max_new_tokens")
    found = {
        "model": model.resolve().name,
        "kernel": kernel,
        "sampling": {name: getattr(options, name) for name in names},
        "seconds": time.perf_counter() - began,
        "answers": [{**answer, "kind": item["kind"]} for answer, item in zip(answers, asked, strict=True)],
    }
    work.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return found


def judged(found: dict[str, Any], judge: Judge) -> dict[str, Any]:
    """How many answers are of each class, and which fail."""
    verdicts = [(judge.verdict(answer["answer"], answer["kind"]), answer) for answer in found["answers"]]
    counts = {name: sum(verdict == name for verdict, _ in verdicts) for name in CLASSES}
    failures = [{"class": verdict, **answer} for verdict, answer in verdicts if verdict != "fine"]
    return {
        "model": found["model"],
        "kernel": found["kernel"],
        "judge": {"words": len(judge.words), "pairs": len(judge.pairs)},
        "asked": len(verdicts),
        "counts": counts,
        "failures": failures,
    }


def table_of(results: list[dict[str, Any]]) -> list[str]:
    """A row per model."""
    bad = [name for name in CLASSES if name != "fine"]
    rows = [
        [
            result["model"],
            result["kernel"],
            str(result["asked"]),
            *(str(result["counts"][name]) for name in bad),
            str(sum(result["counts"][name] for name in bad)),
        ]
        for result in results
    ]
    return markdown_table(["model", "kernel", "asked", *bad, "together"], rows, left=2)


def make_judge(vocabulary: list[Path]) -> Judge:
    """A judge that knows the words of these texts; .json: conversations or answers, each answer a text."""
    texts = []
    for path in vocabulary:
        if path.suffix == ".json":
            stored = json.loads(path.read_text(encoding="utf-8"))
            texts += [item["answer"] for item in stored.get("answers") or read_conversations(path)]
        else:
            texts.append(read_text(path))
    return Judge(texts)


def main(
    models: Annotated[list[Path], typer.Argument(help="Exported folders and checkpoints.")],
    work: Annotated[Path, typer.Option(help="Where answers are kept.")],
    vocabulary: Annotated[list[Path], typer.Option(help="English texts; may be repeated.")],
    kernel: Annotated[str, typer.Option(help="Of exported folders.")] = "exact",
    tokens: Annotated[int, typer.Option(help="Of an answer, at most.")] = 80,
    greedy: Annotated[bool, typer.Option(help="Take the most likely token (after the repetition penalty).")] = False,
    threads: Annotated[int | None, typer.Option(help="Threads.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write counts and failures there.")] = None,
) -> None:
    """Ask, judge and print."""
    judge = make_judge([*ENGLISH, *vocabulary])
    results = []
    for model in models:
        found = kept_answers(work, model, kernel, tokens, greedy, threads)
        results.append(judged(found, judge))
        for failure in results[-1]["failures"]:
            print(f"{found['model']} {failure['class']}: {failure['question']} -> {failure['answer']!r}")
        if json_file is not None:
            json_file.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print("\n".join(table_of(results)))


if __name__ == "__main__":
    typer.run(main)
