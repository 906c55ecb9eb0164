"""The command ``fairy2i-export``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from fairy2i_export import __version__
from fairy2i_export.errors import Fairy2iError
from fairy2i_runtime.commands.console import new_app, run_app

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE", help="Hugging Face checkpoint directory, hub id OWNER/NAME, or an ONNX model FILE.onnx to rewrite."
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="DIR", help="Folder to write.", show_default="./NAME-fairy2i"),
]
Stages = Annotated[
    int | None,
    typer.Option(metavar="N", help="Residual stages, 1 to 4: bits per weight.", show_default="as trained, else 2"),
]
Profile = Annotated[
    str | None,
    typer.Option(
        metavar="P",
        help="Numeric profile of the quantizer: bf16-reference or fp32.",
        show_default="as trained, else bf16-reference",
    ),
]
LmHead = Annotated[
    str | None,
    typer.Option(
        metavar="H", help="How to store lm_head: fairy2i, int8, int4 or float.", show_default="as trained, else fairy2i"
    ),
]
Embedding = Annotated[
    str | None,
    typer.Option(
        metavar="E",
        help="How to store the embedding: float32, float16 or int8.",
        show_default="float16 for 16-bit checkpoints, else float32",
    ),
]
Include = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Rewrite only linear layers with such names; may be repeated.", show_default="all"),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Keep linear layers with such names dense; may be repeated.", show_default="none"),
]
RowMultiplier = Annotated[
    str | None,
    typer.Option(
        metavar="M", help="none, or rms or learned if the model was trained so.", show_default="as trained, else none"
    ),
]
Quantizer = Annotated[
    str | None,
    typer.Option(
        metavar="Q",
        help="greedy, the published one, or joint: codes of all stages chosen together, a smaller error.",
        show_default="as trained, else greedy",
    ),
]
ContextLength = Annotated[
    int | None,
    typer.Option(metavar="N", help="Longest context of the exported model.", show_default="the model's own, at most 4096"),
]
KVCacheType = Annotated[
    str | None,
    typer.Option(metavar="T", help="Type of the key-value cache: float32, float16 or int8.", show_default="float32"),
]
Calibration = Annotated[
    Path | None,
    typer.Option(
        "--cache-calibration",
        metavar="FILE",
        help="Text to measure the scales of an int8 key-value cache with.",
        show_default="a short English one",
    ),
]
OldCalibration = Annotated[Path | None, typer.Option("--calibration", hidden=True)]  # the former name of --cache-calibration
Calibrate = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="TEXT",
        help="Convert a model that was not trained for this: choose codes that keep every layer's outputs on this text; may be "
        "repeated. Needs torch and transformers.",
        show_default="plain rounding",
    ),
]
CalibrateTokens = Annotated[
    int | None, typer.Option(metavar="N", help="Tokens of the text of --calibrate to use at most.", show_default="24576")
]
RopeScaling = Annotated[
    str | None,
    typer.Option(metavar="S", help="Stretch the context: linear:FACTOR or yarn:FACTOR.", show_default="as in config.json"),
]
Jobs = Annotated[
    int | None, typer.Option("--jobs", "-j", metavar="N", help="Threads that quantize.", show_default="number of cores")
]
Backend = Annotated[
    str | None,
    typer.Option(metavar="B", help="How to write quantized layers: fairy2i, matmulnbits or dense.", show_default="fairy2i"),
]
DenseType = Annotated[
    str | None,
    typer.Option(metavar="T", help="Weights of the backend dense: float32 or float16.", show_default="float32"),
]
AccuracyLevel = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Activations of the backend matmulnbits: 0 float32 (exact, slow), 4 int8.", show_default="4"
    ),
]
Trained = Annotated[bool, typer.Option("--trained", help="The weights come from Fairy2i training: do not warn about it.")]
TokenizerOnnx = Annotated[
    bool, typer.Option("--tokenizer-onnx", help="Add tokenizer.onnx and detokenizer.onnx, for hosts without Python.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace an earlier export in the output folder.")]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Write nothing; print what would be written and the memory to run it at --context-length, or, for FILE.onnx, "
        "which layers would be rewritten.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print warnings and errors only.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"fairy2i-export {__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")]


def export_command(
    source: Source,
    output: Out = None,
    stages: Stages = None,
    profile: Profile = None,
    lm_head: LmHead = None,
    embedding: Embedding = None,
    include: Include = None,
    exclude: Exclude = None,
    quantizer: Quantizer = None,
    row_multiplier: RowMultiplier = None,
    context_length: ContextLength = None,
    kv_cache: KVCacheType = None,
    calibrate: Calibrate = None,
    calibrate_tokens: CalibrateTokens = None,
    calibration: Calibration = None,
    old_calibration: OldCalibration = None,
    rope_scaling: RopeScaling = None,
    jobs: Jobs = None,
    backend: Backend = None,
    dense_type: DenseType = None,
    accuracy_level: AccuracyLevel = None,
    trained: Trained = False,
    tokenizer_onnx: TokenizerOnnx = False,
    force: Force = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    version: Version = False,
) -> None:
    """Compile a Fairy2i language model, or rewrite an ONNX model, to an ONNX folder with packed weights.

    Options about lm_head, embedding, context and cache are for checkpoints.
    """
    calibration = calibration or old_calibration
    if source.lower().endswith(".onnx"):
        from fairy2i_export.commands.rewrite import refuse_checkpoint_options, rewrite_command

        only = {
            "--lm-head": lm_head,
            "--embedding": embedding,
            "--context-length": context_length,
            "--kv-cache": kv_cache,
            "--backend": backend,
            "--dense-type": dense_type,
            "--accuracy-level": accuracy_level,
            "--calibrate": calibrate,
            "--calibrate-tokens": calibrate_tokens,
            "--cache-calibration": calibration,
            "--rope-scaling": rope_scaling,
            "--tokenizer-onnx": True if tokenizer_onnx else None,
        }
        refuse_checkpoint_options(source, only)
        rewrite_command(
            source,
            output,
            stages=stages,
            profile=profile,
            quantizer=quantizer,
            row_multiplier=row_multiplier,
            include=include,
            exclude=exclude,
            trained=trained,
            force=force,
            jobs=jobs,
            dry_run=dry_run,
            quiet=quiet,
        )
        return
    from fairy2i_export.commands.display import Display
    from fairy2i_export.compile.run import export

    if dry_run:
        from fairy2i_export.compile import dry_run as planner
        from fairy2i_export.compile.options import GivenOptions

        chosen = (tuple(include or ()), tuple(exclude or ()))
        given = GivenOptions(
            stages,
            profile,
            row_multiplier,
            lm_head,
            embedding,
            context_length,
            *chosen,
            kv_cache,
            rope_scaling,
            backend,
            dense_type,
            accuracy_level,
            quantizer,
        )
        Display(quiet).dry_run(
            planner.dry_run(
                source,
                output,
                given,
                calibration=calibration,
                calibrate=calibrate or (),
                calibrate_tokens=calibrate_tokens,
                force=force,
            )
        )
        return
    with Display(quiet) as display:
        report = export(
            source,
            output,
            stages=stages,
            profile=profile,
            quantizer=quantizer,
            row_multiplier=row_multiplier,
            lm_head=lm_head,
            embedding=embedding,
            include=include or (),
            exclude=exclude or (),
            context_length=context_length,
            kv_cache=kv_cache,
            calibration=calibration,
            calibrate=calibrate or (),
            calibrate_tokens=calibrate_tokens,
            rope_scaling=rope_scaling,
            backend=backend,
            dense_type=dense_type,
            accuracy_level=accuracy_level,
            trained=trained,
            tokenizer_onnx=tokenizer_onnx,
            force=force,
            jobs=jobs,
            observer=display,
        )
    display.finished(report)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``fairy2i-export``; returns the exit code, for the console script to exit with."""
    app = new_app("Compile a Fairy2i language model to an ONNX folder with packed weights.")
    app.command()(export_command)
    # an exception instead of sudden death, so that the half-written folder is removed
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        return run_app(app, "fairy2i-export", arguments, errors=(Fairy2iError,))
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminated(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
