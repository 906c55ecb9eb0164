/* dot_operands.h - what the "dot" kernels of every ISA share: int8 activations and int8 weights on one grid.
 *
 * The activations of a K-block are rounded to int8 with one scale. The weights of a byte plane are rounded to int8 on a
 * grid common to the whole layer, so that a 16-entry table turns two codes into a value. The grid is so coarse that
 * even all stages of U and W together are an int8 number. Products are accumulated in int32 by the CPU's dot-product
 * instructions: these kernels multiply.
 */
#ifndef F2I_DOT_OPERANDS_H
#define F2I_DOT_OPERANDS_H

#include <float.h>
#include <math.h>
#include <string.h>

#include "kernels/kernels.h"

/* int8 activations of one K-block and row of x; columns in the order in which packed bytes meet them: byte columns go
 * in groups of four, and [parity] is the even or odd column of each byte column. */
typedef struct f2i_dot_activations {
  int8_t re[F2I_BLOCK_CELLS / 2][2][4]; /* [group][parity][byte column] */
  int8_t im[F2I_BLOCK_CELLS / 2][2][4];
  int8_t minus_im[F2I_BLOCK_CELLS / 2][2][4];
  int32_t sum_re; /* of all re */
  int32_t unused[7];
} f2i_dot_activations; /* 128 bytes */

/* Weight values in grid steps, by the two codes of a nibble pair (first code in the low two bits): real and imaginary
 * part of the low plane plus those of the high plane if both belong to the same matrix; else of U and of W apart. */
typedef struct f2i_dot_plane {
  int8_t value[4][16]; /* same matrix: re, im, -, -; else: re of U, im of U, re of W, im of W */
  int32_t both;        /* 1: the byte holds U and W of one stage; 0: two stages of `matrix` */
  int32_t matrix;
  int32_t unused[14];
} f2i_dot_plane; /* 128 bytes */

/* Length of a grid step: the largest sum of the scales of U or W and an axis over the stages is 127 steps, or 126 where
 * it is rounded in two byte planes, so that the sum of what they are rounded to is at most 127. 0 if all scales are. */
static inline float f2i_dot_grid(const float *scales, int stages) {
  float largest = 0.0f;
  for (int i = 0; i < 4; ++i) {
    float sum = 0.0f;
    for (int t = 0; t < stages; ++t) sum += fabsf(scales[4 * t + i]);
    largest = fmaxf(largest, sum);
  }
  return largest / (stages > 2 ? 126.0f : 127.0f);
}

/* Fills [stages] f2i_dot_plane; dot_scalar.c. */
f2i_prepare_fn f2i_prepare_dot;

/* Rounds the activations of a block; returns the value of one unit of a sum, NaN if an activation is not finite. */
static inline float f2i_build_dot(const float *re, const float *im, const float *scales, int stages, void *operands) {
  f2i_dot_activations *out = operands;
  float largest = 0.0f;
  int finite = 1;
  memset(out, 0, sizeof *out);
  for (int j = 0; j < F2I_BLOCK_COLS; ++j) {
    const float r = fabsf(re[j]), i = fabsf(im[j]);
    finite &= (r <= FLT_MAX) & (i <= FLT_MAX);
    largest = r > largest ? r : largest;
    largest = i > largest ? i : largest;
  }
  if (!finite) return NAN;
  if (largest < F2I_NEGLIGIBLE) return 0.0f;
  const float inverse = scales == NULL ? 1.0f : 127.0f / largest;
  for (int j = 0; j < F2I_BLOCK_COLS; ++j) {
    const int group = j / 8, parity = j % 2, place = j % 8 / 2;
    out->re[group][parity][place] = (int8_t)rintf(re[j] * inverse);
    out->im[group][parity][place] = (int8_t)rintf(im[j] * inverse);
    out->minus_im[group][parity][place] = (int8_t)-out->im[group][parity][place];
    out->sum_re += out->re[group][parity][place];
  }
  return scales == NULL ? 1.0f : largest / 127.0f * f2i_dot_grid(scales, stages);
}

#endif
