"""The command ``fairy2i verify DIR [--against SOURCE]``.

Exit code 0: everything is within the limits; 1: something is not, and the worst layer is named; 2: it could not be checked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import fairy2i_runtime
from fairy2i_export.check.layers import LIMITS, LayerResult, check_layers
from fairy2i_export.check.logits import LogitsComparison, compare
from fairy2i_export.check.nodes import read_nodes
from fairy2i_export.check.source_weights import SourceWeights, is_rounded, torch_logits
from fairy2i_export.errors import CheckpointError, OptionError
from fairy2i_export.onnx_graph.operator import Node
from fairy2i_export.source.hub import open_source
from fairy2i_export.source.sample_text import DEFAULT_TEXT, mostly_unknown, random_ids
from fairy2i_export.source.transformers_model import torch_is_installed
from fairy2i_runtime.commands.display import progress_bar

FAILED = 1
PERPLEXITY_LIMIT = 0.005  # |log ratio| of default mode to exact mode
LOGITS_LIMIT = 1e-3  # relative error of exact mode against torch, weights alike
TOP1_LIMIT = 0.99
_ROWS_SHOWN = 5


def verify_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder written by fairy2i-export.")],
    against: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="The checkpoint it was exported from: also compare the codes with it and, if torch and transformers "
            "are installed, the logits.",
        ),
    ] = None,
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text to run through the model (a short one is built in).")
    ] = None,
    tokens: Annotated[int, typer.Option(metavar="N", help="Use at most this many tokens of the text.")] = 256,
    isa: Annotated[str | None, typer.Option(help="Force an instruction set, such as scalar or avx2.")] = None,
    show_all: Annotated[bool, typer.Option("--all", help="Show every layer, not only the worst ones.")] = False,
) -> int:
    """Check an exported model: every layer's kernel against a float64 product, the modes against each other, and the source."""
    if tokens < 2:
        raise OptionError(f"--tokens: expected at least 2, got {tokens}")
    out = Console()
    model = fairy2i_runtime.load(folder, kernel="exact", isa=isa)
    ids = _text_ids(out, model, text, tokens)
    model_file = model.folder.model_file
    nodes = read_nodes(model_file)
    problems: list[str] = []

    with progress_bar("layers", len(nodes)) as advance:
        results = list(check_layers(model_file, nodes, ids[None], isa=isa, done=lambda: advance(1)))
    _show_layers(out, results, show_all)
    worst = max(results, key=lambda result: result.excess)
    if not worst.passed:
        failing = sum(not result.passed for result in results)
        problems.append(f"{failing} of {len(results)} layers exceed the limits; the worst is {worst.name}")

    exact = model.logits(ids.tolist())
    lut = fairy2i_runtime.load(folder, kernel="lut", isa=isa).logits(ids.tolist())
    comparisons = {"lut : exact": compare(lut, exact, ids)}
    problems += _judge_modes(comparisons["lut : exact"])
    if against is not None:
        problems += _check_source(out, model, nodes, against, ids, exact, lut, comparisons)
    _show_logits(out, comparisons, len(ids))

    if problems:
        out.print("[bold red]FAILED[/]: " + "; ".join(problems), soft_wrap=True)
        return FAILED
    out.print(f"[bold green]OK[/]: {len(results)} layers within the limits; the worst is {worst.name}", soft_wrap=True)
    return 0


def _text_ids(out: Console, model: fairy2i_runtime.Model, text: Path | None, tokens: int) -> npt.NDArray[np.int64]:
    try:
        content = DEFAULT_TEXT if text is None else text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"--text {text}: expected a UTF-8 text file: {error}") from error
    count, tokenizer = min(tokens, model.context_length), model.folder.path / "tokenizer.json"
    ids = model.tokenizer.encode(content)[:count]
    if mostly_unknown(tokenizer, ids):
        known = "the tokenizer does not know the words of the built-in text: random tokens are used instead"
        if text is not None:
            known = f"--text {escape(str(text))}: the tokenizer knows few of its words, so it shows little of the model"
        out.print(f"[yellow]note[/]: {known}", soft_wrap=True)
        if text is None:
            return random_ids(tokenizer, ids, count)
    if len(ids) < 2:
        raise OptionError(f"--text {text}: expected at least 2 tokens, found {len(ids)}")
    return np.array(ids, np.int64)


def _check_source(
    out: Console,
    model: fairy2i_runtime.Model,
    nodes: list[Node],
    against: str,
    ids: npt.NDArray[np.int64],
    exact: npt.NDArray[np.float32],
    lut: npt.NDArray[np.float32],
    comparisons: dict[str, LogitsComparison],
) -> list[str]:
    """Codes against the source's, and logits against torch where it is installed."""
    problems = []
    checkpoint = open_source(against)
    for note in checkpoint.notes:
        out.print(f"[yellow]note[/]: {escape(note)}", soft_wrap=True)
    source = SourceWeights(checkpoint, model.metadata)
    if source.is_other:
        out.print("[yellow]note[/]: the model was exported from other files than these (fairy2i.source_sha256 differs)")
    with progress_bar("source", len(nodes)) as advance:
        # codes that are taken from the model would be compared with themselves
        differing = [] if source.note else list(source.differing(nodes, lambda: advance(1)))
    if source.note:
        out.print(f"[yellow]note[/]: {source.note}", soft_wrap=True)
    elif differing:
        name, reason = differing[0]
        problems.append(f"{len(differing)} of {len(nodes)} layers differ from the source, the first is {name}: {reason}")
    else:
        out.print(f"codes and scales of all {len(nodes)} layers equal those of {checkpoint.name}")
    if not torch_is_installed():
        out.print(
            "[yellow]note[/]: logits were not compared with the source: that needs torch and transformers (extra 'train')"
        )
        return problems
    if "model.embed_tokens.weight" not in checkpoint:
        raise CheckpointError(f"{checkpoint.directory}: expected a tensor model.embed_tokens.weight, found none")
    reference = torch_logits(source, nodes, ids)
    comparisons["exact : torch"] = against_torch = compare(exact, reference, ids)
    comparisons["lut : torch"] = compare(lut, reference, ids)
    if is_rounded(source):
        out.print("[yellow]note[/]: embedding, lm_head or cache have fewer bits than in the source: logits may differ")
    elif against_torch.relative_error > LOGITS_LIMIT or against_torch.top1_agreement < TOP1_LIMIT:
        problems.append(
            f"logits of exact mode differ from torch's by {against_torch.relative_error:.1e} (limit {LOGITS_LIMIT}), the most "
            f"likely token agrees at {against_torch.top1_agreement:.1%} of the positions (limit {TOP1_LIMIT:.0%})"
        )
    return problems


def _judge_modes(result: LogitsComparison) -> list[str]:
    """Default mode must not cost perplexity: beyond the limit by more than twice what chance explains on this text."""
    if abs(result.log_ratio) <= PERPLEXITY_LIMIT + 2 * result.perplexity_error:
        return []
    return [
        f"perplexity of default mode is {result.perplexity:.3f}, of exact mode {result.reference_perplexity:.3f}: "
        f"{result.log_ratio:+.2%} (limit {PERPLEXITY_LIMIT:.1%}, standard error {result.perplexity_error:.2%})"
    ]


def _show_layers(out: Console, results: list[LayerResult], show_all: bool) -> None:
    shown = results if show_all else sorted(results, key=lambda result: -result.excess)[:_ROWS_SHOWN]
    which = f"{len(results)} layers" if len(shown) == len(results) else f"the {len(shown)} worst of {len(results)} layers"
    table = Table(
        title=f"Relative error against float64, Gaussian and real activations: {which}", title_justify="left", box=SIMPLE
    )
    table.add_column("layer", overflow="fold")
    table.add_column("N x K", justify="right")
    for kernel, kind in LIMITS:
        table.add_column(f"{kernel}\n{kind}", justify="right", no_wrap=True)
    for result in shown:
        cells = []
        for key, limit in LIMITS.items():
            error = result.errors[key]
            cells.append(f"{error:.1e}" if error <= limit else f"[bold red]{error:.1e}[/]")
        table.add_row(result.name, f"{result.shape[0]}x{result.shape[1]}", *cells)
    table.add_section()
    table.add_row("limit", "", *(f"{limit:.1e}" for limit in LIMITS.values()))
    out.print(table)


def _show_logits(out: Console, comparisons: dict[str, LogitsComparison], tokens: int) -> None:
    table = Table(title=f"Logits over {tokens} tokens", title_justify="left", box=SIMPLE)
    table.add_column("")
    for name in comparisons:
        table.add_column(name, justify="right")
    results = list(comparisons.values())
    table.add_row("relative error", *(f"{r.relative_error:.1e}" for r in results))
    table.add_row("same most likely token", *(f"{r.top1_agreement:.1%}" for r in results))
    table.add_row("mean KL divergence (nats)", *(f"{r.mean_kl:.1e}" for r in results))
    table.add_row("perplexity", *(f"{r.perplexity:.3f} : {r.reference_perplexity:.3f}" for r in results))
    table.add_row("  its difference", *(f"{r.log_ratio:+.2%} ± {r.perplexity_error:.2%}" for r in results))
    out.print(table)
