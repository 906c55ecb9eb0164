"""What is compared: the runs of each experiment, and the recipe they share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Run:
    """One row of a table.

    Attributes:
        name: folder name, unique.
        label: as tables call it.
        bits: per weight of the quantized layers.
        recipe: options of ``fairy2i train`` that differ from the shared ones; None: nothing is trained. ``from_calibrated`` True:
            training starts from the calibrated model.
        export: options of ``fairy2i-export``; None: not exported (float and the baselines that are not Fairy2i).
        seeded: whether the result depends on the seed.
    """

    name: str
    label: str
    bits: str
    recipe: dict[str, Any] | None = None
    export: dict[str, Any] | None = None
    seeded: bool = True


def trained(name: str, label: str, bits: str, **recipe: Any) -> Run:
    """A run that is trained, and exported if it is a Fairy2i model."""
    exported = recipe.get("method", "fairy2i") == "fairy2i"
    return Run(name, label, bits, recipe, {} if exported else None)


def untrained(name: str, label: str, bits: str, **export: Any) -> Run:
    """The plain model, converted as it is."""
    return Run(name, label, bits, None, export, seeded=False)


SOURCE = Run("source", "float, as published", "32", seeded=False)

# every method of the paper's table with the same tokens, schedule and learning rate
METHODS = (
    SOURCE,
    trained("float", "float, trained on", "32", method="float"),
    trained("w2", "W2 (2 stages)", "2", stages=2),
    trained("w2-rms", "W2, row multiplier", "2", stages=2, row_multiplier="rms"),
    trained("w2-joint", "W2, joint quantizer, scales fitted in every step", "2", stages=2, quantizer="joint"),
    trained(
        "w2-joint-learned",
        "W2, joint quantizer, scales learned, row multiplier",
        "2",
        stages=2,
        quantizer="joint",
        learned_scales=True,
        row_multiplier="rms",
    ),
    trained("w1", "W1 (1 stage)", "1", stages=1),
    trained("ternary", "ternary (b1.58)", "1.58", method="ternary"),
    trained("binary", "binary (BitNet)", "1", method="binary"),
)

CALIBRATED = (
    untrained("calibrated-2", "2 stages, calibrated, no training", "2", calibrate=True, stages=2),
    untrained("calibrated-3", "3 stages, calibrated, no training", "3", calibrate=True, stages=3),
    untrained("calibrated-4", "4 stages, calibrated, no training", "4", calibrate=True, stages=4),
)

# the quantizers against each other: without training, and after equal training
QUANTIZERS = (
    SOURCE,
    *(
        trained(
            f"{quantizer}-{stages}-{rows}", f"{quantizer}, {'with' if rows == 'rms' else 'no'} row multiplier", str(stages),
            quantizer=quantizer, stages=stages, row_multiplier=rows,
        )
        for stages in (2, 3, 4)  # at one stage there is nothing to choose together
        for quantizer in ("greedy", "joint")
        for rows in ("none", "rms")
    ),
    *(
        trained(
            f"joint-learned-{stages}-rms", "joint, scales learned", str(stages),
            quantizer="joint", stages=stages, row_multiplier="rms", learned_scales=True,
        )
        for stages in (2, 3, 4)
    ),
)  # fmt: skip


# what training can do besides, each against plain W2
OPTIONS = (
    SOURCE,
    trained("plain", "W2", "2", stages=2),
    trained("rms", "row multiplier, its root mean square", "2", stages=2, row_multiplier="rms"),
    trained("learned-rows", "row multiplier, learned", "2", stages=2, row_multiplier="learned"),
    trained("learned-scales", "scales learned", "2", stages=2, learned_scales=True),
    trained("learned-both", "both learned", "2", stages=2, row_multiplier="learned", learned_scales=True),
    trained("int8", "int8 activations", "2", stages=2, activation_bits=8),
    trained("joint", "joint quantizer, scales fitted in every step", "2", stages=2, quantizer="joint"),
    trained("joint-learned", "joint quantizer, scales learned", "2", stages=2, quantizer="joint", learned_scales=True),
)


# where training starts: the weights rounded, or the calibrated model, whose learning rates are shares of a row's multiplier
STARTS = (
    SOURCE,
    untrained("calibrated-2", "calibrated, no training", "2", calibrate=True, stages=2),
    trained(
        "rounded-joint", "from rounding: joint, scales learned, row multiplier", "2",
        stages=2, quantizer="joint", learned_scales=True, row_multiplier="rms",
    ),
    *(
        trained(
            f"calibrated-start-{rate}", f"calibrated start, learning rate {rate}", "2",
            stages=2, from_calibrated=True, learning_rate=float(rate),
        )
        for rate in ("1e-2", "2e-4", "3e-3")
    ),
    trained("rounded-greedy", "from rounding: greedy, row multiplier", "2", stages=2, row_multiplier="rms"),
)  # fmt: skip


@dataclass(frozen=True)
class Experiment:
    """Runs over one model with one recipe.

    Attributes:
        name: of the experiment.
        runs: its rows.
        recipe: shared options of ``fairy2i train``.
        seeds: by default.
        context: window of the perplexity; None: the model's context.
        written: the float model's own text is part of the data.
    """

    name: str
    runs: tuple[Run, ...]
    recipe: dict[str, Any] = field(default_factory=dict)
    seeds: int = 1
    context: int | None = None
    written: bool = True


_STORIES = {
    "block_length": 256, "batch": 16, "bos": "document", "separator": "<|endoftext|>", "distill": 1.0, "schedule": "cosine",
    "warmup": 20, "learning_rate": 1e-3, "clip": 1.0, "threads": 1,
}  # fmt: skip

_SMOLLM2 = {
    "block_length": 256, "batch": 4, "distill": 1.0, "schedule": "cosine", "warmup": 10, "learning_rate": 1e-3, "clip": 1.0,
    "bf16": True, "skip_lm_head": True, "eval_tokens": 2048, "threads": 1,
}  # fmt: skip

EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment("stories", (*METHODS, *CALIBRATED), {**_STORIES, "max_tokens": 262_144}, seeds=3),
        Experiment("stories-long", METHODS, {**_STORIES, "max_tokens": 1_048_576}),
        Experiment("quantizers", QUANTIZERS, {**_STORIES, "max_tokens": 131_072}),
        Experiment("options", OPTIONS, {**_STORIES, "max_tokens": 262_144}),
        Experiment(
            "starts",
            STARTS,
            {**_STORIES, "max_tokens": 65_536, "warmup": 4, "eval_every": 4, "skip_lm_head": True},
            written=False,
        ),
        Experiment("smollm2", (*METHODS, *CALIBRATED), {**_SMOLLM2, "max_tokens": 32_768}, context=2048),
    )
}
