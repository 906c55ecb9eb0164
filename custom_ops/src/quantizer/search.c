/* search.c - the public functions of calibration's search: argument checks and the points of all codes. */
#include "quantizer/search.h"

#include "base/layout.h"
#include "base/message.h"
#include "base/sizes.h"
#include "quantizer/points.h"
#include "quantizer/quantize.h"

enum { F2I_MAX_SWEEPS = 1000000 };

static void fill(f2i_codebook *book, const f2i_search *s) {
  book->count = 1 << (2 * s->stages);
  for (int matrix = 0; matrix < 2; ++matrix) {
    for (int k = 0; k < book->count; ++k) {
      f2i_point_of(k, s->scales + 2 * matrix, 4, s->stages, &book->re[matrix][k], &book->im[matrix][k]);
    }
  }
}

static f2i_status check(const f2i_search *s, int64_t begin, int64_t end, f2i_message *message) {
  if (s == NULL) return f2i_fail(message, F2I_INVALID_ARGUMENT, "search: expected a pointer, got NULL");
  if (s->m < 1 || s->m > F2I_MAX_FEATURES / 2 || s->n < 1 || s->n > F2I_MAX_FEATURES / 2) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "m, n: expected 1 to %lld, got %lld and %lld",
                    (long long)F2I_MAX_FEATURES / 2, (long long)s->m, (long long)s->n);
  }
  if (s->stages < 1 || s->stages > 4) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "stages: expected 1 to 4, got %lld", (long long)s->stages);
  }
  const uint64_t entries = f2i_count(s->m, s->n, 1);
  f2i_status status = f2i_check_count("scales", s->scales, s->scales_count, 4 * (uint64_t)s->stages, message);
  if (status == F2I_OK) status = f2i_check_count("rows", s->rows, s->rows_count, 2 * (uint64_t)s->n, message);
  if (status == F2I_OK) status = f2i_check_count("columns", s->columns, s->columns_count, 2 * (uint64_t)s->m, message);
  if (status == F2I_OK) {
    status = f2i_check_count("metric", s->metric, s->metric_count, 4 * (uint64_t)s->m * (uint64_t)s->m, message);
  }
  if (status == F2I_OK) {
    status = f2i_check_count("codes", s->codes, s->codes_count, 2 * (uint64_t)s->stages * entries, message);
  }
  if (status == F2I_OK) status = f2i_check_count("dense", s->dense, s->dense_count, 4 * entries, message);
  if (status != F2I_OK) return status;
  if (begin < 0 || end < begin || end > s->n) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "part: expected rows of 0 to %lld, got %lld to %lld",
                    (long long)s->n, (long long)begin, (long long)end);
  }
  return F2I_OK;
}

static f2i_status check_sweeps(const f2i_sweeps *sweeps, const f2i_search *s, const float *pull, size_t pull_count,
                               f2i_message *message) {
  if (sweeps == NULL) return f2i_fail(message, F2I_INVALID_ARGUMENT, "sweeps: expected a pointer, got NULL");
  if (sweeps->count < 0 || sweeps->count > F2I_MAX_SWEEPS) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "sweeps: expected 0 to %d, got %lld", F2I_MAX_SWEEPS,
                    (long long)sweeps->count);
  }
  if (sweeps->stride < 2 * s->m || sweeps->stride > 2 * F2I_MAX_FEATURES) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "stride: expected %lld to %lld, got %lld", (long long)(2 * s->m),
                    2 * (long long)F2I_MAX_FEATURES, (long long)sweeps->stride);
  }
  if (sweeps->noise != NULL || sweeps->noise_count != 0) {
    const f2i_status status =
        f2i_check_count("noise", sweeps->noise, sweeps->noise_count, (uint64_t)sweeps->count * (uint64_t)s->n, message);
    if (status != F2I_OK) return status;
  }
  return f2i_check_count("pull", pull, pull_count, 2 * (uint64_t)s->n * (uint64_t)sweeps->stride, message);
}

f2i_status f2i_search_feed_back(const f2i_search *search, int64_t from, int64_t to, int64_t begin, int64_t end,
                                float *values, size_t values_count, f2i_message *message) {
  f2i_status status = check(search, begin, end, message);
  if (status == F2I_OK) {
    status = f2i_check_count("values", values, values_count, 4 * f2i_count(search->m, search->n, 1), message);
  }
  if (status != F2I_OK) return status;
  if (from < 0 || to < from || to > search->m) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "part: expected pairs of 0 to %lld, got %lld to %lld",
                    (long long)search->m, (long long)from, (long long)to);
  }
  f2i_codebook book;
  fill(&book, search);
  f2i_quantizer_of_cpu()->feed_back(search, &book, from, to, begin, end, values);
  return f2i_ok(message);
}

f2i_status f2i_search_anneal(const f2i_search *search, const f2i_sweeps *sweeps, int64_t begin, int64_t end,
                             float *pull, size_t pull_count, f2i_message *message) {
  f2i_status status = check(search, begin, end, message);
  if (status == F2I_OK) status = check_sweeps(sweeps, search, pull, pull_count, message);
  if (status != F2I_OK) return status;
  f2i_codebook book;
  fill(&book, search);
  f2i_quantizer_of_cpu()->anneal(search, &book, begin, end, sweeps, pull);
  return f2i_ok(message);
}
