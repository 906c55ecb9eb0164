"""What a rewrite did, as data: for the terminal, for rewrite.json in the folder, and for callers of the Python API."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from fairy2i_export.rewrite.linears import Origin


@dataclass(frozen=True)
class RewrittenLinear:
    """One layer that became a Fairy2iMatMul node.

    Attributes:
        name: of the layer.
        node: name of the node, before and after.
        operator: what it was.
        weight: name of the constant value that was the matrix.
        out_features: N.
        in_features: K.
        stages: bits per weight.
        origin: ``quantized``, ``recovered`` or ``trained``, see docs/rewrite.md.
        fused: what went into the operator besides the product.
        error: relative change of the matrix, ``|A - Q(A)| / |A|``; None in a dry run.
    """

    name: str
    node: str
    operator: str
    weight: str
    out_features: int
    in_features: int
    stages: int
    origin: Origin
    fused: tuple[str, ...]
    error: float | None


@dataclass(frozen=True)
class LeftLinear:
    """One node that was left alone, and why."""

    name: str
    node: str
    operator: str
    reason: str


@dataclass(frozen=True)
class RewriteReport:
    """The result of a rewrite.

    Attributes:
        path: the folder that was written; None after a dry run.
        source: the model file.
        source_sha256: hash of the model file and its external data; None after a dry run.
        opset: version of the standard operators.
        passes: name of every pass and how often it did its work.
        rewritten: the layers that became Fairy2iMatMul nodes.
        left: the others.
        already: layers of Fairy2iMatMul nodes that were in the model before.
        warnings: one sentence each.
        copied: files of onnxruntime-genai that came along, see docs/rewrite.md.
        dense_bytes: of the rewritten matrices as the model stored or computed them.
        packed_bytes: of what replaced them, scales and multipliers included.
        source_bytes: the model file and its external data.
        output_bytes: the same of the result; what is expected, after a dry run.
        seconds: duration.
    """

    path: Path | None
    source: Path
    source_sha256: str | None
    opset: int
    passes: dict[str, int]
    rewritten: tuple[RewrittenLinear, ...]
    left: tuple[LeftLinear, ...]
    already: int
    warnings: tuple[str, ...]
    copied: tuple[str, ...]
    dense_bytes: int
    packed_bytes: int
    source_bytes: int
    output_bytes: int
    seconds: float

    @property
    def reasons(self) -> dict[str, list[str]]:
        """Reason -> names of the layers that were left for it, the most frequent reason first."""
        counted = Counter(linear.reason for linear in self.left)
        return {reason: [x.name for x in self.left if x.reason == reason] for reason, _ in counted.most_common()}

    def to_json(self) -> str:
        """The text of rewrite.json."""
        values = {**asdict(self), "path": None if self.path is None else self.path.name, "source": self.source.name}
        del values["seconds"]  # so that the same model gives the same file
        return json.dumps(values, indent=1) + "\n"
