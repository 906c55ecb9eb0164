"""The layers of an earlier export, to be written again beside another lm_head, embedding or cache, or for another backend.

Finding codes takes long when a text decides about them; what is stored around them does not matter to them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fairy2i_export.codes.calibrated import ScaledCalibrated
from fairy2i_export.codes.layout import unpack
from fairy2i_export.codes.quantized import QuantizedLinear
from fairy2i_export.compile.calibrate.text import CalibrationText
from fairy2i_export.compile.options import ExportOptions
from fairy2i_export.compile.plan import Plan
from fairy2i_export.errors import CheckpointError, FormatError, OptionError
from fairy2i_export.onnx_graph.operator import Node
from fairy2i_export.output.contract.nodes import open_finished, read_nodes
from fairy2i_export.output.contract.norms import read_norms
from fairy2i_export.output.contract.origin import misfit
from fairy2i_export.output.data_file import DATA, MODEL
from fairy2i_export.output.metadata import ModelMetadata
from fairy2i_export.request.option import declared, words_of
from fairy2i_export.request.request import Request
from fairy2i_export.source.checkpoint import Checkpoint, read_json
from fairy2i_runtime.folder import CONFIG_FILE

_FIXED = ("stages", "profile", "quantizer", "row_multiplier")  # what an option could contradict
_TRAINED = ("col_multiplier", "scales")  # no options
_HEAD = "lm_head"  # key of what metadata says about the text of an lm_head whose codes were chosen later
_INHERITED = ("lm_head", "embedding", "kv_cache", "rope_scaling")  # stay as they were unless something else is asked for


class EarlierExport:
    """A folder that an export wrote, as a source of codes.

    Attributes:
        folder: where it lies.
        metadata: what its model says of itself.
        nodes: its layers by module name; weights stay mapped.

    Args:
        folder: with the operator's nodes in it.

    Raises:
        OptionError: if it is no such folder, or damaged, or its metadata does not say how its layers were made.
    """

    def __init__(self, folder: Path) -> None:
        model_file = folder / MODEL
        if not model_file.is_file():
            raise OptionError(f"codes from {folder}: expected a folder that fairy2i-export wrote, found no {MODEL} in it")
        try:
            model, nodes = open_finished(model_file), read_nodes(model_file)
        except FormatError as error:
            raise OptionError(f"codes from {folder}: {error}") from error
        self.folder = folder
        self._model = model
        self.metadata = ModelMetadata(dict(model.metadata_props))
        self.nodes: dict[str, Node] = {node.name: node for node in nodes}
        missing = [key for key in (*_FIXED, "source_sha256", "architecture") if not self.metadata.get(key)]
        if missing or not self.metadata.stages or self.metadata.is_recovered:
            raise OptionError(
                f"codes from {folder}: expected a folder made from a checkpoint; its metadata does not say "
                f"{', '.join(missing) or 'how its codes were chosen'}"
            )

    @property
    def identity(self) -> str:
        """Of the bytes that codes are taken from."""
        status = (self.folder / DATA).stat()
        model = hashlib.sha256((self.folder / MODEL).read_bytes()).hexdigest()
        return f"{model}:{status.st_size}:{status.st_mtime_ns}"

    def check_new_head(self, request: Request) -> None:
        """Check a request with a text (--calibrate): beside these codes it can choose those of a new lm_head only.

        Raises:
            OptionError: it asks for something else, or these codes were not chosen on a text.
        """
        if request.lm_head != "fairy2i":
            raise OptionError(
                "calibrate: --codes-from brings codes that were found already, and a text can only choose those of a new lm_head "
                "beside them; add --lm-head fairy2i, or leave one of the two out"
            )
        if not self.metadata.is_calibrated:
            raise OptionError(
                f"calibrate: expected codes that were chosen on a text, too, found those of rounded weights in {self.folder}; "
                "leave --calibrate out, or export without --codes-from"
            )
        if request.bits is not None:
            raise OptionError(
                f"bits: the layers' stages are those in {self.folder}, got bits {request.bits!r}; use --lm-head-stages for lm_head"
            )
        decided = [step for step in ("rotation", "tuning") if step in request.calibrate_without]
        if decided:
            raise OptionError(
                f"calibrate without: what {self.folder} has of {' and '.join(decided)} stays; leave out descent, or nothing"
            )

    def complete(self, request: Request) -> Request:
        """A request with everything as it was in the earlier export that it does not ask for.

        Raises:
            OptionError: if it asks for codes of another kind.
        """
        known = declared(Request, "checkpoint")
        decided: dict[str, Any] = {
            "stages": max(self.metadata.stages),
            **{key: self.metadata.get(key) for key in ("profile", "quantizer")},
        }
        for name in _FIXED:
            found, asked = self.metadata.get(name), request.asked[name]
            if asked is not None and str(asked) != found:
                raise OptionError(
                    f"{words_of(name, known[name])}: the codes in {self.folder} were made with {found}, got {asked!r}; leave "
                    "the option out, or export without --codes-from"
                )
        for name in _INHERITED:
            decided[name] = self.metadata.get(name) or None
        context = read_json(self.folder / CONFIG_FILE).get("model", {}).get("context_length")
        if isinstance(context, int):
            decided["context_length"] = context
        return replace(request, **{name: value for name, value in decided.items() if request.asked[name] is None})

    def in_force(self, options: ExportOptions) -> ExportOptions:
        """Options with what only the earlier export decides."""
        fixed: Any = {key: self.metadata.get(key) for key in ("row_multiplier", *_TRAINED)}
        bits = float(self.metadata.get("bits")) if self.metadata.get("bits") else None
        text = "" if options.calibrated_by is None else f" {options.calibrated_by}"  # of a new lm_head
        return replace(options, **fixed, bits=bits, calibrated_by=f"codes:{self.identity}{text}")

    def calibration(self, text: CalibrationText | None, options: ExportOptions) -> str | None:
        """What the metadata of a model with these codes says about the texts that decided; None: it was the weights alone.

        Args:
            text: that a new lm_head is chosen on, or None.
            options: in force.

        Raises:
            OptionError: what it says of these codes cannot be read.
        """
        said = self.metadata.get("calibration")
        if not said or (text is None and options.lm_head == "fairy2i"):
            return said or None
        try:
            layers = dict(json.loads(said))
        except (TypeError, ValueError) as error:
            raise OptionError(
                f"codes from {self.folder}: metadata fairy2i.calibration: expected an object of JSON, found {said[:80]!r}"
            ) from error
        layers.pop(_HEAD, None)
        return json.dumps(layers if text is None else {**layers, _HEAD: text.facts(options.calibrate_without)})

    def as_there(self, plan: Plan, new: Collection[str]) -> Plan:
        """The plan with the stages of every layer, and column multipliers where they are, as in the earlier export.

        Args:
            plan: from the options.
            new: layers whose codes are not taken from there.
        """
        linears = dict(plan.linears)
        for linear in plan.rewritten:
            if linear.name in new:
                continue
            found = self.nodes[linear.name].operands
            columns = found.col_multiplier is not None
            linears[linear.name] = replace(linear, stages=found.stages, col_multiplier=columns)
        return replace(plan, linears=linears)

    def check_model(self, checkpoint: Checkpoint) -> None:
        """Raise OptionError if architecture, vocabulary or a shape tells that the codes are of another model."""
        if found := misfit(self._model, checkpoint):
            raise OptionError(
                f"codes from {self.folder}: {found.what} is {found.model} there and {found.source} in the source: it is an export "
                "of another model"
            )

    def check_context(self, request: Request, longest: int) -> None:
        """Raise OptionError if the context that was taken over is longer than the source allows."""
        taken = request.context_length
        if taken is not None and taken > longest:
            raise OptionError(
                f"codes from {self.folder}: the context is {taken} tokens there and at most {longest} in the source: it is an "
                "export of another model, or of another config.json"
            )

    def check_layers(self, names: dict[str, tuple[int, int]], lm_head: str, new: Collection[str]) -> tuple[str, ...]:
        """Layers that are to be quantized and have no codes: they stay float as they were.

        Args:
            names: (out features, in features) of all layers to be quantized by name.
            lm_head: name of the head.
            new: layers whose codes are not taken from there.

        Raises:
            OptionError: if there are codes of another shape, or none for the head.
        """
        for name, shape in names.items():
            node = self.nodes.get(name)
            found = None if node is None else (2 * node.operands.n, 2 * node.operands.m)
            if found is not None and found != shape:
                raise OptionError(
                    f"codes from {self.folder}: {name} is {found[0]} x {found[1]} there and {shape[0]} x {shape[1]} in the "
                    "source: it is an export of another model"
                )
        if missing := [name for name in new if name not in names]:
            raise OptionError(
                f"calibrate: beside the codes in {self.folder} a text chooses those of {missing[0]}, and that is left float "
                "(--include, --exclude or its size); leave --calibrate out"
            )
        if lm_head in names and lm_head not in self.nodes and lm_head not in new:
            raise OptionError(
                f"codes from {self.folder}: no codes for lm_head, which is {self.metadata.get('lm_head')} there; "
                "expected --lm-head int8, int4 or float, or --calibrate TEXT to choose them"
            )
        return tuple(name for name in names if name not in self.nodes and name not in new)

    def check_source(self, checkpoint: Checkpoint, sha256: str) -> None:
        """Raise CheckpointError unless the codes were made from these very files."""
        if self.metadata.source_sha256 != sha256:
            raise CheckpointError(
                f"{checkpoint.directory}: is not what {self.folder} was made from (its config.json or its "
                "weights differ): codes of one model do not fit another; export without --codes-from"
            )

    def linear(self, name: str) -> EarlierLinear:
        """The codes of a layer."""
        return EarlierLinear(unpack(self.nodes[name].operands))

    def norms(self, offset: float) -> dict[str, npt.NDArray[np.float32]]:
        """Weights of norms by tensor name that are not the source's: none unless the model was tuned.

        Args:
            offset: what the graph adds to them.

        Raises:
            OptionError: if they are not there.
        """
        if not self.metadata.is_tuned:
            return {}
        try:
            return read_norms(self._model, offset)
        except FormatError as error:
            raise OptionError(f"codes from {self.folder}: {error}") from error


class EarlierLinear:
    """Codes to be written for a weight that they were made of."""

    def __init__(self, quantized: QuantizedLinear) -> None:
        self.quantized = quantized

    def scaled(self, weight: npt.NDArray[Any], name: str) -> ScaledCalibrated:
        """Together with the weight [2n, 2m] that the exporter reads."""
        if weight.shape != (2 * self.quantized.n, 2 * self.quantized.m):
            raise CheckpointError(f"{name}: expected {2 * self.quantized.n} x {2 * self.quantized.m}, found {weight.shape}")
        return ScaledCalibrated(self.quantized, weight)
