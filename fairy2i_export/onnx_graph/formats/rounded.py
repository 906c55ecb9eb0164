"""Formats ``int8`` and ``int4``: layers that are not quantized the Fairy2i way, rounded in blocks of columns (MatMulNBits)."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir

from fairy2i_export.codes.native import F32, U8
from fairy2i_export.onnx_graph.formats.base import Format, Linear, Settings, Weights, add_bias
from fairy2i_export.onnx_graph.writer import CONTRIB, GraphWriter

BLOCK = 32  # columns that share one scale


def round_blocks(array: F32, bits: int) -> tuple[U8, F32]:
    """Symmetric rounding of rows [rows, cols] to ``bits``.

    Returns:
        uint8 [rows, blocks, BLOCK] plus 2^(bits - 1), padded with zeros, and float32 scales [rows, blocks].
    """
    rows, cols = array.shape
    blocks = -(-cols // BLOCK)
    zero, top = 1 << (bits - 1), (1 << (bits - 1)) - 1
    padded = np.zeros((rows, blocks * BLOCK), np.float32)
    padded[:, :cols] = array
    block = padded.reshape(rows, blocks, BLOCK)
    scales = np.abs(block).max(axis=2) / np.float32(top)
    scales[scales == 0] = 1
    return (np.rint(block / scales[..., None]) + zero).astype(np.uint8), scales


def _nodes(bits: int, graph: GraphWriter, weights: Weights, linear: Linear, x: ir.Value, bias: ir.Value | None) -> ir.Value:
    turn = weights.turn(linear.name) if linear.shares else None
    if turn is not None:
        x = graph.op(f"{linear.name}/turned", "MatMul", [x, graph.initializer(turn)])
    data, scales = weights.rounded(linear.weight, linear.shares or linear.name, bits, blocked=True)
    product = graph.op(
        linear.name,
        "MatMulNBits",
        [x, graph.initializer(data), graph.initializer(scales)],
        domain=CONTRIB,
        K=linear.in_features,
        N=linear.out_features,
        bits=bits,
        block_size=BLOCK,
        accuracy_level=4,  # int8 activations: without it ORT dequantizes 8-bit weights at every call, 100 times slower
    )
    return add_bias(graph, linear.name, product, bias)


def _copied_bytes(bits: int, linear: Linear, settings: Settings) -> int:
    blocks = -(-linear.in_features // BLOCK)
    return linear.out_features * blocks * (BLOCK * bits // 8 + 4)


def _stored_bytes(bits: int, linear: Linear, settings: Settings) -> int:
    return 0 if linear.shares else _copied_bytes(bits, linear, settings)


def _format(bits: int) -> Format:
    return Format(
        f"int{bits}",
        "MatMulNBits",
        library=False,
        options=(),
        nodes=partial(_nodes, bits),
        stored_bytes=partial(_stored_bytes, bits),
        copied_bytes=partial(_copied_bytes, bits),
    )


INT8, INT4 = _format(8), _format(4)
