"""Every Fairy2iMatMul node of a model against the dense float64 product of its own stored codes.

The expected output is computed from the unpacked codes with numpy, so that packing, the C kernels and the node's wiring are
all in the comparison. Two kinds of activations are used: random Gaussian ones, fed to the C library directly, and the real
ones that reach the node when the model reads a text inside onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort

from fairy2i_export.codes.layout import PackedLinear, unpack
from fairy2i_export.codes.quantizer import QuantizedLinear
from fairy2i_export.errors import FormatError
from fairy2i_runtime import core, register
from fairy2i_runtime.engine.session import EXTERNAL_FOLDER_ENTRY, ISA_ENTRY, KERNEL_ENTRY

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
DOMAIN, OP = "ai.fairy2i", "Fairy2iMatMul"
KERNELS = ("exact", "lut")
# relative error per layer (architecture.md, numerics contract)
LIMITS = {("exact", "gaussian"): 1e-5, ("exact", "real"): 1e-5, ("lut", "gaussian"): 0.015, ("lut", "real"): 0.03}
_GAUSSIAN_ROWS = 16  # few outputs of few rows would scatter around the mean error
_ROWS_AT_ONCE = 256  # complex rows dequantized to float64 at a time


@dataclass(frozen=True)
class Node:
    """One operator node: its name (the module's), operands, and the names of its input and output values."""

    name: str
    operands: PackedLinear
    bias: F32 | None
    x: str
    y: str


@dataclass
class LayerResult:
    """Relative errors of one layer by (kernel, kind of activations)."""

    name: str
    shape: tuple[int, int]  # N, K
    errors: dict[tuple[str, str], float] = field(default_factory=dict)

    @property
    def excess(self) -> float:
        """Largest error as a multiple of its limit; above 1 the layer fails. NaN counts as failing."""
        return max(float(np.nan_to_num(error / LIMITS[key], nan=np.inf)) for key, error in self.errors.items())

    @property
    def passed(self) -> bool:
        return self.excess <= 1


def read_nodes(model_file: Path) -> list[Node]:
    """All operator nodes of a model, in graph order; their weights stay mapped.

    Raises:
        FormatError: if there is none, or operands are missing or contradict the format.
    """
    model = ir.load(model_file)
    nodes = [_read_node(node) for node in model.graph if node.domain == DOMAIN and node.op_type == OP]
    if not nodes:
        raise FormatError(
            f"{model_file}: expected {OP} nodes of domain {DOMAIN}, found none; fairy2i-export did not write it, or for "
            "another backend (--backend matmulnbits, dense)"
        )
    return nodes


def _read_node(node: ir.Node) -> Node:
    name = node.name or "(unnamed)"

    def operand(index: int, what: str, required: bool = False) -> Any:
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None and not required:
            return None
        if value is None or value.const_value is None:
            raise FormatError(f"node {name}: expected {what} to be an initializer")
        return value.const_value.numpy()

    def attribute(key: str) -> int:
        if key not in node.attributes:
            raise FormatError(f"node {name}: expected an attribute {key}")
        return int(node.attributes[key].as_int())

    packed = PackedLinear(
        packed=operand(1, "packed", True),
        scales=operand(2, "scales", True),
        n=attribute("N") // 2,
        m=attribute("K") // 2,
        stages=attribute("stages"),
        row_multiplier=operand(4, "row_multiplier"),
        col_multiplier=operand(5, "col_multiplier"),
        layout_version=attribute("layout_version"),
        scale_scope=attribute("scale_scope"),
    )
    x, y = node.inputs[0], node.outputs[0]
    if x is None or x.name is None or y.name is None:
        raise FormatError(f"node {name}: expected a named input X and output Y")
    return Node(name, packed, operand(3, "bias"), x.name, y.name)


def dense_product(q: QuantizedLinear, x: F32, bias: F32 | None) -> F64:
    """``x @ A.T + bias`` in float64, x [rows, 2m]; the matrix is rebuilt a few rows at a time."""
    rows = x.reshape(-1, 2 * q.m).astype(np.float64)
    y = np.empty((rows.shape[0], 2 * q.n))
    for start in range(0, q.n, _ROWS_AT_ONCE):
        part = slice(start, min(start + _ROWS_AT_ONCE, q.n))
        multiplier = None
        if q.row_multiplier is not None:
            multiplier = np.concatenate([q.row_multiplier[part], q.row_multiplier[q.n + part.start : q.n + part.stop]])
        piece = QuantizedLinear(q.codes[:, :, part], q.scales, q.profile, multiplier, q.col_multiplier)
        product = rows @ piece.dequantize("none").astype(np.float64).T
        count = part.stop - part.start
        y[:, part] = product[:, :count]
        y[:, q.n + part.start : q.n + part.stop] = product[:, count:]
    return y if bias is None else y + bias


def relative_error(found: npt.NDArray[Any], expected: F64) -> float:
    """``|found - expected| / |expected|`` over all entries; 0 if both are zero."""
    norm = float(np.linalg.norm(expected))
    error = float(np.linalg.norm(found.reshape(expected.shape) - expected))
    if norm == 0:
        return 0.0 if error == 0 else float("inf")
    return error / norm


def run_with_taps(
    model_file: Path, nodes: list[Node], ids: npt.NDArray[np.int64], kernel: str, isa: str | None
) -> dict[str, tuple[F32, F32]]:
    """Read a text with the model and return (X, Y) of every node by name.

    Args:
        model_file: the exported model.
        nodes: the nodes to listen at.
        ids: token ids [1, length].
        kernel: kernel family.
        isa: ISA to force, or None.
    """
    model = onnx.load(model_file, load_external_data=False)
    wanted = list(dict.fromkeys(name for node in nodes for name in (node.x, node.y)))
    existing = {output.name for output in model.graph.output}
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in wanted if name not in existing
    )
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry(EXTERNAL_FOLDER_ENTRY, str(model_file.parent.resolve()))
    options.add_session_config_entry(KERNEL_ENTRY, kernel)
    if isa:
        options.add_session_config_entry(ISA_ENTRY, isa)
    register(options)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = dict(zip(wanted, session.run(wanted, _feeds(session, ids)), strict=True))
    return {node.name: (values[node.x], values[node.y]) for node in nodes}


def _feeds(session: ort.InferenceSession, ids: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
    """Inputs of a first call: the whole text and an empty key-value cache."""
    feeds: dict[str, npt.NDArray[Any]] = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    for tensor in session.get_inputs():
        if tensor.name.startswith("past_key_values."):
            heads, size = tensor.shape[1], tensor.shape[3]
            dtype = {"tensor(float16)": np.float16, "tensor(int8)": np.int8}.get(tensor.type, np.float32)
            feeds[tensor.name] = np.zeros((ids.shape[0], heads, 0, size), dtype)
    return feeds


def check_layers(
    model_file: Path,
    nodes: list[Node],
    ids: npt.NDArray[np.int64],
    *,
    isa: str | None = None,
    done: Callable[[], None] = lambda: None,
) -> Iterator[LayerResult]:
    """Compare every node, both kernel families, Gaussian and real activations.

    Args:
        model_file: the exported model.
        nodes: its nodes, from :func:`read_nodes`.
        ids: token ids [1, length] of the text that makes the real activations.
        isa: ISA to force, or None.
        done: called after each layer.
    """
    taps = {kernel: run_with_taps(model_file, nodes, ids, kernel, isa) for kernel in KERNELS}
    rng = np.random.default_rng(0)
    for node in nodes:
        p = node.operands
        result = LayerResult(node.name, (2 * p.n, 2 * p.m))
        q = unpack(p)
        gaussian = rng.standard_normal((_GAUSSIAN_ROWS, 2 * p.m)).astype(np.float32)
        expected = dense_product(q, gaussian, node.bias)
        for kernel in KERNELS:
            layer = core.Linear(
                p.packed,
                p.scales,
                2 * p.m,
                2 * p.n,
                row_multiplier=p.row_multiplier,
                col_multiplier=p.col_multiplier,
                kernel=kernel,
                isa=isa,
            )
            result.errors[kernel, "gaussian"] = relative_error(layer(gaussian, node.bias), expected)
            x, y = taps[kernel].pop(node.name)
            result.errors[kernel, "real"] = relative_error(y, dense_product(q, x, node.bias))
        done()
        yield result
