/* flags: -mavx512f -mavx512bw -mavx512vl -mavx512dq */
/* exact_avx512.c - "exact" with 16-entry permutes, on the scalar kernel's tables in another order. */
#include <immintrin.h>

#include "kernels/column_terms.h"
#include "kernels/kernels.h"
#include "kernels/x86/avx512/block.h"

f2i_build_fn f2i_build_exact__avx512;
f2i_block_fn f2i_block_exact__avx512;

enum { TABLE = 16, BYTE_COLUMN = 4 * TABLE }; /* floats: of a table; of the four tables of a byte column */

static inline __m512 pair_sums(const float first[4], const float second[4]) {
  const __m512 a = _mm512_broadcast_f32x4(_mm_loadu_ps(first));
  const __m512 b = _mm512_broadcast_f32x4(_mm_loadu_ps(second));
  const __m512i by_lane = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  return _mm512_add_ps(a, _mm512_permutexvar_ps(by_lane, b));
}

/* Operands: [byte plane][byte column][low re, low im, high re, high im][16]. */
float f2i_build_exact__avx512(const float *re, const float *im, const float *scales, int stages, void *operands) {
  float *out = operands;
  int finite = 1;
  for (int j = 0; j < F2I_BLOCK_COLS; ++j) finite &= (fabsf(re[j]) <= FLT_MAX) & (fabsf(im[j]) <= FLT_MAX);
  for (int plane = 0; plane < stages; ++plane) {
    for (int j = 0; j < F2I_BLOCK_COLS; j += 2) {
      for (int nibble = 0; nibble < 2; ++nibble, out += 2 * TABLE) {
        const uint8_t *place = f2i_byte_planes[stages - 1][plane][nibble];
        const float *scale = scales + (place[0] * 2 + place[1]) * 2;
        const f2i_terms a = f2i_column_terms(finite ? re[j] : 0.0f, finite ? im[j] : 0.0f, scale, place[1]);
        const f2i_terms b = f2i_column_terms(finite ? re[j + 1] : 0.0f, finite ? im[j + 1] : 0.0f, scale, place[1]);
        _mm512_storeu_ps(out, pair_sums(a.re, b.re));
        _mm512_storeu_ps(out + TABLE, pair_sums(a.im, b.im));
      }
    }
  }
  return finite ? 1.0f : NAN;
}

static void tile_of_row(const uint8_t *packed, const uint8_t *ahead, const float *tables, int stages, __m512 unit,
                        float *acc) {
  __m512 re[2], im[2]; /* by row half */
  for (int h = 0; h < 2; ++h) re[h] = im[h] = _mm512_setzero_ps();
  for (int cell = 0; cell < stages * F2I_BLOCK_CELLS; ++cell, packed += F2I_CELL_BYTES, ahead += F2I_CELL_BYTES) {
    prefetch(ahead, F2I_CELL_BYTES, 0);
    for (int byte_column = 0; byte_column < 2; ++byte_column, tables += BYTE_COLUMN) {
      const __m512 low_re = _mm512_loadu_ps(tables), low_im = _mm512_loadu_ps(tables + TABLE);
      const __m512 high_re = _mm512_loadu_ps(tables + 2 * TABLE), high_im = _mm512_loadu_ps(tables + 3 * TABLE);
      for (int h = 0; h < 2; ++h) {
        const uint8_t *bytes = packed + h * 32 + byte_column * 16;
        /* the permute looks at the low four bits of an index only */
        const __m512i low = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)bytes));
        const __m512i high = _mm512_srli_epi32(low, 4);
        re[h] = _mm512_add_ps(re[h],
                              _mm512_add_ps(_mm512_permutexvar_ps(low, low_re), _mm512_permutexvar_ps(high, high_re)));
        im[h] = _mm512_add_ps(im[h],
                              _mm512_add_ps(_mm512_permutexvar_ps(low, low_im), _mm512_permutexvar_ps(high, high_im)));
      }
    }
  }
  for (int h = 0; h < 2; ++h) {
    add_to(acc + 16 * h, unit, re[h]);
    add_to(acc + F2I_TILE_ROWS + 16 * h, unit, im[h]);
  }
}

void f2i_block_exact__avx512(const f2i_block *b) {
  const size_t tile_bytes = (size_t)b->stages * F2I_PLANE_BYTES;
  for (size_t row = 0; row < b->rows; ++row) {
    const float *tables = (const float *)(const void *)(b->operands + row * b->operand_stride);
    const __m512 unit = _mm512_set1_ps(b->units[row * b->unit_stride]);
    for (size_t tile = 0; tile < b->tiles; ++tile) {
      tile_of_row(b->packed + tile * tile_bytes, b->ahead + tile * tile_bytes, tables, b->stages, unit,
                  b->acc + row * b->acc_stride + tile * F2I_ACC_PER_TILE);
    }
  }
}
