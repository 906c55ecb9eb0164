"""Run a recipe: from a checkpoint and texts to a folder that ``fairy2i-export`` compiles."""

from __future__ import annotations

import json
import math
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fairy2i_export.errors import OptionError, OutputError
from fairy2i_export.report import human_bytes
from fairy2i_export.source import open_source
from fairy2i_export.train import checkpoint_guard, models
from fairy2i_export.train.blocks import Blocks, ShuffledBlocks, StreamedBlocks, stored_blocks, too_short
from fairy2i_export.train.card import model_card
from fairy2i_export.train.curves import draw_curves
from fairy2i_export.train.documents import check_files
from fairy2i_export.train.output import LOG, claim, save_result
from fairy2i_export.train.packing import Encoder, open_encoder
from fairy2i_export.train.teacher_text import teacher_blocks
from fairy2i_export.training_recipe import MAX_BLOCK, Recipe


@dataclass(frozen=True)
class TrainingResult:
    """What a run made.

    Attributes:
        path: the folder.
        entry: config.json's ``fairy2i``; None for a float model.
        steps: optimizer steps of the result (fewer than asked for after an early stop).
        tokens: seen in those steps by all processes.
        resumed_from: step that this call went on from; 0: none.
        eval_loss_before: nats per token before training; None without evaluation text.
        eval_loss_final: with the weights as they are stored.
        history: the Trainer's log.
        seconds: wall time of this call.
        is_main: whether this process is the one that writes and prints.
    """

    path: Path
    entry: dict[str, Any] | None
    steps: int
    tokens: int
    resumed_from: int
    eval_loss_before: float | None
    eval_loss_final: float | None
    history: list[dict[str, Any]]
    seconds: float
    is_main: bool


def train(recipe: Recipe, console: Console | None = None) -> TrainingResult:
    """Train, or continue an interrupted run with the same recipe.

    Under ``torchrun`` or ``accelerate launch`` every process calls this; only the first writes and prints.

    Args:
        recipe: what to do.
        console: where progress goes.

    Raises:
        Fairy2iError: anything that a user can repair: wrong options, texts, checkpoints, folders; a full disk; a loss that is
            not finite. The last good checkpoint is whole then.
    """
    began = time.perf_counter()
    recipe.check()
    check_files((*recipe.data, *recipe.eval_data))
    models.quiet_libraries()
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    checkpoint = open_source(recipe.source)
    settings = models.text_settings(checkpoint)
    encoder = open_encoder(checkpoint, settings.vocab_size, recipe.bos, recipe.eos)
    length = _block_length(recipe, settings.max_positions)

    arguments = models.training_arguments(recipe)
    main = arguments.process_index == 0
    console = console or Console()
    if recipe.quiet or not main:
        console = Console(quiet=True)
    global_batch = recipe.batch * recipe.accumulate * arguments.world_size
    with arguments.main_process_first(local=False, desc="claiming the output folder"):
        if main:
            claim(recipe, global_batch, checkpoint.directory)
            checkpoint_guard.discard(Path(arguments.output_dir))
    resume = _last_good(Path(arguments.output_dir), console)

    model, report = models.load_student(checkpoint, recipe)
    console.print(_model_text(model, report), highlight=False)
    teacher = (
        models.load_teacher(recipe, checkpoint, encoder, settings.vocab_size, console) if recipe.needs_teacher else None
    )
    with arguments.main_process_first(local=False, desc="tokenizing"):
        blocks = _train_blocks(recipe, encoder, length, teacher, console)
        eval_blocks = _eval_blocks(recipe, encoder, length, console)
    if recipe.distill == 0:
        teacher = None
    steps = _steps(recipe, global_batch, length, blocks)
    recipe = models.complete(recipe, steps)
    models.set_lengths(arguments, recipe, steps, eval_blocks is not None, resume is not None)
    _check_room(model, recipe, main)
    tokens_per_step = global_batch * length
    console.print(
        f"{steps:,} steps of {global_batch} x {length:,} = {tokens_per_step:,} tokens: {steps * tokens_per_step:,} in all"
        + (f"; the data has {blocks.size:,}" if blocks is not None else ""),
        highlight=False,
    )
    dataset: Any = StreamedBlocks(recipe, encoder, length)
    if blocks is not None:
        dataset = ShuffledBlocks(blocks, encoder, steps * global_batch, recipe.seed)

    trainer, display = models.make_trainer(
        model, recipe, arguments, console, resume,
        train_dataset=dataset, encoder=encoder, eval_blocks=eval_blocks, teacher=teacher, tokens_per_step=tokens_per_step,
    )  # fmt: skip
    try:
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    finally:
        display.stop()
    result = models.best_or_last(trainer, recipe)
    models.round_weights(trainer.model, recipe)
    final = trainer.evaluation_loss() if eval_blocks is not None else None
    before = next((entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry), None)
    outcome = TrainingResult(
        recipe.output,
        None if report is None else models.entry_of(trainer.model),
        result,
        result * tokens_per_step,
        0 if resume is None else checkpoint_guard.step_of(resume),
        before,
        final,
        trainer.state.log_history,
        time.perf_counter() - began,
        main,
    )
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if main:
        _save(recipe, outcome, checkpoint, state, report, global_batch, length)
    trainer.accelerator.wait_for_everyone()
    return outcome


def _block_length(recipe: Recipe, max_positions: int) -> int:
    length = min(max_positions, MAX_BLOCK) if recipe.block_length is None else recipe.block_length
    if not 2 <= length <= max_positions:
        raise OptionError(
            f"--block-length: expected 2 to {max_positions} (max_position_embeddings of the source), got {length}"
        )
    return length


def _last_good(directory: Path, console: Console) -> Path | None:
    for damaged in checkpoint_guard.damaged_checkpoints(directory):
        console.print(f"warning: {damaged} is incomplete and is not used", highlight=False)
    good = checkpoint_guard.good_checkpoints(directory)
    if not good:
        return None
    console.print(f"continuing after step {checkpoint_guard.step_of(good[-1])}, from {good[-1]}", highlight=False)
    return good[-1]


def _train_blocks(recipe: Recipe, encoder: Encoder, length: int, teacher: Any, console: Console) -> Blocks | None:
    """All training blocks; None when they are made while training."""
    directory = recipe.output / "data"
    if not recipe.data:
        tokens, name = recipe.teacher_text or 0, recipe.teacher or recipe.source
        with console.status(f"the teacher writes {tokens:,} tokens"):
            return teacher_blocks(teacher, encoder, tokens, length, recipe.seed, directory, name)
    if recipe.streams:
        return None
    with console.status("tokenizing the training text"):
        return stored_blocks(directory, "train", recipe.data, recipe, encoder, length)


def _eval_blocks(recipe: Recipe, encoder: Encoder, length: int, console: Console) -> Blocks | None:
    if not recipe.eval_data:
        return None
    limit = None if recipe.eval_tokens is None else max(1, recipe.eval_tokens // length)
    with console.status("tokenizing the evaluation text"):
        return stored_blocks(recipe.output / "data", "eval", recipe.eval_data, recipe, encoder, length, limit)


def _steps(recipe: Recipe, global_batch: int, length: int, blocks: Blocks | None) -> int:
    if recipe.steps is not None:
        return recipe.steps
    per_step = global_batch * length
    if recipe.max_tokens is not None:
        if recipe.max_tokens < per_step:
            raise OptionError(f"--max-tokens: one step has {per_step:,} tokens, got {recipe.max_tokens:,}")
        return recipe.max_tokens // per_step
    if blocks is None:
        raise too_short(recipe.data, 0, length)
    return max(1, math.floor((recipe.epochs or 1) * len(blocks) / global_batch))


def _model_text(model: Any, report: Any) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    kind = "nothing is quantized (method float)" if report is None else str(report)
    return f"{parameters:,} parameters, {kind}"


def _check_room(model: Any, recipe: Recipe, main: bool) -> None:
    """Raise OutputError if the disk cannot hold the checkpoints: better now than after hours."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    one = parameters * 12  # float32 weights and two moments of AdamW
    present = len(checkpoint_guard.good_checkpoints(recipe.output / "checkpoints"))
    needed = one * max(1, recipe.keep_checkpoints + 1 - present) + parameters * 4
    free = shutil.disk_usage(recipe.output).free
    if main and free < needed:
        raise OutputError(
            f"{recipe.output}: {recipe.keep_checkpoints + 1} checkpoints of {human_bytes(one)} and the result need "
            f"{human_bytes(needed)}, the disk has {human_bytes(free)} free; make room or choose another folder"
        )


def _save(
    recipe: Recipe, outcome: TrainingResult, checkpoint: Any, state: Any, report: Any, global_batch: int, length: int
) -> None:
    import transformers

    from fairy2i_export import __version__

    versions = f"fairy2i-export {__version__}, transformers {transformers.__version__}, torch {torch.__version__}"
    facts = {
        "steps": outcome.steps,
        "tokens": outcome.tokens,
        "batch": global_batch,
        "length": length,
        "layers": "all float" if report is None else f"{len(report.replaced)} quantized, {len(report.left)} left float",
        "versions": versions,
        "eval_loss_before": outcome.eval_loss_before,
        "eval_loss_final": outcome.eval_loss_final,
    }
    picture = recipe.output / ".curves.png"
    draw_curves(outcome.history, picture, recipe.output.resolve().name)
    log = {
        "recipe": replace(recipe, output=Path(recipe.output.name)).as_json(),
        "versions": versions,
        "source_sha256": checkpoint.sha256(),
        **{key: value for key, value in facts.items() if key not in ("versions", "layers")},
        "left_float": {} if report is None else report.left,
        "history": outcome.history,
    }
    save_result(
        recipe.output,
        checkpoint,
        state,
        outcome.entry,
        report is not None and any(name.endswith("lm_head") for name in report.untied),
        getattr(torch, recipe.save_dtype),
        {"README.md": model_card(recipe, facts, outcome.entry), LOG: json.dumps(log, indent=1) + "\n"},
        {"curves.png": picture},
    )
