"""The recipe of a training run: every choice that decides its result, checked before anything is loaded. No torch in here."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, get_args

from fairy2i_export.codes.choices import COLUMN_CHOICES, ColumnChoice, one_of
from fairy2i_export.codes.choices import METHODS as QUANTIZING
from fairy2i_export.errors import OptionError, check_path
from fairy2i_export.output.progress import MOST_THREADS
from fairy2i_export.request.option import as_tuple, check_types, declared, flag_of, is_list, option
from fairy2i_export.request.quantization import Quantization

Method = Literal["fairy2i", "binary", "ternary", "float"]
Bos = Literal["none", "document", "block"]
TeacherStarts = Literal["bos", "mixed"]
Schedule = Literal["wsd", "paper", "cosine", "constant"]
SaveDtype = Literal["bfloat16", "float16", "float32"]
METHODS: tuple[str, ...] = (*QUANTIZING, "float")
BOS_PLACES: tuple[Bos, ...] = get_args(Bos)
TEACHER_STARTS: tuple[TeacherStarts, ...] = get_args(TeacherStarts)
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
SAVE_DTYPES: tuple[SaveDtype, ...] = get_args(SaveDtype)
MAX_BLOCK = 2048  # of the published recipe; the default is the model's context if that is shorter
_MOST = {
    "batch": 1 << 20,
    "accumulate": 1 << 20,
    "shuffle_buffer": 1 << 30,
    "threads": MOST_THREADS,
}  # there are typing errors
_MOST_OF_ALL = 10**12
_TRAINING = ("training",)
_DATA, _METHOD, _LENGTH, _RATE = "Data", "Method", "Length and batch", "Optimizer and schedule"
_TEACHER, _EVAL, _RUN = "Teacher", "Evaluation", "Run"


def _opt(panel: str, default: Any, help_text: str, metavar: str | None = None, shown: str = "", **details: Any) -> Any:
    return option(default, help_text, ends=_TRAINING, panel=panel, metavar=metavar, shown=shown, **details)


@dataclass(frozen=True)
class Recipe(Quantization):
    """A training run. The defaults of the optimizer are those of the published Fairy2i training.

    For the options under "Method", None (or no glob) means: as the source was trained, if it comes from such a training, else the
    defaults of ``QuantizationOptions``.

    Attributes:
        source: Hugging Face checkpoint directory or hub id to start from.
        output: folder to make.
    """

    source: str
    output: Path
    data: tuple[str, ...] = _opt(
        _DATA, (), "Text, .jsonl, .csv or .parquet file, or hf:OWNER/NAME[:CONFIG[:SPLIT]]; may be repeated.", "FILE"
    )
    field: str = _opt(_DATA, "text", "Column of jsonl, csv, parquet and hub data with the text.", "NAME")
    separator: str | None = _opt(
        _DATA, None, "What stands between the documents of a text file.", "TEXT", "one document per file"
    )
    streaming: bool = _opt(_DATA, False, "Read and tokenize while training (hub data always is).")
    shuffle_buffer: int = _opt(_DATA, 10_000, "Documents shuffled together when streaming.", "N", positive=True)
    bos: Bos = _opt(
        _DATA,
        "none",
        "Beginning-of-text tokens: none (as published), before each document, or each block.",
        "P",
        choices=BOS_PLACES,
    )
    eos: str | None = _opt(_DATA, None, "Token that ends a document, by id or text.", "TOKEN", "the source's eos_token_id")
    method: Method | None = _opt(
        _METHOD,
        None,
        "fairy2i; binary or ternary, to compare with; float trains without quantizing.",
        "M",
        "fairy2i",
        choices=METHODS,
    )
    from_calibrated: str | None = _opt(
        _METHOD,
        None,
        "Start from this export of SOURCE by --calibrate: its codes, scales, multipliers and norms, which decide the other options "
        "of how layers are quantized; learning rates count in units of a layer's row multipliers.",
        "DIR",
        "from SOURCE, rounded",
    )
    col_multiplier: ColumnChoice | None = _opt(
        _METHOD,
        None,
        "One factor per input column: none, or learned, from ones.",
        "M",
        "none",
        choices=COLUMN_CHOICES,
    )
    learned_scales: bool | None = _opt(
        _METHOD,
        None,
        "Train the scales instead of computing them from the weights.",
        shown="computed",
        flags=("--learned-scales/--computed-scales",),
    )
    activation_bits: int | None = _opt(
        _METHOD, None, "8: round the inputs of quantized layers to int8; 0: do not.", "N", "0"
    )
    skip_lm_head: bool | None = _opt(
        _METHOD,
        None,
        "Leave the output layer float, or quantize it.",
        shown="quantized",
        flags=("--skip-lm-head/--quantize-lm-head",),
    )
    steps: int | None = _opt(_LENGTH, None, "Optimizer steps.", "N", positive=True)
    max_tokens: int | None = _opt(_LENGTH, None, "Or tokens.", "N", positive=True)
    epochs: float | None = _opt(_LENGTH, None, "Or passes over the data.", "X", "1, unless streaming", positive=True)
    block_length: int | None = _opt(
        _LENGTH, None, "Tokens per sequence.", "N", f"the model's context, at most {MAX_BLOCK}", positive=True
    )
    batch: int = _opt(_LENGTH, 4, "Sequences per process and forward pass.", "N", positive=True, neutral=True)
    accumulate: int = _opt(_LENGTH, 1, "Forward passes per optimizer step.", "N", positive=True, neutral=True)
    gradient_checkpointing: bool = _opt(_LENGTH, False, "Compute activations twice instead of keeping them.")
    bf16: bool = _opt(_LENGTH, False, "Compute in bfloat16 (autocast; latent weights stay float32).")
    learning_rate: float = _opt(
        _RATE, None, "Peak learning rate.", "X", "3e-5, 2e-4 with --from-calibrated", flags=("--lr",), positive=True
    )
    float_learning_rate: float | None = _opt(
        _RATE, None, "That of everything but latent weights.", "X", "as --lr", flags=("--float-lr",), positive=True
    )
    schedule: Schedule = _opt(
        _RATE,
        "wsd",
        "wsd (warm-up, stable, decay), paper (the published two-step one), cosine or constant.",
        "S",
        choices=SCHEDULES,
    )
    warmup: float = _opt(_RATE, 0.01, "Steps; below 1: share of the run. Not for paper.", "X")
    decay: float = _opt(_RATE, 0.2, "Share of the run in which wsd goes down.", "X", share=True)
    min_lr_ratio: float = _opt(_RATE, 0.0, "Last over peak rate, of wsd and cosine.", "X", share=True)
    betas: tuple[float, float] = _opt(_RATE, (0.9, 0.95), "Of AdamW.", "X Y")
    weight_decay: float = _opt(_RATE, 0.0, "Of AdamW.", "X")
    clip: float = _opt(_RATE, 2.0, "Largest norm of the gradient.", "X", positive=True)
    distill: float = _opt(
        _TEACHER, 0.0, "Weight of the divergence from the teacher in the loss, 0 to 1.", "ALPHA", share=True
    )
    temperature: float = _opt(_TEACHER, 1.0, "Softens both distributions.", "T", positive=True)
    teacher: str | None = _opt(_TEACHER, None, "Float model with the same tokens.", "SOURCE", "SOURCE itself")
    teacher_text: int | None = _opt(
        _TEACHER, None, "Instead of --data: train on so many tokens that the teacher writes.", "TOKENS", positive=True
    )
    teacher_starts: TeacherStarts = _opt(
        _TEACHER,
        "bos",
        "Of that text: every sequence begins with the beginning-of-text token, or mixed: every other one with any token.",
        "S",
        choices=TEACHER_STARTS,
    )
    teacher_temperature: float = _opt(_TEACHER, 1.0, "At which it is sampled.", "T", positive=True)
    eval_data: tuple[str, ...] = _opt(_EVAL, (), "Like --data: text to measure perplexity on.", "FILE")
    eval_every: int | None = _opt(_EVAL, None, "Steps.", "N", "a tenth of the run", positive=True)
    eval_tokens: int | None = _opt(_EVAL, None, "Use at most so many tokens.", "N", "all", positive=True)
    patience: int | None = _opt(
        _EVAL,
        None,
        "Stop after N evaluations without a new best one, and keep the best weights, which may be the source's.",
        "N",
        "never",
        positive=True,
    )
    seed: int = _opt(_RUN, 42, "Of data order and sampling.", "N")
    threads: int | None = _opt(_RUN, None, "Of torch on the CPU.", "N", "torch's choice", positive=True, neutral=True)
    log_every: int = _opt(_RUN, 10, "Steps between logged losses.", "N", positive=True)
    save_every: int | None = _opt(_RUN, None, "Steps between checkpoints.", "N", "a tenth of the run", positive=True)
    keep_checkpoints: int = _opt(_RUN, 2, "Newest checkpoints to keep.", "N", flags=("--keep",), positive=True, neutral=True)
    save_dtype: SaveDtype = _opt(
        _RUN,
        None,
        "Type of the final weights: bfloat16, float16 or float32.",
        "T",
        "bfloat16, float32 with --from-calibrated",
        choices=SAVE_DTYPES,
    )
    force: bool = _opt(_RUN, False, "Replace an earlier run in DIR.", neutral=True)
    quiet: bool = _opt(_RUN, False, "Print errors only.", flags=("--quiet", "-q"), neutral=True)

    def __post_init__(self) -> None:
        """Take what Python code gives for the same: texts for paths and paths for texts, lists, one file, numpy's numbers."""

        def plain(value: Any) -> Any:
            if isinstance(value, os.PathLike):
                return os.fspath(value)
            if isinstance(value, bool) or not isinstance(value, Real):
                return value
            return int(value) if isinstance(value, Integral) else float(value)

        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "output":
                value = Path(value) if isinstance(value, str) else value
            elif is_list(Recipe, item.name) and value is not None:
                value = tuple(map(plain, as_tuple(value)))
            else:
                value = tuple(map(plain, value)) if isinstance(value, list | tuple) else plain(value)
            object.__setattr__(self, item.name, value)

    def check(self) -> None:
        """Check all that can be checked without reading anything.

        Raises:
            OptionError: an unknown or impossible value, or options that contradict each other.
        """
        for name, value, kind in (("source", self.source, str), ("output", self.output, Path)):
            if not isinstance(value, kind) or not str(value) or "\0" in str(value):
                raise OptionError(f"{name}: expected the name of a folder, got {value!r}")
            check_path(name, value)
        check_types(self, "training")
        for name, found in declared(Recipe, "training").items():
            value = getattr(self, name)
            if value is None:
                continue
            if name not in _QUANTIZATION and found.choices:  # those are completed and checked with the source
                one_of(_option(name), value, found.allowed("training"))
            if (found.positive or name == "stages") and not (value > 0 and math.isfinite(value)):
                raise OptionError(f"{_option(name)}: expected a positive number, got {value!r}")
            most = _MOST.get(name, _MOST_OF_ALL)
            if found.positive and value > most:
                raise OptionError(f"{_option(name)}: expected at most {most:,}, got {value!r}")
            if found.share and not 0 <= value <= 1:
                raise OptionError(f"{_option(name)}: expected a number from 0 to 1, got {value!r}")
        for name in ("warmup", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise OptionError(f"{_option(name)}: expected a number that is not negative, got {getattr(self, name)!r}")
        betas: Any = self.betas
        if not (
            isinstance(betas, tuple)
            and len(betas) == 2
            and all(isinstance(beta, float | int) and 0 <= beta < 1 for beta in betas)
        ):
            raise OptionError(f"--betas: expected two numbers from 0 to below 1, got {betas!r}")
        if not 0 <= self.seed < 1 << 32:
            raise OptionError(f"--seed: expected a number from 0 to {(1 << 32) - 1}, got {self.seed}")
        if self.separator == "":
            raise OptionError(
                "--separator: expected at least one character, got none; leave it out for one document per file"
            )
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
        neutral = {name for name, found in declared(Recipe, "training").items() if found.neutral}
        names = [item.name for item in fields(self) if item.name not in {"output", *neutral}]
        return [
            f"{_option(name)}: {earlier.get(name)!r} there, {mine[name]!r} here"
            for name in names
            if mine[name] != earlier.get(name)
        ]


_QUANTIZATION = frozenset(item.name for item in fields(Quantization))


def _option(name: str) -> str:
    """A field as the command line spells it."""
    found = declared(Recipe, "training").get(name)
    return f"--{name}" if found is None else flag_of(name, found).partition("/")[0]
