/* lookup_neon.h - what the look-up kernels of all NEON generations share: sums and what becomes of them. */
#ifndef F2I_LOOKUP_NEON_H
#define F2I_LOOKUP_NEON_H

#include <arm_neon.h>

#include "kernels/kernels.h"

/* Inlined into each call with constant counts: the loops over them must unroll, or the sums would live in memory. */
#define F2I_INLINE inline __attribute__((always_inline))

/* F2I_UNROLL: unrolls the loop that follows: what it indexes can then be in registers. F2I_ROLLED: it has long rounds,
 * and clang is not to unroll it: it would move loads of later rounds to the front and run out of registers. */
#if defined(__clang__)
#define F2I_UNROLL _Pragma("clang loop unroll(full)")
#define F2I_ROLLED _Pragma("clang loop unroll(disable)")
#else
#define F2I_UNROLL _Pragma("GCC unroll 16")
#define F2I_ROLLED
#endif

/* Keeps a compiler from working out later addresses from earlier ones: loads then advance the pointer themselves. */
#define F2I_ADVANCE(pointer, bytes) \
  do {                              \
    (pointer) += (bytes);           \
    __asm__("" : "+r"(pointer));    \
  } while (0)

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

/* acc[0..15] += unit * sums, 8 of them in each vector, which have the units of both `units`. Step by step for all, so
 * that cores that cannot reorder need not wait, and that loads and stores lie together, as pairs. */
static inline void f2i_neon_add_rows(const uint16x8_t sums[2], const float32x4_t units[2], float *acc) {
  const int16x8_t a = vreinterpretq_s16_u16(sums[0]), b = vreinterpretq_s16_u16(sums[1]);
  const int32x4_t wide[4] = {vmovl_s16(vget_low_s16(a)), vmovl_high_s16(a), vmovl_s16(vget_low_s16(b)),
                             vmovl_high_s16(b)};
  float32x4_t before[4], v[4];
  for (int i = 0; i < 4; ++i) before[i] = vld1q_f32(acc + 4 * i);
  for (int i = 0; i < 4; ++i) v[i] = vcvtq_f32_s32(wide[i]);
  for (int i = 0; i < 4; ++i) v[i] = vmulq_f32(units[i % 2], v[i]);
  for (int i = 0; i < 4; ++i) v[i] = vaddq_f32(before[i], v[i]);
  for (int i = 0; i < 4; ++i) vst1q_f32(acc + 4 * i, v[i]);
}

/* The accumulators of one row tile. */
static inline void f2i_neon_flush(const f2i_neon_sums *sums, float unit, float *acc) {
  const float32x4_t units[2] = {vdupq_n_f32(unit), vdupq_n_f32(unit)};
  for (int half = 0; half < 2; ++half) f2i_neon_add_rows(sums->re[half], units, acc + 16 * half);
  for (int half = 0; half < 2; ++half) f2i_neon_add_rows(sums->im[half], units, acc + F2I_TILE_ROWS + 16 * half);
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
