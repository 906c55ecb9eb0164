"""The metadata of an exported model.onnx: how it was made."""

from __future__ import annotations

import onnx_ir as ir

import fairy2i_export
from fairy2i_export.codes.layout import LAYOUT_VERSION
from fairy2i_export.compile.calibrate.text import CalibrationText
from fairy2i_export.compile.options import ExportOptions
from fairy2i_export.decoder.description import Decoder
from fairy2i_export.source.checkpoint import Checkpoint

FORMAT_VERSION = 1  # of the exported folder: inputs, outputs, files, metadata keys


def describe_model(
    model: ir.Model,
    decoder: Decoder,
    checkpoint: Checkpoint,
    options: ExportOptions,
    sha256: str,
    text: CalibrationText | None,
) -> None:
    """Write producer and metadata; ``sha256`` is the source's, ``text`` what it was calibrated with."""
    model.producer_name = "fairy2i-export"
    model.producer_version = fairy2i_export.__version__
    model.metadata_props.update(
        {
            "fairy2i.format_version": str(FORMAT_VERSION),
            "fairy2i.layout_version": str(LAYOUT_VERSION),
            "fairy2i.stages": str(options.stages),
            "fairy2i.backend": options.backend,
            "fairy2i.profile": options.profile,
            "fairy2i.source": checkpoint.name,
            "fairy2i.source_sha256": sha256,
            "fairy2i.tool_version": fairy2i_export.__version__,
            "fairy2i.lm_head": options.lm_head,
            "fairy2i.embedding": options.embedding,
            "fairy2i.quantizer": options.quantizer,
            "fairy2i.row_multiplier": options.row_multiplier,
            "fairy2i.col_multiplier": options.col_multiplier,
            "fairy2i.scales": options.scales,
            "fairy2i.architecture": decoder.architecture,
            "fairy2i.kv_cache": options.kv_cache,
        }
    )
    if options.rope_scaling is not None:
        model.metadata_props["fairy2i.rope_scaling"] = options.rope_scaling
    if text is not None:
        model.metadata_props["fairy2i.calibration"] = text.description
