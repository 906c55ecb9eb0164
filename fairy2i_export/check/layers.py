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
import onnxruntime as ort

from fairy2i_export.codes.layout import unpack
from fairy2i_export.codes.quantized import QuantizedLinear
from fairy2i_export.onnx_graph.operator import Node
from fairy2i_runtime.engine.session import open_session
from fairy2i_runtime.ops import core

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
KERNELS = ("exact", "lut")
# relative error per layer (architecture.md, numerics contract)
LIMITS = {("exact", "gaussian"): 1e-5, ("exact", "real"): 1e-5, ("lut", "gaussian"): 0.015, ("lut", "real"): 0.03}
_GAUSSIAN_ROWS = 16  # few outputs of few rows would scatter around the mean error
_ROWS_AT_ONCE = 256  # complex rows dequantized to float64 at a time


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


def dense_product(q: QuantizedLinear, x: F32, bias: F32 | None) -> F64:
    """``x @ A.T + bias`` in float64, x [rows, 2m]; the matrix is rebuilt a few rows at a time."""
    rows = x.reshape(-1, 2 * q.m).astype(np.float64)
    y = np.empty((rows.shape[0], 2 * q.n))
    for start in range(0, q.n, _ROWS_AT_ONCE):
        part = slice(start, min(start + _ROWS_AT_ONCE, q.n))
        product = rows @ q.rows((part.start, part.stop)).dequantize("none").astype(np.float64).T
        count = part.stop - part.start
        y[:, part] = product[:, :count]
        y[:, q.n + part.start : q.n + part.stop] = product[:, count:]
    return y if bias is None else y + bias


def output_error(found: npt.NDArray[Any], expected: F64) -> float:
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
    session = open_session(model.SerializeToString(), folder=model_file.parent, kernel=kernel, isa=isa)
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
        nodes: its nodes, from :func:`fairy2i_export.check.nodes.read_nodes`.
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
            result.errors[kernel, "gaussian"] = output_error(layer(gaussian, node.bias), expected)
            x, y = taps[kernel].pop(node.name)
            result.errors[kernel, "real"] = output_error(y, dense_product(q, x, node.bias))
        done()
        yield result
