"""A tiny model, a language of few words, and recipes for training runs of a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from export_helpers import make_checkpoint
from fairy2i_export.train.recipe import Recipe

SEPARATOR = "<|end|>"


def write_text(path: Path, documents: int, seed: int) -> Path:
    """Documents of w3 ... w199 in which each word says much about the next one."""
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(documents):
        word, words = int(rng.integers(197)), []
        for _ in range(int(rng.integers(8, 40))):
            words.append(f"w{word + 3}")
            word = (word * 7 + int(rng.integers(3))) % 197
        texts.append(" ".join(words))
    path.write_text(SEPARATOR.join(texts), encoding="utf-8")
    return path


def make_source(directory: Path, **config: Any) -> Path:
    """A random LLaMA with one layer."""
    small = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    return make_checkpoint(directory, **{**small, **config})


def make_recipe(folder: Path, **changes: Any) -> Recipe:
    """A recipe over ``folder``/source, train.txt and eval.txt, which are made if they are not there."""
    if not (folder / "source").exists():
        make_source(folder / "source")
        write_text(folder / "train.txt", 60, seed=1)
        write_text(folder / "eval.txt", 6, seed=2)
    values: dict[str, Any] = {
        "source": str(folder / "source"),
        "output": folder / "out",
        "data": (str(folder / "train.txt"),),
        "eval_data": (str(folder / "eval.txt"),),
        "separator": SEPARATOR,
        "block_length": 32,
        "steps": 8,
        "batch": 4,
        "learning_rate": 1e-2,
        "log_every": 1,
        "save_every": 3,
        "eval_every": 4,
        "threads": 1,
        "quiet": True,
        **changes,
    }
    return Recipe(**values)


def arguments_of(recipe: Recipe) -> list[str]:
    """The same recipe for the command line; only what :func:`make_recipe` sets."""
    out = ["train", recipe.source, "-o", str(recipe.output), "--separator", SEPARATOR, "--quiet"]
    for name in ("data", "eval_data"):
        for value in getattr(recipe, name):
            out += [f"--{name.replace('_', '-')}", value]
    names = ("block_length", "steps", "batch", "log_every", "save_every", "eval_every", "threads", "accumulate", "distill")
    for name in names:
        out += [f"--{name.replace('_', '-')}", str(getattr(recipe, name))]
    return [*out, "--lr", str(recipe.learning_rate)]


def curve(folder: Path) -> list[tuple[int, str, float]]:
    """(step, what, value) of everything logged, in order; without what depends on the clock."""
    history = json.loads((folder / "training_log.json").read_text())["history"]
    return [(entry["step"], key, entry[key]) for entry in history for key in _KEYS if key in entry]


_KEYS = ("loss", "grad_norm", "learning_rate", "eval_loss")
