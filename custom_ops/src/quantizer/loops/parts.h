/* loops/parts.h - a chunk of a complex row: from the latent weights to the parts of U and W. */
#ifndef F2I_LOOPS_PARTS_H
#define F2I_LOOPS_PARTS_H

#include <stdint.h>
#include <string.h>

#include "base/half.h"
#include "fairy2i.h"

/* CHUNKWISE: runs once for a chunk of columns or rows. Compilers copy such functions to wherever they are called, which
 * saves no time there and makes the library three times as large. */
#if defined(__GNUC__)
#define F2I_INLINE static inline __attribute__((always_inline))
#define F2I_CHUNKWISE static __attribute__((noinline))
#else
#define F2I_INLINE static inline
#define F2I_CHUNKWISE static
#endif

enum { F2I_CHUNK = 512 }; /* columns */

/* One chunk of a complex row: the parts of U and W, or of what earlier stages left of them. */
typedef struct f2i_parts {
  float re[2][F2I_CHUNK], im[2][F2I_CHUNK]; /* [U, W] */
} f2i_parts;

F2I_INLINE uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

F2I_INLINE float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

/* Round to the nearest bfloat16, ties to even, where the profile says so. */
F2I_INLINE float rounded(float value, int bf16) {
  if (!bf16) return value;
  const uint32_t bits = bits_of(value);
  return float_of((bits + 0x7FFFu + (bits >> 16 & 1u)) & 0xFFFF0000u);
}

/* `count` values from number `first` on in float32. */
F2I_CHUNKWISE void load_values(const void *data, int64_t dtype, size_t first, int count, float *out) {
  if (dtype == F2I_FLOAT32) {
    memcpy(out, (const char *)data + 4 * first, 4 * (size_t)count);
    return;
  }
  const char *from = (const char *)data + 2 * first;
  if (dtype == F2I_BFLOAT16) {
    for (int i = 0; i < count; ++i) {
      uint16_t half;
      memcpy(&half, from + 2 * i, sizeof half);
      out[i] = float_of((uint32_t)half << 16);
    }
  } else {
    for (int i = 0; i < count; ++i) {
      uint16_t half;
      memcpy(&half, from + 2 * i, sizeof half);
      out[i] = f2i_half_to_float(half);
    }
  }
}

/* Columns [column, column + count) of real row `row` of [[re, im], [im, -re]]. */
F2I_CHUNKWISE void load_complex(const f2i_latent *latent, int64_t row, int64_t column, int count, float *out) {
  const int64_t n = latent->n / 2, m = latent->k / 2;
  const int lower = row >= n, left = column >= m ? 0 : m - column < count ? (int)(m - column) : count;
  const size_t first = (size_t)(lower ? row - n : row) * (size_t)m;
  const void *sides[2] = {lower ? latent->imag : latent->data, lower ? latent->data : latent->imag};
  load_values(sides[0], latent->dtype, first + (size_t)(left > 0 ? column : 0), left, out);
  load_values(sides[1], latent->dtype, first + (size_t)(left > 0 ? 0 : column - m), count - left, out + left);
  for (int i = lower ? left : count; i < count; ++i) out[i] = -out[i];
}

/* Columns [column, column + count) of real row `row` in float32, as stored. */
F2I_CHUNKWISE void load_raw(const f2i_latent *latent, int64_t row, int64_t column, int count, float *out) {
  if (latent->imag != NULL) load_complex(latent, row, column, count, out);
  else load_values(latent->data, latent->dtype, (size_t)row * (size_t)latent->k + (size_t)column, count, out);
}

/* The same as the quantizer sees them: rounded, divided by the row's divisor and by the columns', each rounded. */
F2I_CHUNKWISE void load(const f2i_latent *latent, int64_t row, int64_t column, int count, float *out, int bf16) {
  load_raw(latent, row, column, count, out);
  if (bf16 && latent->dtype != F2I_BFLOAT16) {
    for (int i = 0; i < count; ++i) out[i] = rounded(out[i], 1);
  }
  if (latent->row_divisor != NULL) {
    const float divisor = latent->row_divisor[row];
    for (int i = 0; i < count; ++i) out[i] = rounded(out[i] / divisor, bf16);
  }
  if (latent->col_divisor != NULL) {
    const float *divisors = latent->col_divisor + column;
    for (int i = 0; i < count; ++i) out[i] = rounded(out[i] / divisors[i], bf16);
  }
}

/* U and W of columns [column, column + count) of a complex row (method paper, section 3.1). */
F2I_CHUNKWISE void split(const f2i_latent *latent, int64_t row, int64_t column, int count, f2i_parts *parts, int bf16) {
  const int64_t n = latent->n / 2, m = latent->k / 2;
  float a11[F2I_CHUNK], a12[F2I_CHUNK], a21[F2I_CHUNK], a22[F2I_CHUNK];
  load(latent, row, column, count, a11, bf16);
  load(latent, row, column + m, count, a12, bf16);
  load(latent, row + n, column, count, a21, bf16);
  load(latent, row + n, column + m, count, a22, bf16);
  for (int i = 0; i < count; ++i) {
    parts->re[0][i] = rounded(0.5f * rounded(a11[i] + a22[i], bf16), bf16);
    parts->im[0][i] = rounded(0.5f * rounded(a21[i] - a12[i], bf16), bf16);
    parts->re[1][i] = rounded(0.5f * rounded(a11[i] - a22[i], bf16), bf16);
    parts->im[1][i] = rounded(0.5f * rounded(a12[i] + a21[i], bf16), bf16);
  }
}

#endif
