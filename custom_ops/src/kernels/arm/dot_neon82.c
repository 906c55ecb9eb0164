/* flags: -march=armv8.2-a+dotprod */
/* flags of gcc: -fno-schedule-insns -fno-tree-ter */
/* dot_neon82.c - "dot" with the dot-product instructions of ARMv8.2.
 *
 * Eight rows and four byte columns are transposed at a time, so that a 32-bit lane is a row and its four bytes are the
 * four byte columns; each byte then splits into the table indices of an even and an odd column.
 */
#include <arm_neon.h>
#include <stddef.h>

#include "kernels/arm/dot_neon.h"

f2i_build_fn f2i_build_dot__neon82;
f2i_block_fn f2i_block_dot__neon82;

float f2i_build_dot__neon82(const float *re, const float *im, const float *scales, int stages, void *operands) {
  (void)stages;
  return f2i_build_dot(re, im, scales, operands);
}

/* Low plane's code in bits 0-1, high plane's in bits 2-3, of the even or odd columns. */
static inline uint8x16_t index_of(uint8x16_t bytes, const int parity) {
  const uint8x16_t low2 = vdupq_n_u8(3), by2 = vshrq_n_u8(bytes, 2);
  return parity ? vbslq_u8(low2, by2, vshrq_n_u8(bytes, 4)) : vandq_u8(vbslq_u8(low2, bytes, by2), vdupq_n_u8(15));
}

typedef struct sums {
  int32x4_t re[2], im[2]; /* of rows 0-3, 4-7 */
} sums;

/* sum += weights times one lane of x */
static inline int32x4_t add_lane(int32x4_t sum, int8x16_t weights, int8x8_t x, const int lane) {
  return lane ? vdotq_lane_s32(sum, weights, x, 1) : vdotq_lane_s32(sum, weights, x, 0);
}

/* Adds one matrix of a byte plane for `count` rows of x; tables: re, im. */
static INLINE void add_plane(const uint8_t *packed, const int8_t value[2][16], int matrix, const f2i_block *b,
                             size_t row, const int count, sums *acc) {
  const int8x16_t table_re = vld1q_s8(value[0]), table_im = vld1q_s8(value[1]);
  /* U x: re - im, im + re; W conj(x): the same with -im for im */
  const size_t plus = matrix ? offsetof(f2i_dot_activations, minus_im) : offsetof(f2i_dot_activations, im);
  const size_t minus = matrix ? offsetof(f2i_dot_activations, im) : offsetof(f2i_dot_activations, minus_im);
  const uint8_t *first = b->operands + row * b->operand_stride;
#if !defined(__clang__)
#pragma GCC unroll 1 /* unrolled, gcc moves the loads of all groups to the front and runs out of registers */
#endif
  for (int group = 0; group < GROUPS; ++group, packed += 2 * F2I_CELL_BYTES, first += 8) {
    uint8x16_t rows[2];
    transpose(packed, rows);
    for (int v = 0; v < 2; ++v) {
      for (int parity = 0; parity < 2; ++parity) {
        const uint8x16_t index = index_of(rows[v], parity);
        const int8x16_t re = vqtbl1q_s8(table_re, index), im = vqtbl1q_s8(table_im, index);
        for (int r = 0; r < count; ++r) {
          const int8_t *x = (const int8_t *)(first + (size_t)r * b->operand_stride);
          const int8x8_t a = vld1_s8(x), c = vld1_s8(x + plus), d = vld1_s8(x + minus); /* [parity][byte column] */
          acc[r].re[v] = add_lane(acc[r].re[v], re, a, parity);
          acc[r].im[v] = add_lane(acc[r].im[v], re, c, parity);
          acc[r].re[v] = add_lane(acc[r].re[v], im, d, parity);
          acc[r].im[v] = add_lane(acc[r].im[v], im, a, parity);
        }
      }
    }
  }
}

/* A quarter of a tile, eight rows, for `count` rows of x. */
static INLINE void eight_rows(const f2i_block *b, size_t tile, size_t quarter, size_t row, const int count) {
  const f2i_dot_plane *planes = b->shared;
  const size_t tile_bytes = (size_t)b->stages * F2I_PLANE_BYTES;
  const uint8_t *packed = b->packed + tile * tile_bytes + quarter / 2 * 32 + quarter % 2 * 8;
  const uint8_t *ahead = b->ahead + tile * tile_bytes;
  const int32x4_t zero = vdupq_n_s32(0);
  sums acc[ROWS];
  for (int r = 0; r < count; ++r) acc[r] = (sums){{zero, zero}, {zero, zero}};
  for (int p = 0; p < b->stages; ++p, packed += F2I_PLANE_BYTES, ahead += F2I_PLANE_BYTES) {
    if (quarter < 2) {
      for (size_t i = quarter; i < F2I_BLOCK_CELLS; i += 2) __builtin_prefetch(ahead + i * F2I_CELL_BYTES);
    }
    if (planes[p].both) {
      add_plane(packed, planes[p].value, 0, b, row, count, acc);
      add_plane(packed, planes[p].value + 2, 1, b, row, count, acc);
    } else {
      add_plane(packed, planes[p].value, planes[p].matrix, b, row, count, acc);
    }
  }
  for (int r = 0; r < count; ++r) {
    const float32x4_t unit = vdupq_n_f32(f2i_dot_unit(planes, b->units[(row + (size_t)r) * b->unit_stride]));
    float *out = b->acc + (row + (size_t)r) * b->acc_stride + tile * F2I_ACC_PER_TILE + 8 * quarter;
    for (int v = 0; v < 2; ++v) {
      add_to(out + 4 * v, unit, acc[r].re[v]);
      add_to(out + F2I_TILE_ROWS + 4 * v, unit, acc[r].im[v]);
    }
  }
}

void f2i_block_dot__neon82(const f2i_block *b) {
  for (size_t tile = 0; tile < b->tiles; ++tile) {
    for (size_t quarter = 0; quarter < 4; ++quarter) {
      size_t row = 0;
      for (; row + ROWS <= b->rows; row += ROWS) eight_rows(b, tile, quarter, row, ROWS);
      for (; row < b->rows; ++row) eight_rows(b, tile, quarter, row, 1);
    }
  }
}
