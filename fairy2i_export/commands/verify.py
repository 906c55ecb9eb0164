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
from rich.table import Table

import fairy2i_runtime
from fairy2i_export.check.source_weights import SourceWeights, is_rounded, torch_logits
from fairy2i_export.errors import CheckpointError, OptionError
from fairy2i_export.onnx_graph.operator import Node
from fairy2i_export.output.contract.kernels import REFERENCE, Judgement, judge_kernels
from fairy2i_export.output.contract.layers import LIMITS, LayerResult
from fairy2i_export.output.contract.logits import LogitsComparison, compare
from fairy2i_export.output.contract.nodes import read_nodes
from fairy2i_export.source.hub import open_source
from fairy2i_export.source.sample_text import DEFAULT_TEXT
from fairy2i_export.source.transformers_model import torch_is_installed
from fairy2i_runtime.commands.display import progress_bar
from fairy2i_runtime.ops import core

FAILED = 1
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
    ids = _text_ids(model, text, tokens)
    model_file = model.folder.model_file
    nodes = read_nodes(model_file)
    problems: list[str] = []
    with progress_bar("layers", len(nodes)) as advance:
        found = judge_kernels(model_file, nodes, ids, isa=isa, done=lambda: advance(1))
    default = core.chosen_kernel(model.folder.kernel_to_run(None), None).family
    _show_layers(out, found, show_all)
    problems += _kernel_problems(out, found, default)
    comparisons = {f"{name} : {REFERENCE}": v.comparison for name, v in found.verdicts.items() if v.comparison is not None}
    if against is not None:
        problems += _check_source(out, model, nodes, against, ids, found.logits, comparisons)
    _show_logits(out, comparisons, len(ids))

    if problems:
        out.print("[bold red]FAILED[/]: " + "; ".join(problems), soft_wrap=True)
        return FAILED
    verdict = found.verdicts.get(default) or next(iter(found.verdicts.values()))
    out.print(
        f"[bold green]OK[/]: {verdict.layers} layers within the limits by kernel {verdict.kernel}; the worst is {verdict.worst}",
        soft_wrap=True,
    )
    return 0


def _text_ids(model: fairy2i_runtime.Model, text: Path | None, tokens: int) -> npt.NDArray[np.int64]:
    try:
        content = DEFAULT_TEXT if text is None else text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"--text {text}: expected a UTF-8 text file: {error}") from error
    ids = np.array(model.tokenizer.encode(content)[: min(tokens, model.context_length)], np.int64)
    if len(ids) < 2:
        raise OptionError(f"--text {text}: expected at least 2 tokens, found {len(ids)}")
    return ids


def _check_source(
    out: Console,
    model: fairy2i_runtime.Model,
    nodes: list[Node],
    against: str,
    ids: npt.NDArray[np.int64],
    logits: dict[str, npt.NDArray[np.float32]],
    comparisons: dict[str, LogitsComparison],
) -> list[str]:
    """Codes against the source's, and logits against torch where it is installed."""
    problems = []
    checkpoint = open_source(against)
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
    for kernel, found in logits.items():
        comparisons[f"{kernel} : torch"] = compare(found, reference, ids)
    against_torch = comparisons[f"{REFERENCE} : torch"]
    if is_rounded(source):
        out.print("[yellow]note[/]: embedding, lm_head or cache have fewer bits than in the source: logits may differ")
    elif against_torch.relative_error > LOGITS_LIMIT or against_torch.top1_agreement < TOP1_LIMIT:
        problems.append(
            f"logits of exact mode differ from torch's by {against_torch.relative_error:.1e} (limit {LOGITS_LIMIT}), the most "
            f"likely token agrees at {against_torch.top1_agreement:.1%} of the positions (limit {TOP1_LIMIT:.0%})"
        )
    return problems


def _kernel_problems(out: Console, found: Judgement, default: str) -> list[str]:
    """What is wrong with exact mode and with the kernel that runs if nobody chooses one; of others the user is told."""
    problems = []
    for name, verdict in found.verdicts.items():
        if verdict.holds:
            continue
        text = f"kernel {name}: {'; '.join(verdict.problems)}"
        if name in (default, REFERENCE):
            problems.append(text)
        else:
            out.print(f"[yellow]note[/]: {text}. This model runs {default} unless another is chosen", soft_wrap=True)
    own = found.verdicts.get(default)
    others = [name for name in found.holding if name != default]
    if own is not None and not own.holds and others:
        out.print(
            f"[yellow]advice[/]: within the limits is {' and '.join(others)}: run it with --kernel {others[0]} (in other hosts "
            f"FAIRY2I_KERNEL={others[0]}). A conversion with --calibrate finds that out by itself and writes it into the folder",
            soft_wrap=True,
        )
    return problems


def _show_layers(out: Console, found: Judgement, show_all: bool) -> None:
    results = found.layers

    def worst(result: LayerResult) -> float:
        return max(result.excess(kernel) for kernel in found.verdicts)

    shown = results if show_all else sorted(results, key=worst, reverse=True)[:_ROWS_SHOWN]
    which = f"{len(results)} layers" if len(shown) == len(results) else f"the {len(shown)} worst of {len(results)} layers"
    table = Table(
        title=f"Relative error against float64, Gaussian and real activations: {which}", title_justify="left", box=SIMPLE
    )
    table.add_column("layer", overflow="fold")
    table.add_column("N x K", justify="right")
    limits = {key: limit for key, limit in LIMITS.items() if key[0] in found.verdicts}
    for kernel, kind in limits:
        table.add_column(f"{kernel}\n{kind}", justify="right", no_wrap=True)
    for result in shown:
        cells = []
        for key, limit in limits.items():
            error = result.errors[key]
            cells.append(f"{error:.1e}" if error <= limit else f"[bold red]{error:.1e}[/]")
        table.add_row(result.name, f"{result.shape[0]}x{result.shape[1]}", *cells)
    table.add_section()
    table.add_row("limit", "", *(f"{limit:.1e}" for limit in limits.values()))
    out.print(table)


def _show_logits(out: Console, comparisons: dict[str, LogitsComparison], tokens: int) -> None:
    table = Table(title=f"Logits over {tokens} tokens", title_justify="left", box=SIMPLE)
    table.add_column("")
    for heading in ("relative\nerror", "same most\nlikely token", "mean KL\n(nats)", "perplexity", "its change"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, r in comparisons.items():
        table.add_row(
            name,
            f"{r.relative_error:.1e}",
            f"{r.top1_agreement:.1%}",
            f"{r.mean_kl:.1e}",
            f"{r.perplexity:.3f} :\n{r.reference_perplexity:.3f}",
            f"{r.log_ratio:+.2%}\n± {r.perplexity_error:.2%}",
        )
    out.print(table)
