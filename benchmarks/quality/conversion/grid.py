"""Which conversions the ablation makes, in the order of its tables."""

from __future__ import annotations

from dataclasses import dataclass

HIGH = ("--calibrate-effort", "high")
STAGES_OFF = ("tuning", "descent", "rotation")  # what --calibrate-without takes; left out one after the other, and alone


@dataclass(frozen=True)
class Case:
    """A conversion.

    Attributes:
        name: of its files.
        label: as tables call it.
        bits: stages, or what --bits takes.
        options: of fairy2i-export, beside stages and text.
        group: the table that it belongs to.
        all_samples: whether it is made of every sample of the text, or of the first only.
    """

    name: str
    label: str
    bits: str
    options: tuple[str, ...] = ()
    group: str = "ablation"
    all_samples: bool = False

    @property
    def arguments(self) -> list[str]:
        """Of the command line."""
        count = ["--stages", self.bits] if self.bits.isdigit() else ["--bits", self.bits]
        return [*count, *self.options]


def without(*stages: str) -> tuple[str, ...]:
    return tuple(word for stage in stages for word in ("--calibrate-without", stage))


def ablation(bits: str) -> tuple[Case, ...]:
    """Each stage left out alone, and all together: what the product did before it had them."""
    return (
        Case(f"{bits}-none", "none of the three", bits, without(*STAGES_OFF)),
        *(Case(f"{bits}-no-{stage}", f"all but {stage}", bits, without(stage)) for stage in STAGES_OFF),
    )


CASES = (
    *(Case(f"{bits}", f"{bits} stages", bits, group="bits", all_samples=True) for bits in ("2", "3", "4")),
    Case("2.0", "2 bits, mixed", "2.0", group="bits"),
    Case("2.25", "2.25 bits, mixed", "2.25", group="bits", all_samples=True),
    *(Case(f"{bits}-high", f"{bits} stages, high effort", bits, HIGH, group="bits") for bits in ("2", "3", "4")),
    *ablation("2"),
    *ablation("3"),
)
