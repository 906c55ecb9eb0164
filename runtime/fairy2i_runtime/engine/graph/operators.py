"""The operators of an exported decoder that compute with activations, and what each may be given.

Every activation is [batch, sequence, ...]; its tail, the dimensions after these two, is known for every value of an exported
graph, because every weight has a size. An operator that is given something else than it has in an export is refused: onnxruntime
does not look at all of it, and reads or divides where it should not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from fairy2i_runtime.engine.graph import layers, positions
from fairy2i_runtime.engine.graph.call import FLOATS, Activation, Cache, Call
from fairy2i_runtime.engine.graph.model_file import BOOL, FLOAT, INT8, UINT8, Tensor

CONTRIB = "com.microsoft"
MOST = 1 << 31  # of any dimension
_END = f"[{(1 << 63) - 1}]"  # of a slice: the last column
_BLOCKS = (16, 32, 64, 128, 256)


def _binary(c: Call) -> list[Any]:
    c.count(2)
    c.need(any(isinstance(x, Activation) for x in c.operands), "an activation")
    tails = []
    for index, x in enumerate(c.operands):
        c.need(isinstance(x, Activation | Tensor), f"input {index} to be an activation or an initializer")
        c.need((x.type if isinstance(x, Activation) else x.data_type) == FLOAT, f"input {index} of type float")
        tails.append(x.tail if isinstance(x, Activation) else x.dims)
    width = max(len(x.tail) for x in c.operands if isinstance(x, Activation))
    c.need(all(len(tail) <= width for tail in tails), "inputs of fitting ranks")
    c.need(all(len(x.tail) == width for x in c.operands if isinstance(x, Activation)), "inputs of fitting ranks")
    left, right = ((1,) * (width - len(tail)) + tuple(tail) for tail in tails)
    c.need(
        all(a == b or 1 in (a, b) for a, b in zip(left, right, strict=True)), f"inputs that fit, found {left} and {right}"
    )
    return [Activation(FLOAT, tuple(max(a, b) for a, b in zip(left, right, strict=True)))]


def _unary(c: Call) -> list[Any]:
    c.count(1)
    return [c.activation(0)]


def _fast_gelu(c: Call) -> list[Any]:
    c.count(1, 2)
    c.absent(1)
    return [c.activation(0)]


def _reduce(c: Call) -> list[Any]:
    c.count(2)
    x = c.activation(0)
    c.need(c.operands[1] == "[-1]" and c.take("keepdims", 1, 1) == 1, "the mean or maximum of the last axis")
    return [Activation(FLOAT, (*x.tail[:-1], 1))]


def _clip(c: Call) -> list[Any]:
    c.count(3)
    c.tensor(1, FLOAT)
    c.tensor(2, FLOAT)
    return [c.activation(0)]


def _less(c: Call) -> list[Any]:
    c.count(2)
    c.tensor(1, FLOAT)
    return [Activation(BOOL, c.activation(0).tail)]


def _where(c: Call) -> list[Any]:
    c.count(3)
    condition, x = c.operands[0], c.activation(2)
    c.need(condition == Activation(BOOL, x.tail), "a condition of the shape of what is chosen")
    c.tensor(1, FLOAT)
    return [x]


def _concat(c: Call) -> list[Any]:
    c.count(2)
    parts = [c.activation(0), c.activation(1)]
    c.need(c.take("axis", -1, -1) == -1 and all(len(x.tail) == 1 for x in parts), "the last axis")
    return [Activation(FLOAT, (sum(x.tail[0] for x in parts),))]


def _cast(c: Call) -> list[Any]:
    c.count(1)
    to, x = c.take("to", 1, 32), c.operands[0]
    c.need(to in FLOATS, "a cast to float or float16")
    if isinstance(x, Tensor):
        c.need(x.data_type in FLOATS, "a cast of float or float16")
        return [Tensor(x.name, to, x.dims, None, {})]
    return [Activation(to, c.activation(0, kind=None).tail)]


def _reshape(c: Call) -> list[Any]:
    c.count(2)
    if isinstance(c.operands[0], Tensor):  # scales of a matrix that embedding and lm_head share
        scales, dims = c.tensor(0, FLOAT, None), tuple(_numbers(c, 1))
        c.need(
            min(dims, default=0) > 0 and math.prod(dims) == scales.dims[0], f"as many values as there are: {scales.dims[0]}"
        )
        return [Tensor(scales.name, FLOAT, dims, None, {})]
    x, shape = c.activation(0), _numbers(c, 1)
    c.need(len(shape) >= 3 and shape[:2] == [0, 0] and min(shape[2:]) > 0, "a shape that begins with 0, 0")
    c.need(math.prod(shape[2:]) == math.prod(x.tail), f"as many values as there are: {x.tail} to {shape[2:]}")
    return [Activation(FLOAT, tuple(shape[2:]))]


def _split(c: Call) -> list[Any]:
    c.count(2)
    x, sizes = c.activation(0), _numbers(c, 1)
    c.need(c.take("axis", -1, -1) == -1 and len(x.tail) == 1, "a split of the last axis")
    c.need(min(sizes, default=0) > 0 and sum(sizes) == x.tail[0], f"parts that make {x.tail[0]}")
    return [Activation(FLOAT, (size,)) for size in sizes]


def _slice(c: Call) -> list[Any]:
    c.count(4)
    x = c.activation(0)
    c.step(1, positions.FIRST_KEPT)
    c.need(c.operands[2:] == [_END, "[1]"], "the last columns")
    return [x]


def _gather(c: Call) -> list[Any]:
    c.count(2)
    axis = c.take("axis", 0, 2)
    if isinstance(c.operands[0], Tensor):
        table = c.tensor(0, c.operands[0].data_type, None, None)
        c.need(axis == 0 and table.data_type in FLOATS, "rows of a table")
        c.step(1, positions.TOKENS)
        c.embedding_rows.append(table.dims[0])
        return [Activation(table.data_type, (table.dims[1],))]
    x, order = c.activation(0), _numbers(c, 1)
    c.need(axis == 2 and len(x.tail) == 2 and len(order) > 0, "parts of an activation")
    c.need(all(0 <= index < x.tail[0] for index in order), f"parts from 0 to {x.tail[0] - 1}")
    return [Activation(FLOAT, (len(order), x.tail[1]))]


def _gather_blocks(c: Call) -> list[Any]:
    c.count(3)
    axis = c.take("quantize_axis", 1, 2)
    c.need(c.take("gather_axis", 0, 0, 0) == 0, "rows")
    c.take("bits", 8, 8)
    block = _block(c)
    table = c.tensor(0, UINT8, *[None] * (axis + 1))
    rows, *tail = table.dims
    c.step(1, positions.TOKENS)
    c.tensor(2, FLOAT, rows, *tail[:-1], -(-tail[-1] // block))
    c.embedding_rows.append(rows)
    return [Activation(FLOAT, tuple(tail))]


def _mat_mul(c: Call) -> list[Any]:
    c.count(2)
    k, n = c.tensor(1, FLOAT, None, None).dims
    c.activation(0, k)
    return [Activation(FLOAT, (n,))]


def _mat_mul_bits(c: Call) -> list[Any]:
    c.count(3)
    k, n = c.take("K", 1, MOST), c.take("N", 1, MOST)
    bits, block = c.take("bits", 2, 8), _block(c)
    c.take("accuracy_level", 0, 4, 0)
    c.need(bits in (2, 4, 8), "2, 4 or 8 bits")
    blocks = -(-k // block)
    x = c.activation(0)
    c.need(bool(x.tail) and x.tail[-1] == k, f"input 0 [..., {k}], found {x.tail}")
    c.tensor(1, UINT8, n, blocks, block * bits // 8)
    scales = c.operands[2]
    c.need(isinstance(scales, Tensor) and scales.data_type == FLOAT, "scales of type float")
    c.need(scales.dims in ((n * blocks,), (n, blocks)), f"scales [{n * blocks}], found {list(scales.dims)}")
    return [Activation(FLOAT, (*x.tail[:-1], n))]


def _skip_norm(c: Call) -> list[Any]:
    c.count(3)
    c.take_float("epsilon", 1e-12)
    x = c.activation(0)
    c.need(len(x.tail) == 1, "inputs [batch, sequence, hidden]")
    c.activation(1, x.tail[0])
    c.tensor(2, FLOAT, x.tail[0])
    c.need(c.outputs[1:3] in ([], ["", ""]), "no outputs for training")
    return [x, None, None, x]


def _rotary(c: Call) -> list[Any]:
    c.count(4)
    c.take("interleaved", 0, 0, 0)
    part, heads = c.take("rotary_embedding_dim", 0, MOST, 0), c.take("num_heads", 0, MOST, 0)
    x = c.activation(0)
    c.step(1, positions.POSITIONS)
    rows, half = c.tensor(2, FLOAT, None, None).dims
    c.tensor(3, FLOAT, rows, half)
    c.need(rows > 0 and half > 0 and len(x.tail) == 1, "tables for heads")
    if part or heads:
        c.need(
            part == 2 * half and heads > 0 and x.tail[0] % heads == 0 and part <= x.tail[0] // heads,
            "tables of the heads' size",
        )
    else:
        c.need(x.tail[0] % (2 * half) == 0, f"a multiple of heads of {2 * half}, found {x.tail[0]}")
    c.positions_from_tables.append(rows)
    return [x]


def _attention(c: Call) -> list[Any]:
    c.count(11, 14)
    heads, kv_heads = c.take("num_heads", 1, 1 << 16), c.take("kv_num_heads", 1, 1 << 16)
    rotates = c.take("do_rotary", 0, 1, 0) == 1
    c.take_float("scale", 0.0)
    c.take_float("softcap", 0.0)
    key, value = c.operands[3:5]
    c.need(isinstance(key, Cache) and isinstance(value, Cache), "a key-value cache of the graph's inputs")
    c.need((key.part, value.part, key.layer) == ("key", "value", value.layer), "keys and values of one layer")
    c.need((key.type, key.heads, key.size) == (value.type, value.heads, value.size), "keys and values of one shape")
    c.need(
        key.heads == kv_heads and heads % kv_heads == 0, f"kv_num_heads as in the cache, {key.heads}, a divisor of num_heads"
    )
    quantized = key.type == INT8
    of = FLOAT if quantized else key.type
    c.activation(0, heads * key.size, of)
    c.activation(1, kv_heads * key.size, of)
    c.activation(2, kv_heads * key.size, of)
    c.step(5, positions.SEQLENS)
    c.step(6, positions.TOTAL)
    if rotates:
        c.need(key.type == FLOAT and key.size % 16 == 0, "a float cache and heads of a multiple of 16, to rotate")
        rows, half = c.tensor(7, FLOAT, None, None).dims
        c.tensor(8, FLOAT, rows, half)
        fits = half > 0 and half % 8 == 0 and 2 * half <= key.size
        c.need(fits, f"rotary tables for heads of {key.size}, found {half} columns")
        c.positions_from_tables.append(rows)
    else:
        c.absent(7, 8)
    c.absent(9, 11)
    c.step(10, positions.BIAS if of == FLOAT else positions.BIAS_HALF)
    if quantized:
        kinds = [c.attributes.pop(name, b"") for name in ("k_quant_type", "v_quant_type")]
        c.need(kinds == [b"PER_CHANNEL"] * 2 and c.take("kv_cache_bit_width", 8, 8) == 8, "scales of every channel")
        c.tensor(12, FLOAT, kv_heads * key.size)
        c.tensor(13, FLOAT, kv_heads * key.size)
    else:
        c.absent(12, 13)
    present = [f"present.{key.layer}.{part}" for part in ("key", "value")]
    c.need(c.outputs[1:] == present, f"the outputs {' and '.join(present)}")
    return [Activation(of, (heads * key.size,)), key, value]


def _block(c: Call) -> int:
    block = c.take("block_size", 1, MOST)
    c.need(block in _BLOCKS, f"a block_size of {_BLOCKS}")
    return block


def _numbers(c: Call, index: int) -> list[int]:
    """A constant list, which the caller of the rules has read: ``[1,3]``."""
    found = c.operands[index]
    c.need(isinstance(found, str) and found.startswith("["), f"input {index} to be a constant list of whole numbers")
    return [int(number) for number in found[1:-1].split(",") if number]


# (domain, operator) -> what is checked; gives what the outputs are
RULES: dict[tuple[str, str], Callable[[Call], list[Any]]] = {
    **{("", name): _binary for name in ("Add", "Sub", "Mul", "Div", "Pow", "Max")},
    **{("", name): _unary for name in ("Sigmoid", "Tanh", "Sqrt", "Abs", "Round")},
    **{("", name): _reduce for name in ("ReduceMean", "ReduceMax")},
    ("", "Clip"): _clip,
    ("", "Less"): _less,
    ("", "Where"): _where,
    ("", "Concat"): _concat,
    ("", "Cast"): _cast,
    ("", "Reshape"): _reshape,
    ("", "Split"): _split,
    ("", "Slice"): _slice,
    ("", "Gather"): _gather,
    ("", "MatMul"): _mat_mul,
    (CONTRIB, "FastGelu"): _fast_gelu,
    (CONTRIB, "GatherBlockQuantized"): _gather_blocks,
    (CONTRIB, "MatMulNBits"): _mat_mul_bits,
    (CONTRIB, "SkipSimplifiedLayerNormalization"): _skip_norm,
    (CONTRIB, "RotaryEmbedding"): _rotary,
    (CONTRIB, "GroupQueryAttention"): _attention,
    **layers.RULES,
}
