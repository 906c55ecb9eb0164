"""The packed format: how codes become bytes. Specified byte by byte in docs/format.md.

Every code k is stored as two sign bits, its Gray code ``k ^ (k >> 1)``: bit 0 is the sign of Re - Im, bit 1 the sign of
Re + Im of i^k (1 = negative). Two neighbouring columns of one plane (U or W at one stage) make a nibble, the index into a
table of 16 sums; two planes of the same columns make a byte, as many "byte planes" as there are stages:

    byte = column 2c, low plane | column 2c+1, low plane << 2 | column 2c, high plane << 4 | column 2c+1, high plane << 6

The bytes are ordered [K-block][row tile][byte plane][cell], one cell being a cache line:

    cell (64 bytes) = [2 row halves][2 byte columns][16 rows]

so a row tile has 32 complex rows, a cell 4 complex columns, a K-block 32 complex columns. Rows and columns beyond the matrix
hold zero bits; there is no zero code, so kernels discard those rows and feed those columns activations of zero.

Layout version 2 is for layers without U (y = W conj(x), codes/strategies/ifairy.py): the first half of the columns of W takes the
place of U at one stage and the second half that of W, so that a byte holds four codes that all count.

This module is the only place that knows the constants (the packer itself is C, :func:`unpack` is its inverse in numpy):
``python -m fairy2i_export.codes.layout`` prints the C header made of them
(custom_ops/src/base/layout.h, kept equal by a test).
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fairy2i_export.codes.choices import MAX_STAGES
from fairy2i_export.codes.native import F32, F64, U8, Rows, each, pack_rows, row_blocks
from fairy2i_export.codes.quantized import Coded, QuantizedLinear, relative_error
from fairy2i_export.codes.rounding import ACTIVATION_BITS, SMALLEST
from fairy2i_export.errors import FormatError

LAYOUT_VERSION = 1
LAYOUT_CONJUGATE = 2  # U = 0: the columns of W alone, halved, take the places of U and W at one stage
SCALE_SCOPE_MATRIX = 0  # one (re, im) pair per stage and per U, W; the only scope of layout version 1
TILE_ROWS = 32  # complex rows of a row tile
BLOCK_COLS = 32  # complex columns of a K-block
CELL_BYTES = 64
CELL_COLS = 4  # complex columns of a cell
HALF_ROWS = 16  # rows that share one 16-byte table look-up
MAX_FEATURES = 1 << 24  # of K and of N
PACKER_REVISION = 1  # goes up when the same codes become other bytes
# the kernel "dot" rounds scales to a grid: all of an axis together are so many steps at most, by stages ...
GRID_STEPS = (126, 126, 125, 125)
GRID_CHOICES = 32  # ... and so many numbers from there down are tried
ALIGNMENT = 64  # smallest alignment of packed bytes in a file

_CELLS_PER_BLOCK = BLOCK_COLS // CELL_COLS
_GRAY = np.array([0, 1, 3, 2], np.uint8)  # code -> two sign bits; its own inverse


@dataclass(frozen=True)
class PackedLinear:
    """The operands of one ``Fairy2iMatMul`` node.

    Attributes:
        packed: uint8 [packed_size(n, m, stages, layout_version)].
        scales: float32 [stages, 2 (U, W), 2 (re, im)]; layout version 2 has those of W twice.
        n: complex rows, half the output features N.
        m: complex columns, half the input features K.
        stages: 1 to 4.
        row_multiplier: float32 [2n] or None.
        col_multiplier: float32 [2m] or None.
        layout_version: version of the byte layout.
        scale_scope: what a scale covers; 0 = the whole matrix.
        activation_bits: of the node: 8, with layout version 2, if it rounds its input (codes/rounding.py), else 0.
    """

    packed: U8
    scales: F32
    n: int
    m: int
    stages: int
    row_multiplier: F32 | None = None
    col_multiplier: F32 | None = None
    layout_version: int = LAYOUT_VERSION
    scale_scope: int = SCALE_SCOPE_MATRIX
    activation_bits: int = 0


def tiles_of(n: int) -> int:
    """Row tiles of a matrix with ``n`` complex rows, the last one padded."""
    return -(-n // TILE_ROWS)


def blocks_of(m: int) -> int:
    """K-blocks of a matrix with ``m`` complex columns, the last one padded."""
    return -(-m // BLOCK_COLS)


def columns_of(m: int, layout: int) -> int:
    """Columns of a plane: those of the matrix, or of a layer without U half of them, rounded up."""
    return -(-m // 2) if layout == LAYOUT_CONJUGATE else m


def packed_size(n: int, m: int, stages: int, layout: int = LAYOUT_VERSION) -> int:
    """Bytes of a packed matrix of ``n`` complex rows and ``m`` complex columns."""
    return blocks_of(columns_of(m, layout)) * tiles_of(n) * stages * _CELLS_PER_BLOCK * CELL_BYTES


def byte_planes(stages: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Which two planes share a byte: byte plane -> ((stage, matrix) of the low nibble, (stage, matrix) of the high nibble).

    Stages go in pairs, U then W; the last stage of an odd number pairs its U with its W.
    """
    planes: list[tuple[tuple[int, int], tuple[int, int]]] = []
    for stage in range(0, stages - 1, 2):
        planes += [((stage, matrix), (stage + 1, matrix)) for matrix in range(2)]
    if stages % 2:
        planes.append(((stages - 1, 0), (stages - 1, 1)))
    return planes


def pack(q: QuantizedLinear, layout: int = LAYOUT_VERSION) -> PackedLinear:
    """Pack codes (the bytes are written by custom_ops/src/quantizer/pack.c).

    Args:
        q: what to pack.
        layout: ``LAYOUT_VERSION``, or ``LAYOUT_CONJUGATE`` for a layer of one stage whose scales of U are zeros.

    Raises:
        FormatError: if it is something else, codes or scales have the wrong shape, a code is above 3, or the layout cannot hold
            the layer.
    """
    if not isinstance(q, QuantizedLinear):
        raise FormatError(f"q: expected a QuantizedLinear, got {type(q).__name__}: quantize() makes one")
    _check_codes(q)
    scales = stored_scales(q.scales, layout)
    packed = np.empty(packed_size(q.n, q.m, q.stages, layout), np.uint8)
    pack_rows(_of_planes(q.codes, layout), (0, q.n), packed, q.n)
    return PackedLinear(
        packed=packed,
        scales=scales,
        layout_version=layout,
        n=q.n,
        m=q.m,
        stages=q.stages,
        row_multiplier=q.row_multiplier,
        col_multiplier=q.col_multiplier,
    )


def stored_scales(scales: F32, layout: int = LAYOUT_VERSION) -> F32:
    """Scales [stages, 2 (U, W), 2 (re, im)] as a node of this layout has them.

    Raises:
        FormatError: a layer with U, or of more than one stage, in the layout for layers without.
    """
    if layout not in (LAYOUT_VERSION, LAYOUT_CONJUGATE):
        raise FormatError(f"layout: expected {LAYOUT_VERSION} or {LAYOUT_CONJUGATE}, got {layout}")
    stored = np.ascontiguousarray(scales, np.float32)
    if layout == LAYOUT_VERSION:
        return stored
    if len(stored) != 1 or stored[0, 0].any():
        raise FormatError(
            f"scales: layout version {LAYOUT_CONJUGATE} holds one stage of W alone, expected scales [1, 2, 2] with zeros for U, "
            f"got {stored.tolist()}"
        )
    return np.repeat(stored[:, 1:], 2, axis=1)


def _of_planes(codes: U8, layout: int) -> U8:
    """The codes [stages, 2, rows, m] that are stored: of a layer without U those of W, [rows, m]."""
    return np.ascontiguousarray(codes[0, 1] if layout == LAYOUT_CONJUGATE else codes)


def pack_coded(coded: Coded, pool: Executor | None = None, layout: int = LAYOUT_VERSION) -> tuple[U8, float]:
    """Codes and packed bytes of a matrix whose scales are known, a block of rows at a time.

    Returns:
        The packed bytes and ``|A - Q(A)| / |A|`` in the Frobenius norm, 0 for a matrix of zeros.
    """
    n, m = coded.n, coded.m
    packed = np.empty(packed_size(n, m, coded.stages, layout), np.uint8)

    def work(rows: Rows) -> F64:
        codes, errors = coded.codes(rows)
        pack_rows(_of_planes(codes, layout), rows, packed, n)
        return errors

    return packed, relative_error(np.concatenate(each(work, row_blocks(n, m, TILE_ROWS), pool)))


def unpack(p: PackedLinear) -> QuantizedLinear:
    """Inverse of :func:`pack`; the profile is not part of the bytes and comes back as the default.

    Raises:
        FormatError: if it is something else, or sizes, version or scope contradict the format.
    """
    if not isinstance(p, PackedLinear):
        raise FormatError(f"p: expected a PackedLinear, got {type(p).__name__}: pack() makes one")
    check_packed(p)
    columns = columns_of(p.m, p.layout_version)
    tiles, blocks = tiles_of(p.n), blocks_of(columns)
    cells = p.packed.reshape(blocks, tiles, p.stages, _CELLS_PER_BLOCK, 2, 2, HALF_ROWS)
    pairs = cells.transpose(2, 1, 4, 6, 0, 3, 5).reshape(p.stages, tiles * TILE_ROWS, blocks * BLOCK_COLS // 2)
    codes = np.empty((p.stages, 2, p.n, columns), np.uint8)
    for plane, (low, high) in enumerate(byte_planes(p.stages)):
        for place, shift in ((low, 0), (high, 4)):
            bits = np.stack([pairs[plane] >> shift & 3, pairs[plane] >> (shift + 2) & 3], axis=-1)
            codes[place] = _GRAY[bits.reshape(tiles * TILE_ROWS, -1)[: p.n, :columns]]
    scales = p.scales
    if p.layout_version == LAYOUT_CONJUGATE:  # halves side by side are W, and there is no U
        w = codes.transpose(0, 2, 1, 3).reshape(1, 1, p.n, 2 * columns)[..., : p.m]
        codes = np.concatenate([np.zeros_like(w), w], axis=1)
        scales = np.concatenate([np.zeros_like(scales[:, :1]), scales[:, 1:]], axis=1)
    return QuantizedLinear(codes=codes, scales=scales, row_multiplier=p.row_multiplier, col_multiplier=p.col_multiplier)


def _check_codes(q: QuantizedLinear) -> None:
    if q.codes.dtype != np.uint8 or q.codes.ndim != 4 or q.codes.shape[1] != 2 or not 1 <= q.stages <= MAX_STAGES:
        raise FormatError(
            f"expected uint8 codes [1..{MAX_STAGES} stages, 2 (U, W), n, m], got {q.codes.dtype} {list(q.codes.shape)}"
        )
    if q.codes.size and q.codes.max() > 3:
        raise FormatError(f"codes must be 0 to 3 (k stands for i^k), found {q.codes.max()}")
    _check_operand("scales", q.scales, (q.stages, 2, 2))
    _check_operand("row_multiplier", q.row_multiplier, (2 * q.n,))
    _check_operand("col_multiplier", q.col_multiplier, (2 * q.m,))


def check_packed(p: PackedLinear) -> None:
    """Check the operands of one node against the format.

    Raises:
        FormatError: naming the field, what was expected and what was found.
    """
    if p.layout_version not in (LAYOUT_VERSION, LAYOUT_CONJUGATE):
        raise FormatError(
            f"layout_version: expected {LAYOUT_VERSION} or {LAYOUT_CONJUGATE}, got {p.layout_version}; "
            "use the release that wrote it"
        )
    if p.scale_scope != SCALE_SCOPE_MATRIX:
        raise FormatError(f"scale_scope: expected {SCALE_SCOPE_MATRIX} (matrix), got {p.scale_scope}")
    known = ACTIVATION_BITS if p.layout_version == LAYOUT_CONJUGATE else (0,)
    if p.activation_bits not in known:
        expected_bits = f"{' or '.join(map(str, known))} with layout version {p.layout_version}"
        raise FormatError(f"activation_bits: expected {expected_bits}, got {p.activation_bits}")
    if not 1 <= p.stages <= MAX_STAGES:
        raise FormatError(f"stages: expected 1 to {MAX_STAGES}, got {p.stages}")
    if not (1 <= p.n <= MAX_FEATURES // 2 and 1 <= p.m <= MAX_FEATURES // 2):
        raise FormatError(f"expected 1 to {MAX_FEATURES // 2} complex rows and columns, got n={p.n}, m={p.m}")
    if p.layout_version == LAYOUT_CONJUGATE and p.stages != 1:
        raise FormatError(f"stages: expected 1 with layout version {LAYOUT_CONJUGATE}, got {p.stages}")
    expected = packed_size(p.n, p.m, p.stages, p.layout_version)
    if p.packed.dtype != np.uint8 or p.packed.shape != (expected,):
        raise FormatError(f"packed: expected uint8 [{expected}], got {p.packed.dtype} {list(p.packed.shape)}")
    _check_operand("scales", p.scales, (p.stages, 2, 2))
    if p.layout_version == LAYOUT_CONJUGATE and not np.array_equal(p.scales[0, 0], p.scales[0, 1]):
        raise FormatError(f"scales: expected those of W twice, got {p.scales.tolist()}")
    _check_operand("row_multiplier", p.row_multiplier, (2 * p.n,))
    _check_operand("col_multiplier", p.col_multiplier, (2 * p.m,))


def _check_operand(name: str, value: npt.NDArray[np.float32] | None, shape: tuple[int, ...]) -> None:
    if value is not None and (value.dtype != np.float32 or value.shape != shape):
        raise FormatError(f"{name}: expected float32 {list(shape)}, got {value.dtype} {list(value.shape)}")


def c_header() -> str:
    """The C header with the constants of this module, custom_ops/src/base/layout.h."""
    lines = [
        "/* Constants of the packed format. Generated: python -m fairy2i_export.codes.layout > custom_ops/src/base/layout.h */",
        "/* clang-format off */",
        "#ifndef F2I_LAYOUT_H",
        "#define F2I_LAYOUT_H",
        "",
    ]
    names = [
        "LAYOUT_VERSION", "LAYOUT_CONJUGATE", "SCALE_SCOPE_MATRIX", "MAX_STAGES", "TILE_ROWS", "BLOCK_COLS",
        "CELL_BYTES", "CELL_COLS", "HALF_ROWS", "MAX_FEATURES",
    ]  # fmt: skip
    lines += [f"#define F2I_{name} {globals()[name]}" for name in names]
    lines.append(f"#define F2I_SMALLEST_ROUNDED {SMALLEST!r}f /* largest activation of a half, at least; rounding.py */")
    lines.append(f"#define F2I_GRID_STEPS {{{', '.join(map(str, GRID_STEPS))}}} /* by stages */")
    lines.append(f"#define F2I_GRID_CHOICES {GRID_CHOICES}")
    lines.append("")
    lines.append("/* [stages - 1][byte plane][low, high nibble] = {stage, matrix (0 = U, 1 = W)} */")
    lines.append("#define F2I_BYTE_PLANES \\")
    rows = []
    for stages in range(1, MAX_STAGES + 1):
        planes = ", ".join(f"{{{{{a}, {b}}}, {{{c}, {d}}}}}" for (a, b), (c, d) in byte_planes(stages))
        rows.append(f"    {{{planes}}}")
    lines.append("  { \\\n" + ", \\\n".join(rows) + " \\\n  }")
    lines += ["", "#endif"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(c_header(), end="")
