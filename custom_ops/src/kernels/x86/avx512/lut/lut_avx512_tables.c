/* flags: -mavx512f -mavx512bw -mavx512vl -mavx512dq */
/* lut_avx512_tables.c - the look-up tables of one row of x with 64-byte vectors, to the bit those of lut_avx2.c.
 * A lane is a pair of neighbouring columns: a block has 16.
 */
#include <immintrin.h>
#include <string.h>

#include "kernels/column_terms.h"
#include "kernels/kernels.h"
#include "kernels/whole_pairs.h"

f2i_build_fn f2i_build_lut__avx512;

/* The even columns of a block, and the odd ones beside them. */
typedef struct pairs {
  __m512 even, odd;
} pairs;

static inline pairs load_pairs(const float *values) {
  const __m512 a = _mm512_loadu_ps(values), b = _mm512_loadu_ps(values + 16);
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  const pairs p = {_mm512_permutex2var_ps(a, even, b), _mm512_permutex2var_ps(a, odd, b)};
  return p;
}

static inline pairs scaled(float scale, pairs p) {
  const __m512 factor = _mm512_set1_ps(scale);
  const pairs out = {_mm512_mul_ps(factor, p.even), _mm512_mul_ps(factor, p.odd)};
  return out;
}

static inline pairs negated(pairs p) {
  const __m512 sign = _mm512_set1_ps(-0.0f);
  const pairs out = {_mm512_xor_ps(p.even, sign), _mm512_xor_ps(p.odd, sign)};
  return out;
}

static inline pairs magnitudes(pairs p) {
  const pairs out = {_mm512_abs_ps(p.even), _mm512_abs_ps(p.odd)};
  return out;
}

/* The larger terms of both columns of each pair, summed: every combination of signs is in a table. */
static inline __m512 larger_terms(pairs a, pairs b) {
  return _mm512_add_ps(_mm512_max_ps(a.even, b.even), _mm512_max_ps(a.odd, b.odd));
}

static inline __mmask16 is_finite(__m512 v) { return _mm512_cmp_ps_mask(v, _mm512_set1_ps(FLT_MAX), _CMP_LE_OQ); }

static inline float find_largest(pairs re, pairs im, const float *scales, int stages) {
  const pairs r = magnitudes(re), i = magnitudes(im);
  __m512 largest = _mm512_setzero_ps();
  for (const float *scale = scales; scale < scales + 4 * stages; scale += 2) {
    const float s_re = fabsf(scale[0]), s_im = fabsf(scale[1]);
    largest = _mm512_max_ps(largest, larger_terms(scaled(s_re, r), scaled(s_im, i)));
    largest = _mm512_max_ps(largest, larger_terms(scaled(s_re, i), scaled(s_im, r)));
  }
  const __mmask16 finite = is_finite(r.even) & is_finite(r.odd) & is_finite(i.even) & is_finite(i.odd);
  return finite == 0xFFFF ? _mm512_reduce_max_ps(largest) : INFINITY;
}

static inline __m512i rounded(__m512 sum, __m512 inverse) { return _mm512_cvtps_epi32(_mm512_mul_ps(sum, inverse)); }

/* The 16-byte tables of 16 pairs: pair 4 i + j in 128-bit lane i of out[j]. With the terms of a column by stored code
 * a, -b, b, -a a table has eight different magnitudes; entry i is even[i & 3] + odd[i >> 2], negative ones of the eight
 * stand at odd i. */
static inline void make_tables(pairs a, pairs b, __m512 inverse, __m512i out[4]) {
  const __m512i e[8] = {rounded(_mm512_add_ps(a.even, a.odd), inverse), rounded(_mm512_sub_ps(a.even, a.odd), inverse),
                        rounded(_mm512_add_ps(a.even, b.odd), inverse), rounded(_mm512_sub_ps(a.even, b.odd), inverse),
                        rounded(_mm512_add_ps(b.even, a.odd), inverse), rounded(_mm512_sub_ps(b.even, a.odd), inverse),
                        rounded(_mm512_add_ps(b.even, b.odd), inverse), rounded(_mm512_sub_ps(b.even, b.odd), inverse)};
  const __m512i by_pair = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  __m512i half[2]; /* [pair][magnitudes 0-3 or 4-7] */
  for (int h = 0; h < 2; ++h) {
    const __m512i words = _mm512_packs_epi32(e[4 * h], e[4 * h + 1]);
    const __m512i more = _mm512_packs_epi32(e[4 * h + 2], e[4 * h + 3]);
    half[h] = _mm512_shuffle_epi8(_mm512_packs_epi16(words, more), by_pair);
  }
  const __m512i two[2] = {_mm512_unpacklo_epi32(half[0], half[1]), _mm512_unpackhi_epi32(half[0], half[1])};
  const __m512i first = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 5, 4, 1, 3, 6, 7, 2, 2, 7, 6, 3, 1, 4, 5, 0));
  const __m512i second = _mm512_add_epi8(first, _mm512_set1_epi8(8));
  const __m512i invert = _mm512_set1_epi16((short)0xFF00); /* at odd i: -e = ~e + 1 */
  const __m512i bias = _mm512_set1_epi16((short)0x8180);   /* 128, and that 1 */
  for (int j = 0; j < 4; ++j) {
    const __m512i picked = _mm512_shuffle_epi8(two[j / 2], j % 2 ? second : first);
    out[j] = _mm512_add_epi8(_mm512_xor_si512(picked, invert), bias);
  }
}

/* Stores the tables of a plane: [real, imaginary][byte column] for every cell, F2I_CELL_ENTRIES apart. */
static inline void store_tables(const __m512i re[4], const __m512i im[4], uint8_t *tables) {
  for (int odd = 0; odd < 2; ++odd) { /* cells */
    const __m512i *a = re + 2 * odd, *b = im + 2 * odd;
    const __m512i low_re = _mm512_shuffle_i64x2(a[0], a[1], 0x44), high_re = _mm512_shuffle_i64x2(a[0], a[1], 0xEE);
    const __m512i low_im = _mm512_shuffle_i64x2(b[0], b[1], 0x44), high_im = _mm512_shuffle_i64x2(b[0], b[1], 0xEE);
    uint8_t *cell = tables + odd * F2I_CELL_ENTRIES;
    _mm512_storeu_si512(cell, _mm512_shuffle_i64x2(low_re, low_im, 0x88));
    _mm512_storeu_si512(cell + 2 * F2I_CELL_ENTRIES, _mm512_shuffle_i64x2(low_re, low_im, 0xDD));
    _mm512_storeu_si512(cell + 4 * F2I_CELL_ENTRIES, _mm512_shuffle_i64x2(high_re, high_im, 0x88));
    _mm512_storeu_si512(cell + 6 * F2I_CELL_ENTRIES, _mm512_shuffle_i64x2(high_re, high_im, 0xDD));
  }
}

float f2i_build_lut__avx512(const float *re, const float *im, const float *scales, int stages, void *operands) {
  if (scales == NULL) return f2i_build_whole_pairs(re, im, operands);
  const pairs x_re = load_pairs(re), x_im = load_pairs(im);
  float inverse;
  const float unit = f2i_lut_unit(find_largest(x_re, x_im, scales, stages), &inverse);
  if (inverse == 0.0f) {
    memset(operands, 128, (size_t)stages * F2I_PLANE_ENTRIES);
    return unit;
  }
  const __m512 per_value = _mm512_set1_ps(inverse);
  uint8_t *tables = operands;
  for (int plane = 0; plane < stages; ++plane, tables += F2I_PLANE_ENTRIES) {
    for (int nibble = 0; nibble < 2; ++nibble) {
      /* the terms of column_terms.h */
      const uint8_t *place = f2i_byte_planes[stages - 1][plane][nibble];
      const float *scale = scales + (place[0] * 2 + place[1]) * 2;
      const pairs z = place[1] ? negated(x_im) : x_im;
      __m512i of_re[4], of_im[4];
      make_tables(scaled(scale[0], x_re), scaled(scale[1], z), per_value, of_re);
      make_tables(scaled(scale[0], z), negated(scaled(scale[1], x_re)), per_value, of_im);
      store_tables(of_re, of_im, tables + nibble * 64);
    }
  }
  return unit;
}
