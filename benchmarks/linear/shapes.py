"""The layers that are measured, and the models whose linear layers they are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A linear layer with ``k`` inputs and ``n`` outputs, both even."""

    n: int
    k: int

    def __str__(self) -> str:
        return f"{self.n}x{self.k}"

    @property
    def weights(self) -> int:
        return self.n * self.k


# how many linear layers of each shape one token passes through
MODELS: dict[str, dict[Shape, int]] = {
    "7B": {Shape(4096, 4096): 128, Shape(11008, 4096): 64, Shape(4096, 11008): 32, Shape(32000, 4096): 1},  # LLaMA-2-7B
    "135M": {Shape(576, 576): 60, Shape(1536, 576): 60, Shape(576, 1536): 30, Shape(192, 576): 60},  # SmolLM2, head tied
}


def parse(name: str) -> list[Shape]:
    """The shapes of a model, or the one shape written as NxK.

    Raises:
        ValueError: if the name is neither.
    """
    if name in MODELS:
        return list(MODELS[name])
    n, _, k = name.lower().partition("x")
    if not (n.isdigit() and k.isdigit()) or int(n) % 2 or int(k) % 2 or int(n) * int(k) == 0:
        raise ValueError(f"expected one of {', '.join(MODELS)}, or a shape NxK of even numbers, got {name!r}")
    return [Shape(int(n), int(k))]
