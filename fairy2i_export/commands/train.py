"""The command ``fairy2i train``. Outside the package train, whose import needs torch, so that it can say what is missing."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fairy2i_export.errors import OptionError
from fairy2i_export.train.recipe import Recipe

_NEEDED = ("torch", "transformers", "accelerate", "datasets", "matplotlib", "tensorboard")
_DATA, _METHOD, _LENGTH, _RATE = "Data", "Method", "Length and batch", "Optimizer and schedule"
_TEACHER, _EVAL, _RUN = "Teacher", "Evaluation", "Run"


def _opt(panel: str, help_text: str, *names: str, metavar: str | None = None, default: str | bool = True) -> Any:
    return typer.Option(*names, help=help_text, metavar=metavar, show_default=default, rich_help_panel=panel)


def train_command(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Causal language model: Hugging Face checkpoint directory or hub id.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to make, or to go on with.", show_default=False)
    ],
    data: Annotated[
        list[str] | None,
        _opt(
            _DATA,
            "Text, .jsonl or .parquet file, or hf:OWNER/NAME[:CONFIG[:SPLIT]]; may be repeated.",
            "--data",
            metavar="FILE",
            default=False,
        ),
    ] = None,
    field: Annotated[
        str, _opt(_DATA, "Column of jsonl, parquet and hub data with the text.", metavar="NAME")
    ] = Recipe.field,
    separator: Annotated[
        str | None,
        _opt(_DATA, "What stands between the documents of a text file.", metavar="TEXT", default="one document per file"),
    ] = None,
    streaming: Annotated[
        bool, _opt(_DATA, "Read and tokenize while training (hub data always is).", "--streaming", default=False)
    ] = False,
    shuffle_buffer: Annotated[
        int, _opt(_DATA, "Documents shuffled together when streaming.", metavar="N")
    ] = Recipe.shuffle_buffer,
    bos: Annotated[
        str, _opt(_DATA, "Beginning-of-text tokens: none (as published), before each document, or each block.", metavar="P")
    ] = Recipe.bos,
    eos: Annotated[
        str | None,
        _opt(_DATA, "Token that ends a document, by id or text.", metavar="TOKEN", default="the source's eos_token_id"),
    ] = None,
    method: Annotated[
        str | None,
        _opt(
            _METHOD,
            "fairy2i; binary or ternary, to compare with; float trains without quantizing.",
            metavar="M",
            default="fairy2i",
        ),
    ] = None,
    stages: Annotated[
        int | None, _opt(_METHOD, "Residual stages, 1 to 4: bits per weight.", metavar="N", default="2")
    ] = None,
    profile: Annotated[
        str | None,
        _opt(
            _METHOD,
            "Rounding of the quantizer: bf16-reference or fp32.",
            metavar="P",
            default="bf16-reference",
        ),
    ] = None,
    quantizer: Annotated[
        str | None,
        _opt(
            _METHOD,
            "How codes are chosen: greedy (as published) or joint.",
            metavar="Q",
            default="greedy",
        ),
    ] = None,
    row_multiplier: Annotated[
        str | None,
        _opt(_METHOD, "One factor per output row: none, rms or learned.", metavar="M", default="none"),
    ] = None,
    learned_scales: Annotated[
        bool | None,
        _opt(
            _METHOD,
            "Train the scales instead of computing them from the weights.",
            "--learned-scales/--computed-scales",
            default="computed",
        ),
    ] = None,
    activation_bits: Annotated[
        int | None,
        _opt(
            _METHOD,
            "8: round the inputs of quantized layers to int8; 0: do not.",
            metavar="N",
            default="0",
        ),
    ] = None,
    skip_lm_head: Annotated[
        bool | None,
        _opt(
            _METHOD,
            "Leave the output layer float, or quantize it.",
            "--skip-lm-head/--quantize-lm-head",
            default="quantized",
        ),
    ] = None,
    include: Annotated[
        list[str] | None,
        _opt(_METHOD, "Quantize only layers with such names; may be repeated.", metavar="GLOB", default="all"),
    ] = None,
    exclude: Annotated[
        list[str] | None, _opt(_METHOD, "Leave such layers float; may be repeated.", metavar="GLOB", default="none")
    ] = None,
    steps: Annotated[int | None, _opt(_LENGTH, "Optimizer steps.", metavar="N", default=False)] = None,
    max_tokens: Annotated[int | None, _opt(_LENGTH, "Or tokens.", metavar="N", default=False)] = None,
    epochs: Annotated[
        float | None, _opt(_LENGTH, "Or passes over the data.", metavar="X", default="1, unless streaming")
    ] = None,
    block_length: Annotated[
        int | None, _opt(_LENGTH, "Tokens per sequence.", metavar="N", default="the model's context, at most 2048")
    ] = None,
    batch: Annotated[int, _opt(_LENGTH, "Sequences per process and forward pass.", metavar="N")] = Recipe.batch,
    accumulate: Annotated[int, _opt(_LENGTH, "Forward passes per optimizer step.", metavar="N")] = Recipe.accumulate,
    gradient_checkpointing: Annotated[
        bool, _opt(_LENGTH, "Compute activations twice instead of keeping them.", "--gradient-checkpointing", default=False)
    ] = False,
    bf16: Annotated[
        bool, _opt(_LENGTH, "Compute in bfloat16 (autocast; latent weights stay float32).", "--bf16", default=False)
    ] = False,
    learning_rate: Annotated[float, _opt(_RATE, "Peak learning rate.", "--lr", metavar="X")] = Recipe.learning_rate,
    float_learning_rate: Annotated[
        float | None, _opt(_RATE, "That of everything but latent weights.", "--float-lr", metavar="X", default="as --lr")
    ] = None,
    schedule: Annotated[
        str,
        _opt(_RATE, "wsd (warm-up, stable, decay), paper (the published two-step one), cosine or constant.", metavar="S"),
    ] = Recipe.schedule,
    warmup: Annotated[float, _opt(_RATE, "Steps; below 1: share of the run.", metavar="X")] = Recipe.warmup,
    decay: Annotated[float, _opt(_RATE, "Share of the run in which wsd goes down.", metavar="X")] = Recipe.decay,
    min_lr_ratio: Annotated[
        float, _opt(_RATE, "Last over peak rate, of wsd and cosine.", metavar="X")
    ] = Recipe.min_lr_ratio,
    betas: Annotated[tuple[float, float], _opt(_RATE, "Of AdamW.", metavar="X Y")] = Recipe.betas,
    weight_decay: Annotated[float, _opt(_RATE, "Of AdamW.", metavar="X")] = Recipe.weight_decay,
    clip: Annotated[float, _opt(_RATE, "Largest norm of the gradient.", metavar="X")] = Recipe.clip,
    distill: Annotated[
        float, _opt(_TEACHER, "Weight of the divergence from the teacher in the loss, 0 to 1.", metavar="ALPHA")
    ] = Recipe.distill,
    temperature: Annotated[float, _opt(_TEACHER, "Softens both distributions.", metavar="T")] = Recipe.temperature,
    teacher: Annotated[
        str | None, _opt(_TEACHER, "Float model with the same tokens.", metavar="SOURCE", default="SOURCE itself")
    ] = None,
    teacher_text: Annotated[
        int | None,
        _opt(
            _TEACHER, "Instead of --data: train on so many tokens that the teacher writes.", metavar="TOKENS", default=False
        ),
    ] = None,
    eval_data: Annotated[
        list[str] | None, _opt(_EVAL, "Like --data: text to measure perplexity on.", metavar="FILE", default=False)
    ] = None,
    eval_every: Annotated[int | None, _opt(_EVAL, "Steps.", metavar="N", default="a tenth of the run")] = None,
    eval_tokens: Annotated[int | None, _opt(_EVAL, "Use at most so many tokens.", metavar="N", default="all")] = None,
    patience: Annotated[
        int | None,
        _opt(_EVAL, "Stop after N evaluations without a new best one, and keep the best.", metavar="N", default="never"),
    ] = None,
    seed: Annotated[int, _opt(_RUN, "Of data order and sampling.", metavar="N")] = Recipe.seed,
    threads: Annotated[int | None, _opt(_RUN, "Of torch on the CPU.", metavar="N", default="torch's choice")] = None,
    log_every: Annotated[int, _opt(_RUN, "Steps between logged losses.", metavar="N")] = Recipe.log_every,
    save_every: Annotated[
        int | None, _opt(_RUN, "Steps between checkpoints.", metavar="N", default="a tenth of the run")
    ] = None,
    keep_checkpoints: Annotated[
        int, _opt(_RUN, "Newest checkpoints to keep.", "--keep", metavar="N")
    ] = Recipe.keep_checkpoints,
    save_dtype: Annotated[
        str, _opt(_RUN, "Type of the final weights: bfloat16, float16 or float32.", metavar="T")
    ] = Recipe.save_dtype,
    force: Annotated[bool, _opt(_RUN, "Replace an earlier run in DIR.", "--force", default=False)] = False,
    quiet: Annotated[bool, _opt(_RUN, "Print errors only.", "--quiet", "-q", default=False)] = False,
) -> None:
    """Train a pretrained language model to Fairy2i weights; run the same command again to continue an interrupted run.

    The folder goes straight into fairy2i-export. If SOURCE comes from this command itself, the defaults under Method are how it was
    trained. Several processes: start it with torchrun or accelerate launch.
    """
    values = dict(locals())
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise OptionError(f"train needs {', '.join(missing)}: pip install 'fairy2i-export[train]'")
    for name in ("data", "include", "exclude", "eval_data"):
        values[name] = tuple(values[name] or ())
    if separator is not None:  # typed in a shell
        values["separator"] = separator.replace("\\n", "\n").replace("\\t", "\t")
    recipe = Recipe(**values)
    recipe.check()
    from fairy2i_export.train import train

    result = train(recipe)
    if result.is_main and not quiet:
        _summary(result, recipe)


def _summary(result: Any, recipe: Recipe) -> None:
    out = Console()
    out.print(
        f"{result.path}: {result.steps:,} steps, {result.tokens:,} tokens, {result.seconds:.0f} s, {result.speed:,.0f} tokens/s",
        highlight=False,
        soft_wrap=True,
    )
    if result.eval_loss_final is not None:
        before, after = result.eval_loss_before, result.eval_loss_final
        first = "" if before is None else f"{before:.4f} nats/token before, "
        out.print(
            f"evaluation text: {first}{after:.4f} after (perplexity {math.exp(min(after, 700)):.2f}), weights as stored",
            highlight=False,
            soft_wrap=True,
        )
    if result.entry is not None and result.entry["method"] == "fairy2i":
        out.print(f"next: fairy2i-export {result.path} -o {result.path}-onnx", highlight=False, soft_wrap=True)
