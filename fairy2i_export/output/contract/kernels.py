"""Which kernels hold the numerics contract on a model: every layer within its limit, and no perplexity lost against exact mode.

A conversion without training judges its own result and records the kernels that hold (``fairy2i.kernels``); the runtime then
runs the first multiplication-free one of them unless it is told otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fairy2i_export.onnx_graph.operator import Node
from fairy2i_export.output.contract.layers import KERNELS, LayerResult, check_layers, families_of, model_logits
from fairy2i_export.output.contract.logits import F32, LogitsComparison, compare

PERPLEXITY_LIMIT = 0.005  # |log ratio| to exact mode
REFERENCE = "exact"


@dataclass(frozen=True)
class Verdict:
    """One kernel on one model.

    Attributes:
        kernel: family.
        layers: number of layers.
        failing: of them, those beyond a limit.
        worst: the layer that is closest to its limit or furthest beyond.
        excess: its error as a multiple of the limit.
        comparison: of the logits with exact mode's; None for exact mode.
    """

    kernel: str
    layers: int
    failing: int
    worst: str
    excess: float
    comparison: LogitsComparison | None

    @property
    def keeps_perplexity(self) -> bool:
        """False if the change is beyond the limit by more than twice what chance explains on this text."""
        found = self.comparison
        return found is None or abs(found.log_ratio) <= PERPLEXITY_LIMIT + 2 * found.perplexity_error

    @property
    def holds(self) -> bool:
        return not self.failing and self.keeps_perplexity

    @property
    def problems(self) -> list[str]:
        """What is beyond a limit, a clause each; nothing if the kernel holds the contract."""
        found = []
        if self.failing:
            found.append(
                f"{self.failing} of {self.layers} layers exceed the limits, the worst is {self.worst} "
                f"({self.excess:.1f} times the limit)"
            )
        if self.comparison is not None and not self.keeps_perplexity:
            change = self.comparison
            found.append(
                f"perplexity is {change.perplexity:.3f}, in exact mode {change.reference_perplexity:.3f}: "
                f"{change.log_ratio:+.2%} (limit {PERPLEXITY_LIMIT:.1%}, standard error {change.perplexity_error:.2%})"
            )
        return found


@dataclass(frozen=True)
class Judgement:
    """What was found about a model.

    Attributes:
        layers: errors of every layer by every kernel.
        verdicts: by kernel family.
        logits: float32 [length, vocab] by kernel family; exact mode's are always there.
    """

    layers: list[LayerResult]
    verdicts: dict[str, Verdict]
    logits: dict[str, F32]

    @property
    def holding(self) -> tuple[str, ...]:
        """The kernels that hold the contract."""
        return tuple(kernel for kernel, verdict in self.verdicts.items() if verdict.holds)


def judge_kernels(
    model_file: Path,
    nodes: list[Node],
    ids: npt.NDArray[np.int64],
    *,
    isa: str | None = None,
    done: Callable[[], None] = lambda: None,
) -> Judgement:
    """Run a text through every kernel and compare.

    Args:
        model_file: the exported model.
        nodes: its nodes.
        ids: token ids [length], at least 2.
        isa: ISA to force; kernels that do not have it are left out.
        done: called after each layer.

    Raises:
        Fairy2iRuntimeError: if the library is missing, no kernel has the ISA, or onnxruntime refuses the model.
    """
    families = families_of(isa)
    layers = list(check_layers(model_file, nodes, ids[None], isa=isa, done=done))
    logits = {
        kernel: model_logits(model_file, ids[None], kernel, isa if kernel in families else None)
        for kernel in dict.fromkeys((REFERENCE, *families))
    }
    verdicts = {
        kernel: _verdict(kernel, layers, None if kernel == REFERENCE else compare(logits[kernel], logits[REFERENCE], ids))
        for kernel in families
    }
    return Judgement(layers, verdicts, logits)


def _verdict(kernel: str, layers: list[LayerResult], comparison: LogitsComparison | None) -> Verdict:
    worst = max(layers, key=lambda layer: layer.excess(kernel))
    failing = sum(not layer.passed(kernel) for layer in layers)
    return Verdict(kernel, len(layers), failing, worst.name, worst.excess(kernel), comparison)


def recorded(kernels: Iterable[str]) -> str:
    """Kernels as the metadata holds them: names with commas between them, in a fixed order."""
    found = set(kernels)
    return ",".join(kernel for kernel in KERNELS if kernel in found)
