/* flags of gcc: -fno-schedule-insns -fno-tree-ter */
/* lut_neon.c - "lut" for any 64-bit ARM: 16-byte tables in registers, sums widened by adding.
 *
 * Look-ups use the 8-byte form of TBL: its result is what the widening addition takes, and on Cortex-A57 and A72 two of
 * them cost two operations where the 16-byte form costs three (docs/arm.md).
 */
#include <float.h>
#include <math.h>
#include <string.h>

#include "kernels/arm/lookup_neon.h"
#include "kernels/column_terms.h"
#include "kernels/whole_pairs.h"

f2i_build_fn f2i_build_lut__neon;
f2i_block_fn f2i_block_lut__neon;

/* --- tables --- */

static float32x4_t magnitude(const float *values) { return vabsq_f32(vld1q_f32(values)); }

/* The largest magnitude among all entries of the block, or infinity if an activation is not finite. Sums of
 * neighbouring columns' largest terms are the largest entries: every sign combination is in the table. */
static float find_largest(const float *re, const float *im, const float *scales, int stages) {
  float32x4_t largest = vdupq_n_f32(0.0f);
  uint32x4_t finite = vdupq_n_u32(UINT32_MAX);
  for (int j = 0; j < F2I_BLOCK_COLS; j += 8) {
    const float32x4x2_t r = vuzpq_f32(magnitude(re + j), magnitude(re + j + 4)); /* even columns, odd columns */
    const float32x4x2_t i = vuzpq_f32(magnitude(im + j), magnitude(im + j + 4));
    for (int odd = 0; odd < 2; ++odd) {
      finite = vandq_u32(finite, vcleq_f32(r.val[odd], vdupq_n_f32(FLT_MAX)));
      finite = vandq_u32(finite, vcleq_f32(i.val[odd], vdupq_n_f32(FLT_MAX)));
    }
    for (int plane = 0; plane < 2 * stages; ++plane) {
      const float s_re = fabsf(scales[2 * plane]), s_im = fabsf(scales[2 * plane + 1]);
      float32x4_t of_re[2], of_im[2];
      for (int odd = 0; odd < 2; ++odd) {
        of_re[odd] = vmaxq_f32(vmulq_n_f32(r.val[odd], s_re), vmulq_n_f32(i.val[odd], s_im));
        of_im[odd] = vmaxq_f32(vmulq_n_f32(i.val[odd], s_re), vmulq_n_f32(r.val[odd], s_im));
      }
      largest = vmaxq_f32(largest, vaddq_f32(of_re[0], of_re[1]));
      largest = vmaxq_f32(largest, vaddq_f32(of_im[0], of_im[1]));
    }
  }
  return vminvq_u32(finite) == UINT32_MAX ? vmaxvq_f32(largest) : INFINITY;
}

/* What turns a column into its four terms (column_terms.h) at one stage and matrix: re * [re, im, im, re] and
 * im * [im, re, re, im]. */
typedef struct factors {
  float32x4_t re, im;
} factors;

static inline factors factors_of(const float scale[2], int matrix) {
  static const float signs[2][2][4] = {{{1, -1, 1, -1}, {1, 1, -1, -1}}, {{1, 1, -1, -1}, {-1, 1, -1, 1}}};
  const float32x2_t v = vld1_f32(scale);
  const float32x4_t sizes = vcombine_f32(v, vrev64_f32(v));
  const factors f = {vmulq_f32(sizes, vld1q_f32(signs[matrix][0])), vmulq_f32(sizes, vld1q_f32(signs[matrix][1]))};
  return f;
}

/* Two neighbouring columns: the first as factors want it, the second in all lanes. */
typedef struct column_pair {
  float32x4_t for_re, for_im, second_re, second_im;
} column_pair;

/* column: re, im of the first, re, im of the second */
static inline column_pair pair_of(float32x4_t column) {
  const float64x2_t straight = vreinterpretq_f64_f32(column);
  const float64x2_t swapped = vreinterpretq_f64_f32(vrev64q_f32(column));
  const column_pair p = {vreinterpretq_f32_f64(vzip1q_f64(straight, swapped)),
                         vreinterpretq_f32_f64(vzip1q_f64(swapped, straight)), vdupq_laneq_f32(column, 2),
                         vdupq_laneq_f32(column, 3)};
  return p;
}

/* Entries 0 to 7 of a table: the terms of the first column with the first two of the second, in all lanes. */
static inline int16x8_t half_table(float32x4_t terms, float32x4_t second0, float32x4_t second1, float32x4_t inverse) {
  const int32x4_t a = vcvtnq_s32_f32(vmulq_f32(vaddq_f32(terms, second0), inverse));
  const int32x4_t b = vcvtnq_s32_f32(vmulq_f32(vaddq_f32(terms, second1), inverse));
  return vuzp1q_s16(vreinterpretq_s16_s32(a), vreinterpretq_s16_s32(b)); /* they fit 8 bits */
}

/* The tables of the real and the imaginary output. */
static inline void store_tables(const column_pair *p, const factors *f, float32x4_t inverse, uint8_t *out) {
  const int16x8_t re = half_table(vmulq_f32(p->for_re, f->re), vmulq_laneq_f32(p->second_re, f->re, 0),
                                  vmulq_laneq_f32(p->second_im, f->re, 1), inverse);
  const int16x8_t im = half_table(vmulq_f32(p->for_im, f->im), vmulq_laneq_f32(p->second_im, f->im, 0),
                                  vmulq_laneq_f32(p->second_re, f->im, 1), inverse);
  const int8x16_t half = vuzp1q_s8(vreinterpretq_s8_s16(re), vreinterpretq_s8_s16(im));
  const int8x16_t rest = vnegq_s8(vrev64q_s8(half)); /* entry 15 - i is minus entry i */
  const uint64x2_t first = vreinterpretq_u64_s8(veorq_s8(half, vdupq_n_s8(INT8_MIN)));
  const uint64x2_t last = vreinterpretq_u64_s8(veorq_s8(rest, vdupq_n_s8(INT8_MIN)));
  vst1q_u8(out, vreinterpretq_u8_u64(vzip1q_u64(first, last)));
  vst1q_u8(out + 32, vreinterpretq_u8_u64(vzip2q_u64(first, last)));
}

float f2i_build_lut__neon(const float *re, const float *im, const float *scales, int stages, void *tables) {
  if (scales == NULL) return f2i_build_whole_pairs(re, im, tables);
  float inverse;
  const float unit = f2i_lut_unit(find_largest(re, im, scales, stages), &inverse);
  if (inverse == 0.0f) {
    memset(tables, 128, (size_t)stages * F2I_PLANE_ENTRIES);
    return unit;
  }
  const float32x4_t all = vdupq_n_f32(inverse);
  factors f[F2I_MAX_STAGES][2]; /* [plane][low, high nibble] */
  for (int plane = 0; plane < stages; ++plane) {
    for (int nibble = 0; nibble < 2; ++nibble) {
      const uint8_t *place = f2i_byte_planes[stages - 1][plane][nibble];
      f[plane][nibble] = factors_of(scales + (place[0] * 2 + place[1]) * 2, place[1]);
    }
  }
  uint8_t *cell = tables;
  for (int j = 0; j < F2I_BLOCK_COLS; j += F2I_CELL_COLS, cell += F2I_CELL_ENTRIES) {
    const float32x4_t x = vld1q_f32(re + j), y = vld1q_f32(im + j);
    const column_pair even = pair_of(vzip1q_f32(x, y)), odd = pair_of(vzip2q_f32(x, y));
    uint8_t *out = cell;
    for (int plane = 0; plane < stages; ++plane, out += F2I_PLANE_ENTRIES) {
      for (int nibble = 0; nibble < 2; ++nibble) {
        store_tables(&even, &f[plane][nibble], all, out + 64 * nibble);
        store_tables(&odd, &f[plane][nibble], all, out + 64 * nibble + 16);
      }
    }
  }
  return unit;
}

/* --- sums --- */

/* Table indices of 16 rows: [rows 0-7, 8-15]. */
typedef struct indices {
  uint8x8_t low[2], high[2];
} indices;

static inline indices split(const uint8_t *run) {
  const uint8x8_t low4 = vdup_n_u8(15);
  const uint8x8_t a = vld1_u8(run), b = vld1_u8(run + 8);
  const indices i = {{vand_u8(a, low4), vand_u8(b, low4)}, {vshr_n_u8(a, 4), vshr_n_u8(b, 4)}};
  return i;
}

/* The four tables of a byte column. */
typedef struct tables {
  uint8x16_t low_re, low_im, high_re, high_im;
} tables;

static inline tables tables_at(const uint8_t *table) {
  const tables t = {vld1q_u8(table), vld1q_u8(table + 32), vld1q_u8(table + 64), vld1q_u8(table + 96)};
  return t;
}

/* In an order that leaves cores that cannot reorder (Cortex-A53, A55) something to do while they wait for a look-up. */
static inline void look_up(const tables *t, const indices *i, uint16x8_t re[2], uint16x8_t im[2]) {
  const uint8x8_t low_re0 = vqtbl1_u8(t->low_re, i->low[0]), low_im0 = vqtbl1_u8(t->low_im, i->low[0]);
  const uint8x8_t low_re1 = vqtbl1_u8(t->low_re, i->low[1]), low_im1 = vqtbl1_u8(t->low_im, i->low[1]);
  const uint8x8_t high_re0 = vqtbl1_u8(t->high_re, i->high[0]), high_im0 = vqtbl1_u8(t->high_im, i->high[0]);
  re[0] = vaddw_u8(re[0], low_re0);
  im[0] = vaddw_u8(im[0], low_im0);
  const uint8x8_t high_re1 = vqtbl1_u8(t->high_re, i->high[1]), high_im1 = vqtbl1_u8(t->high_im, i->high[1]);
  re[1] = vaddw_u8(re[1], low_re1);
  im[1] = vaddw_u8(im[1], low_im1);
  re[0] = vaddw_u8(re[0], high_re0);
  im[0] = vaddw_u8(im[0], high_im0);
  re[1] = vaddw_u8(re[1], high_re1);
  im[1] = vaddw_u8(im[1], high_im1);
}

/* `tiles` (1 or 2) neighbouring tiles for `rows` (1 or 2) rows of x: tiles share the loaded tables, rows the indices.
 */
static F2I_INLINE void lut_tiles(const f2i_block *b, size_t row, size_t tile, const int rows, const int tiles_here) {
  const size_t cells = (size_t)b->stages * F2I_BLOCK_CELLS, tile_bytes = cells * F2I_CELL_BYTES;
  const uint8_t *packed = b->packed + tile * tile_bytes, *ahead = b->ahead + tile * tile_bytes;
  const uint8_t *table = b->operands + row * b->operand_stride;
  f2i_neon_sums sums[2] = {f2i_neon_clear(b->stages), f2i_neon_clear(b->stages)}; /* one for each tile or row */
  for (size_t cell = 0; cell < cells; ++cell, packed += F2I_CELL_BYTES, table += F2I_CELL_ENTRIES) {
    for (int t = 0; t < tiles_here; ++t) __builtin_prefetch(ahead + (size_t)t * tile_bytes);
    ahead += F2I_CELL_BYTES;
    for (int column = 0; column < 2; ++column) {
      const tables first = tables_at(table + 16 * column);
      if (rows == 1) {
        for (int t = 0; t < tiles_here; ++t) {
          for (int half = 0; half < 2; ++half) {
            const indices i = split(packed + (size_t)t * tile_bytes + 32 * half + 16 * column);
            look_up(&first, &i, sums[t].re[half], sums[t].im[half]);
          }
        }
      } else {
        const tables second = tables_at(table + b->operand_stride + 16 * column);
        for (int half = 0; half < 2; ++half) {
          const indices i = split(packed + 32 * half + 16 * column);
          look_up(&first, &i, sums[0].re[half], sums[0].im[half]);
          look_up(&second, &i, sums[1].re[half], sums[1].im[half]);
        }
      }
    }
  }
  for (int t = 0; t < tiles_here; ++t) {
    for (int r = 0; r < rows; ++r) {
      const size_t x = row + (size_t)r;
      f2i_neon_flush(&sums[t + r], b->units[x * b->unit_stride],
                     b->acc + x * b->acc_stride + (tile + (size_t)t) * F2I_ACC_PER_TILE);
    }
  }
}

void f2i_block_lut__neon(const f2i_block *b) {
  const size_t pairs = b->rows & ~(size_t)1;
  for (size_t tile = 0; tile < b->tiles; ++tile) {
    for (size_t row = 0; row < pairs; row += 2) lut_tiles(b, row, tile, 2, 1);
  }
  if (pairs == b->rows) return;
  size_t tile = 0;
  for (; tile + 2 <= b->tiles; tile += 2) lut_tiles(b, pairs, tile, 1, 2);
  if (tile < b->tiles) lut_tiles(b, pairs, tile, 1, 1);
}
