"""Models of one Fairy2iMatMul node with every combination of optional inputs, and what they shall give."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx import ModelProto, TensorProto, helper, numpy_helper

import oracle
from fairy2i_export import pack, quantize
from fairy2i_export.onnx_graph.function import matmul_function
from fairy2i_export.onnx_graph.operator import DOMAIN, INPUTS, OP_NAME, OPSET

OPTIONAL = INPUTS[3:]
N, K, STAGES = 70, 66, 2


@dataclass(frozen=True)
class Case:
    """One way to write the node.

    Attributes:
        given: the optional inputs that are there.
        half: X and bias are float16.
        free: the operands are inputs of the graph, not initializers.
        body: the model carries the function body.
        short: absent inputs at the end are left off; else they have empty names.
    """

    given: tuple[str, ...]
    half: bool
    free: bool
    body: bool
    short: bool

    @property
    def name(self) -> str:
        kinds = ("half" if self.half else "float", "inputs" if self.free else "constants")
        return "-".join(
            ("+".join(self.given) or "none", *kinds, "body" if self.body else "nobody", "short" if self.short else "six")
        )


def cases() -> list[Case]:
    """All of them: 96."""
    subsets = [x for count in range(len(OPTIONAL) + 1) for x in itertools.combinations(OPTIONAL, count)]
    flags = list(itertools.product((False, True), repeat=4))
    # where the last input is given there is nothing to leave off
    return [Case(g, *f) for g in subsets for f in flags if not (f[-1] and OPTIONAL[-1] in g)]


def models() -> Iterator[tuple[Case, ModelProto, dict[str, npt.NDArray[Any]], npt.NDArray[np.float64]]]:
    """Case, model, inputs to feed, expected output ``Y`` in float64."""
    rng = np.random.default_rng(0)
    q = quantize(rng.standard_normal((N, K)), STAGES)
    p = pack(q)
    for case in cases():
        operands: dict[str, npt.NDArray[Any]] = {"packed": p.packed, "scales": p.scales}
        for name in case.given:
            kind = np.float16 if case.half and name == "bias" else np.float32
            operands[name] = rng.uniform(0.5, 2, K if name == "col_multiplier" else N).astype(kind)
        x = rng.standard_normal((3, K)).astype(np.float16 if case.half else np.float32)
        y = x.astype(np.float64) * operands.get("col_multiplier", 1)
        y = y @ oracle.dense(q.codes, q.scales).T * operands.get("row_multiplier", 1) + operands.get("bias", 0)
        yield case, _model(case, operands), {"X": x, **(operands if case.free else {})}, -y


def _model(case: Case, operands: dict[str, npt.NDArray[Any]]) -> ModelProto:
    """The node and one that negates its output, which says nothing of its type."""
    inputs = ["X", *(name if name in operands else "" for name in INPUTS[1:])]
    while case.short and not inputs[-1]:
        inputs.pop()
    attributes = {"K": K, "N": N, "stages": STAGES, "layout_version": 1, "scale_scope": 0}
    node = helper.make_node(OP_NAME, inputs, ["product"], name="node", domain=DOMAIN, **attributes)
    kind = TensorProto.FLOAT16 if case.half else TensorProto.FLOAT
    values = {name: (helper.np_dtype_to_tensor_dtype(array.dtype), array.shape) for name, array in operands.items()}
    graph = helper.make_graph(
        [node, helper.make_node("Neg", ["product"], ["Y"])],
        "node",
        [
            helper.make_tensor_value_info("X", kind, ["rows", K]),
            *(helper.make_tensor_value_info(name, *value) for name, value in values.items() if case.free),
        ],
        [helper.make_tensor_value_info("Y", kind, ["rows", N])],
        [] if case.free else [numpy_helper.from_array(array, name) for name, array in operands.items()],
    )
    functions = [ir.serde.serialize_function(matmul_function())] if case.body else []
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8)
