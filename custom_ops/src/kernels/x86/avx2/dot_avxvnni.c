/* flags: -mavx2 -mavxvnni */
/* dot_avxvnni.c - "dot" with AVX-VNNI, for CPUs that have it and not AVX-512. */
#include <immintrin.h>

#define DOT(name) name##__avx_vnni

enum { WEIGHT_BIAS = 128, AT_ONCE = 6 };

typedef __m256i dot_weights;

static inline dot_weights as_weights(__m256i values) { return _mm256_xor_si256(values, _mm256_set1_epi8((char)0x80)); }

static inline __m256i dot_add(__m256i sum, dot_weights w, __m256i x) { return _mm256_dpbusd_avx_epi32(sum, w, x); }

#include "kernels/x86/avx2/dot_256.h"
