/* flags: -march=armv8.2-a+dotprod */
/* flags of gcc: -fno-schedule-insns -fno-tree-ter */
/* dot_neon82.c - "dot" with the dot-product instructions of ARMv8.2.
 *
 * A tile's weights are unpacked to memory, once for all rows of x, and multiplied from there. SDOT multiplies four rows
 * and columns by four values of one row of x, a lane of a vector that holds sixteen.
 */
#include "kernels/arm/dot_neon.h"

f2i_build_fn f2i_build_dot__neon82;
f2i_block_fn f2i_block_dot__neon82;
extern const f2i_panel_kernel f2i_panel_dot__neon82;

float f2i_build_dot__neon82(const float *re, const float *im, const float *scales, int stages, void *operands) {
  (void)stages;
  return build_row(re, im, scales, operands);
}

/* sums[0..count][rows 0-3, 4-7] += weights times four columns of each row of x, which are a lane of x. The lane has to
 * be written as a number. */
#define ADD_STEP(lane)                                                                         \
  do {                                                                                         \
    const int8x16_t a = vld1q_s8(weights + 32 * lane), b = vld1q_s8(weights + 32 * lane + 16); \
    F2I_UNROLL                                                                                 \
    for (int r = 0; r < count; ++r) {                                                          \
      sums[r][0] = vdotq_laneq_s32(sums[r][0], a, x[r], lane);                                 \
      sums[r][1] = vdotq_laneq_s32(sums[r][1], b, x[r], lane);                                 \
    }                                                                                          \
  } while (0)

/* One output of eight rows of the matrix for the first `count` of some rows of x. weights: of a tile_weights; count is
 * a constant where this is called: sums stay in registers. */
static F2I_INLINE void multiply(const rows_of_x rows, const int count, const int8_t *weights) {
  const int8_t *at = rows.x;
  int32x4_t sums[8][2];
  F2I_UNROLL
  for (int r = 0; r < count; ++r) sums[r][0] = sums[r][1] = vdupq_n_s32(0);
  F2I_ROLLED
  for (const int8_t *end = weights + STEPS * 32; weights < end; weights += 4 * 32, at += 16) {
    int8x16_t x[8];
    F2I_UNROLL
    for (int r = 0; r < count; ++r) x[r] = vld1q_s8(at + (size_t)r * rows.stride);
    ADD_STEP(0);
    ADD_STEP(1);
    ADD_STEP(2);
    ADD_STEP(3);
  }
  float *acc = rows.acc;
  F2I_UNROLL
  for (int r = 0; r < count; ++r, acc += rows.acc_stride) add_to(acc, rows.units[r], sums[r][0], sums[r][1]);
}

/* A whole tile for these rows; then goes on to the next ones. */
static F2I_INLINE void multiply_some(rows_of_x *rows, const int count, const tile_weights *weights) {
  for (size_t i = 0; i < 2 * EIGHTS; ++i) { /* [eight][part] */
    rows_of_x here = *rows;
    here.acc += i % 2 * F2I_TILE_ROWS + i / 2 * 8;
    multiply(here, count, weights->w[i / 2][i % 2]);
  }
  skip_rows(rows, (size_t)count);
}

static void multiply_rows(rows_of_x rows, const tile_weights *weights) {
  while (rows.count >= 8) multiply_some(&rows, 8, weights);
  if (rows.count >= 4) multiply_some(&rows, 4, weights);
  if (rows.count >= 2) multiply_some(&rows, 2, weights);
  if (rows.count >= 1) multiply_some(&rows, 1, weights);
}

void f2i_block_dot__neon82(const f2i_block *b) { walk_block(b, multiply_rows, 0); }

static void f2i_block_dot__neon82_panel(const f2i_panel *p) { walk_panel(p, multiply_rows, 0); }

const f2i_panel_kernel f2i_panel_dot__neon82 = {F2I_DOT_NEON_PANEL, .least = 9, .block = f2i_block_dot__neon82_panel};
