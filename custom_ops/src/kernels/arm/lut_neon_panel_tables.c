/* flags of gcc: -fno-schedule-insns -fno-tree-ter */
/* lut_neon_panel_tables.c - the tables of lut_neon_panel.c: a vector holds a value of several rows of x. */
#include <arm_neon.h>

#include "kernels/arm/lut_neon_panel.h"
#include "kernels/column_terms.h"
#include "kernels/whole_pairs.h"

/* A value of each row of x of a group. */
typedef struct lanes {
  float32x4_t half[2];
} lanes;

/* The activations of a block, transposed. */
typedef struct columns {
  lanes re[F2I_BLOCK_COLS], im[F2I_BLOCK_COLS];
} columns;

/* x: [F2I_GROUP][F2I_BLOCK_COLS]; out: [F2I_BLOCK_COLS] */
static void transpose(const float *x, lanes *out) {
  for (int half = 0; half < 2; ++half, x += F2I_GROUP / 2 * F2I_BLOCK_COLS) {
    for (int j = 0; j < F2I_BLOCK_COLS; j += 4) {
      float32x4_t v[4]; /* four columns of a row */
      for (int i = 0; i < 4; ++i) v[i] = vld1q_f32(x + i * F2I_BLOCK_COLS + j);
      const float32x4_t a = vzip1q_f32(v[0], v[2]), b = vzip2q_f32(v[0], v[2]);
      const float32x4_t c = vzip1q_f32(v[1], v[3]), d = vzip2q_f32(v[1], v[3]);
      out[j].half[half] = vzip1q_f32(a, c);
      out[j + 1].half[half] = vzip2q_f32(a, c);
      out[j + 2].half[half] = vzip1q_f32(b, d);
      out[j + 3].half[half] = vzip2q_f32(b, d);
    }
  }
}

static inline float32x4_t larger_term(float32x4_t re, float32x4_t im, const float *scale) {
  return vmaxq_f32(vmulq_n_f32(re, fabsf(scale[0])), vmulq_n_f32(im, fabsf(scale[1])));
}

/* What find_largest of lut_neon.c finds, for half a group: infinity where an activation is not finite. */
static float32x4_t find_largest(const columns *x, int half, const float *scales, int stages) {
  const float32x4_t most = vdupq_n_f32(FLT_MAX);
  float32x4_t largest = vdupq_n_f32(0.0f);
  uint32x4_t finite = vdupq_n_u32(UINT32_MAX);
  for (int j = 0; j < F2I_BLOCK_COLS; j += 2) {
    float32x4_t re[2], im[2];
    for (int i = 0; i < 2; ++i) {
      re[i] = vabsq_f32(x->re[j + i].half[half]);
      im[i] = vabsq_f32(x->im[j + i].half[half]);
      finite = vandq_u32(finite, vandq_u32(vcleq_f32(re[i], most), vcleq_f32(im[i], most)));
    }
    for (const float *scale = scales; scale < scales + 4 * stages; scale += 2) {
      const float32x4_t real = vaddq_f32(larger_term(re[0], im[0], scale), larger_term(re[1], im[1], scale));
      const float32x4_t imaginary = vaddq_f32(larger_term(im[0], re[0], scale), larger_term(im[1], re[1], scale));
      largest = vmaxq_f32(largest, vmaxq_f32(real, imaginary));
    }
  }
  return vbslq_f32(finite, largest, vdupq_n_f32(INFINITY));
}

static inline lanes scaled(lanes x, float scale) {
  const lanes out = {{vmulq_n_f32(x.half[0], scale), vmulq_n_f32(x.half[1], scale)}};
  return out;
}

static inline lanes sum(lanes a, lanes b) {
  const lanes out = {{vaddq_f32(a.half[0], b.half[0]), vaddq_f32(a.half[1], b.half[1])}};
  return out;
}

static inline lanes difference(lanes a, lanes b) {
  const lanes out = {{vsubq_f32(a.half[0], b.half[0]), vsubq_f32(a.half[1], b.half[1])}};
  return out;
}

static inline lanes negative(lanes x) {
  const lanes out = {{vnegq_f32(x.half[0]), vnegq_f32(x.half[1])}};
  return out;
}

/* Rounded; they fit 8 bits. */
static inline int8x16_t rounded(lanes values, lanes inverse) {
  const int32x4_t a = vcvtnq_s32_f32(vmulq_f32(values.half[0], inverse.half[0]));
  const int32x4_t b = vcvtnq_s32_f32(vmulq_f32(values.half[1], inverse.half[1]));
  return vreinterpretq_s8_s16(vuzp1q_s16(vreinterpretq_s16_s32(a), vreinterpretq_s16_s32(b)));
}

/* Stores an entry, and the one of the opposite codes, its negative. table: its entries lie `entry_bytes` apart */
static inline void store_entry(uint8_t *table, size_t entry_bytes, size_t index, lanes real, lanes imaginary,
                               lanes inverse) {
  const int8x16_t bytes = vuzp1q_s8(rounded(real, inverse), rounded(imaginary, inverse));
  const uint8x16_t plus128 = vdupq_n_u8(128), entry = vreinterpretq_u8_s8(bytes);
  vst1q_u8(table + index * entry_bytes, vaddq_u8(plus128, entry));
  vst1q_u8(table + (15 - index) * entry_bytes, vsubq_u8(plus128, entry));
}

/* The table of two columns: the terms of column_terms.h, a, -b, b, -a and c, d, -d, -c by stored code. */
static inline void store_table(const lanes *re, const lanes *im, const float *scale, int matrix, lanes inverse,
                               uint8_t *table, size_t entry_bytes) {
  lanes a[2], b[2], c[2], d[2];
  for (int i = 0; i < 2; ++i) {
    a[i] = scaled(re[i], scale[0]);
    b[i] = scaled(im[i], matrix ? -scale[1] : scale[1]);
    c[i] = scaled(im[i], matrix ? -scale[0] : scale[0]);
    d[i] = scaled(re[i], scale[1]);
  }
  store_entry(table, entry_bytes, 0, sum(a[0], a[1]), sum(c[0], c[1]), inverse);
  store_entry(table, entry_bytes, 12, difference(a[0], a[1]), difference(c[0], c[1]), inverse);
  store_entry(table, entry_bytes, 8, sum(a[0], b[1]), difference(c[0], d[1]), inverse);
  store_entry(table, entry_bytes, 4, difference(a[0], b[1]), sum(c[0], d[1]), inverse);
  store_entry(table, entry_bytes, 2, sum(b[0], a[1]), difference(c[1], d[0]), inverse);
  store_entry(table, entry_bytes, 1, difference(a[1], b[0]), sum(d[0], c[1]), inverse);
  store_entry(table, entry_bytes, 5, difference(negative(b[0]), b[1]), sum(d[0], d[1]), inverse);
  store_entry(table, entry_bytes, 6, difference(b[0], b[1]), difference(d[1], d[0]), inverse);
}

static inline int16x8_t whole(lanes x) {
  const int16x8_t a = vreinterpretq_s16_s32(vcvtq_s32_f32(x.half[0]));
  return vuzp1q_s16(a, vreinterpretq_s16_s32(vcvtq_s32_f32(x.half[1])));
}

/* The table of whole_pairs.h of two columns. */
static void store_whole_pair(const lanes x[2], uint8_t *table, size_t entry_bytes) {
  const int16x8_t first = whole(x[0]), second = whole(x[1]), both = vaddq_s16(first, second);
  const int16x8_t entries[4] = {vshrq_n_s16(both, 1), vshrq_n_s16(vsubq_s16(second, first), 1),
                                vshrq_n_s16(vsubq_s16(first, second), 1), vshrq_n_s16(vnegq_s16(both), 1)};
  for (int i = 0; i < F2I_ENTRIES; ++i) {
    const int8x16_t real = vreinterpretq_s8_s16(entries[f2i_whole_signs(i)]);
    const int8x16_t imaginary = vreinterpretq_s8_s16(entries[f2i_whole_signs(i >> 1)]);
    vst1q_u8(table + (size_t)i * entry_bytes,
             vaddq_u8(vreinterpretq_u8_s8(vuzp1q_s8(real, imaginary)), vdupq_n_u8(128)));
  }
}

/* All tables of one group. table: of the first one, entry 0 */
static void build_group(const columns *x, const float *scales, int stages, uint8_t *table, size_t entry_bytes,
                        float *units) {
  const size_t table_bytes = F2I_ENTRIES * entry_bytes;
  lanes inverse;
  for (int half = 0; half < 2; ++half) {
    float largest[F2I_GROUP / 2], per_value[F2I_GROUP / 2];
    vst1q_f32(largest, find_largest(x, half, scales, stages));
    for (int i = 0; i < F2I_GROUP / 2; ++i) units[half * 4 + i] = f2i_lut_unit(largest[i], &per_value[i]);
    inverse.half[half] = vld1q_f32(per_value);
  }
  for (int plane = 0; plane < stages; ++plane) {
    for (int j = 0; j < F2I_BLOCK_COLS; j += 2) {
      for (int nibble = 0; nibble < 2; ++nibble, table += table_bytes) {
        const uint8_t *place = f2i_byte_planes[stages - 1][plane][nibble]; /* stage and matrix */
        store_table(x->re + j, x->im + j, scales + 4 * place[0] + 2 * place[1], place[1], inverse, table, entry_bytes);
      }
    }
  }
}

/* What f2i_build_whole_pairs does, for a group: x->re are the numbers of the low nibbles. */
static void build_whole_group(const columns *x, uint8_t *table, size_t entry_bytes, float *units) {
  for (int j = 0; j < F2I_BLOCK_COLS; j += 2) {
    store_whole_pair(x->re + j, table, entry_bytes);
    store_whole_pair(x->im + j, table + F2I_ENTRIES * entry_bytes, entry_bytes);
    table += 2 * F2I_ENTRIES * entry_bytes;
  }
  for (int i = 0; i < F2I_GROUP; ++i) units[i] = 1.0f;
}

void f2i_build_lut_neon_groups(const float *re, const float *im, const float *scales, int stages, size_t groups,
                               uint8_t *tables, float *units) {
  for (size_t g = 0; g < groups; ++g, re += F2I_GROUP * F2I_BLOCK_COLS, im += F2I_GROUP * F2I_BLOCK_COLS) {
    columns x;
    transpose(re, x.re);
    transpose(im, x.im);
    if (scales == NULL) build_whole_group(&x, tables + 16 * g, 16 * groups, units + F2I_GROUP * g);
    else build_group(&x, scales, stages, tables + 16 * g, 16 * groups, units + F2I_GROUP * g);
  }
}
