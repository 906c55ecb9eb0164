/* flags: -mavx2 */
/* dot_avx2.c - "dot" with the byte multiply-add of AVX2. */
#include <immintrin.h>

#define DOT(name) name##__avx2

enum { WEIGHT_BIAS = 0, AT_ONCE = 4 };

typedef struct dot_weights {
  __m256i values, magnitudes;
} dot_weights;

static inline dot_weights as_weights(__m256i values) {
  const dot_weights w = {values, _mm256_abs_epi8(values)};
  return w;
}

/* The instruction multiplies unsigned by signed bytes and saturates 16-bit sums of two: with |w| <= 127 as the unsigned
 * and sign(w) x, |x| <= 127, as the signed one, sums stay below 2^15. */
static inline __m256i dot_add(__m256i sum, dot_weights w, __m256i x) {
  const __m256i pairs = _mm256_maddubs_epi16(w.magnitudes, _mm256_sign_epi8(x, w.values));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

#include "kernels/x86/avx2/dot_256.h"
