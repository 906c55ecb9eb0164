/* lut_neon_panel.h - "lut" for 8, 16 or 32 rows of x at once: what building tables and adding entries share. */
#ifndef F2I_LUT_NEON_PANEL_H
#define F2I_LUT_NEON_PANEL_H

#include "kernels/kernels.h"

enum {
  F2I_GROUP = 8, /* rows of x that share a vector of table entries: 8 bytes of real outputs, 8 of imaginary ones */
  F2I_ENTRIES = 16,
  F2I_CELL_TABLES = 4, /* [byte column][low, high nibble] */
  F2I_PLANE_TABLES = F2I_BLOCK_CELLS * F2I_CELL_TABLES,
};

/* Tables of one K-block, as f2i_panel_kernel has them.
 *   groups  of rows of x: an entry is [groups][16], a table [F2I_ENTRIES] of them
 *   tables  out: [plane][F2I_PLANE_TABLES] tables */
void f2i_build_lut_neon_groups(const float *re, const float *im, const float *scales, int stages, size_t groups,
                               uint8_t *tables, float *units);

#endif
