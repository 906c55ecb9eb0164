/* dot_operands.h - what the "dot" kernels of every ISA share: int8 activations and int8 weights on one grid.
 *
 * The activations of a K-block are rounded to int8 with one scale. The weights of a byte plane are rounded to int8 on a
 * grid common to the whole layer, so that a 16-entry table turns two codes into a value. A complex column is the real
 * 2x2 block
 *
 *     y_re += (u_re + w_re) x_re + (w_im - u_im) x_im
 *     y_im += (u_im + w_im) x_re + (u_re - w_re) x_im
 *
 * since W multiplies conj(x), and the grid is so coarse that each of the four sums over all stages is an int8 number:
 * kernels may add up a weight first and multiply once. Whether they do or multiply plane by plane, sums are the same.
 * Products are accumulated in int32 by the CPU's dot-product instructions: these kernels multiply.
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
  int32_t sum_re, sum_im; /* of all re, of all im */
  int32_t unused[14];
} f2i_dot_activations; /* 128 bytes */

/* Weight values in grid steps, by the two codes of a nibble pair (first code in the low two bits): real and imaginary
 * part of the low plane plus those of the high plane if both belong to the same matrix; else of U and of W apart. */
typedef struct f2i_dot_plane {
  int8_t value[4][16]; /* same matrix: re, im, -, -; else: re of U, im of U, re of W, im of W */
  int32_t both;        /* 1: the byte holds U and W of one stage; 0: two stages of `matrix` */
  int32_t matrix;
  float grid; /* length of a grid step, the same in all planes */
  int32_t unused[13];
} f2i_dot_plane; /* 128 bytes */

/* As f2i_byte_planes, but here: the compiler can look constants up in it. */
static const uint8_t byte_planes[F2I_MAX_STAGES][F2I_MAX_STAGES][2][2] = F2I_BYTE_PLANES;

/* dot_grid.c: into how many grid steps the largest sum of scales U and W on an axis is best divided, so that every
 * weight is an int8 number and the weights of the layer are met well (each is one of a few numbers: some grids happen
 * to meet them better than finer ones), and the length of one of so many. scales: [stages][2][2] */
int f2i_dot_steps(const float *scales, int stages);
float f2i_dot_grid(const float *scales, int stages, int steps);

/* Fills [stages] f2i_dot_plane; dot_scalar.c. */
f2i_prepare_fn f2i_prepare_dot;

/* Rounds the activations of a block; returns the value of one unit of a sum in grid steps, NaN if an activation is not
 * finite. */
static inline float f2i_build_dot(const float *re, const float *im, const float *scales, void *operands) {
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
    out->sum_re += out->re[group][parity][place];
    out->sum_im += out->im[group][parity][place];
  }
  return scales == NULL ? 1.0f : largest / 127.0f;
}

/* What sums of a row of x are multiplied by. */
static inline float f2i_dot_unit(const f2i_dot_plane *planes, float unit) { return unit * planes->grid; }

#endif
