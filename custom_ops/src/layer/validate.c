/* validate.c - every check of a layer's operands, in one pure function. */
#include <math.h>

#include "base/layout.h"
#include "base/message.h"
#include "base/sizes.h"

static f2i_status check_multiplier(const char *what, const float *values, size_t count, int64_t expected,
                                   f2i_message *message) {
  if (values != NULL && count != (size_t)expected) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "%s: expected %lld values, got %zu", what, (long long)expected,
                    count);
  }
  return F2I_OK;
}

f2i_status f2i_validate(const f2i_weights *w, f2i_message *message) {
  if (w == NULL) return f2i_fail(message, F2I_INVALID_ARGUMENT, "weights: expected a pointer, got NULL");
  if (w->scale_scope != F2I_SCALE_SCOPE_MATRIX) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "scale_scope: expected %d (whole matrix), got %lld",
                    F2I_SCALE_SCOPE_MATRIX, (long long)w->scale_scope);
  }
  size_t bytes = 0;
  f2i_status status = f2i_layout_size(w->layout_version, w->k, w->n, w->stages, &bytes, message);
  if (status == F2I_OK) status = f2i_check_activation_bits(w->layout_version, w->activation_bits, message);
  if (status != F2I_OK) return status;
  if (w->packed == NULL || w->packed_bytes != bytes) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT,
                    "packed: expected %zu bytes for K=%lld, N=%lld, stages=%lld, got %zu", bytes, (long long)w->k,
                    (long long)w->n, (long long)w->stages, w->packed == NULL ? (size_t)0 : w->packed_bytes);
  }
  const size_t scales = (size_t)w->stages * 4;
  if (w->scales == NULL || w->scales_count != scales) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "scales: expected [%lld, 2, 2] = %zu values, got %zu",
                    (long long)w->stages, scales, w->scales == NULL ? (size_t)0 : w->scales_count);
  }
  for (size_t i = 0; i < scales; ++i) {
    if (!isfinite(w->scales[i])) {
      return f2i_fail(message, F2I_INVALID_ARGUMENT, "scales: expected finite values, value %zu is %g", i,
                      (double)w->scales[i]);
    }
  }
  if (w->layout_version == F2I_LAYOUT_CONJUGATE && (w->scales[0] != w->scales[2] || w->scales[1] != w->scales[3])) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT,
                    "scales: expected those of W twice with layout_version %d, got %g, %g and %g, %g",
                    F2I_LAYOUT_CONJUGATE, (double)w->scales[0], (double)w->scales[1], (double)w->scales[2],
                    (double)w->scales[3]);
  }
  status = check_multiplier("row_multiplier", w->row_multiplier, w->row_multiplier_count, w->n, message);
  if (status == F2I_OK) {
    status = check_multiplier("col_multiplier", w->col_multiplier, w->col_multiplier_count, w->k, message);
  }
  return status == F2I_OK ? f2i_ok(message) : status;
}
