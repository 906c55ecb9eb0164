/* kernels.h - what a kernel is, and the table of all kernels.
 *
 * The layer is evaluated K-block by K-block. For each row of x, `build` turns the 32 complex activations of a block
 * into look-up tables; `block` then walks the packed bytes of some row tiles of that block and adds table entries. To
 * add an ISA: one new file with these two functions, its declaration here, one row in dispatch.c.
 */
#ifndef F2I_KERNELS_H
#define F2I_KERNELS_H

#include "f2i_layout.h"
#include "fairy2i.h"

enum {
  F2I_BLOCK_CELLS = F2I_BLOCK_COLS / F2I_CELL_COLS,
  /* a block's packed bytes of one row tile and one byte plane: [cell][row half][byte column][row] */
  F2I_PLANE_BYTES = F2I_BLOCK_CELLS * F2I_CELL_BYTES,
  /* table entries of one byte plane of a block: [cell][low re, low im, high re, high im][byte column][16] */
  F2I_CELL_ENTRIES = 4 * 2 * 16,
  F2I_PLANE_ENTRIES = F2I_BLOCK_CELLS * F2I_CELL_ENTRIES,
  F2I_ACC_PER_TILE = 2 * F2I_TILE_ROWS, /* float accumulators of a row tile: [re, im][row] */
};

/* The two planes that share a byte: {stage, matrix} of the low and of the high nibble. */
extern const uint8_t f2i_byte_planes[F2I_MAX_STAGES][F2I_MAX_STAGES][2][2];

/* Tables of one K-block for one row of x.
 *   re, im   the block's activations, [F2I_BLOCK_COLS] each, zero beyond the matrix, column multiplier applied
 *   scales   [stages][2][2]
 *   tables   out: [byte plane][F2I_PLANE_ENTRIES] entries of the family's type
 *   returns  the value of one unit of a table entry; NaN if an activation is not finite */
typedef float (*f2i_build_fn)(const float *re, const float *im, const float *scales, int stages, void *tables);

/* Adds one K-block to the accumulators of `tiles` consecutive row tiles.
 *   packed   [tile][byte plane][F2I_PLANE_BYTES], not necessarily aligned
 *   acc      [tile][F2I_ACC_PER_TILE] */
typedef void (*f2i_block_fn)(const uint8_t *packed, size_t tiles, int stages, const void *tables, float unit,
                             float *acc);

typedef struct f2i_kernel {
  const char *family;
  const char *isa;
  uint32_t needs;     /* CPU feature bits, cpu.h */
  size_t entry_bytes; /* of a table entry */
  f2i_build_fn build;
  f2i_block_fn block;
} f2i_kernel;

extern const f2i_kernel f2i_kernels[];
extern const size_t f2i_kernels_count;

/* The kernel named by family and isa (NULL or "" = environment, then default), or an error. */
f2i_status f2i_select_kernel(const char *family, const char *isa, const f2i_kernel **kernel, f2i_message *message);

float f2i_build_lut__scalar(const float *re, const float *im, const float *scales, int stages, void *tables);
void f2i_block_lut__scalar(const uint8_t *packed, size_t tiles, int stages, const void *tables, float unit, float *acc);
float f2i_build_exact__scalar(const float *re, const float *im, const float *scales, int stages, void *tables);
void f2i_block_exact__scalar(const uint8_t *packed, size_t tiles, int stages, const void *tables, float unit,
                             float *acc);
#if defined(F2I_HAVE_AVX2)
float f2i_build_lut__avx2(const float *re, const float *im, const float *scales, int stages, void *tables);
void f2i_block_lut__avx2(const uint8_t *packed, size_t tiles, int stages, const void *tables, float unit, float *acc);
#endif

#endif
