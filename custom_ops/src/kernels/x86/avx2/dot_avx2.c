/* flags: -mavx2 */
/* dot_avx2.c - "dot" with the byte multiply-add of AVX2. */
#include <immintrin.h>

#define DOT(name) name##__avx2

enum { WEIGHT_BIAS = 0, IS_OFF = 1, AT_ONCE = 4 };

/* The instruction multiplies unsigned by signed bytes and saturates 16-bit sums of two: with |w| <= 127 as the unsigned
 * and x with the sign of w, at most 128, as the signed one, sums stay below 2^15. */
static inline __m256i add_products(__m256i sum, __m256i magnitudes, __m256i signed_x) {
  const __m256i pairs = _mm256_maddubs_epi16(magnitudes, signed_x);
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

static inline __m256i dot_add(__m256i sum, __m256i w, __m256i x) {
  return add_products(sum, _mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
}

typedef struct ready_weights {
  __m256i magnitudes, signs; /* signs: 0 or -1 */
} ready_weights;

static inline ready_weights make_ready(__m256i w) {
  const ready_weights ready = {_mm256_abs_epi8(w), _mm256_cmpgt_epi8(_mm256_setzero_si256(), w)};
  return ready;
}

/* With -x = ~x + 1, of which the 1 is left out. PSIGNB runs where multiplications do, on Zen 4 at least. */
static inline __m256i dot_add_ready(__m256i sum, ready_weights w, __m256i x) {
  return add_products(sum, w.magnitudes, _mm256_xor_si256(x, w.signs));
}

#include "kernels/x86/avx2/dot_256.h"
