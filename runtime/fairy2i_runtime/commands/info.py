"""The command ``fairy2i info``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fairy2i_runtime.commands.options import TrustGraph


def info(
    folder: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="Model folder.", show_default=False)] = None,
    context_length: Annotated[
        int | None, typer.Option(help="Context to estimate the memory for.", show_default="the model's own")
    ] = None,
    trust_graph: TrustGraph = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the operator library, its kernels and the processor; with DIR also the model and the memory it needs."""
    from fairy2i_runtime.measure.info import installation_info, installation_text, model_info, model_text

    report: dict[str, Any] = {"installation": installation_info()}
    if folder is not None:
        report["model"] = model_info(folder, context_length, trust_graph=trust_graph)
    if as_json:
        print(json.dumps(report, indent=2))
        return
    print(installation_text(report["installation"]))
    if folder is not None:
        print()
        print(model_text(report["model"]))
