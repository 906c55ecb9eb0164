/* dot_weights.h - what all "dot" kernels with 64-byte vectors make of U and W. Include where -mavx512bw is on. */
#ifndef F2I_DOT_WEIGHTS_H
#define F2I_DOT_WEIGHTS_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

/* Weights of a parity of the columns of two cells, half a tile: [16 rows][4 byte columns], of an output (first name) by
 * a part of x (second). */
typedef struct weights {
  __m512i re_re, re_im, im_re, im_im;
} weights;

/* u, w: [re, im]. What is added to both parts of u is added to all weights: w - u has it with the wrong sign, but it is
 * 128 or 0, which is the same in bytes. */
static inline weights add_up(const __m512i u[2], const __m512i w[2]) {
  const weights out = {_mm512_add_epi8(u[0], w[0]), _mm512_sub_epi8(w[1], u[1]), _mm512_add_epi8(u[1], w[1]),
                       _mm512_sub_epi8(u[0], w[0])};
  return out;
}

/* Four activations in every 32-bit lane. */
static inline __m512i four(const int8_t *bytes) {
  int32_t value;
  memcpy(&value, bytes, sizeof value);
  return _mm512_set1_epi32(value);
}

#endif
