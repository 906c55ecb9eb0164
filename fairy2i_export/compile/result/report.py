"""What an export did, as data: for the summary table, the model card and callers of the Python API."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fairy2i_export.compile.options import ExportOptions
from fairy2i_export.onnx_graph.formats.base import Linear
from fairy2i_export.onnx_graph.stage_map import in_words
from fairy2i_export.output.contract.kernels import Verdict


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
        output_bytes: all files of the folder, without the model card.
        source_bytes: the checkpoint's safetensors files.
        parameters: of the whole model.
        chat_template: whether the checkpoint brought one.
        untrained: nothing says that the model was trained for this, and no text was converted by: it will hardly speak.
        verdicts: of a conversion by --calibrate, which kernels hold the numerics contract, by family; else empty.
        calibrated: codes were found on a text.
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
    untrained: bool
    verdicts: dict[str, Verdict]
    calibrated: bool
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
    def stages(self) -> str:
        """Of the rewritten layers, in words."""
        return in_words({x.name: x.stages for x in self.rewritten}, {x.name: x.parameters for x in self.rewritten})

    @property
    def bits_per_weight(self) -> float:
        """Of the rewritten layers, padding, scales and multipliers included."""
        return 8 * self.weight_bytes / sum(linear.parameters for linear in self.rewritten)

    @property
    def next_step(self) -> str:
        """What to do with the model: try it, unless it cannot be expected to speak; a converted one can be compared."""
        if self.untrained:
            return "Convert it on a text, with --calibrate, or train it (fairy2i train): see docs/your-model.md"
        if self.calibrated:
            return f"Try it: {self.command}\nWhat the conversion cost: fairy2i ppl {self.path} --text FILE --float SOURCE"
        return f"Try it: {self.command}"

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
