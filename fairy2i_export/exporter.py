"""The export itself: checkpoint in, folder out. Reads top to bottom; every step lives in a file of its own."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import onnx_ir as ir

import fairy2i_export
from fairy2i_export.architectures import describe
from fairy2i_export.calibration import calibrate_cache, calibration_text
from fairy2i_export.checkpoint import Checkpoint
from fairy2i_export.config import Decoder
from fairy2i_export.genai_config import write_genai_config
from fairy2i_export.graph.builder import DecoderBuilder
from fairy2i_export.layout import LAYOUT_VERSION
from fairy2i_export.model_card import model_card
from fairy2i_export.options import ExportOptions, GivenOptions, resolve_options, says_trained
from fairy2i_export.output import check_space, output_folder
from fairy2i_export.plan import NBITS_BLOCK, Plan, make_plan
from fairy2i_export.report import Estimate, ExportReport, peak_ram_bytes
from fairy2i_export.rope_config import context_warnings, stretch_context
from fairy2i_export.source import open_source
from fairy2i_export.tokenizer_files import check_tokenizer, copy_files, has_chat_template, special_tokens
from fairy2i_export.tokenizer_graph import write_tokenizer_graphs
from fairy2i_export.weights import WeightSource

FORMAT_VERSION = 1  # of the exported folder: inputs, outputs, files, metadata keys
MODEL = "model.onnx"
DATA = "model.onnx.data"
_ALIGNMENT = 4096  # of every tensor in the data file, so that it can be mapped and executed in place
_INLINE_BYTES = 1024  # smaller tensors stay in model.onnx
_BASE_RAM = 140_000_000  # Python with its libraries, measured
_RAM_PER_PARAMETER = 20  # bytes while a matrix is quantized, measured: 17 to 19
_RAM_PER_DENSE_PARAMETER = 12  # bytes while a matrix is converted and transposed


class Observer:
    """Hears how the export goes on; the command line draws a progress bar from it. Every method may be left as it is."""

    def planned(self, estimate: Estimate, options: ExportOptions) -> None:
        """Everything is checked, work begins."""

    def phase(self, title: str, total: int) -> None:
        """A phase of ``total`` units begins."""

    def advance(self, amount: int) -> None:
        """Units of the current phase are done."""


def export(
    source: str | Path,
    out: str | Path | None = None,
    *,
    stages: int | None = None,
    profile: str | None = None,
    row_multiplier: str | None = None,
    lm_head: str | None = None,
    embedding: str | None = None,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    context_length: int | None = None,
    kv_cache: str | None = None,
    calibration: str | Path | None = None,
    rope_scaling: str | None = None,
    trained: bool = False,
    tokenizer_onnx: bool = False,
    force: bool = False,
    observer: Observer | None = None,
) -> ExportReport:
    """Compile a checkpoint into a folder that ONNX Runtime and onnxruntime-genai can run.

    Args:
        source: Hugging Face checkpoint directory, or hub id.
        out: folder to write; ``./NAME-fairy2i`` by default.
        stages: residual stages 1 to 4, bits per weight; default from config.json, else 2.
        profile: ``bf16-reference`` or ``fp32``; default from config.json, else bf16-reference.
        row_multiplier: ``none`` or ``rms``, as the model was trained; default from config.json, else none.
        lm_head: ``fairy2i``, ``int8``, ``int4`` or ``float``; default from config.json, else fairy2i.
        embedding: ``float32``, ``float16`` or ``int8``; default float16 where the checkpoint has 16 bits, else float32.
        include: globs on module names; only matching linear layers are rewritten.
        exclude: globs on module names; matching linear layers stay dense.
        context_length: positions to make rotary tables for; default max_position_embeddings, at most 4096.
        kv_cache: ``float32``, ``float16`` or ``int8``; default float32.
        calibration: text file to measure the scales of an int8 cache with; default a short English text.
        rope_scaling: ``linear:FACTOR`` or ``yarn:FACTOR`` stretches the context of a model without a rope scaling of its own.
        trained: the caller knows that the weights come from Fairy2i training; no warning about it.
        tokenizer_onnx: add tokenizer.onnx and detokenizer.onnx, graphs for hosts without a tokenizer library.
        force: replace an earlier export in ``out``.
        observer: hears about progress.

    Returns:
        What was done; see :class:`ExportReport`.

    Raises:
        Fairy2iError: a subclass for everything that is wrong with the checkpoint, the options or the output folder. Nothing
            is left behind then.
    """
    started = time.monotonic()
    observer = observer or Observer()
    checkpoint = open_source(source)
    decoder = describe(stretch_context(checkpoint.config, rope_scaling))
    given = GivenOptions(
        stages,
        profile,
        row_multiplier,
        lm_head,
        embedding,
        context_length,
        tuple(include),
        tuple(exclude),
        kv_cache,
        rope_scaling,
    )
    embedding_dtype = checkpoint.info(f"{decoder.names.embedding}.weight").dtype
    options, warnings = resolve_options(given, checkpoint.config, decoder.max_positions, embedding_dtype)
    plan = make_plan(checkpoint, decoder, options)
    tokens = special_tokens(checkpoint, check_tokenizer(checkpoint, decoder.vocab_size))
    warnings += context_warnings(decoder.ropes, options.context_length)
    if not tokens.eos:
        warnings.append("the checkpoint names no end-of-sequence token; generation stops at max_length only")
    if plan.unused:
        warnings.append(f"{len(plan.unused)} tensors of the checkpoint are not used, the first is {plan.unused[0]}")
    calibration_ids = calibration_text(checkpoint, options, calibration)
    estimate = make_estimate(decoder, plan, options)
    target = Path(out) if out is not None else Path(f"{checkpoint.name.rpartition('/')[2]}-fairy2i")

    with output_folder(target, force=force, source=checkpoint.directory) as folder:
        check_space(folder, estimate.output_bytes)
        observer.planned(estimate, options)
        observer.phase("reading", sum(path.stat().st_size for path in checkpoint.hashed_files()))
        sha256 = checkpoint.sha256(observer.advance)
        observer.phase("quantizing", _parameters(decoder, plan))
        weights = WeightSource(checkpoint, options, progress=lambda _, parameters: observer.advance(parameters))
        model = DecoderBuilder(decoder, plan, weights).build()
        _describe_model(model, decoder, checkpoint, options, sha256)
        ir.save(
            model,
            folder / MODEL,
            external_data=DATA,
            size_threshold_bytes=_INLINE_BYTES,
            alignment=_ALIGNMENT,
            align_threshold=0,
        )
        copy_files(checkpoint, folder)
        if tokenizer_onnx:
            write_tokenizer_graphs(folder, shown=checkpoint.directory)
        if calibration_ids is not None:
            observer.phase("calibrating", 1)
            calibrate_cache(folder / MODEL, decoder, calibration_ids)
            observer.advance(1)
        write_genai_config(folder, decoder, tokens, options.context_length)
        if not (trained or says_trained(checkpoint.config)):
            warnings.append(_untrained_warning(weights.errors))
        multiplier_bytes = 4 * sum(x.out_features for x in plan.rewritten) if options.row_multiplier != "none" else 0
        report = ExportReport(
            path=target,
            source=checkpoint.name,
            source_sha256=sha256,
            options=options,
            linears=tuple(plan.linears.values()),
            errors=weights.errors,
            warnings=tuple(warnings),
            weight_bytes=sum(x.stored_bytes(options.stages) for x in plan.rewritten) + multiplier_bytes,
            output_bytes=sum(path.stat().st_size for path in folder.iterdir()),
            source_bytes=checkpoint.weight_bytes(),
            parameters=_parameters(decoder, plan),
            chat_template=has_chat_template(folder),
            peak_ram_bytes=peak_ram_bytes(),
            seconds=time.monotonic() - started,
        )
        (folder / "README.md").write_text(model_card(report, decoder), encoding="utf-8")
    return report


def make_estimate(decoder: Decoder, plan: Plan, options: ExportOptions) -> Estimate:
    """Peak memory and output size, from shapes alone."""
    linears = list(plan.linears.values())
    embedding = decoder.vocab_size * decoder.hidden_size
    largest = max(
        _RAM_PER_DENSE_PARAMETER * embedding,
        *((_RAM_PER_PARAMETER if x.treatment == "fairy2i" else _RAM_PER_DENSE_PARAMETER) * x.parameters for x in linears),
    )
    per_value = {"float32": 4.0, "float16": 2.0, "int8": 1 + 4 / NBITS_BLOCK}[options.embedding]
    output = sum(linear.stored_bytes(options.stages) for linear in linears) + int(per_value * embedding)
    # cos and sin, half a head each
    output += 4 * options.context_length * sum(rope.rotated(decoder.head_dim) for rope in decoder.ropes)
    output += (1500 + _ALIGNMENT // 2) * len(linears) + 4 * plan.norm_parameters  # nodes, gaps, norms
    return Estimate(_BASE_RAM + largest, output)


def _parameters(decoder: Decoder, plan: Plan) -> int:
    """All parameters that are written; a tied embedding counts twice, as it is stored twice."""
    biases = sum(linear.out_features for linear in plan.linears.values() if linear.bias)
    return (
        sum(x.parameters for x in plan.linears.values())
        + decoder.vocab_size * decoder.hidden_size
        + plan.norm_parameters
        + biases
    )


def _describe_model(model: ir.Model, decoder: Decoder, checkpoint: Checkpoint, options: ExportOptions, sha256: str) -> None:
    model.producer_name = "fairy2i-export"
    model.producer_version = fairy2i_export.__version__
    model.metadata_props.update(
        {
            "fairy2i.format_version": str(FORMAT_VERSION),
            "fairy2i.layout_version": str(LAYOUT_VERSION),
            "fairy2i.stages": str(options.stages),
            "fairy2i.profile": options.profile,
            "fairy2i.source": checkpoint.name,
            "fairy2i.source_sha256": sha256,
            "fairy2i.tool_version": fairy2i_export.__version__,
            "fairy2i.lm_head": options.lm_head,
            "fairy2i.embedding": options.embedding,
            "fairy2i.row_multiplier": options.row_multiplier,
            "fairy2i.architecture": decoder.architecture,
            "fairy2i.kv_cache": options.kv_cache,
        }
    )
    if options.rope_scaling is not None:
        model.metadata_props["fairy2i.rope_scaling"] = options.rope_scaling


def _untrained_warning(errors: dict[str, float]) -> str:
    mean = sum(errors.values()) / len(errors)
    return (
        "config.json does not say that this model was trained with Fairy2i, and weights alone cannot tell. "
        f"Quantization changed them by {mean:.0%} on average: a model trained for that (such as PKU-DS-LAB/Fairy2i-W2) is "
        "fine, and --trained confirms it; a plain pretrained model is not, and will produce nonsense"
    )
