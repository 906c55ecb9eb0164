"""How long a run is, where it goes on, and whether the disk has room for it: known before anything is trained."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

from fairy2i_export.errors import OptionError, OutputError
from fairy2i_export.output.sizes import human_bytes
from fairy2i_export.train.data.blocks import Blocks, too_short
from fairy2i_export.train.loop import checkpoint_guard
from fairy2i_export.train.recipe import Recipe
from fairy2i_export.train.result.folder import CHECKPOINTS

MOST_STEPS = 10**12  # of a run: a typing error


def last_good(directory: Path, say: Callable[[str], None]) -> Path | None:
    """The newest whole checkpoint of a run; ``say`` hears about damaged ones."""
    for damaged in checkpoint_guard.damaged_checkpoints(directory):
        say(f"warning: {damaged} is incomplete and is not used")
    good = checkpoint_guard.good_checkpoints(directory)
    if not good:
        return None
    say(f"continuing after step {checkpoint_guard.step_of(good[-1])}, from {good[-1]}")
    return good[-1]


def step_count(recipe: Recipe, global_batch: int, length: int, blocks: Blocks | None) -> int:
    """Optimizer steps of the run; ``blocks`` None: they are made while training."""
    if recipe.steps is not None:
        return recipe.steps
    per_step = global_batch * length
    if recipe.max_tokens is not None:
        if recipe.max_tokens < per_step:
            raise OptionError(f"--max-tokens: one step has {per_step:,} tokens, got {recipe.max_tokens:,}")
        return recipe.max_tokens // per_step
    if blocks is None:
        raise too_short(recipe.data, 0, length)
    steps = max(1, math.floor((recipe.epochs or 1) * len(blocks) / global_batch))
    if steps > MOST_STEPS:
        raise OptionError(f"--epochs: expected at most {MOST_STEPS:,} steps, got {steps:,}")
    return steps


def check_room(parameters: int, recipe: Recipe) -> None:
    """Raise OutputError if the disk cannot hold the checkpoints: better now than after hours."""
    one = parameters * 12  # float32 weights and two moments of AdamW
    present = 0 if recipe.force else len(checkpoint_guard.good_checkpoints(recipe.output / CHECKPOINTS))
    needed = one * max(1, recipe.keep_checkpoints + 1 - present) + parameters * 4
    free = shutil.disk_usage(recipe.output).free
    if free < needed:
        raise OutputError(
            f"{recipe.output}: {recipe.keep_checkpoints + 1} checkpoints of {human_bytes(one)} and the result need "
            f"{human_bytes(needed)}, the disk has {human_bytes(free)} free; make room or choose another folder"
        )
