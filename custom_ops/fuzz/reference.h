/* reference.h - the operator in float64, straight from docs/format.md, and how far a kernel may be from it.
 *
 * The bounds follow from what docs/architecture.md says about each kernel: how coarsely table entries, activations and
 * weights of a K-block are rounded, plus the rounding of float32 sums.
 */
#ifndef F2I_FUZZ_REFERENCE_H
#define F2I_FUZZ_REFERENCE_H

#include "layer_input.h"

enum { BLOCK = 32, MOST_OUTPUTS = 512, MOST_INPUTS = 512 };

typedef struct reference {
  double y[MOST_OUTPUTS];
  double size;            /* sum of all scales times the sum of |x|: no output is larger before multiplier and bias */
  double lut, dot, exact; /* errors an output may have before the multiplier */
  int is_finite;          /* whether all of x is, multiplied in float32 as the operator does */
} reference;

/* Columns of a plane: without U the two halves of W are as planes of U and W. */
static inline size_t plane_columns(const f2i_weights *w) {
  const size_t m = (size_t)w->k / 2;
  return w->layout_version == 2 ? (m + 1) / 2 : m;
}

/* Both parts of the entry of the plane U (matrix 0) or W in row r and column j. */
static inline void entry_of(const f2i_weights *w, int matrix, size_t r, size_t j, double *re, double *im) {
  static const uint8_t places[4][8][2] = {{{0, 0}, {0, 1}},
                                          {{0, 0}, {1, 0}, {0, 1}, {1, 1}},
                                          {{0, 0}, {1, 0}, {0, 1}, {1, 1}, {2, 0}, {2, 1}},
                                          {{0, 0}, {1, 0}, {0, 1}, {1, 1}, {2, 0}, {3, 0}, {2, 1}, {3, 1}}};
  const size_t n = (size_t)w->n / 2, tiles = (n + 31) / 32;
  *re = *im = 0.0;
  for (size_t t = 0; t < (size_t)w->stages; ++t) {
    const uint8_t *place = places[w->stages - 1][2 * t + (size_t)matrix];
    const size_t at = ((j / 32 * tiles + r / 32) * (size_t)w->stages + place[0]) * 512 + j % 32 / 4 * 64 +
                      r % 32 / 16 * 32 + j % 4 / 2 * 16 + r % 16;
    const int stored = w->packed[at] >> (4 * place[1] + 2 * (j % 2)) & 3;
    const float *scale = w->scales + 4 * t + 2 * (size_t)matrix;
    *re += stored == 0 ? (double)scale[0] : stored == 3 ? -(double)scale[0] : 0.0;
    *im += stored == 1 ? (double)scale[1] : stored == 2 ? -(double)scale[1] : 0.0;
  }
}

/* The real matrix [n][k] of all stages. */
static inline double *dense_matrix(const f2i_weights *w) {
  const size_t n = (size_t)w->n / 2, m = (size_t)w->k / 2;
  double *a = allocated(4 * n * m * sizeof *a);
  for (size_t r = 0; r < n; ++r) {
    for (size_t j = 0; j < m; ++j) {
      double u_re, u_im, w_re, w_im, *upper = a + r * 2 * m + j, *lower = a + (n + r) * 2 * m + j;
      if (w->layout_version == 2) {
        const size_t half = plane_columns(w);
        u_re = u_im = 0.0;
        entry_of(w, j >= half, r, j % half, &w_re, &w_im);
      } else {
        entry_of(w, 0, r, j, &u_re, &u_im);
        entry_of(w, 1, r, j, &w_re, &w_im);
      }
      upper[0] = u_re + w_re, upper[m] = w_im - u_im;
      lower[0] = u_im + w_im, lower[m] = u_re - w_re;
    }
  }
  return a;
}

/* Rounds one half of a row, as a layer with activation_bits 8 does: q / a, in float64. values: float32 as yet */
static inline void round_half(double *values, size_t count) {
  float largest = 1e-5f;
  for (size_t i = 0; i < count; ++i) largest = fmaxf(largest, fabsf((float)values[i]));
  const float a = 127.0f / largest;
  for (size_t i = 0; i < count; ++i) {
    const float steps = (float)values[i] * a;
    values[i] = (double)fminf(fmaxf(rintf(steps), -128.0f), 127.0f) / (double)a;
  }
}

/* One row of x. */
static inline void compute_reference(const f2i_weights *w, const double *dense, const float *x, const float *bias,
                                     reference *out) {
  const size_t n = (size_t)w->n / 2, m = (size_t)w->k / 2;
  double value[MOST_INPUTS], sum = 0.0, one = 0.0, all = 0.0, axis = 0.0, largest_x = 0.0;
  memset(out, 0, sizeof *out);
  out->is_finite = 1;
  for (size_t i = 0; i < 2 * m; ++i) {
    const float factor = w->col_multiplier == NULL ? 1.0f : w->col_multiplier[i];
    out->is_finite &= isfinite(x[i] * factor) != 0;
    value[i] = w->activation_bits == 0 ? (double)x[i] * (double)factor : (double)(x[i] * factor);
  }
  for (size_t part = 0; part < 2 && w->activation_bits != 0 && out->is_finite; ++part) round_half(value + part * m, m);
  for (size_t i = 0; i < 2 * m; ++i) {
    sum += fabs(value[i]);
    largest_x = fmax(largest_x, fabs(value[i]));
  }
  for (size_t i = 0; i < 4; ++i) {
    double of_axis = 0.0;
    for (size_t t = 0; t < (size_t)w->stages; ++t) {
      of_axis += fabs((double)w->scales[4 * t + i]);
      one = fmax(one, fabs((double)w->scales[4 * t + i]));
    }
    all += of_axis;
    axis = fmax(axis, of_axis);
  }
  out->size = all * sum;
  const size_t half = plane_columns(w);
  for (size_t first = 0; first < m; first = first % half + BLOCK < half ? first + BLOCK : (first / half + 1) * half) {
    const size_t end = (first / half + 1) * half < m ? (first / half + 1) * half : m;
    double in_block = 0.0, block_sum = 0.0;
    for (size_t j = first; j < end && j < first + BLOCK; ++j) {
      in_block = fmax(in_block, fmax(fabs(value[j]), fabs(value[m + j])));
      block_sum += fabs(value[j]) + fabs(value[m + j]);
    }
    /* half a step in each of 32 look-ups per stage; a step is a 127th of at most two terms */
    out->lut += 0.5 * (2.0 * one * in_block / 127.0) * 32.0 * (double)w->stages;
    /* half a step of each value times the weights, up to a step of each weight times the values */
    out->dot += 2.0 * (0.5 * in_block / 127.0 * axis * 64.0 + axis / 126.0 * (block_sum + in_block));
  }
  const double dropped = ldexp(largest_x * one, -37) * 64.0 * (double)(m / BLOCK + 2) * (double)w->stages;
  out->exact = (out->size + one * largest_x) * 1e-5 + dropped;
  if (w->activation_bits != 0) out->lut = out->dot = 0.0; /* they add whole numbers */
  out->lut += out->exact;
  out->dot += out->exact;
  for (size_t i = 0; i < 2 * n; ++i) {
    for (size_t j = 0; j < 2 * m; ++j) out->y[i] += dense[i * 2 * m + j] * value[j];
    if (w->row_multiplier != NULL) out->y[i] *= (double)w->row_multiplier[i];
    if (bias != NULL) out->y[i] += (double)bias[i];
  }
}

#endif
