/* points.c - the points of a joint quantizer: a table per set of scales. */
#include "quantizer/points.h"

#include <math.h>
#include <string.h>

#include "base/message.h"

void f2i_point_of(int combination, const float *scales, int64_t stride, int64_t stages, float *re, float *im) {
  *re = *im = 0;
  for (int64_t t = 0; t < stages; ++t) {
    const int code = combination >> (2 * (stages - 1 - t)) & 3;
    const float scale = scales[stride * t + (code & 1)], value = code & 2 ? -scale : scale;
    *re += code & 1 ? 0.0f : value;
    *im += code & 1 ? value : 0.0f;
  }
}

void f2i_points_fill(f2i_points *points, const float *scales, int64_t stride, int64_t stages) {
  memset(points, 0, sizeof *points);
  points->stages = stages;
  for (int64_t t = 0; t < stages; ++t) {
    points->scales[t][0] = scales[stride * t];
    points->scales[t][1] = scales[stride * t + 1];
  }
  int64_t count = 0;
  for (int combination = 0; combination < 1 << (2 * stages); ++combination) {
    float re, im;
    f2i_point_of(combination, points->scales[0], 2, stages, &re, &im);
    /* below zero, or not a number: each of those would count as a new point, up to 4^stages of them */
    if (!(re >= 0 && im >= 0)) continue;
    int known = 0; /* the same point from a lower combination */
    for (int64_t i = 0; i < count; ++i) known |= points->re[i] == re && points->im[i] == im;
    if (known) continue;
    points->re[count] = re;
    points->im[count] = im;
    points->combination[count++] = combination;
  }
  /* whole groups for the search: copies are never strictly nearer */
  for (; count % F2I_POINT_GROUP != 0; ++count) {
    points->re[count] = points->re[count - 1];
    points->im[count] = points->im[count - 1];
    points->combination[count] = points->combination[count - 1];
  }
  points->count = count;
}

f2i_status f2i_points_init(f2i_points *points, const float *scales, size_t scales_count, f2i_message *message) {
  if (points == NULL || scales == NULL || scales_count % 2 != 0 || scales_count < 2 || scales_count > 8) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "scales: expected 2 per stage of 1 to 4, got %zu",
                    points == NULL || scales == NULL ? (size_t)0 : scales_count);
  }
  for (size_t i = 0; i < scales_count; ++i) {
    if (!isfinite(scales[i])) {
      return f2i_fail(message, F2I_INVALID_ARGUMENT, "scales: expected finite values, got %g at %zu", (double)scales[i],
                      i);
    }
  }
  f2i_points_fill(points, scales, 2, (int64_t)(scales_count / 2));
  return f2i_ok(message);
}
