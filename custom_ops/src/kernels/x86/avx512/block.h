/* block.h - what kernels with 64-byte vectors do with a block beside their look-ups or products. Include where
 * -mavx512f is on. */
#ifndef F2I_AVX512_BLOCK_H
#define F2I_AVX512_BLOCK_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes that are needed soon, into the first-level cache if `near`, else into the second. Always inlined: gcc takes a
 * function that does nothing else for one without effect, and drops its calls unless it inlines them early. */
static inline __attribute__((always_inline)) void prefetch(const uint8_t *ahead, size_t bytes, const int near) {
  for (size_t i = 0; i < bytes; i += 64) {
    if (near) _mm_prefetch((const char *)ahead + i, _MM_HINT_T0);
    else _mm_prefetch((const char *)ahead + i, _MM_HINT_T1);
  }
}

/* acc: float[16], sums of 16 rows of the matrix so far. */
static inline void add_to(float *acc, __m512 unit, __m512 sum) {
  _mm512_storeu_ps(acc, _mm512_add_ps(_mm512_loadu_ps(acc), _mm512_mul_ps(unit, sum)));
}

/* 16-bit sums of the even and of the odd bytes of vectors. */
typedef struct word_sums {
  __m512i even, odd;
} word_sums;

/* Of each 32-bit lane, with their sign. */
static inline __m512 low_words(__m512i words) {
  return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(words, 16), 16));
}

static inline __m512 high_words(__m512i words) { return _mm512_cvtepi32_ps(_mm512_srai_epi32(words, 16)); }

#endif
