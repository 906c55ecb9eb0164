"""What is asked of an export or a rewrite. A new option is a field here, read by whoever it concerns, and a line in docs/."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fairy2i_export.codes.choices import CONVERSION_STEPS, DEFAULTS, EFFORTS, LM_HEADS, ConversionStep, Effort, LmHead
from fairy2i_export.decoder.architectures.ifairy import ATTENTION_SCALES, AttentionScale
from fairy2i_export.decoder.rope import ROPE_FREQUENCIES, RopeFrequencies
from fairy2i_export.onnx_graph.choices import (
    ACCURACY_LEVELS,
    DENSE_TYPES,
    EMBEDDINGS,
    FORMATS,
    KV_CACHES,
    DenseType,
    Embedding,
    KVCache,
)
from fairy2i_export.request.option import End, option
from fairy2i_export.request.quantization import Quantization

DEFAULT_CONTEXT = 4096  # the rotary tables and a full KV cache grow with it
CALIBRATED_HEAD_STAGES = 3  # fewer than that are only taken if asked for: docs/quality.md
CALIBRATION_TOKENS: dict[Effort, int] = {"normal": 32_768, "high": 262_144}
_CHECKPOINT: tuple[End, ...] = ("checkpoint",)
_BOTH: tuple[End, ...] = ("checkpoint", "onnx")


@dataclass(frozen=True, kw_only=True)
class Request(Quantization):
    """All options of the two front ends that make model folders.

    Until a request is completed (compile/options.py), None stands where nothing was asked for; then every field has a value but
    those for which None means something.
    """

    lm_head: LmHead = option(
        None,
        "How to store lm_head: fairy2i, int8, int4 or float.",
        ends=_CHECKPOINT,
        metavar="H",
        choices=LM_HEADS,
        fallback=DEFAULTS["lm_head"],
        shown=f"as trained, else {DEFAULTS['lm_head']}",
        words="lm_head",
    )
    lm_head_stages: int | None = option(
        None,
        "Residual stages of an lm_head that is fairy2i, 1 to 4.",
        ends=_CHECKPOINT,
        metavar="N",
        shown=f"those of the layers; {CALIBRATED_HEAD_STAGES} or more with --calibrate; chosen like those of layers with --bits",
        words="lm_head stages",
    )
    embedding: Embedding = option(
        None,
        "How to store the embedding: float32, float16, int8, or shared: the int8 matrix of a tied lm_head, stored once.",
        ends=_CHECKPOINT,
        metavar="E",
        choices=EMBEDDINGS,
        shown="float16 for 16-bit checkpoints, else float32; shared with --calibrate where that can be",
    )
    context_length: int = option(
        None,
        "Longest context of the exported model.",
        ends=_CHECKPOINT,
        metavar="N",
        shown=f"the model's own, at most {DEFAULT_CONTEXT}",
    )
    kv_cache: KVCache = option(
        None,
        "Type of the key-value cache: float32, float16 or int8.",
        ends=_CHECKPOINT,
        metavar="T",
        choices=KV_CACHES,
        fallback="float32",
        shown="float32",
    )
    calibrate: tuple[Path, ...] = option(
        (),
        "Convert a model that was not trained for this: choose codes that keep every layer's outputs on this text; may be "
        "repeated. Needs torch and transformers.",
        ends=_CHECKPOINT,
        metavar="TEXT",
        shown="plain rounding",
        neutral=True,  # what it leads to is in the options in force
    )
    calibrate_tokens: int | None = option(
        None,
        "Tokens of the text of --calibrate to use at most.",
        ends=_CHECKPOINT,
        metavar="N",
        shown=" or ".join(f"{tokens} ({effort} effort)" for effort, tokens in CALIBRATION_TOKENS.items()),
        neutral=True,
    )
    calibrate_effort: Effort = option(
        None,
        "How long --calibrate may take: normal or high (more of the text, some five times as long).",
        ends=_CHECKPOINT,
        metavar="E",
        choices=EFFORTS,
        fallback="normal",
        shown="normal",
    )
    calibrate_without: tuple[ConversionStep, ...] = option(
        (),
        f"Leave a step of --calibrate out: {', '.join(CONVERSION_STEPS[:-1])} or {CONVERSION_STEPS[-1]}; may be repeated.",
        ends=_CHECKPOINT,
        metavar="STEP",
        choices=CONVERSION_STEPS,
        shown="none",
    )
    bits: float | None = option(
        None,
        "Average bits per weight, 1 to 4, instead of --stages: with --calibrate, every layer gets as many stages as its weights "
        "matter on the text.",
        ends=_CHECKPOINT,
        metavar="B",
        shown="the same stages everywhere",
    )
    codes_from: Path | None = option(
        None,
        "Take the layers' codes from this earlier export of SOURCE instead of finding them again, to store lm_head, embedding or "
        "cache in another way or for another backend; what is not asked for stays as it is there.",
        ends=_CHECKPOINT,
        metavar="DIR",
        shown="none",
        neutral=True,  # what it leads to is in the options in force
    )
    cache_calibration: Path | None = option(
        None,
        "Text to measure the scales of an int8 key-value cache with.",
        ends=_CHECKPOINT,
        metavar="FILE",
        former="calibration",
        shown="a short English one",
        neutral=True,  # measured when everything else is written
    )
    rope_scaling: str | None = option(
        None,
        "Stretch the context: linear:FACTOR or yarn:FACTOR.",
        ends=_CHECKPOINT,
        metavar="S",
        shown="as in config.json",
    )
    rope_frequencies: RopeFrequencies | None = option(
        None,
        "Rotary frequencies of an iFairy model: bf16_load (in bfloat16, as it was evaluated), bf16_cast (as it was trained) or "
        "f32.",
        ends=_CHECKPOINT,
        metavar="F",
        choices=ROPE_FREQUENCIES,
        shown="bf16_load for iFairy models; others have none to choose",
    )
    attention_scale: AttentionScale | None = option(
        None,
        "Scale of the attention scores of an iFairy model: flash (as it was trained and evaluated) or eager (sqrt 2 times that, "
        "as its eager code and some ports compute).",
        ends=_CHECKPOINT,
        metavar="S",
        choices=ATTENTION_SCALES,
        shown="flash for iFairy models; others have none to choose",
    )
    jobs: int | None = option(
        None,
        "Threads that quantize.",
        ends=_BOTH,
        metavar="N",
        flags=("--jobs", "-j"),
        shown="number of cores",
        neutral=True,
    )
    backend: str = option(
        None,
        f"How to write quantized layers: {', '.join(FORMATS)}.",
        ends=_CHECKPOINT,
        metavar="B",
        choices=tuple(FORMATS),
        fallback="fairy2i",
        shown="fairy2i",
    )
    dense_type: DenseType = option(
        None,
        "Weights of the backend dense: float32 or float16.",
        ends=_CHECKPOINT,
        metavar="T",
        choices=DENSE_TYPES,
        fallback="float32",
        shown="float32",
    )
    accuracy_level: int = option(
        None,
        "Activations of the backend matmulnbits: 0 float32 (exact, slow), 4 int8.",
        ends=_CHECKPOINT,
        metavar="N",
        choices=ACCURACY_LEVELS,
        fallback=4,
        shown="4",
    )
    trained: bool = option(False, "The weights come from Fairy2i training: do not warn about it.", ends=_BOTH, neutral=True)
    tokenizer_onnx: bool = option(
        False,
        "Add tokenizer.onnx and detokenizer.onnx, for hosts without Python.",
        ends=_CHECKPOINT,
        neutral=True,
    )
    force: bool = option(False, "Replace an earlier export in the output folder.", ends=_BOTH, neutral=True)
