/* flags: -mavx2 */
/* dot_avx2.c - "dot" with the byte multiply-add of AVX2. */
#include <immintrin.h>

#define DOT(name) name##__avx2

typedef __m256i weights;
enum { WEIGHT_BIAS = 0 };

static inline weights as_weights(__m256i values) { return values; }

/* The instruction multiplies unsigned by signed bytes and saturates 16-bit sums of two: with |x| <= 127 as the unsigned
 * and sign(x) w, |w| <= 127, as the signed one, sums stay below 2^15. */
static inline __m256i dot_add(__m256i sum, weights w, __m256i x) {
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(w, x));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

#include "kernels/x86/avx2/dot_256.h"
