/* flags: -march=armv8.2-a+dotprod+i8mm */
/* flags of gcc: -fno-schedule-insns -fno-tree-ter */
/* dot_neon86.c - "dot" with the matrix instructions of ARMv8.6.
 *
 * A tile's weights are unpacked to memory, once for all rows of x, and multiplied from there. SMMLA multiplies two rows
 * of eight weights with eight values of two rows of x.
 */
#include "kernels/arm/dot_neon.h"

f2i_build_fn f2i_build_dot__neon86;
f2i_block_fn f2i_block_dot__neon86;
extern const f2i_panel_kernel f2i_panel_dot__neon86;

float f2i_build_dot__neon86(const float *re, const float *im, const float *scales, int stages, void *operands) {
  (void)stages;
  return build_row(re, im, scales, operands);
}

/* One output of eight rows of the matrix for the first `pairs` pairs of some rows of x, or with `next` 0 for a single
 * row, which then is both of a pair; else next is 1. weights: of a tile_weights; pairs and next are constants where
 * this is called: sums stay in registers. */
static F2I_INLINE void multiply(const rows_of_x rows, const int pairs, const size_t next, const int8_t *weights) {
  const int8_t *at = rows.x;
  int32x4_t sums[4][4]; /* [pair][two rows of the matrix][row of the matrix][row of x] */
  F2I_UNROLL
  for (int i = 0; i < pairs; ++i) sums[i][0] = sums[i][1] = sums[i][2] = sums[i][3] = vdupq_n_s32(0);
  F2I_ROLLED
  for (const int8_t *end = weights + STEPS * 32; weights < end; weights += 128, at += 16) {
    int8x16_t x[4][2]; /* [pair][part of x][row of x] */
    F2I_UNROLL
    for (int i = 0; i < pairs; ++i) {
      const int8_t *of = at + (size_t)(2 * i) * rows.stride;
      const int64x2_t a = vreinterpretq_s64_s8(vld1q_s8(of));
      const int64x2_t b = vreinterpretq_s64_s8(vld1q_s8(of + next * rows.stride));
      x[i][0] = vreinterpretq_s8_s64(vzip1q_s64(a, b));
      x[i][1] = vreinterpretq_s8_s64(vzip2q_s64(a, b));
    }
    F2I_UNROLL
    for (int k = 0; k < 8; k += 2) { /* [part of x][two rows] */
      const int8x16_t first = vld1q_s8(weights + 16 * k), second = vld1q_s8(weights + 16 * k + 16);
      F2I_UNROLL
      for (int i = 0; i < pairs; ++i) {
        sums[i][k % 4] = vmmlaq_s32(sums[i][k % 4], first, x[i][k / 4]);
        sums[i][k % 4 + 1] = vmmlaq_s32(sums[i][k % 4 + 1], second, x[i][k / 4]);
      }
    }
  }
  float *acc = rows.acc;
  const float *units = rows.units;
  F2I_UNROLL
  for (int i = 0; i < pairs; ++i) {
    add_to(acc, units[2 * i], vuzp1q_s32(sums[i][0], sums[i][1]), vuzp1q_s32(sums[i][2], sums[i][3]));
    acc += rows.acc_stride;
    if (next == 0) continue;
    add_to(acc, units[2 * i + 1], vuzp2q_s32(sums[i][0], sums[i][1]), vuzp2q_s32(sums[i][2], sums[i][3]));
    acc += rows.acc_stride;
  }
}

/* A whole tile for these rows; then goes on to the next ones. */
static F2I_INLINE void multiply_some(rows_of_x *rows, const int pairs, const size_t next, const tile_weights *weights) {
  for (size_t i = 0; i < 2 * EIGHTS; ++i) { /* [eight][part] */
    rows_of_x here = *rows;
    here.acc += i % 2 * F2I_TILE_ROWS + i / 2 * 8;
    multiply(here, pairs, next, weights->w[i / 2][i % 2]);
  }
  skip_rows(rows, next == 0 ? 1 : 2 * (size_t)pairs);
}

static void multiply_rows(rows_of_x rows, const tile_weights *weights) {
  while (rows.count >= 8) multiply_some(&rows, 4, 1, weights);
  if (rows.count >= 4) multiply_some(&rows, 2, 1, weights);
  if (rows.count >= 2) multiply_some(&rows, 1, 1, weights);
  if (rows.count >= 1) multiply_some(&rows, 1, 0, weights);
}

void f2i_block_dot__neon86(const f2i_block *b) { walk_block(b, multiply_rows, 1); }

static void f2i_block_dot__neon86_panel(const f2i_panel *p) { walk_panel(p, multiply_rows, 1); }

const f2i_panel_kernel f2i_panel_dot__neon86 = {F2I_DOT_NEON_PANEL, .least = 9, .block = f2i_block_dot__neon86_panel};
