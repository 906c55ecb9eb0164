"""Student and teacher out of checkpoints, and the Trainer around them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from fairy2i_export.errors import CheckpointError
from fairy2i_export.source.checkpoint import Checkpoint
from fairy2i_export.source.refusals.tensor_names import missing_message
from fairy2i_export.train.calibrated.folder import open_calibrated
from fairy2i_export.train.calibrated.student import put_calibrated
from fairy2i_export.train.continuing import entry_of, quantization_options
from fairy2i_export.train.loop import checkpoint_guard
from fairy2i_export.train.qat.modules import QATLinear
from fairy2i_export.train.qat.options import options_of
from fairy2i_export.train.qat.prepare import LEARNED_KINDS, PrepareReport, is_lm_head, load_learned, prepare
from fairy2i_export.train.recipe import Recipe
from fairy2i_export.train.result.folder import CHECKPOINTS, LOGS

_DAY = 86_400
_MULTIPLIERS = ("row_multiplier", "col_multiplier")


def quiet_libraries() -> None:
    """One progress bar and no advice from the libraries underneath."""
    import datasets
    import transformers

    logs: Any = transformers.utils.logging
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("accelerate").setLevel(logging.ERROR)


def has_accelerator() -> bool:
    """Whether torch sees a GPU or another accelerator."""
    accelerator = getattr(torch, "accelerator", None)  # torch 2.6
    return bool(accelerator.is_available()) if accelerator is not None else torch.cuda.is_available()


def training_arguments(recipe: Recipe) -> Any:
    """The Trainer's arguments; lengths follow in :func:`set_lengths`. Starts the process group under a launcher."""
    from transformers import TrainingArguments

    names = {field.name for field in fields(TrainingArguments)}
    on_cpu = not has_accelerator()
    checkpointing = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    kind: Any = TrainingArguments
    arguments = kind(
        output_dir=str(recipe.output / CHECKPOINTS),
        per_device_train_batch_size=recipe.batch,
        gradient_accumulation_steps=recipe.accumulate,
        learning_rate=recipe.learning_rate,
        adam_beta1=recipe.betas[0],
        adam_beta2=recipe.betas[1],
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.clip,
        lr_scheduler_type="constant",  # QATTrainer makes its own
        bf16=recipe.bf16,
        seed=recipe.seed,
        max_steps=1,
        logging_steps=recipe.log_every,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
        remove_unused_columns=False,
        use_cpu=on_cpu,  # or a launcher's processes would not find each other
        ddp_backend="gloo" if on_cpu and int(os.environ.get("WORLD_SIZE", "1")) > 1 else None,
        dataloader_pin_memory=not on_cpu,
        ddp_find_unused_parameters=False,
        ddp_timeout=_DAY,  # one process tokenizes while the others wait
        average_tokens_across_devices=True,
        **{checkpointing: recipe.gradient_checkpointing, f"{checkpointing}_kwargs": {"use_reentrant": False}},
    )
    _ = arguments.device  # starts the process group
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several devices: one process each, by a launcher
    return arguments


def complete(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with its intervals filled in."""
    evaluate = recipe.eval_every or max(1, steps // 10)
    save = evaluate if recipe.patience is not None else recipe.save_every or max(1, steps // 10)
    return replace(recipe, eval_every=evaluate, save_every=save)


def set_lengths(arguments: Any, recipe: Recipe, steps: int, evaluates: bool, resumes: bool) -> None:
    """Put what is known only after reading the data into the Trainer's arguments."""
    from transformers.trainer_utils import IntervalStrategy, SaveStrategy

    arguments.max_steps = steps
    arguments.save_strategy, arguments.save_steps = SaveStrategy.STEPS, recipe.save_every
    if evaluates:
        arguments.eval_strategy, arguments.eval_steps = IntervalStrategy.STEPS, recipe.eval_every
        arguments.eval_on_start = not resumes


def load_student(checkpoint: Checkpoint, recipe: Recipe) -> tuple[Any, PrepareReport | None]:
    """The model to train, in float32, and what :func:`prepare` did to it; None for the method float.

    Args:
        checkpoint: the source; what it has learned besides its weights is loaded too.
        recipe: with the settings of :func:`~fairy2i_export.train.continuing.complete_settings`.

    Raises:
        CheckpointError: transformers cannot build the model, or weights are missing.
        OptionError: unknown quantization options, no layer to quantize, or a calibrated folder that is of another model.
    """
    model = load_model(checkpoint)
    options = quantization_options(recipe)
    if options is None:
        return model, None
    if (calibrated := open_calibrated(recipe)) is not None:
        return model, put_calibrated(model, calibrated, checkpoint, options)
    report = prepare(model, options, skip_lm_head=bool(recipe.skip_lm_head), include=recipe.include, exclude=recipe.exclude)
    load_what_was_learned(model, checkpoint, recipe)
    return model, report


def load_what_was_learned(model: nn.Module, checkpoint: Checkpoint, recipe: Recipe) -> int:
    """Read the source's learned scales and row multipliers where this run learns them too, and return how many.

    Scales fit a number of stages and kinds of multipliers: with others they start from the weights, as do layers that
    the source left float.

    Raises:
        CheckpointError: a tensor is missing, or has another shape.
    """
    entry = entry_of(checkpoint)
    if not entry or recipe.method != "fairy2i" or entry.get("method", "fairy2i") != "fairy2i":
        return 0
    before = options_of(entry)
    kinds = [(before.stages, recipe.stages), *((getattr(before, name), getattr(recipe, name)) for name in _MULTIPLIERS)]
    have = {name: getattr(before, name) == "learned" for name in _MULTIPLIERS}
    have["scales"] = before.learned_scales and all(a == b for a, b in kinds)
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, QATLinear)
        and not any(fnmatchcase(name, pattern) for pattern in entry.get("exclude", ()))
        and (not is_lm_head(name) or entry.get("lm_head", "fairy2i") == "fairy2i")
    ]
    return load_learned(model, checkpoint.directory, [kind for kind in LEARNED_KINDS if have[kind]], layers)


def load_model(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> Any:
    """A causal language model of transformers.

    Raises:
        CheckpointError: transformers cannot build it, or the checkpoint lacks weights.
    """
    import transformers

    auto: Any = transformers.AutoModelForCausalLM
    try:
        model, loaded = auto.from_pretrained(
            checkpoint.directory, dtype=dtype, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # whatever transformers and its parts have to say about a config.json
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
        if not reason or not isinstance(error, ValueError | OSError | RuntimeError):
            reason = f"{type(error).__name__} {reason}".strip()
        raise CheckpointError(
            f"{checkpoint.directory}: transformers cannot load this model: {reason}; config.json should be that of the model"
        ) from error
    missing = sorted(loaded["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{missing_message(checkpoint.directory, missing[0], checkpoint.owners)}; {len(missing)} weights are missing in all, "
            "and training would start from random ones"
        )
    return model


def load_teacher(recipe: Recipe, checkpoint: Checkpoint) -> Any:
    """The float model that the student learns from: evaluated only."""
    return load_model(checkpoint, torch.bfloat16 if recipe.bf16 else torch.float32).eval().requires_grad_(False)


def make_trainer(
    model: Any,
    recipe: Recipe,
    arguments: Any,
    console: Console,
    resume: Path | None,
    saved: Callable[[], None] | None,
    **parts: Any,
) -> tuple[Any, Any]:
    """The Trainer with its callbacks, and the display among them; ``saved`` is called after every checkpoint."""
    from transformers import PrinterCallback

    from fairy2i_export.train.loop.progress import Display, EarlyStop, LogAtCheckpoints, Saved
    from fairy2i_export.train.loop.trainer import QATTrainer

    display = Display(console)
    callbacks: list[Any] = [LogAtCheckpoints(), display]
    if saved is not None:
        callbacks.append(Saved(saved))
    if recipe.patience is not None:
        callbacks.append(EarlyStop(recipe.patience))
    if arguments.process_index == 0:
        from torch.utils.tensorboard import SummaryWriter
        from transformers import integrations

        step = None if resume is None else checkpoint_guard.step_of(resume) + 1
        writer = SummaryWriter(str(recipe.output / LOGS), purge_step=step)
        board: Any = integrations.TensorBoardCallback  # type: ignore[attr-defined]
        callbacks.append(board(writer))
    trainer = QATTrainer(model, recipe, arguments, callbacks=callbacks, **parts)
    trainer.remove_callback(PrinterCallback)
    return trainer, display


def best_or_last(trainer: Any, recipe: Recipe, source: Checkpoint) -> int:
    """With early stopping, load the best weights; returns the step that the weights are of, 0 for those of the start."""
    from fairy2i_export.train.loop.trainer import best_evaluation

    best = best_evaluation(trainer.state.log_history) if recipe.patience is not None else None
    if best is None or best == trainer.state.global_step:
        return int(trainer.state.global_step)
    if best == 0:  # there is no checkpoint of it
        _load_start(trainer, recipe, source)
        return 0
    folder = recipe.output / CHECKPOINTS / f"checkpoint-{best}"
    trainer._load_from_checkpoint(str(folder), trainer.model_wrapped if trainer.is_fsdp_enabled else None)
    return best


def _load_start(trainer: Any, recipe: Recipe, source: Checkpoint) -> None:
    start, _ = load_student(source, recipe)
    state = start.state_dict()
    if trainer.is_fsdp_enabled:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

        set_model_state_dict(trainer.model_wrapped, state, options=StateDictOptions(full_state_dict=True))
    else:
        trainer.accelerator.unwrap_model(trainer.model).load_state_dict(state)


@torch.no_grad()
def round_weights(model: Any, recipe: Recipe) -> None:
    """Round weights to what will be stored, in place, so that the last evaluation is of what a user gets."""
    dtype = getattr(torch, recipe.save_dtype)
    for name, parameter in model.named_parameters():
        if name.endswith((".weight", ".bias")):
            parameter.copy_(parameter.to(dtype))
