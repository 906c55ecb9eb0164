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
