"""``fairy2i ppl`` with ``--against SOURCE`` and ``--float SOURCE``: the same windows also through torch."""

from __future__ import annotations

import json
import math
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from fairy2i_export.errors import OptionError, install_hint
from fairy2i_runtime.commands.measure import (
    Bos,
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
from fairy2i_runtime.commands.options import Folder, Isa, Kernel, Threads, TrustGraph

if TYPE_CHECKING:
    from fairy2i_runtime.measure.perplexity import Scorer

_SMALL = 0.1  # log ratio


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
    float_source: Annotated[
        str | None,
        typer.Option(
            "--float",
            metavar="SOURCE",
            help="The checkpoint it was exported from: also measure it with torch as it is, to see what quantization cost.",
        ),
    ] = None,
    protocol: ProtocolName = "both",
    window: WindowSize = None,
    stride: Stride = None,
    separator: Separator = "\n",
    bos: Bos = True,
    tokens: Tokens = None,
    threads: Threads = None,
    kernel: Kernel = None,
    isa: Isa = None,
    trust_graph: TrustGraph = False,
    as_json: Json = False,
) -> None:
    """Measure the perplexity of a text, by a sliding window and by the protocol of the method's authors."""
    from rich.console import Console

    from fairy2i_export.check.perplexity import float_scorer, paired_difference, torch_scorer
    from fairy2i_export.check.source_weights import check_origin
    from fairy2i_export.decoder.architectures import has_complex_weights
    from fairy2i_export.source.hub import open_source
    from fairy2i_export.source.transformers_model import torch_is_installed
    from fairy2i_runtime import load
    from fairy2i_runtime.commands.display import show_perplexity
    from fairy2i_runtime.folder import open_folder
    from fairy2i_runtime.measure.perplexity import model_scorer

    content = read_text(text)
    for option, given in (("--against", against), ("--float", float_source)):
        if given is not None:
            if not torch_is_installed():
                raise OptionError(f"{option} needs torch and transformers: {install_hint('train')}, or leave it out")
            opened = open_source(given)
            if has_complex_weights(opened.config):
                raise OptionError(
                    f"{option} {given}: transformers has no class for models of complex weights (iFairy); leave it out"
                )
            check_origin(open_folder(folder).model_file, opened)
    model = load(folder, threads=threads, kernel=kernel, isa=isa, trust_graph=trust_graph)
    cuts = cut_text(model, content, protocol, window, stride, separator, tokens, bos=bos)
    # before the work: they may find fault with SOURCE
    scorers: dict[str, tuple[str, Scorer]] = {}
    if against is not None:
        scorers["against"] = against, torch_scorer(model, against, _note)
    if float_source is not None:
        scorers["float"] = float_source, float_scorer(model, float_source, _note)
    results = run_protocols(cuts, model_scorer(model), "model")
    references = {key: run_protocols(cuts, scorer, f"torch, {key}") for key, (_, scorer) in scorers.items()}
    differences = {
        key: [paired_difference(*pair) for pair in zip(results, found, strict=True)] for key, found in references.items()
    }
    if as_json:
        report = ppl_report(folder, text, content, results, cuts)
        for key, (source, _) in scorers.items():
            report[key] = {
                "source": source,
                "results": [reference.as_dict() for reference in references[key]],
                "differences": differences[key],
            }
        print(json.dumps(report, indent=2))
        return
    show_perplexity(results)
    out = Console()
    for key, what in (("against", "torch"), ("float", "float source")):
        for reference, difference in zip(references.get(key, []), differences.get(key, []), strict=True):
            found = f"{what}, {reference.windows.protocol}: {reference.perplexity:.3f}"
            out.print(f"{found}; the model's perplexity is {_change(**difference)}", highlight=False, soft_wrap=True)


def _change(log_ratio: float, standard_error: float, **_: object) -> str:
    """A ratio of perplexities for people: a percentage while it is one that means something."""
    if abs(log_ratio) < _SMALL:
        return f"{log_ratio:+.2%} ± {standard_error:.2%} from that"
    return f"{math.exp(log_ratio):.2f} times that (log ratio {log_ratio:+.3f} ± {standard_error:.3f})"


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)
