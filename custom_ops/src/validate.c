/* validate.c - every check of a layer's operands, in one pure function, and all arithmetic on sizes.
 *
 * Nothing else in the library computes a size from attributes. Limits are checked before sizes are multiplied, so that
 * no product below can overflow 64 bits: (2^23 / 32) tiles * (2^23 / 32) blocks * 4 stages * 512 bytes < 2^48.
 */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>

#include "f2i_layout.h"
#include "kernels.h"
#include "message.h"

f2i_status f2i_fail(f2i_message *message, f2i_status status, const char *format, ...) {
  if (message != NULL) {
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(message->text, sizeof message->text, format, arguments);
    va_end(arguments);
  }
  return status;
}

f2i_status f2i_ok(f2i_message *message) {
  if (message != NULL) message->text[0] = '\0';
  return F2I_OK;
}

static f2i_status check_features(const char *what, int64_t value, f2i_message *message) {
  if (value < 2 || value % 2 != 0 || value > F2I_MAX_FEATURES) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "%s: expected an even number from 2 to %d, got %lld", what,
                    F2I_MAX_FEATURES, (long long)value);
  }
  return F2I_OK;
}

f2i_status f2i_packed_size(int64_t k, int64_t n, int64_t stages, size_t *bytes, f2i_message *message) {
  f2i_status status = check_features("K", k, message);
  if (status == F2I_OK) status = check_features("N", n, message);
  if (status != F2I_OK) return status;
  if (stages < 1 || stages > F2I_MAX_STAGES) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "stages: expected 1 to %d, got %lld", F2I_MAX_STAGES,
                    (long long)stages);
  }
  if (bytes == NULL) return f2i_fail(message, F2I_INVALID_ARGUMENT, "bytes: expected a pointer, got NULL");
  const uint64_t blocks = ((uint64_t)k / 2 + F2I_BLOCK_COLS - 1) / F2I_BLOCK_COLS;
  const uint64_t tiles = ((uint64_t)n / 2 + F2I_TILE_ROWS - 1) / F2I_TILE_ROWS;
  const uint64_t size = blocks * tiles * (uint64_t)stages * F2I_PLANE_BYTES;
  if (size > SIZE_MAX / 2) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT,
                    "K=%lld, N=%lld, stages=%lld need more memory than this CPU addresses", (long long)k, (long long)n,
                    (long long)stages);
  }
  *bytes = (size_t)size;
  return f2i_ok(message);
}

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
  if (w->layout_version != F2I_LAYOUT_VERSION) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT,
                    "layout_version: this library reads version %d, the model has %lld; use the library of the release "
                    "that exported it",
                    F2I_LAYOUT_VERSION, (long long)w->layout_version);
  }
  if (w->scale_scope != F2I_SCALE_SCOPE_MATRIX) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "scale_scope: expected %d (whole matrix), got %lld",
                    F2I_SCALE_SCOPE_MATRIX, (long long)w->scale_scope);
  }
  size_t bytes = 0;
  f2i_status status = f2i_packed_size(w->k, w->n, w->stages, &bytes, message);
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
  status = check_multiplier("row_multiplier", w->row_multiplier, w->row_multiplier_count, w->n, message);
  if (status == F2I_OK) {
    status = check_multiplier("col_multiplier", w->col_multiplier, w->col_multiplier_count, w->k, message);
  }
  return status == F2I_OK ? f2i_ok(message) : status;
}
