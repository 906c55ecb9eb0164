/* flags: -mavx2 -mavxvnni */
/* dot_avxvnni.c - "dot" with AVX-VNNI, for CPUs that have it and not AVX-512. */
#include <immintrin.h>

#define DOT(name) name##__avx_vnni

enum { WEIGHT_BIAS = 128, IS_OFF = 0, AT_ONCE = 6 };

typedef __m256i ready_weights;

static inline ready_weights make_ready(__m256i w) { return _mm256_xor_si256(w, _mm256_set1_epi8((char)0x80)); }

static inline __m256i dot_add_ready(__m256i sum, ready_weights w, __m256i x) {
  return _mm256_dpbusd_avx_epi32(sum, w, x);
}

static inline __m256i dot_add(__m256i sum, __m256i w, __m256i x) { return dot_add_ready(sum, make_ready(w), x); }

#include "kernels/x86/avx2/dot_256.h"
