/* dot_neon.h - what the "dot" kernels for ARM share. Their walks over a tile look alike too but stay apart: written
 * once for both, gcc no longer compiles the inner loops as intended (benchmarks/arm/inner_loops.py finds none). */
#ifndef F2I_DOT_NEON_H
#define F2I_DOT_NEON_H

#include <arm_neon.h>

#include "kernels/dot_operands.h"

/* the loops over rows of x must unroll, or the sums would live in memory */
#define INLINE inline __attribute__((always_inline))

enum { ROWS = 4, GROUPS = F2I_BLOCK_CELLS / 2 }; /* rows of x that share the decoded weights */

/* Eight rows of two cells: [rows 0-3, 4-7], a row's four byte columns side by side. */
static inline void transpose(const uint8_t *cells, uint8x16_t rows[2]) {
  const uint8x16_t a = vcombine_u8(vld1_u8(cells), vdup_n_u8(0)), b = vcombine_u8(vld1_u8(cells + 16), vdup_n_u8(0));
  const uint8x16_t c = vcombine_u8(vld1_u8(cells + F2I_CELL_BYTES), vdup_n_u8(0));
  const uint8x16_t d = vcombine_u8(vld1_u8(cells + F2I_CELL_BYTES + 16), vdup_n_u8(0));
  const uint16x8_t ab = vreinterpretq_u16_u8(vzip1q_u8(a, b)), cd = vreinterpretq_u16_u8(vzip1q_u8(c, d));
  rows[0] = vreinterpretq_u8_u16(vzip1q_u16(ab, cd));
  rows[1] = vreinterpretq_u8_u16(vzip2q_u16(ab, cd));
}

static inline void add_to(float *acc, float32x4_t unit, int32x4_t sum) {
  vst1q_f32(acc, vaddq_f32(vld1q_f32(acc), vmulq_f32(unit, vcvtq_f32_s32(sum))));
}

#endif
