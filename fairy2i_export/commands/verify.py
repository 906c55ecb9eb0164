"""The command ``fairy2i verify DIR [--against SOURCE]``.

Exit code 0: everything is within the limits; 1: something is not, and the worst layer is named; 2: it could not be checked.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fairy2i_export.errors import OptionError
from fairy2i_runtime.commands.measure import Json, read_text
from fairy2i_runtime.commands.options import TrustGraph

if TYPE_CHECKING:  # onnx and numpy take a while to import, and --help needs neither
    from rich.console import Console

    from fairy2i_export.check.verification import Verification
    from fairy2i_export.output.contract.layers import LayerResult

FAILED = 1
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
    integrity: Annotated[
        bool,
        typer.Option("--integrity", help="Only compare the files with their hashes, as they were exported (SHA256SUMS)."),
    ] = False,
    trust_graph: TrustGraph = False,
    as_json: Json = False,
) -> int:
    """Check an exported model: every layer's kernel against a float64 product, the modes against each other, and the source."""
    if integrity:
        return _check_files(folder, as_json)
    if tokens < 2:
        raise OptionError(f"--tokens: expected at least 2, got {tokens}")
    content = None if text is None else read_text(text)
    from fairy2i_export.check.verification import verify
    from fairy2i_runtime.commands.display import progress_bar

    found = verify(folder, against, content, tokens, isa, progress_bar, trust_graph=trust_graph)
    if as_json:
        print(json.dumps(found.as_dict(), indent=2))
    else:
        _show(found, show_all)
    return FAILED if found.problems else 0


def _check_files(folder: Path, as_json: bool) -> int:
    from fairy2i_runtime.engine.integrity import integrity_problems

    problems, count = integrity_problems(folder)
    if as_json:
        print(json.dumps({"model": str(folder), "passed": not problems, "files": count, "problems": problems}, indent=2))
    elif problems:
        print(f"FAILED: {'; '.join(problems)}")
    else:
        print(f"OK: {count} files are as they were exported")
    return FAILED if problems else 0


def _show(found: Verification, show_all: bool) -> None:
    from rich.console import Console
    from rich.markup import escape

    out = Console()
    _show_layers(out, found, show_all)
    for word, texts in (("note", found.notes), ("advice", found.advice)):
        for text in texts:
            out.print(f"[yellow]{word}[/]: {escape(text)}", soft_wrap=True)
    if found.differing == []:
        out.print(
            f"codes and scales of all {len(found.kernels.layers)} layers equal those of {found.source}", soft_wrap=True
        )
    _show_logits(out, found)
    if found.problems:
        out.print("[bold red]FAILED[/]: " + escape("; ".join(found.problems)), soft_wrap=True)
        return
    verdicts = found.kernels.verdicts
    verdict = verdicts.get(found.default) or next(iter(verdicts.values()))
    out.print(
        f"[bold green]OK[/]: {verdict.layers} layers within the limits by kernel {verdict.kernel}; the worst is {verdict.worst}",
        soft_wrap=True,
    )


def _show_layers(out: Console, found: Verification, show_all: bool) -> None:
    from rich.box import SIMPLE
    from rich.table import Table

    from fairy2i_export.output.contract.layers import LIMITS
    from fairy2i_runtime.commands.tables import print_table

    results, verdicts = found.kernels.layers, found.kernels.verdicts

    def worst(result: LayerResult) -> float:
        return max(result.excess(kernel) for kernel in verdicts)

    shown = results if show_all else sorted(results, key=worst, reverse=True)[:_ROWS_SHOWN]
    which = f"{len(results)} layers" if len(shown) == len(results) else f"the {len(shown)} worst of {len(results)} layers"
    table = Table(title=f"Relative error against float64, Gaussian and real activations: {which}", box=SIMPLE)
    table.add_column("layer")
    table.add_column("N x K", justify="right")
    limits = {key: limit for key, limit in LIMITS.items() if key[0] in verdicts}
    for kernel, kind in limits:
        table.add_column(f"{kernel}\n{kind}", justify="right")
    for result in shown:
        cells = []
        for key, limit in limits.items():
            error = result.errors[key]
            cells.append(f"{error:.1e}" if error <= limit else f"[bold red]{error:.1e}[/]")
        table.add_row(result.name, f"{result.shape[0]}x{result.shape[1]}", *cells)
    table.add_section()
    table.add_row("limit", "", *(f"{limit:.1e}" for limit in limits.values()))
    print_table(out, table)


def _show_logits(out: Console, found: Verification) -> None:
    from rich.box import SIMPLE
    from rich.table import Table

    from fairy2i_runtime.commands.tables import print_table

    table = Table(title=f"Logits over {found.tokens} tokens", box=SIMPLE)
    table.add_column("")
    for heading in ("relative\nerror", "same most\nlikely token", "mean KL\n(nats)", "perplexity", "its change"):
        table.add_column(heading, justify="right")
    for (kernel, reference), r in found.logits.items():
        table.add_row(
            f"{kernel} : {reference}",
            f"{r.relative_error:.1e}",
            f"{r.top1_agreement:.1%}",
            f"{r.mean_kl:.1e}",
            f"{r.perplexity:.3f} :\n{r.reference_perplexity:.3f}",
            f"{r.log_ratio:+.2%}\n± {r.perplexity_error:.2%}",
        )
    print_table(out, table)
