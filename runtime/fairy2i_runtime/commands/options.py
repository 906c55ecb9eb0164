"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Model folder written by fairy2i-export.")]
Threads = Annotated[int | None, typer.Option(help="Number of threads.", show_default="one per physical core, big ones only")]
Kernel = Annotated[
    str | None,
    typer.Option(
        help="lut (8-bit tables, no multiplication per weight), exact (float32 tables) or dot (8-bit dot-product "
        "instructions: multiplies).",
        show_default="$FAIRY2I_KERNEL, else the folder's own choice, else lut",
    ),
]
Isa = Annotated[
    str | None,
    typer.Option(help="Instruction set, such as scalar or avx2.", show_default="$FAIRY2I_ISA, else the best one"),
]
Temperature = Annotated[float, typer.Option(help="0 always takes the most likely token; higher is more varied.")]
TopK = Annotated[int, typer.Option(help="Choose among the k most likely tokens; 0 = all.")]
TopP = Annotated[float, typer.Option(help="Choose among the most likely tokens of this total probability; 1 = all.")]
Penalty = Annotated[float, typer.Option(help="Above 1 makes tokens that occurred less likely; 1 = off.")]
Seed = Annotated[int | None, typer.Option(help="Makes the choices repeatable.", show_default="different every time")]
Stop = Annotated[
    list[str] | None, typer.Option(metavar="TEXT", help="End before this text; may be repeated.", show_default=False)
]
Context = Annotated[
    int | None,
    typer.Option(help="Most tokens of prompt and answer; fewer take less memory.", show_default="the model's own"),
]
