"""Train, export and measure every run of an experiment: ``python benchmarks/quality/compare.py stories --work DIRECTORY``.

Every finished run leaves a JSON file in the directory; the same command goes on where it was interrupted (a run in its middle, from
its last checkpoint). ``tables.py`` makes the tables of docs/quality.md of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "examples" / "data" / "tinystories"
STORIES_TOKENS = 1_048_576  # that the float model writes for the others to learn from

console = Console()


def compare(
    experiment: Annotated[str, typer.Argument(help="stories, stories-long, quantizers, options, starts or smollm2.")],
    work: Annotated[Path, typer.Option(help="Where everything goes: texts, checkpoints, results.")],
    source: Annotated[Path | None, typer.Option(help="smollm2: its checkpoint (tests/large/fetch_smollm2.py).")] = None,
    text: Annotated[Path | None, typer.Option(help="smollm2: UTF-8 text to train and calibrate on.")] = None,
    eval_text: Annotated[Path | None, typer.Option(help="smollm2: UTF-8 text to measure.")] = None,
    eval_tokens: Annotated[int | None, typer.Option(help="Measure at most this many tokens.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Seeds per run; default: of the experiment.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens per run; default: of the experiment.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Names of runs; default: all.")] = None,
    jobs: Annotated[int, typer.Option(help="Runs at a time, one thread each.")] = 2,
) -> None:
    """Do what is not done yet, and print the results."""
    from runs import EXPERIMENTS

    if experiment not in EXPERIMENTS:
        raise typer.BadParameter(f"expected one of {', '.join(EXPERIMENTS)}, got {experiment!r}")
    chosen = EXPERIMENTS[experiment]
    work = work.resolve()
    (work / experiment).mkdir(parents=True, exist_ok=True)
    if experiment == "smollm2":
        if source is None or text is None or eval_text is None:
            raise typer.BadParameter("smollm2 needs --source, --text and --eval-text")
        setting = {"source": source, "data": [text], "eval": eval_text, "calibrate": text, "separator": None}
    else:
        setting = stories_setting(work, chosen.written)
    setting |= {"eval_tokens": eval_tokens, "context": chosen.context or 512, "max_tokens": max_tokens}
    setting = {key: _plain(value) for key, value in setting.items()}
    count = chosen.seeds if seeds is None else seeds
    todo = [
        (run, seed)
        for seed in range(count)
        for run in chosen.runs
        if (not only or run.name in only) and (run.seeded or seed == 0)
    ]
    commands = []
    for run, seed in todo:
        task = {"experiment": experiment, "run": asdict(run), "seed": seed, "setting": setting, "shared": chosen.recipe}
        out = work / experiment / f"{run.name}-{seed}"
        if not out.with_name(out.name + ".json").exists():
            commands.append([sys.executable, str(Path(__file__).with_name("one_run.py")), json.dumps(task), str(out)])
    console.print(f"{len(todo) - len(commands)} runs are done, {len(commands)} to do", highlight=False)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with ThreadPoolExecutor(jobs) as pool:
        results = pool.map(lambda command: (command, run_one(command, environment)), commands)
        failed = [Path(command[-1]).name for command, code in results if code]
    if failed:
        console.print(f"[red]failed: {', '.join(failed)}[/] (logs in {work / experiment})", highlight=False)
        raise typer.Exit(1)


def run_one(command: list[str], environment: dict[str, str]) -> int:
    """Run one in a process of its own; its output goes to a log beside its result."""
    name = Path(command[-1])
    with name.with_name(name.name + ".log").open("a", encoding="utf-8") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False).returncode
    result = json.loads(name.with_name(name.name + ".json").read_text(encoding="utf-8")) if not code else None
    shown = "failed" if result is None else f"{result['loss']:.4f} nats/token, perplexity {result['perplexity']:.3f}"
    console.print(f"{name.name}: {shown}", highlight=False)
    return code


def stories_setting(work: Path, written: bool) -> dict[str, Any]:
    """The float model, and an excerpt of TinyStories, with the text it writes if that is wanted."""
    source, text = work / "stories260K", work / "teacher.txt"
    if not (source / "model.safetensors").exists():
        subprocess.run([sys.executable, str(ROOT / "examples" / "stories" / "stories260k.py"), str(source)], check=True)
    excerpt = DATA / "tinystories_train_197k.txt"
    if written and not text.exists():
        write_teacher_text(source, text)
    return {
        "source": source,
        "data": [text, excerpt] if written else [excerpt],
        "eval": DATA / "tinystories_sample.txt",
        "calibrate": text if written else excerpt,
        "separator": "<|endoftext|>",
    }


def write_teacher_text(source: Path, target: Path) -> None:
    """Let the float model write stories at temperature 1, one document for every stretch of 256 tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    teacher: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(source)
    stories: list[str] = []
    with console.status("the float model writes stories"):
        for _ in range(STORIES_TOKENS // (256 * 128)):
            start = torch.full((128, 1), teacher.config.bos_token_id)
            ids = teacher.generate(start, do_sample=True, top_k=0, max_length=256, eos_token_id=None, pad_token_id=0)
            stories += tokenizer.batch_decode(ids, skip_special_tokens=True)
    partial = target.with_suffix(".partial")
    partial.write_text("\n<|endoftext|>\n".join(story.strip() for story in stories), encoding="utf-8")
    os.replace(partial, target)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value.resolve())
    return [_plain(item) for item in value] if isinstance(value, list) else value


if __name__ == "__main__":
    typer.run(compare)
