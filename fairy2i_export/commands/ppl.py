"""``fairy2i ppl`` with ``--against SOURCE``: the same windows also through torch, with the same quantized weights."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer
from rich.console import Console

from fairy2i_export.check.perplexity import paired_difference, torch_scorer
from fairy2i_export.errors import OptionError, install_hint
from fairy2i_export.source.transformers_model import torch_is_installed
from fairy2i_runtime import load
from fairy2i_runtime.commands.display import show_perplexity
from fairy2i_runtime.commands.measure import (
    Json,
    ProtocolName,
    Separator,
    Stride,
    TextFile,
    Tokens,
    WindowSize,
    cut_text,
    ppl_report,
    read_text,
    run_protocols,
)
from fairy2i_runtime.commands.options import Folder, Isa, Kernel, Threads
from fairy2i_runtime.measure.perplexity import model_scorer


def ppl_command(
    folder: Folder,
    text: TextFile,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="The checkpoint it was exported from: also measure it with torch, its weights quantized the same way.",
        ),
    ] = None,
    protocol: ProtocolName = "both",
    window: WindowSize = None,
    stride: Stride = None,
    separator: Separator = "\n",
    tokens: Tokens = None,
    threads: Threads = None,
    kernel: Kernel = None,
    isa: Isa = None,
    as_json: Json = False,
) -> None:
    """Measure the perplexity of a text, by a sliding window and by the protocol of the method's authors."""
    if against is not None and not torch_is_installed():
        raise OptionError(f"--against needs torch and transformers: {install_hint('train')}, or leave it out")
    content = read_text(text)
    model = load(folder, threads=threads, kernel=kernel, isa=isa)
    cuts = cut_text(model, content, protocol, window, stride, separator, tokens)
    scorer = (
        None if against is None else torch_scorer(model, against, _note)
    )  # before the work: it may find fault with SOURCE
    results = run_protocols(cuts, model_scorer(model), "model")
    references = [] if scorer is None else run_protocols(cuts, scorer, "torch")
    differences = [paired_difference(*pair) for pair in zip(results, references, strict=False)]
    if as_json:
        report = ppl_report(folder, text, content, results)
        if against is not None:
            report["against"] = {
                "source": against,
                "results": [reference.as_dict() for reference in references],
                "differences": differences,
            }
        print(json.dumps(report, indent=2))
        return
    show_perplexity(results)
    out = Console()
    for reference, difference in zip(references, differences, strict=True):
        out.print(
            f"torch, {reference.windows.protocol}: {reference.perplexity:.3f}; the model's perplexity is "
            f"{difference['log_ratio']:+.2%} ± {difference['standard_error']:.2%} from that",
            highlight=False,
        )


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)
