"""What the quantizer and the packer make of fixed matrices: other bytes need another revision, or old work would be continued."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from export_helpers import make_checkpoint
from fairy2i_export import export, pack, quantize
from fairy2i_export.codes.choices import MAX_STAGES, PROFILES, ROW_MULTIPLIERS
from fairy2i_export.codes.layout import PACKER_REVISION
from fairy2i_export.codes.quantizer import QUANTIZER_REVISION
from fairy2i_export.codes.strategies import QUANTIZERS
from fairy2i_export.compile import identity
from fairy2i_export.output.progress import Observer

# revision -> SHA-256 of everything below; equal on every processor (tests/compiler/codes/test_native_quantizer.py)
QUANTIZED = {
    1: {
        "greedy": "58a3de6c2a8ccdbbcb40216c400b4c573b46a9300b212f53df923f9560225f2b",
        "joint": "bb0bd8bafd25fc6eaccca419fa43cb94fe309b46a1843cac5bd3c7d718fdcc8b",
    }
}
PACKED = {1: "3d61cf036f9df6771c852cf2be002f5d11fdc461395340cb9ef0bcc35af737cf"}


def matrix(seed: int, rows: int, cols: int) -> np.ndarray:
    """Numbers from -1 to 1 that no library's generator decides."""
    bits = np.arange(seed, seed + rows * cols, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ bits >> np.uint64(29)) * np.uint64(0xBF58476D1CE4E5B9) >> np.uint64(40)
    return (bits.astype(np.float64) / 2**23 - 1).astype(np.float32).reshape(rows, cols)


def test_other_codes_or_bytes_need_another_revision() -> None:
    """If this fails and the change is meant: raise the revision and record the new hash here beside the old one.

    A new quantizer changes nothing that was there: its hash goes beside the others of the same revision.
    """
    codes, bytes_ = {name: hashlib.sha256() for name in QUANTIZERS}, hashlib.sha256()
    for stages in range(1, MAX_STAGES + 1):
        for profile in PROFILES:
            for quantizer in QUANTIZERS:
                for rows in ROW_MULTIPLIERS:
                    a = matrix(stages, 70, 92)
                    q = quantize(a, stages, profile, quantizer=quantizer, row_multiplier=rows)
                    codes[quantizer].update(q.codes.tobytes() + q.scales.astype("<f4").tobytes())
                    if q.row_multiplier is not None:
                        codes[quantizer].update(q.row_multiplier.astype("<f4").tobytes())
        # codes that depend on no quantizer
        k = ((matrix(9, 1, q.codes.size) + 1) * 2).astype(np.uint8).reshape(q.codes.shape) % 4
        bytes_.update(pack(type(q)(k, q.scales)).packed.tobytes())
    assert {name: digest.hexdigest() for name, digest in codes.items()} == QUANTIZED[QUANTIZER_REVISION]
    assert bytes_.hexdigest() == PACKED[PACKER_REVISION]


@pytest.mark.parametrize("what", ["QUANTIZER_REVISION", "PACKER_REVISION"])
def test_an_export_of_another_revision_is_not_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    source = make_checkpoint(tmp_path / "model")
    notes: list[str] = []

    class Interrupting(Observer):
        count = 0

        def advance(self, amount: int) -> None:
            self.count += 1
            if self.count == 8:
                raise KeyboardInterrupt

    class Noting(Observer):
        def note(self, message: str) -> None:
            notes.append(message)

    with pytest.raises(KeyboardInterrupt):
        export(source, tmp_path / "out", observer=Interrupting())
    head = json.loads((tmp_path / ".out.partial" / "journal").read_text().splitlines()[0])
    assert head["codes"] == f"quantizer {QUANTIZER_REVISION}, packer {PACKER_REVISION}"
    monkeypatch.setattr(identity, what, 1000)
    assert export(source, tmp_path / "out", observer=Noting()).reused == 0
    assert notes == ["starting anew: an unfinished export was found, but the quantizer or the packer has changed"]
