"""The command ``fairy2i inspect DIR|model.onnx``."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fairy2i_export.errors import OptionError
from fairy2i_export.output.sizes import human_bytes
from fairy2i_runtime.commands.display import progress_bar
from fairy2i_runtime.commands.measure import Json
from fairy2i_runtime.commands.tables import print_table
from fairy2i_runtime.measure.memory import memory_rows

if TYPE_CHECKING:  # onnx and numpy take a while to import, and --help needs neither
    import numpy as np

    from fairy2i_export.check.facts import ModelFacts
    from fairy2i_export.check.layer_facts import LayerFacts

_CODES = ("1", "i", "-1", "-i")
_BARS = " ▁▂▃▄▅▆▇█"


def inspect_command(
    path: Annotated[Path, typer.Argument(metavar="DIR|model.onnx", help="Model folder, or an .onnx file with its data.")],
    layers: Annotated[
        list[str] | None,
        typer.Option("--layers", metavar="GLOB", help="Show layers with such names; may be repeated.", show_default="all"),
    ] = None,
    context_length: Annotated[
        int | None, typer.Option(metavar="N", help="Context to tell the memory for.", show_default="the model's own")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what an exported model holds: layers, scales, codes, sizes, metadata, memory. Nothing is executed."""
    from fairy2i_export.check.facts import checked_context, model_facts, open_nodes
    from fairy2i_export.check.layer_facts import layer_facts

    model_file, known, nodes = open_nodes(path)
    facts = model_facts(model_file, checked_context(context_length, known))
    wanted = [node for node in nodes if not layers or any(fnmatchcase(node.name, pattern) for pattern in layers)]
    if not wanted:
        raise OptionError(
            f"--layers {' '.join(layers or ())}: no layer has such a name; they are called like {nodes[0].name}"
        )
    with progress_bar("layers", len(wanted), "layers") as advance:
        found = list(layer_facts(wanted, lambda: advance(1)))
    if as_json:
        print(
            json.dumps(
                {**facts.as_dict(), "totals": totals(found), "layers": [layer.as_dict() for layer in found]}, indent=2
            )
        )
        return
    out = Console()
    _show_layers(out, found)
    _show_stages(out, found)
    _show_codes(out, found)
    _show_model(out, facts)


def totals(layers: list[LayerFacts]) -> dict[str, float]:
    """Sums over layers."""
    stored, parameters = sum(layer.stored_bytes for layer in layers), sum(layer.parameters for layer in layers)
    return {"layers": len(layers), "parameters": parameters, "bytes": stored, "bits_per_weight": 8 * stored / parameters}


def histogram(counts: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> str:
    """Four bars, one per code; a full bar is half of all codes, so that equal shares are half-high."""
    share = counts / counts.sum()
    return "".join(_BARS[min(8, round(16 * float(value)))] for value in share)


def _show_layers(out: Console, layers: list[LayerFacts]) -> None:
    table = Table(title="Fairy2iMatMul layers", box=SIMPLE, pad_edge=False)
    table.add_column("layer")
    table.add_column("N x K", justify="right")
    table.add_column("scale\nper stage")
    table.add_column("codes\nper stage")
    table.add_column("bits/\nweight", justify="right")
    table.add_column("bytes", justify="right")
    for layer in layers:
        table.add_row(
            escape(layer.name.removeprefix("model.layers.")),
            f"{layer.shape[0]}x{layer.shape[1]}",
            " ".join(f"{value:.2g}" for value in layer.stage_scales),
            " ".join(histogram(stage.sum(axis=0)) for stage in layer.code_counts),
            f"{layer.bits_per_weight:.3f}",
            f"{layer.stored_bytes:,}",
        )
    summed = totals(layers)
    table.add_section()
    table.add_row(
        f"{summed['layers']} layers",
        f"{summed['parameters']:,} weights",
        "",
        "",
        f"{summed['bits_per_weight']:.3f}",
        f"{summed['bytes']:,}",
    )
    print_table(out, table)
    out.print(
        "scale: root mean square of the four scales of a stage (U, W; real, imaginary; --json has all). codes: how often 1, i, "
        "-1, -i occur; half-high bars are equal shares. bytes: codes with padding, scales, multipliers.",
        highlight=False,
    )
    rounding = sum(layer.activation_bits != 0 for layer in layers)
    if rounding:
        out.print(f"{rounding} of {len(layers)} layers round their inputs to 8 bits, as they were trained.", highlight=False)


def _show_stages(out: Console, layers: list[LayerFacts]) -> None:
    """Who has how many stages, where they differ."""
    from fairy2i_export.onnx_graph.stage_map import average_bits, kinds_of_layers

    stages, parameters = {x.name: x.stages for x in layers}, {x.name: x.parameters for x in layers}
    numbers = sorted(set(stages.values()))
    if len(numbers) == 1:
        return
    table = Table(title="\nStages by kind of layer", box=SIMPLE, pad_edge=False)
    table.add_column("kind")
    for number in numbers:
        table.add_column(f"{number} stage{'s' * (number > 1)}", justify="right")
    table.add_column("mean bits", justify="right")
    table.add_column("layer by layer")
    for kind in kinds_of_layers(stages, parameters):
        counts = (str(kind.counts.get(number, "")) for number in numbers)
        table.add_row(escape(kind.kind), *counts, f"{kind.bits:.3f}", kind.by_layer)
    table.add_section()
    counts = (str(list(stages.values()).count(number)) for number in numbers)
    table.add_row("all", *counts, f"{average_bits(stages, parameters):.3f}", "")
    print_table(out, table)


def _show_codes(out: Console, layers: list[LayerFacts]) -> None:
    """Shares of the codes over all shown layers, per stage."""
    import numpy as np

    deepest = max(layer.stages for layer in layers)
    table = Table(title="\nCodes over all layers shown", box=SIMPLE, pad_edge=False)
    table.add_column("plane")
    for code in _CODES:
        table.add_column(code, justify="right")
    table.add_column("bits per code", justify="right")
    for stage in range(deepest):
        for matrix, letter in enumerate("UW"):
            counts = np.sum([layer.code_counts[stage, matrix] for layer in layers if layer.stages > stage], axis=0)
            if not counts.any():  # of a U that no layer has
                continue
            share = counts / counts.sum()
            entropy = -(share * np.log2(np.maximum(share, 1e-300))).sum()
            table.add_row(f"{letter}{stage}", *(f"{value:.1%}" for value in share), f"{entropy:.4f}")
    print_table(out, table)


def _show_model(out: Console, facts: ModelFacts) -> None:
    from fairy2i_export.onnx_graph.stage_map import STAGES_MAP_KEY
    from fairy2i_export.output.metadata import without_prefix

    table = Table(title=escape(f"{facts.model_file}, by {facts.producer}"), show_header=False, box=SIMPLE)
    table.add_column()
    table.add_column()
    for key, value in facts.metadata.items():
        if without_prefix(key) == STAGES_MAP_KEY:  # shown as a table
            continue
        table.add_row(escape(without_prefix(key)), escape(value))
    table.add_row(
        "logits", "of all tokens, or of as many last ones as a host asks for" if facts.selects else "of all tokens"
    )
    table.add_row("operator sets", escape(", ".join(f"{domain} {version}" for domain, version in facts.opsets.items())))
    table.add_section()
    for kind, size in facts.tensor_bytes.items():
        table.add_row(kind, f"{human_bytes(size)} ({size:,})")
    table.add_section()
    for name, size in facts.files.items():
        table.add_row(escape(name), f"{size:,} bytes")
    memory, context = facts.memory, facts.context_length
    table.add_section()
    if memory is None or context is None:
        table.add_row("memory", "unknown: the file does not say how long the context is (--context-length)")
    else:
        own = sum(memory.get(part, 0) for part in ("weights_mapped", "weights_copied", "kv_cache", "logits"))
        table.add_row("memory (estimated)", f"{human_bytes(own)} at {context:,} tokens without activations and program")
        for row in memory_rows(memory, context):
            table.add_row(*row)
    print_table(out, table)
