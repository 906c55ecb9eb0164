/* byte_sums.h - adding many vectors of unsigned bytes without overflow, for the "lut" kernels with 64-byte
 * vectors.
 *
 * Include where -mavx512bw is on. The idea is that of lut_avx512.c: carry-save additions inside the bytes.
 */
#ifndef F2I_BYTE_SUMS_H
#define F2I_BYTE_SUMS_H

#include <immintrin.h>

#include "kernels/x86/avx512/block.h"

/* Everything added so far: ones + 2 twos + 4 (the widened fours), bytes. `all` adds even + 256 * odd bytes of the fours
 * in 16-bit lanes, `odd` the odd bytes alone. */
typedef struct byte_sums {
  __m512i ones, twos, all, odd;
} byte_sums;

/* a + b + *sum = *sum' + 2 carry, in every bit position. */
static inline __m512i add_carry(__m512i *sum, __m512i a, __m512i b) {
  const __m512i carry = _mm512_ternarylogic_epi32(*sum, a, b, 0xE8);
  *sum = _mm512_ternarylogic_epi32(*sum, a, b, 0x96);
  return carry;
}

static inline void add_fours(byte_sums *s, __m512i first, __m512i second) {
  const __m512i fours = add_carry(&s->twos, first, second);
  s->all = _mm512_add_epi16(s->all, fours);
  s->odd = _mm512_add_epi16(s->odd, _mm512_srli_epi16(fours, 8));
}

static inline word_sums widen(const byte_sums *s) {
  const __m512i odd_twos = _mm512_add_epi16(_mm512_srli_epi16(s->twos, 8), _mm512_slli_epi16(s->odd, 1));
  const __m512i odd = _mm512_add_epi16(_mm512_srli_epi16(s->ones, 8), _mm512_slli_epi16(odd_twos, 1));
  const __m512i all_twos = _mm512_add_epi16(s->twos, _mm512_slli_epi16(s->all, 1));
  const __m512i all = _mm512_add_epi16(s->ones, _mm512_slli_epi16(all_twos, 1)); /* even + 256 odd */
  const word_sums words = {_mm512_sub_epi16(all, _mm512_slli_epi16(odd, 8)), odd};
  return words;
}

#endif
