/* Constants of the packed format. Generated: python -m fairy2i_export.codes.layout > custom_ops/src/base/layout.h */
/* clang-format off */
#ifndef F2I_LAYOUT_H
#define F2I_LAYOUT_H

#define F2I_LAYOUT_VERSION 1
#define F2I_LAYOUT_CONJUGATE 2
#define F2I_SCALE_SCOPE_MATRIX 0
#define F2I_MAX_STAGES 4
#define F2I_TILE_ROWS 32
#define F2I_BLOCK_COLS 32
#define F2I_CELL_BYTES 64
#define F2I_CELL_COLS 4
#define F2I_HALF_ROWS 16
#define F2I_MAX_FEATURES 16777216
#define F2I_SMALLEST_ROUNDED 1e-05f /* largest activation of a half, at least; rounding.py */
#define F2I_GRID_STEPS {126, 126, 125, 125} /* by stages */
#define F2I_GRID_CHOICES 32

/* [stages - 1][byte plane][low, high nibble] = {stage, matrix (0 = U, 1 = W)} */
#define F2I_BYTE_PLANES \
  { \
    {{{0, 0}, {0, 1}}}, \
    {{{0, 0}, {1, 0}}, {{0, 1}, {1, 1}}}, \
    {{{0, 0}, {1, 0}}, {{0, 1}, {1, 1}}, {{2, 0}, {2, 1}}}, \
    {{{0, 0}, {1, 0}}, {{0, 1}, {1, 1}}, {{2, 0}, {3, 0}}, {{2, 1}, {3, 1}}} \
  }

#endif
