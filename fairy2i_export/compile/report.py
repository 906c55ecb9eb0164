"""What an export did, as data: for the summary table, the model card and callers of the Python API."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from fairy2i_export.compile.options import ExportOptions
from fairy2i_export.compile.plan import Linear


@dataclass(frozen=True)
class Estimate:
    """What an export is going to need, from tensor headers alone."""

    peak_ram_bytes: int
    output_bytes: int


@dataclass(frozen=True)
class ExportReport:
    """The result of an export.

    Attributes:
        path: the folder that was written.
        source: name of the checkpoint.
        source_sha256: its hash, see Checkpoint.sha256.
        options: the options in force.
        linears: every linear layer and its treatment, in graph order.
        errors: relative quantization error of every rewritten layer, ``|A - Q(A)| / |A|`` in the Frobenius norm.
        warnings: one sentence each.
        weight_bytes: the rewritten layers' packed bytes, scales and multipliers.
        output_bytes: all files of the folder.
        source_bytes: the checkpoint's safetensors files.
        parameters: of the whole model.
        chat_template: whether the checkpoint brought one.
        peak_ram_bytes: largest resident size of this process so far; None where the system does not tell.
        seconds: duration.
        reused: tensors that an interrupted run had finished already.
    """

    path: Path
    source: str
    source_sha256: str
    options: ExportOptions
    linears: tuple[Linear, ...]
    errors: dict[str, float]
    warnings: tuple[str, ...]
    weight_bytes: int
    output_bytes: int
    source_bytes: int
    parameters: int
    chat_template: bool
    peak_ram_bytes: int | None
    seconds: float
    reused: int = 0

    @property
    def rewritten(self) -> list[Linear]:
        return [linear for linear in self.linears if linear.treatment == "fairy2i"]

    @property
    def kept(self) -> list[Linear]:
        """Layers that did not become Fairy2iMatMul nodes."""
        return [linear for linear in self.linears if linear.treatment != "fairy2i"]

    @property
    def bits_per_weight(self) -> float:
        """Of the rewritten layers, padding, scales and multipliers included."""
        return 8 * self.weight_bytes / sum(linear.parameters for linear in self.rewritten)

    @property
    def command(self) -> str:
        """How to try the model: chat with one that has a chat template, let a base model continue a text."""
        return f"fairy2i chat {self.path}" if self.chat_template else f'fairy2i generate {self.path} "Once upon a time"'

    @property
    def worst_layer(self) -> tuple[str, float]:
        """Name and relative error of the layer that quantization changed most."""
        name = max(self.errors, key=self.errors.__getitem__)
        return name, self.errors[name]

    @property
    def mean_error(self) -> float:
        return sum(self.errors.values()) / len(self.errors)


def peak_ram_bytes() -> int | None:
    """Largest resident size of this process so far, None where the system does not tell."""
    try:
        # the kernel's own figure: ru_maxrss below starts from the size of the parent process on Linux
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError, ValueError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def human_bytes(count: float) -> str:
    """1234567 -> "1.2 MB" (powers of 1000)."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")
