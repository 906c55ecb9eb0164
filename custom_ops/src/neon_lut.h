/* neon_lut.h - what the look-up kernels of all NEON generations share: building the tables, and adding finished sums. */
#ifndef F2I_NEON_LUT_H
#define F2I_NEON_LUT_H

#include <arm_neon.h>

#include "kernels.h"

/* Inlined into each call with constant counts: the loops over them must unroll, or the sums would live in memory. */
#define F2I_INLINE inline __attribute__((always_inline))

/* Both row halves of a tile: [row half][8 rows] sums of int8 entries, as 16-bit numbers that may wrap around. */
typedef struct f2i_neon_sums {
  uint16x8_t re[2][2], im[2][2]; /* [row half][rows 0-7, 8-15] */
} f2i_neon_sums;

/* What a sum starts from: minus the 128 that each look-up adds. The total fits a signed 16-bit number. */
static inline uint16x8_t f2i_neon_start(int stages) {
  return vdupq_n_u16((uint16_t)(-128 * 4 * F2I_BLOCK_CELLS * stages));
}

static inline f2i_neon_sums f2i_neon_clear(int stages) {
  const uint16x8_t v = f2i_neon_start(stages);
  const f2i_neon_sums s = {{{v, v}, {v, v}}, {{v, v}, {v, v}}};
  return s;
}

/* acc[0..7] += unit * sums */
static inline void f2i_neon_add_rows(uint16x8_t sums, float32x4_t unit, float *acc) {
  const int16x8_t v = vreinterpretq_s16_u16(sums);
  const float32x4_t low = vmulq_f32(unit, vcvtq_f32_s32(vmovl_s16(vget_low_s16(v))));
  const float32x4_t high = vmulq_f32(unit, vcvtq_f32_s32(vmovl_high_s16(v)));
  vst1q_f32(acc, vaddq_f32(vld1q_f32(acc), low));
  vst1q_f32(acc + 4, vaddq_f32(vld1q_f32(acc + 4), high));
}

/* The accumulators of one row tile. */
static inline void f2i_neon_flush(const f2i_neon_sums *sums, float unit, float *acc) {
  const float32x4_t units = vdupq_n_f32(unit);
  for (int half = 0; half < 2; ++half) {
    for (int i = 0; i < 2; ++i) {
      f2i_neon_add_rows(sums->re[half][i], units, acc + 16 * half + 8 * i);
      f2i_neon_add_rows(sums->im[half][i], units, acc + F2I_TILE_ROWS + 16 * half + 8 * i);
    }
  }
}

#endif
