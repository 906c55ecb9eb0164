/* loops/joint.h - the joint quantizer: the codes of all stages of an entry at once, those of the nearest point.
 *
 * With T stages an entry becomes one of 4^T points. Every set of points is symmetric to both
 * axes, so an entry is reflected into the first quadrant (a part below zero changes its sign), compared with the points
 * there (2, 6, 20 or 72 of them), and the codes found are reflected back: 0 <-> 2 or 1 <-> 3. Distances are
 * (x - X)^2 + (y - Y)^2 in float32, each step rounded; among equal ones the lowest combination counts, stage 1 first.
 */
#ifndef F2I_LOOPS_JOINT_H
#define F2I_LOOPS_JOINT_H

#include <string.h>

#include "quantizer/loops/codes.h"
#include "quantizer/points.h"

F2I_INLINE int32_t distance_key(float dx, float dy) {
  return (int32_t)bits_of(dx * dx + dy * dy); /* bits of numbers from 0 up are ordered as the numbers */
}

/* The combinations of the nearest points in the first quadrant, for entries that are there. */
F2I_CHUNKWISE void nearest_in_quadrant(const f2i_points *points, const float *x, const float *y, int count,
                                       int32_t *found) {
  int32_t least[F2I_CHUNK];
  for (int i = 0; i < count; ++i) {
    least[i] = INT32_MAX;
    found[i] = 0;
  }
  for (int64_t p = 0; p < points->count; p += F2I_POINT_GROUP) {
    const float *re = points->re + p, *im = points->im + p;
    const int32_t *combination = points->combination + p;
    const float re0 = re[0], re1 = re[1], re2 = re[2], re3 = re[3];
    const float im0 = im[0], im1 = im[1], im2 = im[2], im3 = im[3];
    const int32_t c0 = combination[0], c1 = combination[1], c2 = combination[2], c3 = combination[3];
    for (int i = 0; i < count; ++i) {
      const int32_t d0 = distance_key(x[i] - re0, y[i] - im0), d1 = distance_key(x[i] - re1, y[i] - im1);
      const int32_t d2 = distance_key(x[i] - re2, y[i] - im2), d3 = distance_key(x[i] - re3, y[i] - im3);
      int32_t best = least[i], at = found[i];
      at = d0 < best ? c0 : at;
      best = d0 < best ? d0 : best;
      at = d1 < best ? c1 : at;
      best = d1 < best ? d1 : best;
      at = d2 < best ? c2 : at;
      best = d2 < best ? d2 : best;
      at = d3 < best ? c3 : at;
      best = d3 < best ? d3 : best;
      least[i] = best;
      found[i] = at;
    }
  }
}

/* Combinations for any entries; x and y, which may be re and im, get the magnitudes. */
F2I_CHUNKWISE void nearest_combinations(const f2i_points *points, const float *re, const float *im, int count, float *x,
                                        float *y, int32_t *found) {
  int32_t flips[F2I_CHUNK];
  for (int i = 0; i < count; ++i) {
    const int32_t below_re = re[i] < 0, below_im = im[i] < 0;
    flips[i] = below_re | below_im << 1;
    x[i] = float_of(bits_of(re[i]) & 0x7FFFFFFFu);
    y[i] = float_of(bits_of(im[i]) & 0x7FFFFFFFu);
  }
  nearest_in_quadrant(points, x, y, count, found);
  const int32_t ones = 0x55 & ((1 << (2 * points->stages)) - 1); /* the lower bit of every code: imaginary */
  for (int i = 0; i < count; ++i) {
    const int32_t imaginary = found[i] & ones, real = imaginary ^ ones;
    found[i] ^= (real << 1 & -(flips[i] & 1)) ^ (imaginary << 1 & -(flips[i] >> 1));
  }
}

F2I_CHUNKWISE void nearest_chunk(const f2i_points *points, const float *re, const float *im, int count, uint8_t *codes,
                                 int64_t stride, float *q_re, float *q_im) {
  float x[F2I_CHUNK], y[F2I_CHUNK];
  int32_t found[F2I_CHUNK];
  nearest_combinations(points, re, im, count, x, y, found);
  if (codes != NULL) store_codes(found, points->stages, count, codes, stride);
  if (q_re != NULL) add_stages(found, points->stages, points->scales[0], 2, count, q_re, q_im, 0);
}

static void nearest(const f2i_points *points, const float *re, const float *im, int64_t count, uint8_t *codes,
                    float *q_re, float *q_im) {
  for (int64_t start = 0; start < count; start += F2I_CHUNK) {
    const int part = (int)(count - start < F2I_CHUNK ? count - start : F2I_CHUNK);
    nearest_chunk(points, re + start, im + start, part, codes == NULL ? NULL : codes + start, count,
                  q_re == NULL ? NULL : q_re + start, q_im == NULL ? NULL : q_im + start);
  }
}

/* sums[combination in the first quadrant] = (weights, weighted x, y and x^2 + y^2) of the entries that go there, added
 * one after the other: reflected entries have reflected codes, so these are the sums a least-squares fit needs. */
static void nearest_sums(const f2i_points *points, const float *re, const float *im, const float *weights,
                         int64_t count, double *sums) {
  float x[F2I_CHUNK], y[F2I_CHUNK];
  int32_t found[F2I_CHUNK];
  memset(sums, 0, ((size_t)4 << (2 * points->stages)) * sizeof *sums);
  for (int64_t start = 0; start < count; start += F2I_CHUNK) {
    const int part = (int)(count - start < F2I_CHUNK ? count - start : F2I_CHUNK);
    for (int i = 0; i < part; ++i) {
      x[i] = float_of(bits_of(re[start + i]) & 0x7FFFFFFFu);
      y[i] = float_of(bits_of(im[start + i]) & 0x7FFFFFFFu);
    }
    nearest_in_quadrant(points, x, y, part, found);
    for (int i = 0; i < part; ++i) {
      double *bin = sums + 4 * found[i];
      const double weight = weights == NULL ? 1.0 : (double)weights[start + i];
      const double re_i = (double)x[i], im_i = (double)y[i];
      bin[0] += weight;
      bin[1] += weight * re_i;
      bin[2] += weight * im_i;
      bin[3] += weight * (re_i * re_i + im_i * im_i);
    }
  }
}

#endif
