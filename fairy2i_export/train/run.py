"""Run a recipe: from a checkpoint and texts to a folder that ``fairy2i-export`` compiles."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fairy2i_export import __version__
from fairy2i_export.output.sizes import human_bytes
from fairy2i_export.source.text.text_files import unknown_warnings
from fairy2i_export.train.continuing import entry_of, settings_text
from fairy2i_export.train.data.blocks import Blocks, ShuffledBlocks, StreamedBlocks, first_block, stored_blocks
from fairy2i_export.train.data.teacher_text import Sampling, teacher_blocks
from fairy2i_export.train.inputs import Inputs, open_inputs
from fairy2i_export.train.loop import checkpoint_guard, models
from fairy2i_export.train.loop.interruptions import stops_explained
from fairy2i_export.train.loop.limits import check_room, last_good, step_count
from fairy2i_export.train.qat.prepare import PrepareReport, config_entry
from fairy2i_export.train.recipe import Recipe
from fairy2i_export.train.result.card import model_card
from fairy2i_export.train.result.curves import draw_curves
from fairy2i_export.train.result.folder import CURVES, DATA, LOG, Claim, claimed
from fairy2i_export.train.result.save import save_result
from fairy2i_runtime.measure.progress import working


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
        speed: tokens per second of this call's training, evaluations and checkpoints included.
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
    speed: float
    is_main: bool


def train(recipe: Recipe, console: Console | None = None) -> TrainingResult:
    """Train, or continue an interrupted run with the same recipe.

    Under ``torchrun`` or ``accelerate launch`` every process calls this; only the first writes and prints. If it fails or is
    interrupted before the first checkpoint, the output folder is as it was before; a folder that was not there is not made.

    Args:
        recipe: what to do.
        console: where progress goes.

    Raises:
        Fairy2iError: anything that a user can repair: wrong options, texts, checkpoints, folders; a full disk; a loss that is
            not finite. The last good checkpoint is whole then.
    """
    return train_on(open_inputs(recipe), console)


def train_on(inputs: Inputs, console: Console | None = None) -> TrainingResult:
    """:func:`train` with what is open already."""
    recipe = inputs.recipe
    models.quiet_libraries()
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    arguments = models.training_arguments(recipe)
    main = arguments.process_index == 0
    console = Console(quiet=True) if recipe.quiet or not main else console or Console()
    run = _Run(inputs, arguments, console)
    for warning in inputs.warnings:
        run.warn(warning)
    with ExitStack() as stack:
        with arguments.main_process_first(local=False, desc="claiming the output folder"):
            if main:
                run.claim = stack.enter_context(claimed(recipe, run.global_batch, inputs.checkpoint.directory))
                checkpoint_guard.discard(Path(arguments.output_dir))
        with stops_explained(recipe.output, Path(arguments.output_dir)):
            return run()


class _Run:
    """One call of :func:`train`, once all is open and the folder is ours."""

    claim: Claim | None = None  # of the process that writes

    def __init__(self, inputs: Inputs, arguments: Any, console: Console) -> None:
        self.recipe, self.checkpoint, self.encoder, self.length = (
            inputs.recipe,
            inputs.checkpoint,
            inputs.encoder,
            inputs.length,
        )
        self.teacher_checkpoint, self.stored = inputs.teacher, inputs.stored
        self.arguments, self.console = arguments, console
        self.global_batch = self.recipe.batch * self.recipe.accumulate * arguments.world_size
        self.began = time.perf_counter()

    def __call__(self) -> TrainingResult:
        recipe, encoder, length, arguments = self.recipe, self.encoder, self.length, self.arguments
        with arguments.main_process_first(local=False, desc="tokenizing"):
            blocks, eval_blocks = self._train_blocks(), self._eval_blocks()
        model, report = models.load_student(self.checkpoint, recipe)
        if report is not None and entry_of(self.checkpoint):
            self._say(f"the source was trained this way already; now: {settings_text(recipe)}")
        parameters = sum(parameter.numel() for parameter in model.parameters())
        self._say(f"{parameters:,} parameters, {report or 'nothing is quantized (method float)'}")
        teacher = self._teacher()
        if not recipe.data:
            with arguments.main_process_first(local=False, desc="writing text"):
                blocks = self._written_blocks(teacher)
        steps = step_count(recipe, self.global_batch, length, blocks)
        recipe = self.recipe = models.complete(recipe, steps)
        if arguments.process_index == 0:
            check_room(parameters, recipe)
        with arguments.main_process_first(local=False, desc="taking the output folder"):
            if self.claim is not None:
                self.claim.begin()
        resume = last_good(Path(arguments.output_dir), self._say)
        models.set_lengths(arguments, recipe, steps, eval_blocks is not None, resume is not None)
        per_step = self.global_batch * length
        available = "" if blocks is None else f"; the data has {blocks.size:,}"
        self._say(
            f"{steps:,} steps of {self.global_batch} x {length:,} = {per_step:,} tokens: {steps * per_step:,} in all{available}"
        )
        dataset: Any = StreamedBlocks(recipe, encoder, length)
        if blocks is not None:
            dataset = ShuffledBlocks(blocks, encoder, steps * self.global_batch, recipe.seed)
        trainer, display = models.make_trainer(
            model,
            recipe,
            arguments,
            self.console,
            resume,
            None if self.claim is None else self.claim.settle,
            train_dataset=dataset,
            encoder=encoder,
            eval_blocks=eval_blocks,
            teacher=teacher if recipe.distill > 0 else None,
            tokens_per_step=per_step,
        )
        started = time.perf_counter()
        try:
            trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        finally:
            display.stop()
        if blocks is None:
            for warning in dataset.skipped.warnings:
                self.warn(warning)
        first = 0 if resume is None else checkpoint_guard.step_of(resume)
        speed = (trainer.state.global_step - first) * per_step / (time.perf_counter() - started)
        return self._finish(trainer, report, first, speed)

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def warn(self, text: str) -> None:
        """Tell the user what may not be as he wants it."""
        self._say(f"warning: {text}")

    def _teacher(self) -> Any:
        recipe = self.recipe
        if self.teacher_checkpoint is None:
            return None
        teacher = models.load_teacher(recipe, self.teacher_checkpoint)
        size = sum(parameter.numel() * parameter.element_size() for parameter in teacher.parameters())
        self._say(f"teacher: {recipe.teacher or recipe.source}, {human_bytes(size)} of memory more")
        return teacher.to(self.arguments.device)

    def _train_blocks(self) -> Blocks | None:
        """All training blocks; None when they are made while training, or written by the teacher."""
        recipe, encoder, length = self.recipe, self.encoder, self.length
        if not recipe.data:
            return None
        with working(self.console, "tokenizing the training text"):
            if not recipe.streams:
                return stored_blocks(recipe.output / DATA, "train", recipe.data, recipe, encoder, length, warn=self.warn)
            block = first_block(recipe, encoder, length)
        for warning in unknown_warnings(encoder.tokenizer, block.tolist(), f"the beginning of {recipe.data[0]}"):
            self.warn(warning)
        return None

    def _written_blocks(self, teacher: Any) -> Blocks:
        recipe, tokens = self.recipe, self.recipe.teacher_text or 0
        with working(self.console, f"the teacher writes {tokens:,} tokens"):
            name = recipe.teacher or recipe.source
            how = Sampling(recipe.teacher_starts, recipe.teacher_temperature, recipe.seed)
            return teacher_blocks(teacher, self.encoder, tokens, self.length, how, recipe.output / DATA, name)

    def _eval_blocks(self) -> Blocks | None:
        recipe = self.recipe
        if not recipe.eval_data:
            return None
        limit = None if recipe.eval_tokens is None else max(1, recipe.eval_tokens // self.length)
        with working(self.console, "tokenizing the evaluation text"):
            return stored_blocks(
                recipe.output / DATA, "eval", recipe.eval_data, recipe, self.encoder, self.length, limit, warn=self.warn
            )

    def _finish(self, trainer: Any, report: PrepareReport | None, resumed_from: int, speed: float) -> TrainingResult:
        """Round the weights to what is stored, measure them once more, and write the result."""
        recipe, history = self.recipe, trainer.state.log_history
        steps = models.best_or_last(trainer, recipe, self.checkpoint)
        if steps < trainer.state.global_step:
            why = (
                f"of step {steps}"
                if steps
                else "those of the source: no evaluation while training was better than the first"
            )
            self._say(f"keeping the best weights, {why}")
        models.round_weights(trainer.model, recipe)
        is_main = trainer.accelerator.is_main_process
        result = TrainingResult(
            path=recipe.output,
            entry=None if report is None else config_entry(trainer.accelerator.unwrap_model(trainer.model)) | self.stored,
            steps=steps,
            tokens=steps * trainer.tokens_per_step,
            resumed_from=resumed_from,
            eval_loss_before=next((entry["eval_loss"] for entry in history if "eval_loss" in entry), None),
            eval_loss_final=None if trainer.eval_blocks is None else trainer.evaluation_loss(),
            history=[entry for entry in history if "loss" in entry or "eval_loss" in entry],
            seconds=time.perf_counter() - self.began,
            speed=speed,
            is_main=is_main,
        )
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        if is_main:
            self._save(result, state, report)
        trainer.accelerator.wait_for_everyone()
        return result

    def _save(self, result: TrainingResult, state: dict[str, torch.Tensor], report: PrepareReport | None) -> None:
        import transformers

        recipe = self.recipe
        facts = {
            "steps": result.steps,
            "tokens": result.tokens,
            "batch": self.global_batch,
            "length": self.length,
            "versions": f"fairy2i-export {__version__}, transformers {transformers.__version__}, torch {torch.__version__}",
            "eval_loss_before": result.eval_loss_before,
            "eval_loss_final": result.eval_loss_final,
            "tokens_per_second": round(result.speed, 1),
        }
        layers = "all float" if report is None else f"{len(report.replaced)} quantized, {len(report.left)} left float"
        log = {
            "recipe": replace(recipe, output=Path(recipe.output.name)).as_json(),
            "source_sha256": self.checkpoint.sha256(),
            **facts,
            "left_float": {} if report is None else report.left,
            "history": result.history,
        }
        picture = recipe.output / CURVES
        draw_curves(result.history, picture, recipe.output.resolve().name)
        save_result(
            recipe.output,
            self.checkpoint,
            state,
            result.entry,
            report is not None and any(name.endswith("lm_head") for name in report.untied),
            getattr(torch, recipe.save_dtype),
            {
                "README.md": model_card(recipe, {**facts, "layers": layers}, result.entry),
                LOG: json.dumps(log, indent=1) + "\n",
            },
            {"curves.png": picture},
        )
