"""What would make a checkpoint useless to train on, told before any work: transformers would load it and start from noise."""

from __future__ import annotations

from fairy2i_export.decoder.architectures import ARCHITECTURES, check_float, class_names, describe, has_complex_weights
from fairy2i_export.errors import ArchitectureError, CheckpointError
from fairy2i_export.source.checkpoint import Checkpoint
from fairy2i_export.source.safetensors_file import numpy_dtype


def check_float_model(checkpoint: Checkpoint) -> None:
    """Raise the error of an export where weights are quantized or not of floats, or lm_head or the class is missing.

    Raises:
        CheckpointError: as named.
        ArchitectureError: config.json names no class, or one of complex weights.
    """
    check_float(checkpoint.config)
    if has_complex_weights(checkpoint.config):
        raise ArchitectureError(
            f"{checkpoint.directory}: is an iFairy model, of complex weights that its own code trains; training here quantizes "
            "real models of transformers. It can be exported as it is: fairy2i-export"
        )
    names = class_names(checkpoint.config)
    for tensor, file in checkpoint.owners.items():
        if tensor.endswith(".weight"):
            numpy_dtype(file.path, tensor, file.tensors[tensor])
    if len(names) == 1 and names[0] in ARCHITECTURES:
        try:
            decoder = describe(checkpoint.config)
        except (ArchitectureError, CheckpointError):
            return  # what can be trained need not be what can be exported
        if not decoder.tied:
            checkpoint.info(f"{decoder.names.lm_head}.weight")
