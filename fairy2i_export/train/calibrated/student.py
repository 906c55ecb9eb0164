"""The student in its calibrated state."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from fairy2i_export.codes.quantized import QuantizedLinear
from fairy2i_export.errors import OptionError
from fairy2i_export.output.contract.origin import weight_name
from fairy2i_export.source.checkpoint import Checkpoint
from fairy2i_export.train.calibrated.folder import CalibratedFolder
from fairy2i_export.train.calibrated.latents import latents_of
from fairy2i_export.train.qat.modules import QATLinear
from fairy2i_export.train.qat.options import QuantizationOptions
from fairy2i_export.train.qat.prepare import PrepareReport, is_lm_head, prepare, untie


@torch.no_grad()
def put_calibrated(
    model: Any, folder: CalibratedFolder, checkpoint: Checkpoint, options: QuantizationOptions
) -> PrepareReport:
    """Make the float model of a source the calibrated one, ready for training; in place.

    Args:
        model: of the source, in float32.
        folder: the state.
        checkpoint: the source.
        options: how layers quantize; those of the folder.

    Returns:
        What became of which layer.

    Raises:
        OptionError: the folder has tensors that the model has not, or of another shape.
        CheckpointError: codes that no weight leads to.
    """
    untied = untie(model) if folder.rotated else ()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, values in folder.tensors(checkpoint.config):
        if name not in parameters or parameters[name].shape != values.shape:
            found = "none" if name not in parameters else list(parameters[name].shape)
            raise OptionError(
                f"--from-calibrated {folder.folder}: {name} has the shape {list(values.shape)} there, expected as in the model "
                f"that transformers makes of the source, found {found}"
            )
        parameters[name].copy_(torch.from_numpy(values))
    linears = [name for name, module in model.named_modules(remove_duplicate=False) if isinstance(module, nn.Linear)]
    if missing := [name for name in folder.nodes if name not in linears]:
        raise OptionError(
            f"--from-calibrated {folder.folder}: {missing[0]} is no linear layer of the model that transformers makes of the source"
        )
    alone = [name for name in linears if name not in folder.nodes and not is_lm_head(name)]
    head = any(map(is_lm_head, folder.nodes))
    report = prepare(model, options, skip_lm_head=not head, exclude=alone, fit=False)
    for name in report.replaced:
        _put(model.get_submodule(name), folder.linear(name), None if folder.rotated else _weight(checkpoint, name), name)
    return replace(report, untied=tuple(dict.fromkeys((*untied, *report.untied))))


def _put(layer: QATLinear, quantized: QuantizedLinear, weight: np.ndarray[Any, Any] | None, name: str) -> None:
    rows, columns = quantized.row_multiplier, quantized.col_multiplier
    rows = np.ones(2 * quantized.n, np.float32) if rows is None else rows
    columns = np.ones(2 * quantized.m, np.float32) if columns is None and layer.col_multiplier is not None else columns
    complete = replace(quantized, row_multiplier=rows, col_multiplier=columns)
    layer.weight.copy_(torch.from_numpy(latents_of(complete, weight, name)))
    learned = {"row_multiplier": rows, "scales": quantized.scales, "col_multiplier": columns}
    for kind, parameter in layer.learned().items():
        parameter.copy_(torch.from_numpy(np.array(learned[kind], np.float32)))
    layer.unit = float(np.mean(np.abs(rows)))


def _weight(checkpoint: Checkpoint, module: str) -> np.ndarray[Any, Any]:
    tensor = weight_name(checkpoint, module)
    assert tensor is not None  # the model has been loaded
    return checkpoint.read(tensor).astype(np.float32)
