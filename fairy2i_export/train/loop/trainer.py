"""Hugging Face's Trainer with this project's loss, parameter groups, schedule, evaluation and checkpoints.

Everything else, the loop, accumulation, mixed precision, clipping, and wrapping for several processes, is the Trainer's.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import Sampler, SequentialSampler

from fairy2i_export.errors import OutputError, TrainingError
from fairy2i_export.output.sizes import human_bytes
from fairy2i_export.train.data.blocks import Blocks, as_item
from fairy2i_export.train.data.packing import Encoder
from fairy2i_export.train.loop import checkpoint_guard
from fairy2i_export.train.loop.distill import losses
from fairy2i_export.train.loop.groups import parameter_groups
from fairy2i_export.train.loop.schedule import SCHEDULES, Shape
from fairy2i_export.train.qat.devices import settle
from fairy2i_export.train.recipe import Recipe

_Trainer: Any = transformers.Trainer  # some releases of transformers have types, others have not


class QATTrainer(_Trainer):  # type: ignore[misc]
    """The Trainer of ``fairy2i train``.

    Args:
        model: prepared for quantization-aware training, or a plain one.
        recipe: of the run.
        arguments: the Trainer's own, made from the recipe.
        train_dataset: of items in the order of training.
        encoder: tokenizer, for labels of evaluation blocks.
        eval_blocks: token ids [blocks, length], or None.
        teacher: for distillation, or None.
        tokens_per_step: of all processes.
        callbacks: besides the Trainer's own.
    """

    optimizer: Any
    lr_scheduler: Any
    control: Any

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        arguments: Any,
        *,
        train_dataset: Any,
        encoder: Encoder,
        eval_blocks: Blocks | None,
        teacher: nn.Module | None,
        tokens_per_step: int,
        callbacks: list[Any],
    ) -> None:
        self.recipe, self.encoder, self.eval_blocks = recipe, encoder, eval_blocks
        self.tokens_per_step = tokens_per_step
        self.checkpoints = Path(arguments.output_dir)
        self._staged = False
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=train_dataset,
            eval_dataset=train_dataset if eval_blocks is not None else None,  # asked for, but evaluate() reads eval_blocks
            callbacks=callbacks,
            compute_loss_func=_unused_loss,  # makes the Trainer count the predictions of a whole step
        )
        self.teacher = None if teacher is None else teacher.to(arguments.device)
        # cross entropy and divergence since the last log; on the device, which must not be waited for
        self._parts = torch.zeros(2, dtype=torch.float64, device=arguments.device)
        self._steps = 0  # since then

    # -- data and loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        """The data set is in order already."""
        dataset = self.train_dataset if train_dataset is None else train_dataset
        return SequentialSampler(dataset) if hasattr(dataset, "__len__") else None

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Loss per prediction of the whole step, over all processes and accumulated batches."""
        outputs = model(input_ids=inputs["input_ids"], use_cache=False)
        judged, alpha = None, self.recipe.distill
        if alpha > 0:
            with torch.no_grad():
                judged = self.teacher(input_ids=inputs["input_ids"], use_cache=False).logits  # type: ignore[misc]
        found = losses(outputs.logits, inputs["labels"], judged, alpha, self.recipe.temperature)
        count = num_items_in_batch if num_items_in_batch is not None else found.predictions.clamp(min=1)
        loss = found.loss / count
        # gradients are averaged over processes, while the count is that of all of them
        loss = loss * self.accelerator.num_processes
        self._parts += torch.stack([found.entropy, found.divergence]).double() / count
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = super().training_step(*args, **kwargs)
        settle()
        if not bool(torch.isfinite(loss)):
            raise self._diverged("the loss", float(loss))
        return loss

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        self._steps += 1
        norm = super()._clip_grad_norm(model)
        if norm is not None and not math.isfinite(float(norm)):
            raise self._diverged("the norm of the gradient", float(norm))
        return norm

    def _diverged(self, what: str, value: float) -> TrainingError:
        kept = checkpoint_guard.what_is_kept(self.checkpoints)
        return TrainingError(
            f"step {self.state.global_step + 1}: {what} is {value}, expected a finite number; stopped before the weights are "
            f"changed, {kept}. Start anew with a smaller --lr or --clip or a longer --warmup; if it is the first step, look at "
            "the weights of the source"
        )

    # -- optimizer

    def create_optimizer(self, model: Any = None) -> Any:
        """AdamW with one learning rate for latent weights and one for everything else, times the unit of a layer."""
        if self.optimizer is None:
            target = self.model if model is None else model
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, target)
            self.optimizer = kind(parameter_groups(target, self.recipe), **options)
        return self.optimizer

    def _get_learning_rate(self) -> float:
        """For logs: without the unit of the first group's layer."""
        rate: float = super()._get_learning_rate()
        return rate / float(self.optimizer.param_groups[0].get("unit", 1.0))

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            recipe = self.recipe
            warmup = round(recipe.warmup * num_training_steps) if recipe.warmup < 1 else round(recipe.warmup)
            shape = Shape(num_training_steps, warmup, recipe.decay, recipe.min_lr_ratio)
            factor = SCHEDULES[recipe.schedule]
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer, lambda step: factor(step, shape)
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    # -- evaluation and logs

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure and log the evaluation text."""
        loss = self.evaluation_loss()
        metrics = {"eval_loss": loss, "eval_perplexity": math.exp(min(loss, 700.0))}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def evaluation_loss(self) -> float:
        """Cross entropy of the evaluation blocks, nats per predicted token."""
        if self.eval_blocks is None:
            raise ValueError("no evaluation text")
        model = self.model
        model.eval()
        size, world, rank = self.recipe.batch, self.accelerator.num_processes, self.accelerator.process_index
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        for first in range(0, len(self.eval_blocks), size * world):
            # every process makes the same number of forward passes: sharded weights are gathered by all of them
            rows = [row for row in range(first + rank * size, first + (rank + 1) * size) if row < len(self.eval_blocks)]
            items = [as_item(self.eval_blocks[row], self.encoder) for row in rows or [0]]
            batch = {key: torch.stack([item[key] for item in items]).to(self.args.device) for key in items[0]}
            found = losses(model(input_ids=batch["input_ids"], use_cache=False).logits, batch["labels"])
            if rows:
                sums[0] += found.entropy
                sums[1] += found.predictions
        sums = self.accelerator.reduce(sums, "sum")
        model.train()
        return float(sums[0] / sums[1].clamp(min=1))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            parts = self.accelerator.reduce(self._parts.clone(), "sum").cpu()
            if self.recipe.distill > 0:
                logs["cross_entropy"], logs["divergence"] = (float(part) / max(1, self._steps) for part in parts)
            self._parts.zero_()
            self._steps = 0
        logs["tokens"] = self.state.global_step * self.tokens_per_step
        super().log(logs, *args, **kwargs)

    # -- checkpoints

    def _get_output_dir(self, trial: Any) -> str:
        where = checkpoint_guard.staging(self.checkpoints) if self._staged else self.checkpoints
        return str(where)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save under another name; what is complete gets its name at the end."""
        last = self.accelerator.is_main_process
        if last:
            checkpoint_guard.discard(self.checkpoints)
        self.accelerator.wait_for_everyone()
        self._staged = True
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if last:
                checkpoint_guard.seal(self.checkpoints, self.state.global_step)
                checkpoint_guard.rotate(self.checkpoints, self.recipe.keep_checkpoints, self._best_step())
        except (OSError, RuntimeError, SafetensorError) as error:
            checkpoint_guard.discard(self.checkpoints)
            raise self._not_saved(error) from error
        finally:
            self._staged = False
        self.accelerator.wait_for_everyone()

    def _best_step(self) -> int | None:
        return best_evaluation(self.state.log_history) if self.recipe.patience is not None else None

    def _not_saved(self, error: Exception) -> OutputError:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        free = human_bytes(shutil.disk_usage(self.checkpoints).free)
        return OutputError(
            f"{self.checkpoints}: the checkpoint of step {self.state.global_step} cannot be written: {reason} ({free} free); "
            f"{checkpoint_guard.what_is_kept(self.checkpoints)}. Make room, then run the same command again to continue"
        )


def best_evaluation(history: list[dict[str, Any]]) -> int | None:
    """The step whose evaluation had the smallest loss; the earliest of equal ones."""
    evaluations = [(entry["eval_loss"], entry["step"]) for entry in history if "eval_loss" in entry]
    return min(evaluations)[1] if evaluations else None


def _unused_loss(*_: Any, **__: Any) -> Tensor:
    raise NotImplementedError("QATTrainer.compute_loss computes the loss")
