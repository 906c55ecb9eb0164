/* column_terms.h - what one column contributes for each of the four codes: the algebra every table builder shares.
 *
 * A code i^k of U (at some stage, with scales s_re on the real and s_im on the imaginary axis) times the activation
 * x = re + i im contributes, in the order of the stored sign bits (Gray code: 1, i, -i, -1),
 *     to the real output   s_re re, -s_im im,  s_im im, -s_re re
 *     to the imaginary one s_re im,  s_im re, -s_im re, -s_re im
 * W multiplies conj(x): the same with -im for im. A table entry is the sum of the terms of two neighbouring columns.
 */
#ifndef F2I_COLUMN_TERMS_H
#define F2I_COLUMN_TERMS_H

#include <float.h>
#include <math.h>

#include "kernels/kernels.h"

typedef struct f2i_terms {
  float re[4]; /* contribution to the real output by stored code */
  float im[4];
} f2i_terms;

static inline f2i_terms f2i_column_terms(float re, float im, const float scale[2], int matrix) {
  const float z = matrix ? -im : im;
  const float a = scale[0] * re, b = scale[1] * z, c = scale[0] * z, d = scale[1] * re;
  const f2i_terms t = {{a, -b, b, -a}, {c, d, -d, -c}};
  return t;
}

/* Value of one unit of an int8 table entry, for the largest magnitude among a block's entries; *inverse is units per
 * value. 0 (and inverse 0) when all entries are negligible, NaN when the largest is not finite.
 */
static inline float f2i_lut_unit(float largest, float *inverse) {
  const int usable = largest >= F2I_NEGLIGIBLE && largest <= FLT_MAX;
  *inverse = usable ? 127.0f / largest : 0.0f;
  if (usable) return largest / 127.0f;
  return largest < F2I_NEGLIGIBLE ? 0.0f : NAN;
}

#endif
