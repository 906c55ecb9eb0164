"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fairy2i_runtime.text.options import GenerationOptions

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Model folder written by fairy2i-export.")]
Threads = Annotated[int | None, typer.Option(help="Number of threads.", show_default="one per physical core, big ones only")]
Kernel = Annotated[
    str | None,
    typer.Option(
        help="lut (8-bit tables, no multiplication per weight), exact (float32 tables), dot (8-bit dot-product "
        "instructions: multiplies) or auto (lut or dot, whichever is faster for so many tokens here).",
        show_default="$FAIRY2I_KERNEL, else the folder's own choice, else lut",
    ),
]
Isa = Annotated[
    str | None,
    typer.Option(help="Instruction set, such as scalar or avx2.", show_default="$FAIRY2I_ISA, else the best one"),
]
Seed = Annotated[int | None, typer.Option(help="Makes the choices repeatable.", show_default="different every time")]
Stop = Annotated[
    list[str] | None, typer.Option(metavar="TEXT", help="End before this text; may be repeated.", show_default=False)
]
Lookup = Annotated[
    int,
    typer.Option(
        metavar="N",
        help="Draft up to N tokens by looking up how the text went on where it read the same before; 0 = off.",
    ),
]
Context = Annotated[
    int | None,
    typer.Option(help="Most tokens of prompt and answer; fewer take less memory.", show_default="the model's own"),
]
TrustGraph = Annotated[
    bool,
    typer.Option("--trust-graph", help="Run a graph that fairy2i-export has not written; onnxruntime dies of some."),
]

_SAMPLING = {  # field of SamplingOptions: what a person calls it, and what it does
    "temperature": ("temperature", "0 always takes the most likely token; higher is more varied."),
    "top_k": ("top-k", "Choose among the k most likely tokens; 0 = all."),
    "top_p": ("top-p", "Choose among the most likely tokens of this total probability; 1 = all."),
    "repetition_penalty": ("repetition penalty", "Above 1 makes tokens that occurred less likely; 1 = off."),
}


def sampling_option(name: str, default: str) -> Any:
    """An option for one field of SamplingOptions, None if it is not given; ``default`` says what counts then."""
    return typer.Option(help=_SAMPLING[name][1], show_default=default)


def given_sampling(
    temperature: float | None, top_k: int | None, top_p: float | None, repetition_penalty: float | None
) -> dict[str, Any]:
    """The fields of SamplingOptions that were given."""
    values = (temperature, top_k, top_p, repetition_penalty)
    return {name: value for name, value in zip(_SAMPLING, values, strict=True) if value is not None}


def sampling_text(options: GenerationOptions, recommended: dict[str, Any], chosen: dict[str, Any]) -> str:
    """How tokens are chosen and who says so: ``temperature 0.7, top-p 0.9 (generation_config.json)``."""
    groups: dict[str, list[str]] = {}
    for name, (shown, _) in _SAMPLING.items():
        value = getattr(options, name)
        if name in chosen:
            source = "option"
        elif name in recommended:
            source = "generation_config.json"
        else:
            source = "default"
        if name == "temperature" and value == 0:
            groups.setdefault(source, []).append("the most likely token")
        elif value != getattr(type(options), name) and (options.temperature or name == "repetition_penalty"):
            groups.setdefault(source, []).append(f"{shown} {value:g}")
    return "; ".join(f"{', '.join(parts)} ({source})" for source, parts in groups.items())
