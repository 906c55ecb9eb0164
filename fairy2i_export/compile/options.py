"""Export options: what the caller gave, completed by what the checkpoint's config.json says about its training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from fairy2i_export.codes.quantizer import (
    MAX_STAGES,
    PROFILES,
    QUANTIZERS,
    ROW_MULTIPLIERS,
    Profile,
    Quantizer,
    RowMultiplier,
)
from fairy2i_export.errors import CheckpointError, OptionError
from fairy2i_export.source.learned import LEARNED, ColumnChoice, RowChoice, ScaleChoice

LmHead = Literal["fairy2i", "int8", "int4", "float"]
Embedding = Literal["float32", "float16", "int8"]
KVCache = Literal["float32", "float16", "int8"]
DenseType = Literal["float32", "float16"]
LM_HEADS: tuple[LmHead, ...] = get_args(LmHead)
EMBEDDINGS: tuple[Embedding, ...] = get_args(Embedding)
KV_CACHES: tuple[KVCache, ...] = get_args(KVCache)
DENSE_TYPES: tuple[DenseType, ...] = get_args(DenseType)
ACCURACY_LEVELS = (0, 4)  # of MatMulNBits: float32 activations, int8 ones
DEFAULT_CONTEXT = 4096  # the rotary tables and a full KV cache grow with it
CALIBRATED_STAGES = 4  # fewer lose too much without training (docs/quality.md)
# what config.json's entry may say, and what holds where it does not
_DEFAULTS = {
    "stages": 2,
    "profile": "bf16-reference",
    "quantizer": "greedy",
    "row_multiplier": "none",
    "lm_head": "fairy2i",
    "col_multiplier": "none",
    "scales": "computed",
}
_ROWS: tuple[RowChoice, ...] = ("none", "rms", LEARNED)
_COLUMNS: tuple[ColumnChoice, ...] = get_args(ColumnChoice)
_SCALES: tuple[ScaleChoice, ...] = get_args(ScaleChoice)
_BASELINES = ("binary", "ternary")  # methods of the training code that have other weights


@dataclass(frozen=True)
class ExportOptions:
    """All choices of one export, complete and checked."""

    stages: int
    profile: Profile
    row_multiplier: RowChoice
    lm_head: LmHead
    embedding: Embedding
    context_length: int
    include: tuple[str, ...] = ()  # globs on module names; empty = all
    exclude: tuple[str, ...] = ()
    kv_cache: KVCache = "float32"
    rope_scaling: str | None = None  # checked by rope_config.stretch_context
    backend: str = "fairy2i"
    dense_type: DenseType = "float32"  # of the backend dense
    accuracy_level: int = 4  # of the backend matmulnbits
    quantizer: Quantizer = "greedy"
    col_multiplier: ColumnChoice = "none"
    scales: ScaleChoice = "computed"
    calibration: str | None = None  # hash of text and method, for codes found by calibration instead of rounding


@dataclass(frozen=True)
class GivenOptions:
    """What the caller asked for; None = not given. Values are unchecked."""

    stages: int | None = None
    profile: str | None = None
    row_multiplier: str | None = None
    lm_head: str | None = None
    embedding: str | None = None
    context_length: int | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    kv_cache: str | None = None
    rope_scaling: str | None = None
    backend: str | None = None
    dense_type: str | None = None
    accuracy_level: int | None = None
    quantizer: str | None = None
    calibration: str | None = None


def resolve_options(
    given: GivenOptions, config: dict[str, Any], max_positions: int, embedding_dtype: str
) -> tuple[ExportOptions, list[str]]:
    """Complete the given options from config.json's ``fairy2i`` entry, else from the defaults, and check them.

    Args:
        given: what the caller asked for.
        config: the parsed config.json.
        max_positions: the longest context the model was made for.
        embedding_dtype: how the checkpoint stores the embedding: 16-bit floats stay 16-bit by default.

    Returns:
        The options, and warnings where a given option contradicts how the checkpoint says it was trained.

    Raises:
        OptionError: an unknown or impossible value was given.
        CheckpointError: config.json's entry holds one, or says that the weights are already dequantized.
    """
    if given.calibration is not None:
        given = _calibrated(given, config)
    trained = _training_entry(config)
    asked = {key: getattr(given, key, None) for key in _DEFAULTS}
    warnings = [
        f"config.json says that the model was trained with {key} {trained[key]}; exporting with {value} as asked"
        for key, value in asked.items()
        if value is not None and key in trained and trained[key] != value
    ]
    chosen = {key: {**_DEFAULTS, **trained}[key] if value is None else value for key, value in asked.items()}
    embedding = given.embedding
    if embedding is None:
        embedding = "float16" if embedding_dtype in ("BF16", "F16") else "float32"
    context_length = min(max_positions, DEFAULT_CONTEXT) if given.context_length is None else given.context_length
    if isinstance(context_length, bool) or not isinstance(context_length, int) or not 1 <= context_length <= max_positions:
        raise OptionError(
            f"context length: expected 1 to {max_positions} (max_position_embeddings in config.json), got {context_length!r}"
        )
    options = ExportOptions(
        stages=_stages(chosen["stages"]),
        profile=_one_of("profile", chosen["profile"], PROFILES),
        quantizer=_one_of("quantizer", chosen["quantizer"], QUANTIZERS),
        row_multiplier=_one_of("row multiplier", chosen["row_multiplier"], _ROWS),
        col_multiplier=chosen["col_multiplier"],
        scales=chosen["scales"],
        lm_head=_one_of("lm_head", chosen["lm_head"], LM_HEADS),
        embedding=_one_of("embedding", embedding, EMBEDDINGS),
        context_length=context_length,
        include=given.include,
        exclude=(*given.exclude, *_excluded(config)),
        kv_cache=_one_of("kv cache", "float32" if given.kv_cache is None else given.kv_cache, KV_CACHES),
        rope_scaling=given.rope_scaling,
        backend=_backend(given),
        dense_type=_one_of("dense type", "float32" if given.dense_type is None else given.dense_type, DENSE_TYPES),
        accuracy_level=_one_of(
            "accuracy level", 4 if given.accuracy_level is None else given.accuracy_level, ACCURACY_LEVELS
        ),
        calibration=given.calibration,
    )
    if given.calibration is not None:
        options = replace(options, row_multiplier="calibrated", quantizer="joint")
    return options, warnings


def _calibrated(given: GivenOptions, config: dict[str, Any]) -> GivenOptions:
    """The defaults of a conversion without training; options that it decides itself must not be given."""
    if says_trained(config):
        raise OptionError(
            "calibrate: config.json says that this model was trained with Fairy2i; calibration is for models that were not. "
            "Leave --calibrate out, or remove the fairy2i entry"
        )
    for name, value, fixed in (("profile", given.profile, "fp32"), ("quantizer", given.quantizer, "joint")):
        if value not in (None, fixed):
            raise OptionError(f"{name}: calibration uses {fixed}, got {value!r}; leave the option out")
    if given.row_multiplier is not None:
        raise OptionError(f"row multiplier: calibration finds its own, got {given.row_multiplier!r}; leave the option out")
    return replace(
        given,
        stages=CALIBRATED_STAGES if given.stages is None else given.stages,
        profile="fp32",
        lm_head="int8" if given.lm_head is None else given.lm_head,
    )


def check_quantizer(
    stages: int | None, profile: str | None, row_multiplier: str | None, quantizer: str | None
) -> tuple[int, Profile, RowMultiplier, Quantizer]:
    """The quantizer's options where no config.json completes them: None becomes the default.

    Raises:
        OptionError: an unknown or impossible value.
    """
    return (
        _stages(_DEFAULTS["stages"] if stages is None else stages),
        _one_of("profile", _DEFAULTS["profile"] if profile is None else profile, PROFILES),
        _one_of(
            "row multiplier", _DEFAULTS["row_multiplier"] if row_multiplier is None else row_multiplier, ROW_MULTIPLIERS
        ),
        _one_of("quantizer", _DEFAULTS["quantizer"] if quantizer is None else quantizer, QUANTIZERS),
    )


def says_trained(config: dict[str, Any]) -> bool:
    """Whether config.json says that the model was trained the Fairy2i way."""
    return isinstance(config.get("fairy2i"), dict)


def _backend(given: GivenOptions) -> str:
    """The backend's name, once it is clear that it knows the options that were given for it."""
    from fairy2i_export.onnx_graph.formats import BACKENDS  # which need the types of this module

    name: str = _one_of("backend", "fairy2i" if given.backend is None else given.backend, tuple(BACKENDS))
    for other in BACKENDS.values():
        for option in other.options:
            if other.name != name and getattr(given, option) is not None:
                raise OptionError(f"{option.replace('_', ' ')}: is for the backend {other.name}, and this is {name}")
    return name


def _training_entry(config: dict[str, Any]) -> dict[str, Any]:
    entry = config.get("fairy2i")
    if entry is None:
        return {}
    if not isinstance(entry, dict):
        raise CheckpointError(f"config.json: fairy2i: expected an object, got {entry!r}")
    if entry.get("latent", True) is not True:
        raise CheckpointError(
            'config.json: fairy2i: "latent" is not true: these weights are already dequantized, and quantizing them again '
            "would change them; export the latent weights the model was trained with"
        )
    if entry.get("method", "fairy2i") in _BASELINES:
        raise CheckpointError(
            f'config.json: fairy2i: "method" is {entry["method"]}: this model was trained as a baseline for comparison, whose '
            "weights are not sums of {1, i, -1, -i}; export a model trained with the method fairy2i"
        )
    known = {key: entry[key] for key in _DEFAULTS if key in entry}
    try:
        if "stages" in known:
            _stages(known["stages"])
        _one_of("method", entry.get("method", "fairy2i"), ("fairy2i", *_BASELINES))
        choices: tuple[tuple[str, tuple[Any, ...]], ...] = (
            ("profile", PROFILES),
            ("quantizer", QUANTIZERS),
            ("row_multiplier", _ROWS),
            ("col_multiplier", _COLUMNS),
            ("scales", _SCALES),
            ("lm_head", LM_HEADS),
        )
        for key, allowed in choices:
            if key in known:
                _one_of(key, known[key], allowed)
    except OptionError as error:
        raise CheckpointError(f"config.json: fairy2i: {error}") from error
    return known


def _excluded(config: dict[str, Any]) -> tuple[str, ...]:
    """Globs on the names of modules that training left alone."""
    patterns = (config.get("fairy2i") or {}).get("exclude", ())
    if not isinstance(patterns, list | tuple) or not all(isinstance(pattern, str) for pattern in patterns):
        raise CheckpointError(f"config.json: fairy2i: exclude: expected a list of globs, got {patterns!r}")
    return tuple(patterns)


def _stages(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_STAGES:
        raise OptionError(f"stages: expected a number from 1 to {MAX_STAGES}, got {value!r}")
    return value


def _one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> Any:
    if value not in allowed:
        raise OptionError(f"{name}: expected one of {', '.join(map(str, allowed))}, got {value!r}")
    return value
