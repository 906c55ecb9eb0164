"""Train a Fairy2i model (weights in {+1, -1, +i, -i}, 1 to 4 bits each) from the real stories260K, on a laptop CPU.

Quantization-aware training in its simplest form. The float model is the teacher: it tells stories, and a student that starts
from the same weights learns to give the same next-token distribution while every linear layer, the output layer included,
computes with its quantized weight. The quantizer is the exporter's own, so what is trained is what is exported. Gradients go
straight through it to the latent float weights. Embedding and norms are trained too and stay float.

    python examples/stories/train_stories.py --out my-model --row-multiplier rms

The result is a Hugging Face directory that ``fairy2i-export`` compiles. docs/training-stories.md shows what comes out.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file
from stories260k import DATA, convert
from stories_checkpoint import save
from stories_data import batch_rows, teacher_stories, text_windows
from tokenizers import Tokenizer
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional
from transformers import LlamaForCausalLM

from fairy2i_export.codes.choices import ROW_MULTIPLIERS, Profile, RowMultiplier
from fairy2i_export.codes.quantizer import quantize

EVAL_TEXT = DATA / "tinystories" / "tinystories_sample.txt"
TRAIN_TEXT = DATA / "tinystories" / "tinystories_train_197k.txt"


Decay = Literal["cosine", "exponential"]


@dataclass(frozen=True)
class Options:
    """Everything that decides the result of a run."""

    stages: int = 2
    profile: Profile = "bf16-reference"
    row_multiplier: RowMultiplier = "none"
    steps: int = 3000
    batch: int = 4
    learning_rate: float = 1e-3
    float_learning_rate: float = 1e-3
    warmup: int = 100
    decay: Decay = "exponential"
    stories: int = 1024
    text_share: float = 0.5
    length: int = 512
    seed: int = 1
    eval_every: int = 200


def load_float_model() -> tuple[LlamaForCausalLM, Tokenizer]:
    """The converted stories260K, untied, in float32, and its tokenizer."""
    with tempfile.TemporaryDirectory() as directory:
        convert(Path(directory))
        model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)
        tokenizer = Tokenizer.from_file(f"{directory}/tokenizer.json")
    # a quantized output layer and a float embedding cannot share one matrix
    model.lm_head.weight = torch.nn.Parameter(model.model.embed_tokens.weight.detach().clone())
    model.config.tie_word_embeddings = False
    return model, tokenizer


def linear_weights(model: LlamaForCausalLM) -> list[str]:
    """Names of the weights of all linear layers, the output layer included."""
    return [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]


def quantized(latent: Tensor, options: Options, name: str) -> Tensor:
    """The matrix that the exported model multiplies by, from the latent weight, both [out, in]."""
    weight = latent.detach().numpy()
    layer = quantize(weight, options.stages, options.profile, row_multiplier=options.row_multiplier, name=name)
    return torch.from_numpy(layer.dequantize("none"))


def quantization_aware_weights(model: LlamaForCausalLM, options: Options) -> dict[str, Tensor]:
    """All parameters, those of linear layers replaced by their quantized value with the gradient of the latent one."""
    weights: dict[str, Tensor] = dict(model.named_parameters())
    for name in linear_weights(model):
        latent = weights[name]
        weights[name] = latent + (quantized(latent, options, name) - latent).detach()
    return weights


def saved_weights(model: LlamaForCausalLM) -> dict[str, Tensor]:
    """The latent weights as they are stored: bfloat16."""
    return {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}


@torch.no_grad()
def teacher_logits(teacher: LlamaForCausalLM, windows: Tensor, progress: Progress) -> Tensor:
    """Teacher logits of all windows, computed once: float16 [windows, length, vocabulary]."""
    out = torch.empty(*windows.shape, teacher.config.vocab_size, dtype=torch.float16)
    for i in progress.track(range(0, len(windows), 8), description="teacher judges them"):
        out[i : i + 8] = teacher(windows[i : i + 8], use_cache=False).logits
    return out


def distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence of the student's next-token distribution from the teacher's, both [..., vocabulary]."""
    vocabulary = student.shape[-1]
    log_p = functional.log_softmax(teacher.float().view(-1, vocabulary), dim=-1)
    log_q = functional.log_softmax(student.view(-1, vocabulary), dim=-1)
    return functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean")


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, tokenizer: Tokenizer, weights: dict[str, Tensor] | None = None) -> float:
    """Nats per token on the held-out stories: every story on its own, led by BOS, cut to the context length."""
    total, count = 0.0, 0
    for story in EVAL_TEXT.read_text(encoding="utf-8").split("<|endoftext|>"):
        if not story.strip():
            continue
        ids = torch.tensor([tokenizer.encode(story.strip()).ids[: model.config.max_position_embeddings]])
        logits = functional_call(model, weights or {}, (ids,), {"use_cache": False}).logits
        total += functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum").item()
        count += ids.shape[1] - 1
    return total / count


def evaluate_saved(model: LlamaForCausalLM, tokenizer: Tokenizer, options: Options) -> float:
    """The same for what a user gets: latent weights as stored in bfloat16, quantized."""
    weights = {name: tensor.float() for name, tensor in saved_weights(model).items()}
    for name in linear_weights(model):
        weights[name] = quantized(weights[name], options, name)
    return evaluate(model, tokenizer, weights)


def schedule(step: int, options: Options) -> float:
    """Factor on the learning rates: linear warm-up, then a cosine to zero or an exponential decay to a thousandth."""
    if step < options.warmup:
        return (step + 1) / options.warmup
    done = (step - options.warmup) / max(1, options.steps - options.warmup)
    return 0.001**done if options.decay == "exponential" else 0.5 * (1 + math.cos(math.pi * done))


def make_optimizer(student: LlamaForCausalLM, options: Options) -> torch.optim.Optimizer:
    """AdamW with one learning rate for the latent weights and one for what stays float: embedding and norms."""
    linear = set(linear_weights(student))
    groups = [
        {"params": [p for name, p in student.named_parameters() if name in linear], "peak": options.learning_rate},
        {"params": [p for name, p in student.named_parameters() if name not in linear], "peak": options.float_learning_rate},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)


def train(
    options: Options, start: Path | None, stories_file: Path | None, console: Console
) -> tuple[LlamaForCausalLM, dict[str, Any]]:
    """Train one student; returns it with the log of the run.

    Args:
        options: what to train.
        start: directory of an earlier run whose latent weights to go on from; None starts from the float model.
        stories_file: the teacher's stories are read from this .npy file if it exists and written to it otherwise.
        console: where progress goes.
    """
    teacher, tokenizer = load_float_model()
    student, _ = load_float_model()
    log: dict[str, Any] = {
        "options": asdict(options),
        "eval_loss_float": evaluate(teacher, tokenizer),
        "eval_loss_untrained": evaluate_saved(student, tokenizer, options),
        "steps": [],
    }
    if start is not None:
        student.load_state_dict(load_file(start / "model.safetensors"))
        log["earlier_run"] = json.loads((start / "training_log.json").read_text(encoding="utf-8"))
    console.print(f"float {log['eval_loss_float']:.4f}, untrained {log['eval_loss_untrained']:.4f} nats/token")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        stories = teacher_stories(teacher, options.stories, options.length, options.seed, stories_file, progress)
        windows = torch.cat([stories, text_windows(tokenizer, TRAIN_TEXT, options.length)])
        targets = teacher_logits(teacher, windows, progress)
        batches = batch_rows(len(stories), len(windows) - len(stories), options.batch, options.text_share, options.seed)
        optimizer = make_optimizer(student, options)
        began, running = time.perf_counter(), 0.0
        for step in progress.track(range(options.steps), description="training"):
            rows = next(batches)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * schedule(step, options)
            weights = quantization_aware_weights(student, options)
            logits = functional_call(student, weights, (windows[rows],), {"use_cache": False}).logits
            loss = distillation_loss(logits, targets[rows])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            running += loss.item()
            if (step + 1) % options.eval_every == 0 or step + 1 == options.steps:
                interval = step % options.eval_every + 1
                entry = {
                    "step": step + 1,
                    "tokens": (step + 1) * windows[rows].numel(),
                    "seconds": round(time.perf_counter() - began, 1),
                    "distillation_loss": round(running / interval, 4),
                    "eval_loss": round(evaluate_saved(student, tokenizer, options), 4),
                }
                log["steps"].append(entry)
                running = 0.0
                console.print("  ".join(f"{key} {value}" for key, value in entry.items()))
    log["eval_loss_trained"] = evaluate_saved(student, tokenizer, options)
    return student, log


def main() -> None:
    """Command line."""
    defaults = Options()
    parser = argparse.ArgumentParser(description="Quantization-aware training of stories260K")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--stages", type=int, choices=range(1, 5), default=defaults.stages, help="bits per weight")
    parser.add_argument("--row-multiplier", choices=ROW_MULTIPLIERS, default=defaults.row_multiplier)
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--batch", type=int, default=defaults.batch, help="windows per step")
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate, help="of the latent weights")
    parser.add_argument(
        "--float-learning-rate", type=float, default=defaults.float_learning_rate, help="of embedding and norms"
    )
    parser.add_argument("--warmup", type=int, default=defaults.warmup, help="steps")
    parser.add_argument("--decay", choices=get_args(Decay), default=defaults.decay, help="of the learning rates")
    parser.add_argument("--stories", type=int, default=defaults.stories, help="windows written by the teacher")
    parser.add_argument("--text-share", type=float, default=defaults.text_share, help="part of a batch that is real text")
    parser.add_argument("--length", type=int, default=defaults.length, help="tokens per window")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--eval-every", type=int, default=defaults.eval_every, help="steps")
    parser.add_argument("--start", type=Path, help="go on from the directory of an earlier run instead of the float model")
    parser.add_argument("--stories-file", type=Path, help="keep the teacher's stories here to share them between runs")
    parser.add_argument("--threads", type=int, default=1)
    arguments = vars(parser.parse_args())
    out, start, stories_file, threads = (arguments.pop(key) for key in ("out", "start", "stories_file", "threads"))
    torch.set_num_threads(threads)
    console = Console()
    student, log = train(Options(**arguments), start, stories_file, console)
    save(saved_weights(student), log, out)
    console.print(f"saved {out}: {log['eval_loss_trained']:.4f} nats/token (float {log['eval_loss_float']:.4f})")


if __name__ == "__main__":
    main()
