/* loops/codes.h - codes of a chunk: the nearest one, what codes stand for, and the greedy quantizer. */
#ifndef F2I_LOOPS_CODES_H
#define F2I_LOOPS_CODES_H

#include "quantizer/loops/parts.h"

/* The nearest axis direction of re + i im as code k, which stands for i^k. Sectors are those of the reference,
 * [-pi/4, pi/4) -> 1 and so on counter-clockwise, decided by magnitudes instead of angles: on a border equal signs go
 * to the imaginary axis, opposite signs to the real one. Zero becomes 1, or -1 when both parts are negative zeros. */
F2I_INLINE int32_t code_of(float re, float im) {
  const uint32_t re_bits = bits_of(re), im_bits = bits_of(im);
  const int32_t abs_re = (int32_t)(re_bits & 0x7FFFFFFFu), abs_im = (int32_t)(im_bits & 0x7FFFFFFFu);
  const int32_t neg_re = (int32_t)(re_bits >> 31), neg_im = (int32_t)(im_bits >> 31);
  /* magnitudes are compared as integers; opposite signs (neg_re ^ neg_im) turn "at most" into "less" */
  const int32_t imag = abs_re <= abs_im - (neg_re ^ neg_im);
  const int32_t code = 2 * (imag ? neg_im : neg_re) + imag;
  return (abs_re | abs_im) == 0 ? 2 * (neg_re & neg_im) : code;
}

/* What a code stands for on the real and on the imaginary axis: the scale with the code's sign, or 0. Masks instead of
 * conditions, which not every compiler vectorizes. */
F2I_INLINE float real_part(uint32_t scale_bits, int32_t code) {
  return float_of((scale_bits ^ (uint32_t)(code & 2) << 30) & ((uint32_t)(code & 1) - 1u));
}

F2I_INLINE float imag_part(uint32_t scale_bits, int32_t code) {
  return float_of((scale_bits ^ (uint32_t)(code & 2) << 30) & (0u - (uint32_t)(code & 1)));
}

/* Subtract one stage from U or W. */
F2I_CHUNKWISE void subtract(float *re, float *im, int count, const float *scale, int bf16) {
  const uint32_t scale_re = bits_of(scale[0]), scale_im = bits_of(scale[1]);
  for (int i = 0; i < count; ++i) {
    const float x = re[i], y = im[i];
    const int32_t code = code_of(x, y);
    re[i] = rounded(x - real_part(scale_re, code), bf16);
    im[i] = rounded(y - imag_part(scale_im, code), bf16);
  }
}

/* An entry's codes of all stages make a combination: 2 bits each, stage 1 in the highest. */
F2I_INLINE int32_t code_in(int32_t combination, int64_t stages, int64_t stage) {
  return combination >> (2 * (stages - 1 - stage)) & 3;
}

/* Codes [stages][stride] of one chunk. */
F2I_CHUNKWISE void store_codes(const int32_t *found, int64_t stages, int count, uint8_t *codes, int64_t stride) {
  for (int64_t t = 0; t < stages; ++t) {
    for (int i = 0; i < count; ++i) codes[t * stride + i] = (uint8_t)code_in(found[i], stages, t);
  }
}

/* What combinations stand for, stages added in their order. scales: of stage t at scales + t * stride, (re, im) */
F2I_CHUNKWISE void add_stages(const int32_t *found, int64_t stages, const float *scales, int64_t stride, int count,
                              float *q_re, float *q_im, int bf16) {
  for (int i = 0; i < count; ++i) q_re[i] = q_im[i] = 0;
  for (int64_t t = 0; t < stages; ++t) {
    const uint32_t scale_re = bits_of(scales[t * stride]), scale_im = bits_of(scales[t * stride + 1]);
    for (int i = 0; i < count; ++i) {
      const int32_t code = code_in(found[i], stages, t);
      q_re[i] = rounded(q_re[i] + real_part(scale_re, code), bf16);
      q_im[i] = rounded(q_im[i] + imag_part(scale_im, code), bf16);
    }
  }
}

/* The greedy quantizer's combinations, one stage after the other; re and im become what all stages leave. */
F2I_CHUNKWISE void greedy_combinations(const float *scales, int64_t stages, float *re, float *im, int count,
                                       int32_t *found, int bf16) {
  for (int i = 0; i < count; ++i) found[i] = 0;
  for (int64_t t = 0; t < stages; ++t) {
    for (int i = 0; i < count; ++i) found[i] = found[i] << 2 | code_of(re[i], im[i]);
    subtract(re, im, count, scales + 4 * t, bf16);
  }
}

#endif
