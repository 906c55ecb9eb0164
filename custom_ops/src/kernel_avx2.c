/* kernel_avx2.c - "lut" with 32-byte shuffles. Compiled with -mavx2 and called only where the CPU has it. */
#include <immintrin.h>
#include <string.h>

#include "column_terms.h"
#include "kernels.h"

/* Terms of all columns of one plane: re and im outputs, [column][stored code]. */
typedef struct plane_terms {
  __m128 re[F2I_BLOCK_COLS];
  __m128 im[F2I_BLOCK_COLS];
} plane_terms;

static __m256 magnitude(__m256 v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }

/* Sums of neighbouring columns' largest terms are the largest entries: every sign combination is in the table. */
static __m256 pair_maximum(__m256 largest, __m256 column) {
  const __m256 neighbour = _mm256_permute_ps(column, 0xB1);
  return _mm256_max_ps(largest, _mm256_add_ps(column, neighbour));
}

static float horizontal_maximum(__m256 v) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  m = _mm_max_ss(m, _mm_shuffle_ps(m, m, 1));
  return _mm_cvtss_f32(m);
}

static float find_largest(const float *re, const float *im, const float *scales, int stages) {
  __m256 largest = _mm256_setzero_ps(), finite = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
  for (int j = 0; j < F2I_BLOCK_COLS; j += 8) {
    const __m256 r = magnitude(_mm256_loadu_ps(re + j)), i = magnitude(_mm256_loadu_ps(im + j));
    finite = _mm256_and_ps(finite, _mm256_cmp_ps(r, _mm256_set1_ps(FLT_MAX), _CMP_LE_OQ));
    finite = _mm256_and_ps(finite, _mm256_cmp_ps(i, _mm256_set1_ps(FLT_MAX), _CMP_LE_OQ));
    for (int plane = 0; plane < 2 * stages; ++plane) {
      const __m256 s_re = magnitude(_mm256_set1_ps(scales[2 * plane]));
      const __m256 s_im = magnitude(_mm256_set1_ps(scales[2 * plane + 1]));
      largest = pair_maximum(largest, _mm256_max_ps(_mm256_mul_ps(s_re, r), _mm256_mul_ps(s_im, i)));
      largest = pair_maximum(largest, _mm256_max_ps(_mm256_mul_ps(s_re, i), _mm256_mul_ps(s_im, r)));
    }
  }
  return _mm256_movemask_ps(finite) == 0xFF ? horizontal_maximum(largest) : INFINITY;
}

static void fill_terms(const float *re, const float *im, const float scale[2], int matrix, plane_terms *terms) {
  for (int j = 0; j < F2I_BLOCK_COLS; ++j) {
    const f2i_terms t = f2i_column_terms(re[j], im[j], scale, matrix);
    terms->re[j] = _mm_loadu_ps(t.re);
    terms->im[j] = _mm_loadu_ps(t.im);
  }
}

/* Entries 0 to 7 of the table of two columns, as int32. */
static __m256i half_table(__m128 first, __m128 second, __m256 inverse) {
  const __m256 a = _mm256_set_m128(first, first);
  const __m256 b = _mm256_set_m128(_mm_permute_ps(second, 0x55), _mm_permute_ps(second, 0x00));
  return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_add_ps(a, b), inverse));
}

float f2i_build_lut__avx2(const float *re, const float *im, const float *scales, int stages, void *tables) {
  float inverse;
  const float unit = f2i_lut_unit(find_largest(re, im, scales, stages), &inverse);
  if (inverse == 0.0f) {
    memset(tables, 128, (size_t)stages * F2I_PLANE_ENTRIES);
    return unit;
  }
  const __m256 per_value = _mm256_set1_ps(inverse);
  const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256i reversed =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(7, 6, 5, 4, 3, 2, 1, 0, 15, 14, 13, 12, 11, 10, 9, 8));
  const __m256i bias = _mm256_set1_epi8((char)0x80);
  for (int plane = 0; plane < stages; ++plane) {
    plane_terms low, high;
    const uint8_t *low_place = f2i_byte_planes[stages - 1][plane][0];
    const uint8_t *high_place = f2i_byte_planes[stages - 1][plane][1];
    fill_terms(re, im, scales + (low_place[0] * 2 + low_place[1]) * 2, low_place[1], &low);
    fill_terms(re, im, scales + (high_place[0] * 2 + high_place[1]) * 2, high_place[1], &high);
    for (int j = 0; j < F2I_BLOCK_COLS; j += 2) {
      const __m256i a = half_table(low.re[j], low.re[j + 1], per_value);
      const __m256i b = half_table(low.im[j], low.im[j + 1], per_value);
      const __m256i c = half_table(high.re[j], high.re[j + 1], per_value);
      const __m256i d = half_table(high.im[j], high.im[j + 1], per_value);
      __m256i half = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
      half = _mm256_permutevar8x32_epi32(half, in_order); /* entries 0-7 of: low re, low im | high re, high im */
      /* entry 15 - i is minus entry i */
      const __m256i rest = _mm256_sub_epi8(_mm256_setzero_si256(), _mm256_shuffle_epi8(half, reversed));
      const __m256i of_re = _mm256_xor_si256(_mm256_unpacklo_epi64(half, rest), bias);
      const __m256i of_im = _mm256_xor_si256(_mm256_unpackhi_epi64(half, rest), bias);
      uint8_t *out = (uint8_t *)tables + (size_t)plane * F2I_PLANE_ENTRIES +
                     (size_t)j / F2I_CELL_COLS * F2I_CELL_ENTRIES + (size_t)j % F2I_CELL_COLS / 2 * 16;
      _mm_storeu_si128((__m128i *)(void *)out, _mm256_castsi256_si128(of_re));
      _mm_storeu_si128((__m128i *)(void *)(out + 32), _mm256_castsi256_si128(of_im));
      _mm_storeu_si128((__m128i *)(void *)(out + 64), _mm256_extracti128_si256(of_re, 1));
      _mm_storeu_si128((__m128i *)(void *)(out + 96), _mm256_extracti128_si256(of_im, 1));
    }
  }
  return unit;
}

/* Sums of unsigned bytes kept in 16-bit lanes: `all` adds even + 256 * odd, `odd` the odd bytes alone. */
typedef struct byte_sums {
  __m256i all, odd;
} byte_sums;

static inline void add_bytes(byte_sums *sums, __m256i bytes) {
  sums->all = _mm256_add_epi16(sums->all, bytes);
  sums->odd = _mm256_add_epi16(sums->odd, _mm256_srli_epi16(bytes, 8));
}

/* acc[16] += unit * (sum - bias); the two 128-bit lanes hold the same 16 rows for different columns. */
static inline void flush(const byte_sums *sums, __m128i bias, __m256 unit, float *acc) {
  const __m256i even = _mm256_sub_epi16(sums->all, _mm256_slli_epi16(sums->odd, 8));
  const __m128i even_rows = _mm_add_epi16(_mm256_castsi256_si128(even), _mm256_extracti128_si256(even, 1));
  const __m128i odd_rows = _mm_add_epi16(_mm256_castsi256_si128(sums->odd), _mm256_extracti128_si256(sums->odd, 1));
  const __m128i rows[2] = {_mm_unpacklo_epi16(even_rows, odd_rows), _mm_unpackhi_epi16(even_rows, odd_rows)};
  for (int i = 0; i < 2; ++i) {
    const __m256 sum = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_sub_epi16(rows[i], bias)));
    const __m256 old = _mm256_loadu_ps(acc + 8 * i);
    _mm256_storeu_ps(acc + 8 * i, _mm256_add_ps(old, _mm256_mul_ps(unit, sum)));
  }
}

static void lut_row(const f2i_block *b, size_t row) {
  const __m256i low4 = _mm256_set1_epi8(15);
  const __m128i bias = _mm_set1_epi16((short)(128 * 4 * F2I_BLOCK_CELLS * b->stages)); /* 128 for each look-up */
  const __m256 unit = _mm256_set1_ps(b->units[row * b->unit_stride]);
  const size_t cells = (size_t)b->stages * F2I_BLOCK_CELLS;
  const uint8_t *packed = b->packed, *ahead = b->ahead;
  float *acc = b->acc + row * b->acc_stride;
  for (size_t tile = 0; tile < b->tiles; ++tile, acc += F2I_ACC_PER_TILE) {
    const uint8_t *table = b->operands + row * b->operand_stride;
    byte_sums re[2], im[2]; /* by row half */
    for (int half = 0; half < 2; ++half) {
      re[half].all = re[half].odd = im[half].all = im[half].odd = _mm256_setzero_si256();
    }
    for (size_t cell = 0; cell < cells; ++cell, packed += F2I_CELL_BYTES, table += F2I_CELL_ENTRIES) {
      const __m256i low_re = _mm256_loadu_si256((const __m256i *)(const void *)table);
      const __m256i low_im = _mm256_loadu_si256((const __m256i *)(const void *)(table + 32));
      const __m256i high_re = _mm256_loadu_si256((const __m256i *)(const void *)(table + 64));
      const __m256i high_im = _mm256_loadu_si256((const __m256i *)(const void *)(table + 96));
      _mm_prefetch((const char *)ahead, _MM_HINT_T0);
      ahead += F2I_CELL_BYTES;
      for (int half = 0; half < 2; ++half) {
        const __m256i bytes = _mm256_loadu_si256((const __m256i *)(const void *)(packed + 32 * half));
        const __m256i low = _mm256_and_si256(bytes, low4);
        const __m256i high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low4);
        add_bytes(&re[half], _mm256_shuffle_epi8(low_re, low));
        add_bytes(&im[half], _mm256_shuffle_epi8(low_im, low));
        add_bytes(&re[half], _mm256_shuffle_epi8(high_re, high));
        add_bytes(&im[half], _mm256_shuffle_epi8(high_im, high));
      }
    }
    for (int half = 0; half < 2; ++half) {
      flush(&re[half], bias, unit, acc + 16 * half);
      flush(&im[half], bias, unit, acc + F2I_TILE_ROWS + 16 * half);
    }
  }
}

void f2i_block_lut__avx2(const f2i_block *b) {
  for (size_t row = 0; row < b->rows; ++row) lut_row(b, row);
}
