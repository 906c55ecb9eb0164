/* dot_round.h - the activations of a K-block rounded to int8 as f2i_build_dot does it, to the bit, with 64-byte
 * vectors. Include where -mavx512bw, -mavx512vl and -mavx512dq are on. */
#ifndef F2I_DOT_ROUND_H
#define F2I_DOT_ROUND_H

#include <immintrin.h>

#include "kernels/dot_operands.h"

typedef struct rounded {
  __m256i re, im; /* [group][parity][byte column], as in f2i_dot_activations */
  float unit;     /* of a sum in grid steps */
} rounded;

/* The 16 bytes of two groups of columns. */
static inline __m128i two_groups(__m512 values, __m512 inverse) {
  const __m128i order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
  return _mm_shuffle_epi8(_mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(values, inverse))), order);
}

/* re, im: [F2I_BLOCK_COLS] */
static inline rounded round_block(const float *re, const float *im, const float *scales) {
  const __m512 r[2] = {_mm512_loadu_ps(re), _mm512_loadu_ps(re + 16)};
  const __m512 i[2] = {_mm512_loadu_ps(im), _mm512_loadu_ps(im + 16)};
  const __m512 most = _mm512_set1_ps(FLT_MAX);
  __m512 size = _mm512_setzero_ps();
  __mmask16 finite = 0xFFFF; /* the maximum of a NaN and a number may be the number */
  for (int v = 0; v < 2; ++v) {
    const __m512 size_r = _mm512_abs_ps(r[v]), size_i = _mm512_abs_ps(i[v]);
    finite &= _mm512_cmp_ps_mask(size_r, most, _CMP_LE_OQ) & _mm512_cmp_ps_mask(size_i, most, _CMP_LE_OQ);
    size = _mm512_max_ps(size, _mm512_max_ps(size_r, size_i));
  }
  rounded out = {_mm256_setzero_si256(), _mm256_setzero_si256(), NAN};
  if (finite != 0xFFFF) return out;
  const float largest = _mm512_reduce_max_ps(size);
  out.unit = 0.0f;
  if (largest < F2I_NEGLIGIBLE) return out;
  const __m512 inverse = _mm512_set1_ps(scales == NULL ? 1.0f : 127.0f / largest);
  out.unit = scales == NULL ? 1.0f : largest / 127.0f;
  out.re = _mm256_set_m128i(two_groups(r[1], inverse), two_groups(r[0], inverse));
  out.im = _mm256_set_m128i(two_groups(i[1], inverse), two_groups(i[0], inverse));
  return out;
}

static inline int sum_of_bytes(__m256i bytes) {
  const __m256i plus128 = _mm256_xor_si256(bytes, _mm256_set1_epi8((char)0x80));
  const __m256i fours = _mm256_sad_epu8(plus128, _mm256_setzero_si256());
  const __m128i two = _mm_add_epi64(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1));
  return (int)(_mm_cvtsi128_si64(two) + _mm_extract_epi64(two, 1)) - 128 * 32;
}

#endif
