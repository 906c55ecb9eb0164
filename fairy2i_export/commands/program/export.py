"""The command ``fairy2i-export``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fairy2i_export.commands.declared import with_options
from fairy2i_export.request.request import Request
from fairy2i_runtime.commands.console import Version, new_app, run_app
from fairy2i_runtime.commands.process.streams import note_done


@with_options(Request, "checkpoint")
def export_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Hugging Face checkpoint directory, hub id OWNER/NAME, or an ONNX model FILE.onnx to rewrite.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder to write.", show_default="./NAME-fairy2i"),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Write nothing; print what would be written and the memory to run it at --context-length, or, for FILE.onnx, "
            "which layers would be rewritten.",
        ),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print warnings and errors only.")] = False,
    version: Version = False,
    **options: Any,
) -> None:
    """Compile a Fairy2i language model, or rewrite an ONNX model, to an ONNX folder with packed weights.

    Options about lm_head, embedding, context and cache are for checkpoints.
    """
    from fairy2i_export.commands.display import Display

    if source.lower().endswith(".onnx"):
        from fairy2i_export.commands.rewrite import rewrite_command

        rewrite_command(source, output, dry_run=dry_run, quiet=quiet, options=options)
    elif dry_run:
        from fairy2i_export.compile.dry_run import dry_run as plan

        Display(quiet).dry_run(plan(source, output, **options))
    else:
        from fairy2i_export.compile.run import export

        with Display(quiet) as display:
            report = export(source, output, observer=display, **options)
            note_done(f"The model itself is complete: {report.path}")
        display.finished(report)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run ``fairy2i-export``; returns the exit code."""
    app = new_app("Compile a Fairy2i language model to an ONNX folder with packed weights.")
    app.command()(export_command)
    return run_app(app, "fairy2i-export", arguments)
