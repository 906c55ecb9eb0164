"""How much of a decoded token is not Fairy2i layers: the same graph with every such layer replaced by a copy of some of its input.

    python benchmarks/decoding/other_nodes.py MODEL --kernel auto [--threads 1 --threads 2] [--into docs/benchmarks.md]

Attention, norms, what else there is between the layers, and handing nodes to threads then take the time that they take, and the
copies little. (onnxruntime's profile says it node by node, but its bookkeeping takes half as long as the nodes of so small a
model.) Both graphs decode in turns, in sessions that end with the turn; medians.
"""

from __future__ import annotations

import gc
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import onnxruntime as ort
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "quality"))

from marked import markdown_table, print_or_put

from fairy2i_runtime import load
from fairy2i_runtime.measure.bench_worker import run_once
from fairy2i_runtime.ops.processor import processor_name

PROMPT = list(range(64))
WIDE = 8  # outputs that are more times the inputs are one value everywhere: lm_head


class Copies:
    """Nodes that take the place of layers, and the constants that they need."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def _constant(self, *values: int) -> str:
        name = "copy_" + "_".join(map(str, values))
        self.constants[name] = onnx.numpy_helper.from_array(np.array(values, np.int64), name)
        return name

    def _first(self, source: str, count: int, target: str) -> None:
        bounds = [self._constant(0), self._constant(count), self._constant(-1)]
        self.nodes.append(onnx.helper.make_node("Slice", [source, *bounds], [target]))

    def add(self, source: str, target: str, inputs: int, outputs: int) -> None:
        """``outputs`` values for a token out of ``inputs``."""
        part = f"{target}/copied"
        if outputs <= inputs:
            self._first(source, outputs, target)
        elif outputs <= WIDE * inputs:
            self.nodes.append(onnx.helper.make_node("Concat", [source] * -(-outputs // inputs), [part], axis=-1))
            self._first(part, outputs, target)
        else:
            self._first(source, 1, part)
            self.nodes.append(onnx.helper.make_node("Expand", [part, self._constant(1, 1, outputs)], [target]))


def without_layers(model: onnx.ModelProto) -> int:
    """Replace the layers of a model; returns how many nodes they were."""
    copies, replaced = Copies(), 0
    for node in model.graph.node:
        if not node.op_type.startswith("Fairy2iMatMul"):
            copies.nodes.append(node)
            continue
        sizes = {found.name: found.i for found in node.attribute}
        outputs = [sizes["N"]] if "N" in sizes else [sizes[f"N_{i}"] for i in range(len(node.output))]
        for target, count in zip(node.output, outputs, strict=True):
            copies.add(node.input[0], target, sizes["K"], count)
        replaced += 1
    del model.graph.node[:]
    model.graph.node.extend(copies.nodes)
    model.graph.initializer.extend(copies.constants.values())
    return replaced


def decode(folder: Path, kernel: str, threads: int, tokens: int) -> float:
    """Milliseconds of a token."""
    decoder = load(folder, kernel=kernel, threads=threads, trust_graph=True).decoder
    run_once(decoder, PROMPT, 4)
    seconds = run_once(decoder, PROMPT, tokens)["decode"]
    del decoder
    gc.collect()  # the threads of a session spin as long as it is there
    return 1000 * seconds / (tokens - 1)


def main(
    folder: Annotated[Path, typer.Argument(help="A folder that fairy2i-export wrote.")],
    kernel: Annotated[str, typer.Option(help="Kernel of the operator library.")] = "auto",
    threads: Annotated[list[int] | None, typer.Option(help="May be repeated; default 1 and 2.")] = None,
    tokens: Annotated[int, typer.Option(min=2, help="To decode in a turn.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Turns.")] = 9,
    into: Annotated[Path | None, typer.Option(help="Markdown file with a place called other-nodes.")] = None,
) -> None:
    """Measure, and print or write a table."""
    if not (folder / "model.onnx").is_file():
        raise typer.BadParameter(f"{folder}: expected a folder that fairy2i-export wrote, found no model.onnx")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    nodes, rows = len(model.graph.node), []
    with tempfile.TemporaryDirectory() as made:
        other = Path(made) / "other"
        shutil.copytree(folder, other)
        layers = without_layers(model)
        onnx.save(model, other / "model.onnx")
        for count in threads or [1, 2]:
            times = [[decode(one, kernel, count, tokens) for one in (folder, other)] for _ in range(rounds)]
            whole, rest = (statistics.median(column) for column in zip(*times, strict=True))
            rows.append([str(count), f"{whole:.2f}", f"{rest:.2f}", f"{whole - rest:.2f}", f"{100 * rest / whole:.0f} %"])
    lines = [
        f"{processor_name()}, onnxruntime {ort.__version__}, kernel {kernel}; milliseconds a token, {rounds} turns.",
        "",
    ]
    heads = ["threads", f"a token, {nodes} nodes", f"without {layers} Fairy2i nodes", "difference", "share of the rest"]
    print_or_put(into, {"other-nodes": [*lines, *markdown_table(heads, rows)]})


if __name__ == "__main__":
    typer.run(main)
