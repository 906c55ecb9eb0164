"""Everything about an export that is known before a weight is read: plan, graph, the place of every byte, memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from fairy2i_export.codes.native import check_library, kernel_problem
from fairy2i_export.compile.calibrate.stages.allocation import expected_stages
from fairy2i_export.compile.calibrate.text import METHOD, CalibrationText, asked_text
from fairy2i_export.compile.earlier import EarlierExport
from fairy2i_export.compile.fixed_method import fixed_method
from fairy2i_export.compile.options import ExportOptions, check_bits, resolve_options
from fairy2i_export.compile.plan import Plan, can_share, make_plan, sharing_bits
from fairy2i_export.compile.result.cache_scales import calibration_text
from fairy2i_export.compile.tasks import Task, WeightSource
from fairy2i_export.decoder.architectures import describe
from fairy2i_export.decoder.architectures.ifairy import with_choices
from fairy2i_export.decoder.description import Decoder
from fairy2i_export.decoder.rope import context_warnings, spelling_warnings, stretch_context
from fairy2i_export.errors import FormatError, OptionError, check_path
from fairy2i_export.onnx_graph.decoder_graph import DecoderBuilder
from fairy2i_export.onnx_graph.formats import FORMATS
from fairy2i_export.onnx_graph.formats.base import Linear
from fairy2i_export.onnx_graph.tokenizer import TokenizerGraphs, make_tokenizer_graphs
from fairy2i_export.output.data_file import Place, place_tensors
from fairy2i_export.output.genai_config import sampling_warnings
from fairy2i_export.output.progress import thread_count
from fairy2i_export.output.target import check_free, default_target
from fairy2i_export.output.workspace import check_writable
from fairy2i_export.request.request import Request
from fairy2i_export.source.checkpoint import Checkpoint
from fairy2i_export.source.hub import open_source
from fairy2i_export.source.rotation.choice import RotationChoice, choose_rotation, stated_rotation
from fairy2i_export.source.rotation.weights import RotatedWeights
from fairy2i_export.source.safetensors_file import numpy_dtype
from fairy2i_export.source.text.tokenizer import open_tokenizer
from fairy2i_export.source.text.tokenizer_files import SpecialTokens, chat_warnings, special_tokens


@dataclass(frozen=True)
class Prepared:
    """An export that is planned and checked down to the last byte offset; no weight was read for it.

    Attributes:
        checkpoint: the source.
        decoder: what config.json says.
        options: in force.
        plan: treatment of every linear layer.
        tokens: special tokens.
        warnings: one sentence each.
        model: the graph; initializers without contents.
        tasks: what is to be made of which tensor, by the name of the first initializer made.
        places: of every initializer.
        data_bytes: size of the data file.
        target: the folder to write.
        calibration_ids: text [1, length] to measure the scales of an int8 cache with, or None.
        weights: knows the tasks.
        threads: to quantize with.
        text: to calibrate the layers with, or None.
        tokenizer: the tokenizer as graphs, if they are wanted.
        earlier: the export that codes are taken from, or None.
        rotated: what rotation makes of the source's tensors, or None.
    """

    checkpoint: Checkpoint
    decoder: Decoder
    options: ExportOptions
    plan: Plan
    tokens: SpecialTokens
    warnings: tuple[str, ...]
    model: ir.Model
    tasks: dict[str, Task]
    places: dict[str, Place]
    data_bytes: int
    target: Path
    calibration_ids: npt.NDArray[np.int64] | None
    weights: WeightSource
    threads: int
    text: CalibrationText | None = None
    tokenizer: TokenizerGraphs | None = None
    earlier: EarlierExport | None = None
    rotated: RotatedWeights | None = None

    @property
    def calibration(self) -> str | None:
        """What decided about the codes, for the model's metadata: None if it was the weights alone."""
        if self.earlier is not None:
            return self.earlier.calibration(self.text, self.options)
        return None if self.text is None else self.text.description(self.options.calibrate_without)

    @property
    def on_text(self) -> dict[str, Linear]:
        """The layers whose codes the text decides about, by name: lm_head alone beside codes of an earlier export."""
        if self.text is None:
            return {}
        found = {linear.name: linear for linear in self.plan.rewritten}
        head = self.decoder.names.lm_head
        return found if self.earlier is None else {head: found[head]}

    def with_stages(self, stages: Mapping[str, int]) -> Prepared:
        """The same export with other stages in the layers that are named."""
        plan = self.plan.with_stages(stages)
        return replace(self, plan=plan, **_graph(self.checkpoint, self.decoder, plan, self.options, self.rotated))

    @property
    def parameters(self) -> int:
        """All parameters that are written; a tied embedding counts twice, as it is stored twice."""
        return sum(task.parameters for task in self.tasks.values())


def prepare(source: str | Path, out: str | Path | None, request: Request) -> Prepared:
    """Open the checkpoint, check everything that can be checked without reading weights, and build the graph.

    Args:
        source: Hugging Face checkpoint directory, or hub id.
        out: folder to write, or None for the default.
        request: what the caller asked for.

    Raises:
        Fairy2iError: a subclass for everything that is wrong with the checkpoint, the options, the output folder or what is
            installed.
    """
    check_path("source", source)
    if out is not None:
        check_path("out", out)
    threads = thread_count(request.jobs)
    if Path(source).suffix.lower() == ".onnx":  # the command has seen to it
        raise OptionError(
            f"{source}: is an ONNX model, and export() compiles checkpoints; use fairy2i_export.rewrite_onnx() for it, "
            "or the command fairy2i-export, which takes both"
        )
    check_bits(request)
    checkpoint = open_source(source)
    method = fixed_method(request, checkpoint.config)
    earlier = None
    if request.codes_from is not None:
        earlier = EarlierExport(Path(request.codes_from))
        earlier.check_model(checkpoint)
        if request.calibrate:
            earlier.check_new_head(request)
        inherits_context = request.asked["context_length"] is None
        request = earlier.complete(request)
    config = stretch_context(checkpoint.config, request.rope_scaling)
    choices = {"rope_frequencies": request.rope_frequencies, "attention_scale": request.attention_scale}
    decoder = describe(with_choices(config, **choices))
    if earlier is not None and inherits_context:
        earlier.check_context(request, decoder.max_positions)
    embedding_dtype = checkpoint.info(f"{decoder.names.embedding}.weight").dtype
    tokenizer = open_tokenizer(checkpoint.directory, decoder.vocab_size)  # before a text is read with it
    text = asked_text(checkpoint, request, decoder.max_positions)
    options, warnings = resolve_options(
        request,
        checkpoint.config,
        decoder.max_positions,
        embedding_dtype,
        None if text is None else f"{METHOD}:{text.sha256}",
        method,
        can_share(checkpoint, decoder),
    )
    rotation = _rotation(decoder, options, earlier)
    options = replace(options, rotation=None if rotation is None else rotation.stated(decoder))
    rotated = None if rotation is None else RotatedWeights(checkpoint, decoder, rotation)
    plan = make_plan(checkpoint, decoder, options)
    if earlier is not None:
        options = earlier.in_force(options)
        shapes = {linear.name: (linear.out_features, linear.in_features) for linear in plan.rewritten}
        new = () if text is None else (decoder.names.lm_head,)
        if without_codes := earlier.check_layers(shapes, decoder.names.lm_head, new):
            options = replace(options, exclude=(*options.exclude, *without_codes))
        plan = earlier.as_there(make_plan(checkpoint, decoder, options), new)
    elif text is not None and options.bits is not None:
        # which layers get more is measured when work begins; sizes hardly depend on it
        plan = plan.with_stages(expected_stages(sharing_bits(plan, decoder, options), options.bits))
    tokens = special_tokens(checkpoint, tokenizer, decoder.vocab_size)
    warnings += [
        *checkpoint.notes,
        *decoder.notes,
        *spelling_warnings(checkpoint.config),
        *tokenizer.warnings,
        *tokens.warnings,
        *sampling_warnings(checkpoint.directory),
        *chat_warnings(checkpoint.directory),
    ]
    warnings += context_warnings(decoder.ropes, options.context_length)
    if not tokens.eos:
        warnings.append("the checkpoint names no end-of-sequence token; generation stops at max_length only")
    if plan.unused:
        warnings.append(f"{len(plan.unused)} tensors of the checkpoint are not used, the first is {plan.unused[0]}")
    if rotation is not None and rotation.left_out:
        warnings.append(rotation.left_out)
    calibration_ids, doubts = calibration_text(checkpoint, options, request.cache_calibration)
    warnings += [*doubts, *(text.warnings if text is not None else ())]
    check_library()
    if FORMATS[options.backend].library:
        warnings += _check_kernel(runs_the_model=calibration_ids is not None)
    target = Path(out) if out is not None else default_target(checkpoint.name.rpartition("/")[2])
    check_path("out", target)  # made of the source's name
    check_free(target, request.force, checkpoint.directory)
    check_writable(target)
    graph = _graph(checkpoint, decoder, plan, options, rotated)
    for tensor in {stored for task in graph["tasks"].values() for stored in checkpoint.stored(task.tensor)}:
        numpy_dtype(checkpoint.owners[tensor].path, tensor, checkpoint.info(tensor))
    return Prepared(
        checkpoint=checkpoint,
        decoder=decoder,
        options=options,
        plan=plan,
        tokens=tokens,
        warnings=tuple(warnings),
        **graph,
        target=target,
        calibration_ids=calibration_ids,
        threads=threads,
        text=text,
        earlier=earlier,
        rotated=rotated,
        # a tokenizer that no graph can express should not cost an export
        tokenizer=make_tokenizer_graphs(checkpoint.directory) if request.tokenizer_onnx else None,
    )


def _rotation(decoder: Decoder, options: ExportOptions, earlier: EarlierExport | None) -> RotationChoice | None:
    """What is rotated: all that can be when a model is calibrated, what was before where codes are taken over; None: nothing."""
    if earlier is not None:
        stated = earlier.metadata.rotation
        try:
            return None if stated is None else stated_rotation(stated, decoder)
        except FormatError as error:
            raise OptionError(f"codes from {earlier.folder}: {error}") from error
    if options.calibrated_by is None or "rotation" in options.calibrate_without:
        return None
    return choose_rotation(decoder)


def _graph(
    checkpoint: Checkpoint, decoder: Decoder, plan: Plan, options: ExportOptions, rotated: RotatedWeights | None
) -> dict[str, Any]:
    """Those attributes of :class:`Prepared` that depend on the layers' stages."""
    weights = WeightSource(checkpoint, options, rotated)
    model = DecoderBuilder(decoder, plan.linears, weights, options).build()
    places, data_bytes = place_tensors(_initializers(model))
    return {"weights": weights, "tasks": weights.tasks, "model": model, "places": places, "data_bytes": data_bytes}


def _check_kernel(*, runs_the_model: bool) -> list[str]:
    """Warnings about the kernel that the environment chooses; an error if the export is going to run the model with it."""
    problem = kernel_problem()
    if problem and runs_the_model:
        raise OptionError(f"kv cache int8: its scales are measured by running the model, and that will fail: {problem}")
    return [f"the exported model will not run in this environment: {problem}"] if problem else []


def _initializers(model: ir.Model) -> list[ir.TensorProtocol]:
    return [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
