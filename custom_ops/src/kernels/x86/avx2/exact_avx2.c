/* flags: -mavx2 */
/* exact_avx2.c - "exact" with 8-entry permutes.
 *
 * Entry 15 - i of a table is minus entry i, so 8 entries of float fill one register: where bit 3 of the index is set,
 * the other bits and the sign of the result are inverted. Sums are added in the order of the scalar kernel, to the same
 * bits.
 */
#include <immintrin.h>

#include "kernels/column_terms.h"
#include "kernels/kernels.h"

f2i_build_fn f2i_build_exact__avx2;
f2i_block_fn f2i_block_exact__avx2;

enum { HALF_TABLE = 8, BYTE_COLUMN = 4 * HALF_TABLE }; /* floats: of a table; of the four tables of a byte column */

/* Operands: [byte plane][byte column][low re, low im, high re, high im][8]. */
float f2i_build_exact__avx2(const float *re, const float *im, const float *scales, int stages, void *operands) {
  float *out = operands;
  int finite = 1;
  for (int j = 0; j < F2I_BLOCK_COLS; ++j) finite &= (fabsf(re[j]) <= FLT_MAX) & (fabsf(im[j]) <= FLT_MAX);
  for (int plane = 0; plane < stages; ++plane) {
    for (int j = 0; j < F2I_BLOCK_COLS; j += 2) {
      for (int nibble = 0; nibble < 2; ++nibble, out += 2 * HALF_TABLE) {
        const uint8_t *place = f2i_byte_planes[stages - 1][plane][nibble];
        const float *scale = scales + (place[0] * 2 + place[1]) * 2;
        const f2i_terms a = f2i_column_terms(finite ? re[j] : 0.0f, finite ? im[j] : 0.0f, scale, place[1]);
        const f2i_terms b = f2i_column_terms(finite ? re[j + 1] : 0.0f, finite ? im[j + 1] : 0.0f, scale, place[1]);
        const __m128 a_re = _mm_loadu_ps(a.re), a_im = _mm_loadu_ps(a.im);
        _mm_storeu_ps(out, _mm_add_ps(a_re, _mm_set1_ps(b.re[0])));
        _mm_storeu_ps(out + 4, _mm_add_ps(a_re, _mm_set1_ps(b.re[1])));
        _mm_storeu_ps(out + 8, _mm_add_ps(a_im, _mm_set1_ps(b.im[0])));
        _mm_storeu_ps(out + 12, _mm_add_ps(a_im, _mm_set1_ps(b.im[1])));
      }
    }
  }
  return finite ? 1.0f : NAN;
}

/* Index into a half table, and the sign bit, for 8 rows; `index` holds the 4-bit index, `top` its bit 3 as sign bit. */
typedef struct look_up {
  __m256i index;
  __m256 sign;
} look_up;

static inline look_up split(__m256i index, __m256i top) {
  const look_up l = {_mm256_xor_si256(index, _mm256_srai_epi32(top, 31)),
                     _mm256_castsi256_ps(_mm256_and_si256(top, _mm256_set1_epi32(INT32_MIN)))};
  return l;
}

static inline __m256 take(__m256 table, look_up l) {
  return _mm256_xor_ps(_mm256_permutevar8x32_ps(table, l.index), l.sign);
}

static inline void add_to(float *acc, __m256 unit, __m256 sum) {
  _mm256_storeu_ps(acc, _mm256_add_ps(_mm256_loadu_ps(acc), _mm256_mul_ps(unit, sum)));
}

static void tile_of_row(const uint8_t *packed, const uint8_t *ahead, const float *tables, int stages, __m256 unit,
                        float *acc) {
  __m256 re[4], im[4]; /* by eight rows */
  for (int g = 0; g < 4; ++g) re[g] = im[g] = _mm256_setzero_ps();
  for (int cell = 0; cell < stages * F2I_BLOCK_CELLS; ++cell, packed += F2I_CELL_BYTES, ahead += F2I_CELL_BYTES) {
    _mm_prefetch((const char *)ahead, _MM_HINT_T1);
    for (int byte_column = 0; byte_column < 2; ++byte_column, tables += BYTE_COLUMN) {
      const __m256 low_re = _mm256_loadu_ps(tables), low_im = _mm256_loadu_ps(tables + HALF_TABLE);
      const __m256 high_re = _mm256_loadu_ps(tables + 2 * HALF_TABLE),
                   high_im = _mm256_loadu_ps(tables + 3 * HALF_TABLE);
      for (int g = 0; g < 4; ++g) {
        const uint8_t *bytes = packed + g / 2 * 32 + byte_column * 16 + g % 2 * 8;
        const __m256i byte = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)bytes));
        const look_up low = split(byte, _mm256_slli_epi32(byte, 28));
        const look_up high = split(_mm256_srli_epi32(byte, 4), _mm256_slli_epi32(byte, 24));
        re[g] = _mm256_add_ps(re[g], _mm256_add_ps(take(low_re, low), take(high_re, high)));
        im[g] = _mm256_add_ps(im[g], _mm256_add_ps(take(low_im, low), take(high_im, high)));
      }
    }
  }
  for (int g = 0; g < 4; ++g) {
    add_to(acc + 8 * g, unit, re[g]);
    add_to(acc + F2I_TILE_ROWS + 8 * g, unit, im[g]);
  }
}

void f2i_block_exact__avx2(const f2i_block *b) {
  const size_t tile_bytes = (size_t)b->stages * F2I_PLANE_BYTES;
  for (size_t row = 0; row < b->rows; ++row) {
    const float *tables = (const float *)(const void *)(b->operands + row * b->operand_stride);
    const __m256 unit = _mm256_set1_ps(b->units[row * b->unit_stride]);
    for (size_t tile = 0; tile < b->tiles; ++tile) {
      tile_of_row(b->packed + tile * tile_bytes, b->ahead + tile * tile_bytes, tables, b->stages, unit,
                  b->acc + row * b->acc_stride + tile * F2I_ACC_PER_TILE);
    }
  }
}
