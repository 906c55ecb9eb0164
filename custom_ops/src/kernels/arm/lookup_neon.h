/* lookup_neon.h - what the look-up kernels of all NEON generations share: sums and what becomes of them. */
#ifndef F2I_LOOKUP_NEON_H
#define F2I_LOOKUP_NEON_H

#include <arm_neon.h>

#include "kernels/kernels.h"
#include "kernels/lut_units.h"

/* Inlined into each call with constant counts: the loops over them must unroll, or the sums would live in memory. */
#define F2I_INLINE inline __attribute__((always_inline))

/* Both row halves of a tile: [row half][8 rows] sums of int8 entries over the even or the odd byte columns of a block,
 * as 16-bit numbers that may wrap around. */
typedef struct f2i_neon_sums {
  uint16x8_t re[2][2], im[2][2]; /* [row half][rows 0-7, 8-15] */
} f2i_neon_sums;

/* What a sum starts from: minus the 128 that each look-up adds. The total fits a signed 16-bit number. */
static inline uint16x8_t f2i_neon_start(int stages) {
  return vdupq_n_u16((uint16_t)(-128 * 2 * F2I_BLOCK_CELLS * stages));
}

static inline f2i_neon_sums f2i_neon_clear(int stages) {
  const uint16x8_t v = f2i_neon_start(stages);
  const f2i_neon_sums s = {{{v, v}, {v, v}}, {{v, v}, {v, v}}};
  return s;
}

/* acc[0..7] += unit * (multiplier[0] * even + multiplier[1] * odd) */
static inline void f2i_neon_add_rows(uint16x8_t even, uint16x8_t odd, int16x4_t multiplier, float32x4_t unit,
                                     float *acc) {
  const int16x8_t a = vreinterpretq_s16_u16(even), b = vreinterpretq_s16_u16(odd);
  const int32x4_t first = vmull_lane_s16(vget_low_s16(a), multiplier, 0);
  const int32x4_t second = vmull_high_lane_s16(a, multiplier, 0);
  const int32x4_t low = vmlal_lane_s16(first, vget_low_s16(b), multiplier, 1);
  const int32x4_t high = vmlal_high_lane_s16(second, b, multiplier, 1);
  vst1q_f32(acc, vaddq_f32(vld1q_f32(acc), vmulq_f32(unit, vcvtq_f32_s32(low))));
  vst1q_f32(acc + 4, vaddq_f32(vld1q_f32(acc + 4), vmulq_f32(unit, vcvtq_f32_s32(high))));
}

/* Adds the sums of a row of x and a tile to their accumulators. */
static inline void f2i_neon_flush(const f2i_block *b, size_t row, size_t tile, const f2i_neon_sums *even,
                                  const f2i_neon_sums *odd) {
  const float32x4_t unit = vdupq_n_f32(b->units[row * b->unit_stride]);
  const int32_t both = f2i_lut_multipliers(b->operands + row * b->operand_stride, b->stages);
  const int16x4_t multiplier = vreinterpret_s16_s32(vdup_n_s32(both));
  float *acc = b->acc + row * b->acc_stride + tile * F2I_ACC_PER_TILE;
  for (int half = 0; half < 2; ++half) {
    for (int i = 0; i < 2; ++i) {
      float *rows = acc + 16 * half + 8 * i;
      f2i_neon_add_rows(even->re[half][i], odd->re[half][i], multiplier, unit, rows);
      f2i_neon_add_rows(even->im[half][i], odd->im[half][i], multiplier, unit, rows + F2I_TILE_ROWS);
    }
  }
}

/* --- "exact": entries of 24 bits, exact_neon.c --- */

enum { F2I_NEON_ENTRY_BYTES = 3 };

/* The operands: for each byte of the entries, tables arranged like those of "lut". */
static inline size_t f2i_neon_byte_stride(int stages) { return (size_t)stages * F2I_PLANE_ENTRIES; }

/* What the 2^23 in each entry add up to. */
static inline uint32x4_t f2i_neon_exact_bias(int stages) {
  return vdupq_n_u32((uint32_t)(4 * F2I_BLOCK_CELLS * stages) << 23);
}

/* acc[0..7] += unit * (sums[0] + 2^8 sums[1] + 2^16 sums[2] - bias); the total fits 32 bits, its parts may wrap */
static inline void f2i_neon_add_exact(const uint16x8_t sums[F2I_NEON_ENTRY_BYTES], uint32x4_t bias, float32x4_t unit,
                                      float *acc) {
  for (int i = 0; i < 2; ++i) {
    uint32x4_t total = vsubq_u32(vdupq_n_u32(0), bias);
    for (int byte = 0; byte < F2I_NEON_ENTRY_BYTES; ++byte) {
      const uint32x4_t part = i == 0 ? vmovl_u16(vget_low_u16(sums[byte])) : vmovl_high_u16(sums[byte]);
      total = vaddq_u32(total, vshlq_u32(part, vdupq_n_s32(8 * byte)));
    }
    const float32x4_t value = vmulq_f32(unit, vcvtq_f32_s32(vreinterpretq_s32_u32(total)));
    vst1q_f32(acc + 4 * i, vaddq_f32(vld1q_f32(acc + 4 * i), value));
  }
}

#endif
