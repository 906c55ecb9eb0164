"""Every Fairy2iMatMul node of a model, by every kernel, against the dense float64 product of its own stored codes.

The expected output is computed from the unpacked codes with numpy, so that packing, the C kernels and the node's wiring are
all in the comparison. Two kinds of activations are used: random Gaussian ones, fed to the C library directly, and the real
ones that reach the node when the model reads a text inside onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from fairy2i_export.codes.layout import unpack
from fairy2i_export.codes.quantized import QuantizedLinear
from fairy2i_export.codes.rounding import rounded_activations
from fairy2i_export.onnx_graph.operator import Node
from fairy2i_runtime.engine.session import open_session
from fairy2i_runtime.ops import core

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
KERNELS = ("exact", "lut", "dot")
# relative error per layer (architecture.md, numerics contract)
_ROUNDED = {"gaussian": 0.015, "real": 0.03}  # 8-bit tables or activations
LIMITS = {
    (kernel, kind): limit
    for kernel, limits in {"exact": {"gaussian": 1e-5, "real": 1e-5}, "lut": _ROUNDED, "dot": _ROUNDED}.items()
    for kind, limit in limits.items()
}
LOGITS = "logits"  # output of every exported model
_GAUSSIAN_ROWS = 16  # few outputs of few rows would scatter around the mean error
_ROWS_AT_ONCE = 256  # complex rows dequantized to float64 at a time
_TAPPED_BYTES = (
    1 << 28
)  # activations of this size are kept for each kernel, and the model is run again for those of more layers


@dataclass
class LayerResult:
    """Relative errors of one layer by (kernel, kind of activations)."""

    name: str
    shape: tuple[int, int]  # N, K
    errors: dict[tuple[str, str], float] = field(default_factory=dict)

    def excess(self, kernel: str) -> float:
        """Largest error of a kernel as a multiple of its limit; above 1 the layer fails. NaN counts as failing."""
        found = [error / LIMITS[key] for key, error in self.errors.items() if key[0] == kernel]
        return max(float(np.nan_to_num(value, nan=np.inf)) for value in found)

    def passed(self, kernel: str) -> bool:
        return self.excess(kernel) <= 1


def dense_product(q: QuantizedLinear, x: F32, bias: F32 | None) -> F64:
    """``x @ A.T + bias`` in float64, x [rows, 2m]."""
    return dense_products(q, [x], bias)[0]


def dense_products(q: QuantizedLinear, xs: Sequence[F32], bias: F32 | None) -> list[F64]:
    """:func:`dense_product` of several x at once: the matrix is rebuilt once, a few rows at a time."""
    lengths = np.cumsum([x.size // (2 * q.m) for x in xs])
    rows = np.concatenate([x.reshape(-1, 2 * q.m) for x in xs]).astype(np.float64)
    y = np.empty((rows.shape[0], 2 * q.n))
    for start in range(0, q.n, _ROWS_AT_ONCE):
        part = slice(start, min(start + _ROWS_AT_ONCE, q.n))
        product = rows @ q.rows((part.start, part.stop)).dequantize("none").astype(np.float64).T
        count = part.stop - part.start
        y[:, part] = product[:, :count]
        y[:, q.n + part.start : q.n + part.stop] = product[:, count:]
    return np.split(y if bias is None else y + bias, lengths[:-1])


def output_error(found: npt.NDArray[Any], expected: F64) -> float:
    """``|found - expected| / |expected|`` over all entries; 0 if both are zero."""
    norm = float(np.linalg.norm(expected))
    error = float(np.linalg.norm(found.reshape(expected.shape) - expected))
    if norm == 0:
        return 0.0 if error == 0 else float("inf")
    return error / norm


def run_with_taps(
    model_file: Path, nodes: Sequence[Node], ids: npt.NDArray[np.int64], kernel: str, isa: str | None
) -> dict[str, tuple[F32, F32]]:
    """Read a text with the model and return (X, Y) of every node by name.

    Args:
        model_file: the exported model.
        nodes: the nodes to listen at.
        ids: token ids [1, length].
        kernel: kernel family.
        isa: ISA to force, or None.
    """
    wanted = list(dict.fromkeys(name for node in nodes for name in (node.x, node.y)))
    values = dict(zip(wanted, _run(model_file, wanted, ids, kernel, isa), strict=True))
    return {node.name: (values[node.x], values[node.y]) for node in nodes}


def model_logits(model_file: Path, ids: npt.NDArray[np.int64], kernel: str, isa: str | None) -> F32:
    """Logits [length, vocab] of a text [1, length]."""
    (logits,) = _run(model_file, [LOGITS], ids, kernel, isa)
    return np.asarray(logits[0], np.float32)


def _run(
    model_file: Path, wanted: list[str], ids: npt.NDArray[np.int64], kernel: str, isa: str | None
) -> list[npt.NDArray[Any]]:
    """Values of a model anywhere in its graph."""
    model = onnx.load(model_file, load_external_data=False)
    existing = {output.name for output in model.graph.output}
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in wanted if name not in existing
    )
    session = open_session(model.SerializeToString(), folder=model_file.parent, kernel=kernel, isa=isa)
    only_these = ort.RunOptions()
    only_these.only_execute_path_to_fetches = True  # not the logits of a large vocabulary for a layer in the middle
    found: list[npt.NDArray[Any]] = session.run(wanted, _feeds(session, ids), only_these)
    return found


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
    """Compare every node with every kernel family, Gaussian and real activations.

    Args:
        model_file: the exported model.
        nodes: its nodes, from :func:`fairy2i_export.output.contract.nodes.read_nodes`.
        ids: token ids [1, length] of the text that makes the real activations.
        isa: ISA to force, or None.
        done: called after each layer.
    """
    families = families_of(isa)
    rng = np.random.default_rng(0)
    for group in _groups(nodes, ids.size):
        taps = {kernel: run_with_taps(model_file, group, ids, kernel, isa) for kernel in families}
        for node in group:
            gaussian = rng.standard_normal((_GAUSSIAN_ROWS, 2 * node.operands.m)).astype(np.float32)
            yield _check_layer(node, gaussian, {kernel: tap.pop(node.name) for kernel, tap in taps.items()}, isa)
            done()


def families_of(isa: str | None) -> tuple[str, ...]:
    """The kernel families that have an ISA: all of them have None, the best one.

    Raises:
        KernelError: if none has it, or none can run here.
    """
    if isa is None:
        return KERNELS
    here = {kernel.family for kernel in core.kernels() if kernel.isa == isa and kernel.available}
    if not here:
        core.chosen_kernel(None, isa)  # says what is wrong
    return tuple(kernel for kernel in KERNELS if kernel in here)


def _check_layer(node: Node, gaussian: F32, taps: dict[str, tuple[F32, F32]], isa: str | None) -> LayerResult:
    """One node by the kernels that ``taps`` has its input and output (X, Y) for."""
    p = node.operands
    result = LayerResult(node.name, (2 * p.n, 2 * p.m))
    q, given = unpack(p), [gaussian, *(x for x, _ in taps.values())]
    if p.activation_bits and q.col_multiplier is not None:  # comes before the rounding
        given, q = [x * q.col_multiplier for x in given], replace(q, col_multiplier=None)
    expected, *real = dense_products(q, [rounded_activations(x, p.activation_bits) for x in given], node.bias)
    for (kernel, (_, y)), product in zip(taps.items(), real, strict=True):
        layer = core.Linear(
            p.packed,
            p.scales,
            2 * p.m,
            2 * p.n,
            row_multiplier=p.row_multiplier,
            col_multiplier=p.col_multiplier,
            kernel=kernel,
            isa=isa,
            layout_version=p.layout_version,
            activation_bits=p.activation_bits,
        )
        result.errors[kernel, "gaussian"] = output_error(layer(gaussian, node.bias), expected)
        result.errors[kernel, "real"] = output_error(y, product)
    return result


def _groups(nodes: list[Node], tokens: int) -> Iterator[list[Node]]:
    """Successive nodes whose inputs and outputs fit into _TAPPED_BYTES, at least one at a time."""
    group: list[Node] = []
    size = 0
    for node in nodes:
        own = 4 * tokens * 2 * (node.operands.m + node.operands.n)
        if group and size + own > _TAPPED_BYTES:
            yield group
            group, size = [], 0
        group.append(node)
        size += own
    if group:
        yield group
