"""The recipe of a training run: every choice that decides its result, checked before anything is loaded.

Outside the package ``train``, whose import needs torch: the command line reads it for its help.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from fairy2i_export.errors import OptionError

Method = Literal["fairy2i", "binary", "ternary", "float"]
Bos = Literal["none", "document", "block"]
Schedule = Literal["wsd", "paper", "cosine", "constant"]
SaveDtype = Literal["bfloat16", "float16", "float32"]
METHODS: tuple[Method, ...] = get_args(Method)
BOS_PLACES: tuple[Bos, ...] = get_args(Bos)
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
SAVE_DTYPES: tuple[SaveDtype, ...] = get_args(SaveDtype)
MAX_BLOCK = 2048  # of the published recipe; the default is the model's context if that is shorter

# fields that may differ when a run is continued: they do not change what comes out
_FREE = frozenset({"output", "threads", "keep_checkpoints", "quiet", "batch", "accumulate", "force"})


@dataclass(frozen=True)
class Recipe:
    """A training run. The defaults of the optimizer are those of the published Fairy2i training.

    Attributes:
        source: Hugging Face checkpoint directory or hub id to start from.
        output: folder to make.
        data: text files, .jsonl, .parquet or ``hf:OWNER/NAME[:CONFIG[:SPLIT]]``; empty only with ``teacher_text``.
        field: column of jsonl, parquet and hub data that holds the text.
        separator: what stands between the documents of a text file; None: a file is one document.
        streaming: read and tokenize while training, instead of all before; needs ``steps`` or ``max_tokens``.
        shuffle_buffer: documents that are shuffled together when streaming.
        block_length: tokens per training sequence; None: the model's context, at most 2,048.
        bos: where beginning-of-text tokens stand: nowhere (as published), before every document, or before every block.
        eos: token that ends a document: its id or its text; None: the checkpoint's first.
        eval_data: like ``data``; for perplexities along the way.
        eval_every: steps; None: a tenth of the run.
        eval_tokens: use at most this many tokens of ``eval_data``; None: all.
        patience: stop after so many evaluations without a new best one, and keep the best weights, which may be the source's;
            None: never.
        method: fairy2i, the baselines binary and ternary, or float (nothing is quantized).
        stages, profile, quantizer, row_multiplier, learned_scales, activation_bits: see ``QuantizationOptions``;
            ``activation_bits`` 0: inputs are not rounded.
        skip_lm_head: leave the output layer float.
        include, exclude: globs on the names of linear layers. For these and all from ``method`` on, None (or no glob): as the
            source was trained, if it comes from such a training, else the defaults of ``QuantizationOptions``.
        steps, max_tokens, epochs: length of the run; at most one of them. None of them: one epoch.
        batch: sequences per process and forward pass.
        accumulate: forward passes per optimizer step.
        learning_rate: peak, of the latent weights.
        float_learning_rate: peak, of everything else; None: the same.
        schedule: wsd, paper, cosine or constant.
        warmup: steps; below 1: share of the run. Not for ``paper``.
        decay: share of the run in which wsd goes down.
        min_lr_ratio: final learning rate over peak, of wsd and cosine.
        betas, weight_decay, clip: of AdamW; ``clip`` is the largest gradient norm.
        distill: weight of the divergence from the teacher in the loss, 0 to 1; the rest is cross entropy.
        temperature: of teacher and student in that divergence.
        teacher: its checkpoint; None: ``source``.
        teacher_text: train on so many tokens that the teacher writes; only without ``data``.
        gradient_checkpointing, bf16: to save memory; bf16 is autocast, latents stay float32.
        seed: of data order, sampling and dropout.
        threads: of torch; None: torch's choice.
        log_every: steps.
        save_every: steps between checkpoints; None: a tenth of the run.
        keep_checkpoints: the newest so many are kept.
        save_dtype: of the final weights.
        force: replace what an earlier run left in ``output``.
        quiet: no progress.
    """

    source: str
    output: Path
    data: tuple[str, ...] = ()
    field: str = "text"
    separator: str | None = None
    streaming: bool = False
    shuffle_buffer: int = 10_000
    block_length: int | None = None
    bos: Bos = "none"
    eos: str | None = None
    eval_data: tuple[str, ...] = ()
    eval_every: int | None = None
    eval_tokens: int | None = None
    patience: int | None = None
    method: Method | None = None
    stages: int | None = None
    profile: str | None = None
    quantizer: str | None = None
    row_multiplier: str | None = None
    learned_scales: bool | None = None
    activation_bits: int | None = None
    skip_lm_head: bool | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    steps: int | None = None
    max_tokens: int | None = None
    epochs: float | None = None
    batch: int = 4
    accumulate: int = 1
    learning_rate: float = 3e-5
    float_learning_rate: float | None = None
    schedule: Schedule = "wsd"
    warmup: float = 0.01
    decay: float = 0.2
    min_lr_ratio: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip: float = 2.0
    distill: float = 0.0
    temperature: float = 1.0
    teacher: str | None = None
    teacher_text: int | None = None
    gradient_checkpointing: bool = False
    bf16: bool = False
    seed: int = 42
    threads: int | None = None
    log_every: int = 10
    save_every: int | None = None
    keep_checkpoints: int = 2
    save_dtype: SaveDtype = "bfloat16"
    force: bool = False
    quiet: bool = False

    def check(self) -> None:
        """Check all that can be checked without reading anything.

        Raises:
            OptionError: an unknown or impossible value, or options that contradict each other.
        """
        for name, allowed in (
            ("method", (None, *METHODS)),
            ("bos", BOS_PLACES),
            ("schedule", SCHEDULES),
            ("save_dtype", SAVE_DTYPES),
        ):
            if getattr(self, name) not in allowed:
                expected = ", ".join(value for value in allowed if value is not None)
                raise OptionError(f"{_option(name)}: expected one of {expected}, got {getattr(self, name)!r}")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise OptionError(f"{_option(name)}: expected a positive number, got {value!r}")
        for name in ("distill", "decay", "min_lr_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise OptionError(f"{_option(name)}: expected a number from 0 to 1, got {getattr(self, name)!r}")
        if self.warmup < 0 or self.weight_decay < 0:
            raise OptionError("--warmup and --weight-decay: expected numbers that are not negative")
        lengths = [name for name in ("steps", "max_tokens", "epochs") if getattr(self, name) is not None]
        if len(lengths) > 1:
            raise OptionError(f"{' and '.join(map(_option, lengths))} contradict each other: give one of them")
        if not self.data and self.teacher_text is None:
            raise OptionError("no data: give --data FILES, or --teacher-text TOKENS to let the teacher write the text")
        if self.data and self.teacher_text is not None:
            raise OptionError("--teacher-text is for runs without --data: give one of them")
        if self.streams and not (self.steps or self.max_tokens):
            raise OptionError("streaming data (--streaming, hf:...) has no known length: give --steps or --max-tokens")
        if self.patience is not None and not self.eval_data:
            raise OptionError("--patience needs --eval-data to see when the model stops getting better")
        if self.teacher is not None and self.distill == 0 and self.teacher_text is None:
            raise OptionError("--teacher needs --distill or --teacher-text: nothing else uses a teacher")

    @property
    def streams(self) -> bool:
        """Whether training data is tokenized while training."""
        return self.streaming or any(name.startswith("hf:") for name in self.data)

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher's weights are needed."""
        return self.distill > 0 or self.teacher_text is not None

    def as_json(self) -> dict[str, Any]:
        """All fields, as they are written to recipe.json."""
        values = asdict(self)
        values["output"] = str(self.output)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    def differences(self, earlier: dict[str, Any]) -> list[str]:
        """What stands against continuing a run with the recipe ``earlier``: one line for each field."""
        mine = self.as_json()
        names = [field.name for field in fields(self) if field.name not in _FREE]
        return [
            f"{_option(name)}: {earlier.get(name)!r} there, {mine[name]!r} here"
            for name in names
            if mine[name] != earlier.get(name)
        ]


_POSITIVE = (
    "shuffle_buffer", "block_length", "eval_every", "eval_tokens", "patience", "stages", "steps", "max_tokens", "epochs",
    "batch", "accumulate", "learning_rate", "float_learning_rate", "clip", "temperature", "teacher_text", "threads",
    "log_every", "save_every", "keep_checkpoints",
)  # fmt: skip
_NAMES = {"learning_rate": "lr", "float_learning_rate": "float-lr", "keep_checkpoints": "keep"}


def _option(name: str) -> str:
    """A field as the command line spells it."""
    return f"--{_NAMES.get(name, name.replace('_', '-'))}"
