/* flags: -march=armv8.2-a+i8mm */
/* flags of gcc: -fno-schedule-insns -fno-tree-ter */
/* dot_neon86.c - "dot" with the matrix instructions of ARMv8.6.
 *
 * SMMLA multiplies two rows of eight int8 with two columns of eight. Two complex rows of real parts times (x_re, x_im),
 * plus the same rows' imaginary parts times (-x_im, x_re), is the real and the imaginary output of both rows: no
 * product is wasted. The eight columns are a group of four byte columns: their even columns, then their odd ones.
 */
#include <arm_neon.h>

#include "kernels/arm/dot_neon.h"

f2i_build_fn f2i_build_dot__neon86;
f2i_block_fn f2i_block_dot__neon86;

/* Right-hand sides for real and for imaginary parts of U, and of W, which multiplies conj(x). */
typedef struct group_operands {
  int8_t of[2][2][2][8]; /* [matrix][part of the weight][output][parity, byte column] */
} group_operands;

_Static_assert(GROUPS * sizeof(group_operands) == F2I_DOT_MATRIX_BYTES, "operands of a block");

float f2i_build_dot__neon86(const float *re, const float *im, const float *scales, int stages, void *operands) {
  (void)stages;
  f2i_dot_activations x;
  const float unit = f2i_build_dot(re, im, scales, &x);
  group_operands *out = operands;
  for (int g = 0; g < GROUPS; ++g) {
    for (int matrix = 0; matrix < 2; ++matrix) {
      memcpy(out[g].of[matrix][0][0], x.re[g], 8);
      memcpy(out[g].of[matrix][0][1], matrix ? x.minus_im[g] : x.im[g], 8);
      memcpy(out[g].of[matrix][1][0], matrix ? x.im[g] : x.minus_im[g], 8);
      memcpy(out[g].of[matrix][1][1], x.re[g], 8);
    }
  }
  return unit;
}

/* Table indices (low plane's code in bits 0-1, high plane's in bits 2-3) of four rows: [rows 0-1, 2-3], a row's eight
 * columns side by side. */
static inline void split(uint8x16_t bytes, uint8x16_t index[2]) {
  const uint8x16_t low2 = vdupq_n_u8(3), by2 = vshrq_n_u8(bytes, 2);
  const uint32x4_t odd = vreinterpretq_u32_u8(vbslq_u8(low2, by2, vshrq_n_u8(bytes, 4)));
  const uint32x4_t even = vreinterpretq_u32_u8(vandq_u8(vbslq_u8(low2, bytes, by2), vdupq_n_u8(15)));
  index[0] = vreinterpretq_u8_u32(vzip1q_u32(even, odd));
  index[1] = vreinterpretq_u8_u32(vzip2q_u32(even, odd));
}

typedef struct sums {
  int32x4_t rows[4]; /* of two rows each: re, im, re, im */
} sums;

/* Adds one matrix of a byte plane for `count` rows of x; tables: re, im. */
static INLINE void add_plane(const uint8_t *packed, const int8_t value[2][16], int matrix, const f2i_block *b,
                             size_t row, const int count, sums *acc) {
  const int8x16_t table_re = vld1q_s8(value[0]), table_im = vld1q_s8(value[1]);
  const uint8_t *x = b->operands + row * b->operand_stride + (size_t)matrix * sizeof(group_operands) / 2;
#if !defined(__clang__)
#pragma GCC unroll 1 /* unrolled, gcc moves the loads of all groups to the front and runs out of registers */
#endif
  for (int group = 0; group < GROUPS; ++group, packed += 2 * F2I_CELL_BYTES, x += sizeof(group_operands)) {
    uint8x16_t rows[2];
    transpose(packed, rows);
    for (int v = 0; v < 2; ++v) {
      uint8x16_t index[2];
      split(rows[v], index);
      for (int i = 0; i < 2; ++i) {
        const int8x16_t re = vqtbl1q_s8(table_re, index[i]), im = vqtbl1q_s8(table_im, index[i]);
        for (int r = 0; r < count; ++r) {
          const int8_t *of = (const int8_t *)(x + (size_t)r * b->operand_stride);
          int32x4_t *sum = &acc[r].rows[2 * v + i];
          *sum = vmmlaq_s32(vmmlaq_s32(*sum, re, vld1q_s8(of)), im, vld1q_s8(of + 16));
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
  for (int r = 0; r < count; ++r) acc[r] = (sums){{zero, zero, zero, zero}};
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
      const int32x4_t first = acc[r].rows[2 * v], second = acc[r].rows[2 * v + 1];
      add_to(out + 4 * v, unit, vuzp1q_s32(first, second));
      add_to(out + F2I_TILE_ROWS + 4 * v, unit, vuzp2q_s32(first, second));
    }
  }
}

void f2i_block_dot__neon86(const f2i_block *b) {
  for (size_t tile = 0; tile < b->tiles; ++tile) {
    for (size_t quarter = 0; quarter < 4; ++quarter) {
      size_t row = 0;
      for (; row + ROWS <= b->rows; row += ROWS) eight_rows(b, tile, quarter, row, ROWS);
      for (; row < b->rows; ++row) eight_rows(b, tile, quarter, row, 1);
    }
  }
}
