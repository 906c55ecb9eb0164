"""What a rewrite is made from and with, as hashes: an unfinished or kept result belongs to another run only if all is the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairy2i_export.codes.layout import PACKER_REVISION
from fairy2i_export.codes.quantizer import QUANTIZER_REVISION
from fairy2i_runtime.version import __version__


def files_identity(files: list[Path], options: Mapping[str, Any]) -> dict[str, str]:
    """For the journal of a rewrite; the contents of files count by size and time of change."""
    stated = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    return {
        "tool": __version__,
        "codes": f"quantizer {QUANTIZER_REVISION}, packer {PACKER_REVISION}",
        "source": hashlib.sha256(json.dumps(stated).encode()).hexdigest(),
        "options": json.dumps(dict(options), sort_keys=True, default=str),
    }
