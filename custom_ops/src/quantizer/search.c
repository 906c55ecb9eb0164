/* search.c - the public functions of calibration's search: argument checks and the points of all codes. */
#include "quantizer/search.h"

#include <math.h>

#include "base/layout.h"
#include "base/message.h"
#include "base/sizes.h"
#include "quantizer/quantize.h"

static void fill(f2i_codebook *book, const f2i_search *s) {
  book->count = 1 << (2 * s->stages);
  for (int matrix = 0; matrix < 2; ++matrix) {
    for (int k = 0; k < book->count; ++k) {
      float re = 0, im = 0;
      for (int64_t t = 0; t < s->stages; ++t) {
        const int code = k >> (2 * (s->stages - 1 - t)) & 3;
        const float scale = s->scales[4 * t + 2 * matrix + (code & 1)], value = code & 2 ? -scale : scale;
        re += code & 1 ? 0.0f : value;
        im += code & 1 ? value : 0.0f;
      }
      book->re[matrix][k] = re;
      book->im[matrix][k] = im;
    }
  }
}

static f2i_status check_array(const char *what, const void *pointer, size_t count, uint64_t expected,
                              f2i_message *message) {
  if (pointer != NULL && (uint64_t)count == expected) return F2I_OK;
  return f2i_fail(message, F2I_INVALID_ARGUMENT, "%s: expected %llu values, got %zu", what,
                  (unsigned long long)expected, pointer == NULL ? (size_t)0 : count);
}

static f2i_status check(const f2i_search *s, int64_t from, int64_t to, int64_t begin, int64_t end, const float *values,
                        size_t values_count, f2i_message *message) {
  if (s == NULL) return f2i_fail(message, F2I_INVALID_ARGUMENT, "search: expected a pointer, got NULL");
  if (s->m < 1 || s->m > F2I_MAX_FEATURES / 2 || s->n < 1 || s->n > F2I_MAX_FEATURES / 2) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "m, n: expected 1 to %lld, got %lld and %lld",
                    (long long)F2I_MAX_FEATURES / 2, (long long)s->m, (long long)s->n);
  }
  if (s->stages < 1 || s->stages > 4) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "stages: expected 1 to 4, got %lld", (long long)s->stages);
  }
  const uint64_t entries = f2i_count(s->m, s->n, 1);
  f2i_status status = check_array("scales", s->scales, s->scales_count, 4 * (uint64_t)s->stages, message);
  if (status == F2I_OK) status = check_array("rows", s->rows, s->rows_count, 2 * (uint64_t)s->n, message);
  if (status == F2I_OK) status = check_array("columns", s->columns, s->columns_count, 2 * (uint64_t)s->m, message);
  if (status == F2I_OK) {
    status = check_array("metric", s->metric, s->metric_count, 4 * (uint64_t)s->m * (uint64_t)s->m, message);
  }
  if (status == F2I_OK) {
    status = check_array("codes", s->codes, s->codes_count, 2 * (uint64_t)s->stages * entries, message);
  }
  if (status == F2I_OK) status = check_array("dense", s->dense, s->dense_count, 4 * entries, message);
  if (status == F2I_OK) status = check_array("values", values, values_count, 4 * entries, message);
  if (status != F2I_OK) return status;
  if (from < 0 || to < from || to > s->m || begin < 0 || end < begin || end > s->n) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT,
                    "part: expected pairs of 0 to %lld and rows of 0 to %lld, got %lld to %lld and %lld to %lld",
                    (long long)s->m, (long long)s->n, (long long)from, (long long)to, (long long)begin, (long long)end);
  }
  return F2I_OK;
}

f2i_status f2i_search_feed_back(const f2i_search *search, int64_t from, int64_t to, int64_t begin, int64_t end,
                                float *values, size_t values_count, f2i_message *message) {
  const f2i_status status = check(search, from, to, begin, end, values, values_count, message);
  if (status != F2I_OK) return status;
  f2i_codebook book;
  fill(&book, search);
  f2i_quantizer_of_cpu()->feed_back(search, &book, from, to, begin, end, values);
  return f2i_ok(message);
}

f2i_status f2i_search_descend(const f2i_search *search, int64_t from, int64_t to, int64_t begin, int64_t end,
                              float *pull, size_t pull_count, f2i_message *message) {
  const f2i_status status = check(search, from, to, begin, end, pull, pull_count, message);
  if (status != F2I_OK) return status;
  f2i_codebook book;
  fill(&book, search);
  f2i_quantizer_of_cpu()->descend(search, &book, from, to, begin, end, pull);
  return f2i_ok(message);
}
