"""``fairy2i ppl`` with ``--against SOURCE``: the same windows also through torch, with the same quantized weights."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from fairy2i_export.check.layers import read_nodes
from fairy2i_export.check.source_weights import SourceWeights, model_logits, torch_is_installed, torch_model
from fairy2i_export.errors import OptionError
from fairy2i_export.source.hub import open_source
from fairy2i_runtime import Model, load
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
from fairy2i_runtime.measure.perplexity import Perplexity, Scorer, model_scorer
from fairy2i_runtime.measure.scoring import F64, token_log_probs


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
        raise OptionError("--against needs torch and transformers: pip install 'fairy2i-export[train]', or leave it out")
    content = read_text(text)
    model = load(folder, threads=threads, kernel=kernel, isa=isa)
    cuts = cut_text(model, content, protocol, window, stride, separator, tokens)
    scorer = None if against is None else _torch_scorer(model, against)  # before the work: it may find fault with SOURCE
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


def paired_difference(found: Perplexity, reference: Perplexity) -> dict[str, Any]:
    """log(perplexity / reference perplexity) and its standard error, from the differences token by token."""
    difference = reference.log_probs - found.log_probs
    count = len(difference)
    error = float(difference.std(ddof=1) * np.sqrt(count)) / found.windows.denominator if count > 1 else 0.0
    return {
        "protocol": found.windows.protocol,
        "log_ratio": float(difference.sum()) / found.windows.denominator,
        "standard_error": error,
    }


def _torch_scorer(model: Model, against: str) -> Scorer:
    checkpoint = open_source(against)
    source = SourceWeights(checkpoint, model.metadata)
    stated = model.metadata.get("fairy2i.source_sha256")
    if stated and stated != checkpoint.sha256():
        print(f"note: the model was exported from other files than those of {against}", file=sys.stderr)
    if source.calibrated:
        print("note: the model was calibrated: torch multiplies by the model's own dequantized layers", file=sys.stderr)
    twin = torch_model(source, read_nodes(model.folder.model_file))

    def score(ids: Sequence[int]) -> F64:
        array = np.asarray(ids, np.int64)
        return token_log_probs(model_logits(twin, array[:-1]), array[1:])

    return score
