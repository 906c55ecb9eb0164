"""Format ``matmulnbits``: a layer as one stock 2-bit ``com.microsoft::MatMulNBits``, for hosts that cannot load a library.

With the code w of an entry split into its two parts Re(w) and Im(w), each one of {-1, 0, 1}, and x = x1 + i x2, the plane U
of a stage adds (docs/format.md; W has conj(x), that is -x2, instead)

    y_re += s_re Re(w) x1 - s_im Im(w) x2
    y_im += s_re Re(w) x2 + s_im Im(w) x1

Both outputs use the same entries. So all planes of a layer side by side are one matrix T of {-1, 0, 1} with n rows and
4 * stages * m columns, and y_re, y_im are T times two vectors p_re, p_im, which are pieces of x times a scale: a product of T
with two rows of activations for each row of x, exact up to the rounding of float32. Before it come Gather and Mul, on
activations only; the two results are y as it shall be, one behind the other.

T takes 2 bits per entry, 2 * stages bits per weight, twice what the codes hold. MatMulNBits takes no matrix of signs, its
values are (q - 2) * scale for q in 0..3, so nothing smaller expresses both parts of a code; the plain way, T's four copies in
a real [N, K] matrix per stage and plane, would take another two times as much. The block scales that the operator insists on
are ones, one tensor for all layers of a size.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fairy2i_export.codes.native import F32, F64, U8, Rows, Workers, row_blocks
from fairy2i_export.codes.profiles import CODE_IM, CODE_RE
from fairy2i_export.codes.quantized import Coded, relative_error
from fairy2i_export.onnx_graph.formats.base import (
    Format,
    Linear,
    Outputs,
    Put,
    Settings,
    Weights,
    add_bias,
    multiplier_outputs,
    put_multipliers,
)
from fairy2i_export.onnx_graph.writer import CONTRIB, GraphWriter

BLOCK = 128  # columns of a block; the fastest size of ONNX Runtime's int8 kernels, and all scales are 1 anyway
_PER_BYTE = 4
_ZERO = 2  # what the operator subtracts from 2-bit values when it is given no zero points
_VALUES = np.stack([CODE_RE, CODE_IM], axis=1).astype(np.int8) + np.int8(_ZERO)  # [code, part]


def _nodes(graph: GraphWriter, weights: Weights, linear: Linear, x: ir.Value, bias: ir.Value | None) -> ir.Value:
    name, stages, settings = linear.name, linear.stages, weights.settings
    n, m = linear.out_features // 2, linear.in_features // 2
    columns, blocks = 4 * stages * m, _blocks(m, stages)
    outputs: Outputs = {
        "ternary": (ir.DataType.UINT8, (n, blocks, BLOCK // _PER_BYTE)),
        "factors": (ir.DataType.FLOAT, (8 * stages, 1)),
    }
    outputs |= multiplier_outputs(linear, settings)

    def write(coded: Coded, put: Put, workers: Workers) -> float:
        def rows(part: Rows) -> tuple[U8, F64]:
            codes, errors = coded.codes(part)
            return ternary(codes), errors

        found = []
        for data, errors in workers.in_order(rows, row_blocks(n, m, 1)):
            put("ternary", data)
            found.append(errors)
        put("factors", factors(coded.scales))
        put_multipliers(coded, put)
        return relative_error(np.concatenate(found))

    operands = {key: graph.initializer(tensor) for key, tensor in weights.coded(linear, outputs, write).items()}
    ones = graph.initializer(ir.tensor(np.ones(n * blocks, np.float32), name=f"const/ones_{n * blocks}"))
    if "col_multiplier" in operands:
        x = graph.op(f"{name}/columns", "Mul", [x, operands["col_multiplier"]])
    halves = graph.op(f"{name}/halves", "Reshape", [x, graph.ints(0, 0, 2, m)])
    order = graph.ints(*[0, 1] * (2 * stages), *[1, 0] * (2 * stages), name=f"const/halves_of_{stages}_stages")
    pieces = graph.op(f"{name}/pieces", "Gather", [halves, order], axis=2)
    scaled_pieces = graph.op(f"{name}/scale", "Mul", [pieces, operands["factors"]])
    vectors = graph.op(f"{name}/vectors", "Reshape", [scaled_pieces, graph.ints(0, 0, 2, columns)])
    product = graph.op(
        name,
        "MatMulNBits",
        [vectors, operands["ternary"], ones],
        domain=CONTRIB,
        K=columns,
        N=n,
        bits=2,
        block_size=BLOCK,
        accuracy_level=settings.accuracy_level,
    )
    y = graph.op(f"{name}/join", "Reshape", [product, graph.ints(0, 0, 2 * n)])
    if "row_multiplier" in operands:
        y = graph.op(f"{name}/rows", "Mul", [y, operands["row_multiplier"]])
    return add_bias(graph, name, y, bias)


def ternary(codes: U8) -> U8:
    """The rows of T: codes [stages, 2, rows, m] to bytes [rows, blocks, BLOCK / 4], the first value in the lowest bits."""
    stages, _, rows, m = codes.shape
    values = np.full((rows, _blocks(m, stages) * BLOCK), _ZERO, np.uint8)
    parts = _VALUES.astype(np.uint8)[codes].transpose(2, 0, 1, 4, 3)  # [rows, stage, U or W, part, m]
    values[:, : 4 * stages * m] = parts.reshape(rows, -1)
    quads = values.reshape(rows, -1, BLOCK // _PER_BYTE, _PER_BYTE)
    return np.asarray(quads[..., 0] | quads[..., 1] << 2 | quads[..., 2] << 4 | quads[..., 3] << 6, np.uint8)


def factors(scales: F32) -> F32:
    """What the pieces of p_re, then of p_im, are multiplied by: scales [stages, 2, 2] to float32 [8 * stages, 1]."""
    sign = np.array([1, -1], np.float32)  # U, W
    re, im = scales[..., 0], scales[..., 1]
    upper, lower = np.stack([re, -sign * im], axis=-1), np.stack([sign * re, im], axis=-1)
    return np.concatenate([upper.reshape(-1, 1), lower.reshape(-1, 1)]).astype(np.float32)


def _blocks(m: int, stages: int) -> int:
    return -(-4 * stages * m // BLOCK)


def _stored_bytes(linear: Linear, settings: Settings) -> int:
    n, m, stages = linear.out_features // 2, linear.in_features // 2, linear.stages
    return n * _blocks(m, stages) * BLOCK // _PER_BYTE + 4 * 8 * stages


MATMULNBITS = Format(
    "matmulnbits",
    "MatMulNBits",
    library=False,
    options=("accuracy_level",),
    nodes=_nodes,
    stored_bytes=_stored_bytes,
    copied_bytes=_stored_bytes,
)
