"""The model-local function bodies of our operators: what ``ai.fairy2i::Fairy2iMatMul`` means, in standard ONNX operators.

Those of nodes of two and three layers are as many Fairy2iMatMul nodes: a library that knows only that one runs them.

Every exported model carries it, so that hosts without the C library (plain ONNX Runtime, the reference evaluator, Netron,
onnx.checker) understand and execute the file. It decodes the packed bytes (fairy2i_export/codes/layout.py, docs/format.md) to the
dense matrix and multiplies: right but slow, and dense in memory. With the C library registered the body is never looked at.

A body cannot ask for an attribute that may be absent either (not all evaluators know defaults): models with layers without U
have ``activation_bits`` on every node and a body that reads it, others on none.

``parts`` is the layout version: 1, or 2 where the columns of W alone are stored as two halves and there is no U.

The three optional inputs need care, because a function body cannot ask for an input that may be absent without naming it,
and most operators reject an absent one. ``Gemm`` does accept an absent third input: ``0 * 0 + C`` is the operand when it is
given and zeros when it is not, and ``OptionalHasElement`` tells the two apart where the neutral element is one. Nodes name
all their inputs, absent ones with an empty name: onnx.reference demands as many inputs as the function declares.
"""

from __future__ import annotations

import onnx.parser
import onnx_ir as ir

from fairy2i_export.codes.choices import MAX_STAGES
from fairy2i_export.codes.layout import BLOCK_COLS, CELL_BYTES, CELL_COLS, HALF_ROWS, LAYOUT_VERSION, TILE_ROWS, byte_planes
from fairy2i_export.codes.rounding import SMALLEST
from fairy2i_export.onnx_graph.operator import (
    ATTRIBUTES,
    DOMAIN,
    INPUTS,
    OP_NAME,
    OP_NAMES,
    OP_VERSION,
    OPSET,
    ROUNDING,
    attribute_names,
    complete_attributes,
    input_names,
    is_operator,
    layers_in,
    layout_of,
    name_of,
)

_HALVES = TILE_ROWS // HALF_ROWS
_CELLS_PER_BLOCK = BLOCK_COLS // CELL_COLS
_BYTE_COLUMNS = CELL_BYTES // (_HALVES * HALF_ROWS)  # of a cell; a byte holds two columns of two planes

_BODY = """
<domain: "{domain}", opset_import: ["" : {opset}]>
{op} <{attributes}> ({inputs}) => (Y)
{{
  zero = Constant <value = float[1, 1] {{0}}> ()
  one = Constant <value = float {{1}}> ()
  i1 = Constant <value_ints = [1]> ()
  i2 = Constant <value_ints = [2]> ()
  tile_rows = Constant <value_ints = [{tile_rows}]> ()
  tile_rest = Constant <value_ints = [{tile_rest}]> ()
  block_cols = Constant <value_ints = [{block_cols}]> ()
  block_rest = Constant <value_ints = [{block_rest}]> ()

  k_scalar = Constant <value_int: int = @K> ()
  n_scalar = Constant <value_int: int = @N> ()
  k = Reshape (k_scalar, i1)
  n = Reshape (n_scalar, i1)
  m_c = Div (k, i2)
  n_c = Div (n, i2)
  parts_scalar = Constant <value_int: int = @layout_version> ()
  parts = Reshape (parts_scalar, i1)
  m_and = Add (m_c, parts)
  m_more = Sub (m_and, i1)
  columns = Div (m_more, parts)
  m_up = Add (columns, block_rest)
  n_up = Add (n_c, tile_rest)
  blocks = Div (m_up, block_cols)
  tiles = Div (n_up, tile_rows)
  cols = Mul (blocks, block_cols)
  rows = Mul (tiles, tile_rows)

  stages_scalar = Constant <value_int: int = @stages> ()
  stages_1d = Reshape (stages_scalar, i1)
  planes = Mul (stages_1d, i2)

  cell_shape = Constant <value_ints = [{cells_per_block}, {halves}, {byte_columns}, {half_rows}, 1, 1]> ()
  bytes_shape = Concat <axis = 0> (blocks, tiles, stages_1d, cell_shape)
  bytes = Reshape (packed, bytes_shape)
  shifts = Constant <value = uint8[2, 2] {{0, 2, 4, 6}}> ()
  three = Constant <value = uint8 {{3}}> ()
  shifted = BitShift <direction = "RIGHT"> (bytes, shifts)
  signs = BitwiseAnd (shifted, three)
  by_plane = Transpose <perm = [2, 7, 1, 4, 6, 0, 3, 5, 8]> (signs)
  plane_shape = Concat <axis = 0> (planes, rows, cols)
  padded = Reshape (by_plane, plane_shape)
  orders = Constant <value_ints = [{orders}]> ()
  most_planes = Constant <value_ints = [{most_planes}]> ()
  stages_before = Sub (stages_1d, i1)
  order_start = Mul (stages_before, most_planes)
  order_end = Add (order_start, planes)
  order = Slice (orders, order_start, order_end)
  sorted = Gather <axis = 0> (padded, order)
  starts = Constant <value_ints = [0, 0]> ()
  ends = Concat <axis = 0> (n_c, columns)
  axes = Constant <value_ints = [1, 2]> ()
  codes_u8 = Slice (sorted, starts, ends, axes)
  codes = Cast <to = 6> (codes_u8)

  table_re = Constant <value_floats = [1.0, 0.0, 0.0, -1.0]> ()
  table_im = Constant <value_floats = [0.0, 1.0, -1.0, 0.0]> ()
  unit_re = Gather (table_re, codes)
  unit_im = Gather (table_im, codes)
  scale_shape = Concat <axis = 0> (i2, planes, i1, i1)
  scales_flat_shape = Concat <axis = 0> (planes, i2)
  scales_flat = Reshape (scales, scales_flat_shape)
  scales_t = Transpose <perm = [1, 0]> (scales_flat)
  scales_re_im = Reshape (scales_t, scale_shape)
  scale_re, scale_im = Split <axis = 0, num_outputs = 2> (scales_re_im)
  axis0 = Constant <value_ints = [0]> ()
  scale_re_planes = Squeeze (scale_re, axis0)
  scale_im_planes = Squeeze (scale_im, axis0)
  weighted_re = Mul (unit_re, scale_re_planes)
  weighted_im = Mul (unit_im, scale_im_planes)
  stage_shape = Concat <axis = 0> (stages_1d, i2, n_c, columns)
  stages_re = Reshape (weighted_re, stage_shape)
  stages_im = Reshape (weighted_im, stage_shape)
  sum_re = ReduceSum <keepdims = 0> (stages_re, axis0)
  sum_im = ReduceSum <keepdims = 0> (stages_im, axis0)
  beside_re = Transpose <perm = [1, 0, 2]> (sum_re)
  beside_im = Transpose <perm = [1, 0, 2]> (sum_im)
  both_columns = Mul (columns, i2)
  beside_shape = Concat <axis = 0> (n_c, both_columns)
  joined_re = Reshape (beside_re, beside_shape)
  joined_im = Reshape (beside_im, beside_shape)
  has_u = Sub (i2, parts)
  has_u_f = Cast <to = 1> (has_u)
  w_start = Mul (has_u, columns)
  w_end = Add (w_start, m_c)
  w_re = Slice (joined_re, w_start, w_end, i1)
  w_im = Slice (joined_im, w_start, w_end, i1)
  left_re = Slice (joined_re, axis0, m_c, i1)
  left_im = Slice (joined_im, axis0, m_c, i1)
  u_re = Mul (left_re, has_u_f)
  u_im = Mul (left_im, has_u_f)
  a11 = Add (w_re, u_re)
  a12 = Sub (w_im, u_im)
  a21 = Add (w_im, u_im)
  a22 = Sub (u_re, w_re)
  top = Concat <axis = 1> (a11, a12)
  bottom = Concat <axis = 1> (a21, a22)
  dense = Concat <axis = 0> (top, bottom)
  dense_t = Transpose <perm = [1, 0]> (dense)

  row_k_shape = Concat <axis = 0> (i1, k)
  row_n_shape = Concat <axis = 0> (i1, n)
  zeros_k = Expand (zero, row_k_shape)
  zeros_n = Expand (zero, row_n_shape)
  zero_t = CastLike (zero, X)
  zeros_n_t = CastLike (zeros_n, X)
  bias_or_0 = Gemm (zero_t, zeros_n_t, bias)
  row_or_0 = Gemm (zero, zeros_n, row_multiplier)
  col_or_0 = Gemm (zero, zeros_k, col_multiplier)
  has_row = OptionalHasElement (row_multiplier)
  has_col = OptionalHasElement (col_multiplier)
  has_row_f = Cast <to = 1> (has_row)
  has_col_f = Cast <to = 1> (has_col)
  row_lack = Sub (one, has_row_f)
  col_lack = Sub (one, has_col_f)
  row_2d = Add (row_or_0, row_lack)
  col_2d = Add (col_or_0, col_lack)
  bias_2d = Cast <to = 1> (bias_or_0)
  bias_row = Reshape (bias_2d, n)
  row = Reshape (row_2d, n)
  col = Reshape (col_2d, k)

  x = Cast <to = 1> (X)
  x_scaled = Mul (x, col)
{rounding}  product = MatMul ({read}, dense_t)
  y_scaled = Mul (product, row)
  y = Add (y_scaled, bias_row)
  Y = CastLike (y, X)
}}
"""

_ROUNDING = """
  bits_scalar = Constant <value_int: int = @activation_bits> ()
  no_bits = Constant <value_int = 0> ()
  rounds = Greater (bits_scalar, no_bits)
  smallest = Constant <value = float {{{smallest}}}> ()
  most = Constant <value = float {{127}}> ()
  least = Constant <value = float {{-128}}> ()
  last = Constant <value_ints = [-1]> ()
  x_shape = Shape (x_scaled)
  leading = Shape <end = -1> (x_scaled)
  halves_shape = Concat <axis = 0> (leading, i2, m_c)
  halves = Reshape <allowzero = 1> (x_scaled, halves_shape)
  magnitudes = Abs (halves)
  largest = ReduceMax (magnitudes, last)
  bounded = Max (largest, smallest)
  steps = Div (most, bounded)
  in_steps = Mul (halves, steps)
  nearest = Round (in_steps)
  whole = Clip (nearest, least, most)
  rounded_halves = Div (whole, steps)
  rounded = Reshape <allowzero = 1> (rounded_halves, x_shape)
  x_read = Where (rounds, rounded, x_scaled)
"""

_LAYERS = """
<domain: "{domain}", opset_import: ["" : {opset}, "{domain}" : {version}]>
{op} <{attributes}> ({inputs}) => ({outputs})
{{
{nodes}}}
"""


def function_text(opset: int = OPSET, *, rounding: bool = False) -> str:
    """The body in ONNX text syntax, for any number of stages.

    Args:
        opset: of the standard operators, 18 or newer.
        rounding: for nodes that all have ``activation_bits``; else for nodes without it.
    """
    orders: list[int] = []  # per number of stages: position of (stage, matrix) among the planes as they are stored
    for stages in range(1, MAX_STAGES + 1):
        stored = [plane for pair in byte_planes(stages) for plane in pair]
        order = [stored.index((stage, matrix)) for stage in range(stages) for matrix in range(2)]
        orders += order + [0] * (2 * MAX_STAGES - len(order))
    return _BODY.format(
        domain=DOMAIN,
        op=OP_NAME,
        opset=opset,
        attributes=", ".join([*ATTRIBUTES, ROUNDING] if rounding else ATTRIBUTES),
        rounding=_ROUNDING.format(smallest=f"{SMALLEST:.6f}")[1:] if rounding else "",
        read="x_read" if rounding else "x_scaled",
        inputs=", ".join(INPUTS),
        orders=", ".join(map(str, orders)),
        most_planes=2 * MAX_STAGES,
        tile_rows=TILE_ROWS,
        tile_rest=TILE_ROWS - 1,
        block_cols=BLOCK_COLS,
        block_rest=BLOCK_COLS - 1,
        cells_per_block=_CELLS_PER_BLOCK,
        halves=_HALVES,
        half_rows=HALF_ROWS,
        byte_columns=_BYTE_COLUMNS,
    )


def layers_text(layers: int, opset: int = OPSET, *, rounding: bool = False) -> str:
    """The body of the operator of two or three layers, likewise."""
    own = [*ATTRIBUTES, ROUNDING] if rounding else [*ATTRIBUTES]
    nodes = ""
    for layer in range(layers):
        named = {key: name_of(key, layer, layers) for key in (*own, *INPUTS[1:])}
        attributes = ", ".join(f"{key}: int = @{named[key]}" for key in own)
        inputs = ", ".join([INPUTS[0], *(named[key] for key in INPUTS[1:])])
        nodes += f"  Y_{layer} = {DOMAIN}.{OP_NAME} <{attributes}> ({inputs})\n"
    return _LAYERS.format(
        domain=DOMAIN,
        version=OP_VERSION,
        op=OP_NAMES[layers - 1],
        opset=opset,
        attributes=", ".join([*attribute_names(layers), ROUNDING] if rounding else attribute_names(layers)),
        inputs=", ".join(input_names(layers)),
        outputs=", ".join(f"Y_{layer}" for layer in range(layers)),
        nodes=nodes,
    )


def matmul_function(opset: int = OPSET, *, layers: int = 1, rounding: bool = False) -> ir.Function:
    """The function to put into a model that imports ``opset`` of the standard operators (checkers want the two equal).

    Args:
        opset: of the standard operators.
        layers: of the operator; more than one need the function of one as well.
        rounding: as for :func:`function_text`; models with layers without U need it.
    """
    text = function_text(opset, rounding=rounding) if layers == 1 else layers_text(layers, opset, rounding=rounding)
    function: ir.Function = ir.serde.deserialize_function(onnx.parser.parse_function(text))
    return function


def define(model: ir.Model, opset: int = OPSET) -> None:
    """Put the functions into a model that has all its nodes, and give these the attributes that they demand."""
    rounding = layout_of(model) != LAYOUT_VERSION
    nodes = list(filter(is_operator, model.graph.all_nodes()))
    if rounding:
        for node in nodes:
            complete_attributes(node)
    for layers in sorted({1, *map(layers_in, nodes)}):  # what a function calls stands before it, for onnx.reference
        function = matmul_function(opset, layers=layers, rounding=rounding)
        model.functions[function.identifier()] = function
