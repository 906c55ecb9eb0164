"""Graphs of iFairy models that no exporter wrote: operators that no other decoder has, given something else than in an export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from test_hostile_load_graph import Change, attribute, node, operand

from fairy2i_export import export
from fairy2i_export.errors import FormatError
from fairy2i_export.output.contract.nodes import read_nodes
from fairy2i_runtime.engine.graph.call import GraphError
from fairy2i_runtime.engine.graph.check import check_graph
from ifairy_models import checkpoint

ACTIVATION = "model.embed_tokens/cast/output"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile")
    return export(checkpoint(root / "model", "B_gqa"), root / "out", backend="matmulnbits").path


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("quantized")
    return export(checkpoint(root / "model", "B_gqa"), root / "out").path


def axes(model: onnx.ModelProto) -> None:
    """The maximum over all values of a token at once."""
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 3]), "other axes"))
    node(model, "ReduceMax").input[1] = "other axes"


def order(last: int) -> Change:
    """Parts of heads, the last of which is another."""

    def change(model: onnx.ModelProto) -> None:
        name = "const/heads_of_4"
        found = next(item for item in model.graph.initializer if item.name == name)
        values = numpy_helper.to_array(found).copy()
        values[-1] = last
        found.CopyFrom(numpy_helper.from_array(values, name))

    return change


def row(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "three"))
    node(model, "Clip").input[1] = "three"


def gate(operator: str, index: int, name: str) -> Change:
    """Like ``operand``, for the operator in the feed-forward block, which the positions have too."""

    def change(model: onnx.ModelProto) -> None:
        found = next(item for item in model.graph.node if item.op_type == operator and "mlp" in item.name)
        found.input[index] = name

    return change


CHANGES: dict[str, tuple[Change, str]] = {
    "Abs of nothing": (operand("Abs", 0, ""), "activation"),
    "Round of a weight": (operand("Round", 0, "lm_head.weight_transposed"), "activation"),
    "Max without its second input": (gate("Max", 1, ""), r"\(Max\)"),
    "Max of values of another width": (gate("Max", 1, ACTIVATION), "fit"),
    "the maximum over other axes": (axes, "last axis"),
    "the maximum without axes": (operand("ReduceMax", 1, ""), "last axis"),
    "Clip without a bound": (operand("Clip", 1, ""), "input 1"),
    "Clip with activations as bounds": (operand("Clip", 2, ACTIVATION), "input 2"),
    "Clip with a row as bound": (row, "input 1"),
    "Less of positions": (gate("Less", 0, "positions/ids/output"), r"\(Less\)"),
    "Less than an activation": (gate("Less", 1, ACTIVATION), "input 1"),
    "a choice by numbers": (gate("Where", 0, ACTIVATION), "condition"),
    "a choice by another condition": (gate("Where", 0, "bias/hidden/output"), "condition"),
    "a choice of nothing": (gate("Where", 2, ""), "activation"),
    "Concat of a weight": (operand("Concat", 1, "lm_head.weight_transposed"), "activation"),
    "Concat along the batch": (attribute("Concat", "axis", 0), "axis"),
    "a part of a head beyond the last": (order(8), "parts from 0 to 7"),
    "a part of a head before the first": (order(-1), "parts from 0 to 7"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_graphs_are_refused(exported: Path, name: str) -> None:
    change, words = CHANGES[name]
    model = onnx.load(exported / "model.onnx", load_external_data=False)
    check_graph(model.SerializeToString(), exported, 64)
    change(model)
    with pytest.raises(GraphError, match=words):
        check_graph(model.SerializeToString(), exported, 64)


def without(model: onnx.ModelProto) -> None:
    found = node(model, "Fairy2iMatMul").attribute
    found.remove(next(item for item in found if item.name == "activation_bits"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without, "activation_bits from 0 to 8, found None"),
        (attribute("Fairy2iMatMul", "activation_bits", 4), "activation_bits 0, or 8 with layout_version 2, found 4"),
        (attribute("Fairy2iMatMul", "layout_version", 1), "activation_bits 0, or 8 with layout_version 2, found 8"),
    ],
)
def test_rounding_is_neither_guessed_nor_passed_over(quantized: Path, change: Change, words: str) -> None:
    model = onnx.load(quantized / "model.onnx", load_external_data=False)
    check_graph(model.SerializeToString(), quantized, 64)
    change(model)
    with pytest.raises(GraphError, match=words):
        check_graph(model.SerializeToString(), quantized, 64)
    assert "Clip" not in {found.op_type for found in model.graph.node}  # the operator does it


def test_a_tool_that_reads_a_node_wants_the_attribute(quantized: Path, tmp_path: Path) -> None:
    model = onnx.load(quantized / "model.onnx")
    without(model)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(FormatError, match="expected an attribute activation_bits"):
        read_nodes(tmp_path / "model.onnx")
