/* exact_neon.c - "exact" without a gather instruction: 24-bit table entries, looked up a byte at a time.
 *
 * The entries of a K-block are rounded to integers of 24 bits, the largest being just under 2^23, with 2^23 added. Byte
 * k of all entries makes an ordinary set of "lut" tables; three sums, one for each byte, make an exact 32-bit sum. The
 * relative error of a layer is that of float arithmetic, about 1e-7, though the bits are not those of the scalar
 * kernel. It takes three times the look-ups of "lut"; floats would take four, and as many operations again to put them
 * together.
 */
#include <float.h>
#include <math.h>
#include <string.h>

#include "kernels/arm/lookup_neon.h"
#include "kernels/column_terms.h"

f2i_build_fn f2i_build_exact__neon;
f2i_block_fn f2i_block_exact__neon;

enum { BYTES = F2I_NEON_ENTRY_BYTES, LARGEST = (1 << 23) - 16 }; /* rounding up must not reach 2^23 */

/* Four entries of the two columns' table, with second's stored code k; 2^23 added. */
static inline uint32x4_t entries(float32x4_t first, float second, float32x4_t inverse) {
  const float32x4_t sums = vaddq_f32(first, vdupq_n_f32(second));
  return vreinterpretq_u32_s32(vaddq_s32(vcvtnq_s32_f32(vmulq_f32(sums, inverse)), vdupq_n_s32(1 << 23)));
}

static inline uint8x16_t byte_of(const uint32x4_t v[4], int shift) {
  uint16x8_t half[2];
  for (int i = 0; i < 2; ++i) {
    const int32x4_t right = vdupq_n_s32(-shift);
    half[i] = vuzp1q_u16(vreinterpretq_u16_u32(vshlq_u32(v[2 * i], right)),
                         vreinterpretq_u16_u32(vshlq_u32(v[2 * i + 1], right)));
  }
  return vuzp1q_u8(vreinterpretq_u8_u16(half[0]), vreinterpretq_u8_u16(half[1]));
}

static void store_table(const float first[4], const float second[4], float32x4_t inverse, int stages, uint8_t *out) {
  uint32x4_t v[4];
  for (int k = 0; k < 4; ++k) v[k] = entries(vld1q_f32(first), second[k], inverse);
  for (int byte = 0; byte < BYTES; ++byte)
    vst1q_u8(out + (size_t)byte * f2i_neon_byte_stride(stages), byte_of(v, 8 * byte));
}

static float largest_term(const float terms[4]) { return fmaxf(fabsf(terms[0]), fabsf(terms[1])); }

static float find_largest(const float *re, const float *im, const float *scales, int stages) {
  float largest = 0.0f;
  for (int j = 0; j < F2I_BLOCK_COLS; j += 2) {
    for (int i = 0; i < 2; ++i) {
      if (!(fabsf(re[j + i]) <= FLT_MAX) || !(fabsf(im[j + i]) <= FLT_MAX)) return INFINITY;
    }
    for (int plane = 0; plane < 2 * stages; ++plane) {
      const f2i_terms a = f2i_column_terms(re[j], im[j], scales + 2 * plane, plane & 1);
      const f2i_terms b = f2i_column_terms(re[j + 1], im[j + 1], scales + 2 * plane, plane & 1);
      largest = fmaxf(largest, largest_term(a.re) + largest_term(b.re));
      largest = fmaxf(largest, largest_term(a.im) + largest_term(b.im));
    }
  }
  return largest;
}

float f2i_build_exact__neon(const float *re, const float *im, const float *scales, int stages, void *operands) {
  const float largest = find_largest(re, im, scales, stages);
  const int usable = largest >= F2I_NEGLIGIBLE && largest <= FLT_MAX;
  if (!usable) {
    memset(operands, 0, BYTES * f2i_neon_byte_stride(stages));
    return largest < F2I_NEGLIGIBLE ? 0.0f : NAN;
  }
  const float32x4_t inverse = vdupq_n_f32((float)LARGEST / largest);
  for (int plane = 0; plane < stages; ++plane) {
    for (int j = 0; j < F2I_BLOCK_COLS; j += 2) {
      for (int nibble = 0; nibble < 2; ++nibble) {
        const uint8_t *place = f2i_byte_planes[stages - 1][plane][nibble];
        const float *scale = scales + (place[0] * 2 + place[1]) * 2;
        const f2i_terms a = f2i_column_terms(re[j], im[j], scale, place[1]);
        const f2i_terms b = f2i_column_terms(re[j + 1], im[j + 1], scale, place[1]);
        uint8_t *out = (uint8_t *)operands + (size_t)plane * F2I_PLANE_ENTRIES +
                       (size_t)j / F2I_CELL_COLS * F2I_CELL_ENTRIES + (size_t)j % F2I_CELL_COLS / 2 * 16 + 64 * nibble;
        store_table(a.re, b.re, inverse, stages, out);
        store_table(a.im, b.im, inverse, stages, out + 32);
      }
    }
  }
  return largest / (float)LARGEST;
}

/* Eight rows of a tile. */
static inline void eight_rows(const uint8_t *packed, const uint8_t *tables, int stages, uint32x4_t bias,
                              float32x4_t unit, float *acc) {
  const uint16x8_t zero = vdupq_n_u16(0);
  uint16x8_t re[BYTES] = {zero, zero, zero}, im[BYTES] = {zero, zero, zero};
  for (int cell = 0; cell < stages * F2I_BLOCK_CELLS; ++cell) {
    for (int column = 0; column < 2; ++column) {
      const uint8x8_t bytes = vld1_u8(packed + 16 * column);
      const uint8x8_t low = vand_u8(bytes, vdup_n_u8(15)), high = vshr_n_u8(bytes, 4);
      for (int byte = 0; byte < BYTES; ++byte) {
        const uint8_t *t = tables + (size_t)byte * f2i_neon_byte_stride(stages) + 16 * column;
        re[byte] = vaddw_u8(re[byte], vqtbl1_u8(vld1q_u8(t), low));
        im[byte] = vaddw_u8(im[byte], vqtbl1_u8(vld1q_u8(t + 32), low));
        re[byte] = vaddw_u8(re[byte], vqtbl1_u8(vld1q_u8(t + 64), high));
        im[byte] = vaddw_u8(im[byte], vqtbl1_u8(vld1q_u8(t + 96), high));
      }
    }
    packed += F2I_CELL_BYTES;
    tables += F2I_CELL_ENTRIES;
  }
  f2i_neon_add_exact(re, bias, unit, acc);
  f2i_neon_add_exact(im, bias, unit, acc + F2I_TILE_ROWS);
}

void f2i_block_exact__neon(const f2i_block *b) {
  const size_t tile_bytes = (size_t)b->stages * F2I_PLANE_BYTES;
  const uint32x4_t bias = f2i_neon_exact_bias(b->stages);
  for (size_t row = 0; row < b->rows; ++row) {
    const uint8_t *tables = b->operands + row * b->operand_stride;
    const float32x4_t unit = vdupq_n_f32(b->units[row * b->unit_stride]);
    for (size_t tile = 0; tile < b->tiles; ++tile) {
      float *acc = b->acc + row * b->acc_stride + tile * F2I_ACC_PER_TILE;
      for (int quarter = 0; quarter < 4; ++quarter) {
        const uint8_t *packed = b->packed + tile * tile_bytes + quarter / 2 * 32 + quarter % 2 * 8;
        eight_rows(packed, tables, b->stages, bias, unit, acc + 8 * quarter);
      }
    }
  }
}
