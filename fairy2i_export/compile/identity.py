"""What the bytes of an export depend on, as hashes: an unfinished one may be continued only if all of it is the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fairy2i_export.codes.layout import PACKER_REVISION
from fairy2i_export.codes.quantizer import QUANTIZER_REVISION
from fairy2i_export.compile.options import ExportOptions
from fairy2i_export.output.data_file import Place
from fairy2i_export.source.checkpoint import Checkpoint
from fairy2i_export.source.learned import learned_digest
from fairy2i_export.source.rotation.weights import vectors_digest
from fairy2i_runtime.version import __version__


def identity(checkpoint: Checkpoint, options: ExportOptions, places: Mapping[str, Place]) -> dict[str, str]:
    """Hashes of everything the bytes of an export depend on, without reading a weight.

    ``source`` covers config.json, learned multipliers and scales, vectors that rotation folds into matrices, and of every
    safetensors file the name, size, time of change and tensors; that the weights themselves are the same is checked when they
    are read (see :class:`fairy2i_export.source.tensor_stream.ReadTensor.digest`).
    """
    files = []
    for file in checkpoint.files:
        status = file.path.stat()
        tensors = {name: asdict(info) for name, info in file.tensors.items()}
        files.append([file.path.name, status.st_size, status.st_mtime_ns, tensors])
    folded = vectors_digest(checkpoint) if options.rotation is not None else None
    return {
        "tool": __version__,
        "codes": f"quantizer {QUANTIZER_REVISION}, packer {PACKER_REVISION}",
        "source": _hash([checkpoint.name, checkpoint.config, files, learned_digest(checkpoint, options), folded]),
        "options": _hash([options.decisive(), {name: asdict(place) for name, place in places.items()}]),
    }


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
