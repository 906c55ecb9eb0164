/* sizes.c - sizes that are held against a limit: see sizes.h. */
#include "base/sizes.h"

#include "base/message.h"

enum {
  PLANE_BYTES = F2I_BLOCK_COLS / F2I_CELL_COLS * F2I_CELL_BYTES, /* of one K-block, row tile and byte plane */
};

static f2i_status check_features(const char *what, int64_t value, f2i_message *message) {
  if (value < 2 || value % 2 != 0 || value > F2I_MAX_FEATURES) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "%s: expected an even number from 2 to %d, got %lld", what,
                    F2I_MAX_FEATURES, (long long)value);
  }
  return F2I_OK;
}

f2i_status f2i_packed_size_within(uint64_t limit, int64_t layout, int64_t k, int64_t n, int64_t stages, size_t *bytes,
                                  f2i_message *message) {
  if (layout != F2I_LAYOUT_VERSION && layout != F2I_LAYOUT_CONJUGATE) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT,
                    "layout_version: this library reads versions %d and %d, the model has %lld; use the library of the "
                    "release that exported it",
                    F2I_LAYOUT_VERSION, F2I_LAYOUT_CONJUGATE, (long long)layout);
  }
  f2i_status status = check_features("K", k, message);
  if (status == F2I_OK) status = check_features("N", n, message);
  if (status != F2I_OK) return status;
  if (stages < 1 || stages > F2I_MAX_STAGES) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "stages: expected 1 to %d, got %lld", F2I_MAX_STAGES,
                    (long long)stages);
  }
  if (layout == F2I_LAYOUT_CONJUGATE && stages != 1) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "stages: expected 1 with layout_version %d, got %lld",
                    F2I_LAYOUT_CONJUGATE, (long long)stages);
  }
  if (bytes == NULL) return f2i_fail(message, F2I_INVALID_ARGUMENT, "bytes: expected a pointer, got NULL");
  const uint64_t size = f2i_blocks_of(layout, k) * f2i_tiles_of(n) * (uint64_t)stages * PLANE_BYTES;
  if (size > limit) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT,
                    "K=%lld, N=%lld, stages=%lld need more memory than this CPU addresses: %llu bytes, at most %llu",
                    (long long)k, (long long)n, (long long)stages, (unsigned long long)size, (unsigned long long)limit);
  }
  *bytes = (size_t)size;
  return f2i_ok(message);
}

f2i_status f2i_check_activation_bits(int64_t layout, int64_t bits, f2i_message *message) {
  if (bits == 0 || (bits == F2I_ACTIVATION_BITS && layout == F2I_LAYOUT_CONJUGATE)) return f2i_ok(message);
  if (layout != F2I_LAYOUT_CONJUGATE) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "activation_bits: expected 0 with layout_version %lld, got %lld",
                    (long long)layout, (long long)bits);
  }
  return f2i_fail(message, F2I_INVALID_ARGUMENT, "activation_bits: expected 0 or %d, got %lld", F2I_ACTIVATION_BITS,
                  (long long)bits);
}

f2i_status f2i_packed_size(int64_t k, int64_t n, int64_t stages, size_t *bytes, f2i_message *message) {
  return f2i_packed_size_within(F2I_SIZE_LIMIT, F2I_LAYOUT_VERSION, k, n, stages, bytes, message);
}

f2i_status f2i_layout_size(int64_t layout, int64_t k, int64_t n, int64_t stages, size_t *bytes, f2i_message *message) {
  return f2i_packed_size_within(F2I_SIZE_LIMIT, layout, k, n, stages, bytes, message);
}

f2i_status f2i_workspace_within(uint64_t limit, uint64_t needed, const f2i_weights *w, int64_t rows, size_t *bytes,
                                f2i_message *message) {
  if (needed > limit) {
    return f2i_fail(
        message, F2I_INVALID_ARGUMENT,
        "workspace: expected at most %llu bytes on this CPU, K=%lld, N=%lld, stages=%lld and %lld rows of X need %llu",
        (unsigned long long)limit, (long long)w->k, (long long)w->n, (long long)w->stages, (long long)rows,
        (unsigned long long)needed);
  }
  *bytes = (size_t)needed;
  return f2i_ok(message);
}

f2i_status f2i_widened_within(uint64_t limit, int64_t rows, const f2i_weights *w, size_t workspace_bytes,
                              size_t *floats, size_t *bytes, f2i_message *message) {
  const uint64_t each = (uint64_t)(w->k + w->n) * sizeof(float); /* at most 2^28 */
  const uint64_t fixed = (uint64_t)w->n * sizeof(float) + workspace_bytes;
  const uint64_t most = UINT64_MAX; /* stands for all that is more */
  const uint64_t all = (uint64_t)rows > (most - fixed) / each ? most : (uint64_t)rows * each + fixed;
  const f2i_status status = f2i_workspace_within(limit, all, w, rows, bytes, message);
  if (status == F2I_OK) *floats = (size_t)((all - workspace_bytes) / sizeof(float));
  return status;
}
