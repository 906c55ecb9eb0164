"""The command ``fairy2i train``: its options are the fields of a recipe."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fairy2i_export.commands.declared import with_options
from fairy2i_export.errors import OptionError, install_hint
from fairy2i_export.request.option import is_list
from fairy2i_export.train.recipe import Recipe

_NEEDED = ("torch", "transformers", "accelerate", "datasets", "matplotlib", "tensorboard")


@with_options(Recipe, "training")
def train_command(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Causal language model: Hugging Face checkpoint directory or hub id.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to make, or to go on with.", show_default=False)
    ],
    **options: Any,
) -> None:
    """Train a pretrained language model to Fairy2i weights; run the same command again to continue an interrupted run.

    The folder goes straight into fairy2i-export. If SOURCE comes from this command itself, the defaults under Method are how it was
    trained. Several processes: start it with torchrun or accelerate launch.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise OptionError(f"train needs {', '.join(missing)}: {install_hint('train')}")
    if options["separator"] is not None:  # typed in a shell
        options["separator"] = options["separator"].replace("\\n", "\n").replace("\\t", "\t")
    lists = {name: tuple(value or ()) for name, value in options.items() if is_list(Recipe, name)}
    recipe = Recipe(source, output, **{**options, **lists})
    from fairy2i_export.train.inputs import open_inputs  # takes long to import

    inputs = open_inputs(recipe)
    from fairy2i_export.train.run import train_on  # torch, which takes a while

    result = train_on(inputs)
    if result.is_main and not recipe.quiet:
        _summary(result, recipe)


def _summary(result: Any, recipe: Recipe) -> None:
    out = Console()
    out.print(
        f"{result.path}: {result.steps:,} steps, {result.tokens:,} tokens, {result.seconds:.0f} s, {result.speed:,.0f} tokens/s",
        highlight=False,
        soft_wrap=True,
    )
    if result.eval_loss_final is not None:
        before, after = result.eval_loss_before, result.eval_loss_final
        first = "" if before is None else f"{before:.4f} nats/token before, "
        out.print(
            f"evaluation text: {first}{after:.4f} after (perplexity {math.exp(min(after, 700)):.2f}), weights as stored",
            highlight=False,
            soft_wrap=True,
        )
    if result.entry is not None and result.entry["method"] == "fairy2i":
        out.print(f"next: fairy2i-export {result.path} -o {result.path}-onnx", highlight=False, soft_wrap=True)
