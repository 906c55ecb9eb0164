"""What the user sees while a run trains, and when it stops early."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import transformers
from rich.console import Console
from rich.progress import MofNCompleteColumn, TextColumn

from fairy2i_export.train.loop.trainer import best_evaluation
from fairy2i_runtime.measure.progress import make_progress

_Callback: Any = transformers.TrainerCallback


class Display(_Callback):  # type: ignore[misc]
    """A progress bar on a terminal; elsewhere one line per evaluation and per tenth of the run."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.last = ""
        self.tenths = 0  # of the run that a line has been printed for
        self.bar = make_progress(
            console, MofNCompleteColumn(), TextColumn("{task.fields[text]}"), transient=False, interval=0
        )
        self.task = self.bar.add_task("training", total=None, text="")

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self.bar.update(self.task, total=state.max_steps, completed=state.global_step)
            self.bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        logs = logs or {}
        if not state.is_world_process_zero:
            return
        if "eval_loss" in logs:
            self.console.print(
                f"step {state.global_step}, {logs['tokens']:,} tokens: {logs['eval_loss']:.4f} nats/token, "
                f"perplexity {math.exp(min(logs['eval_loss'], 700)):.2f} on the evaluation text",
                highlight=False,
                soft_wrap=True,
            )
        elif "loss" in logs:
            self.last = f"loss {logs['loss']:.4f}  lr {logs['learning_rate']:.2e}"
            self.bar.update(self.task, text=self.last)
            tenth = max(1, state.max_steps // 10)
            if not self.console.is_terminal and state.global_step // tenth > self.tenths:
                self.tenths = state.global_step // tenth
                self.console.print(
                    f"step {state.global_step} of {state.max_steps}  {self.last}", highlight=False, soft_wrap=True
                )

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.stop()

    def stop(self) -> None:
        """Leave the terminal as it was."""
        self.bar.stop()


class EarlyStop(_Callback):  # type: ignore[misc]
    """Stop after ``patience`` evaluations without a new best one. What it knows is in the log, which checkpoints keep."""

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_evaluate = True  # or the last weights could not be the best ones
        self.on_evaluate(args, state, control)  # a run that had stopped, and is continued because its result was not written

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        steps = [entry["step"] for entry in state.log_history if "eval_loss" in entry]
        best = best_evaluation(state.log_history)
        if best is not None and sum(step > best for step in steps) >= self.patience:
            control.should_training_stop = True


class Saved(_Callback):  # type: ignore[misc]
    """Tell after every checkpoint that there is one."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self.tell = tell

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.tell()


class LogAtCheckpoints(_Callback):  # type: ignore[misc]
    """Close the running mean of the loss at every checkpoint, so that a continued run logs the same means."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if control.should_save or control.should_evaluate:
            control.should_log = True
