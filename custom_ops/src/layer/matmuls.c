/* matmuls.c - several layers that read the same x.
 *
 * A single row of x, which is what decoding has, goes through all of them together (rows.c): waking other threads once
 * for each layer would take a good part of the time that a small one takes. More rows go through one layer after the
 * other (matmul.c). So does a single row that a kernel wants as a panel.
 */
#include "base/message.h"
#include "layer/call.h"

static f2i_status check_plans(const f2i_output *outputs, size_t count, f2i_message *message) {
  if (outputs == NULL || count < 1 || count > F2I_MAX_LAYERS) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "outputs: expected 1 to %d layers, got %zu", F2I_MAX_LAYERS,
                    outputs == NULL ? (size_t)0 : count);
  }
  for (size_t i = 0; i < count; ++i) {
    const f2i_plan *plan = outputs[i].plan;
    if (plan == NULL || plan->kernel == NULL) {
      return f2i_fail(message, F2I_INVALID_ARGUMENT, "layer %zu: expected an initialized plan", i);
    }
    if (plan->weights.k != outputs[0].plan->weights.k) {
      return f2i_fail(message, F2I_INVALID_ARGUMENT, "layer %zu: expected K=%lld as layer 0 has, got %lld", i,
                      (long long)outputs[0].plan->weights.k, (long long)plan->weights.k);
    }
  }
  return F2I_OK;
}

/* Workspace of layers if they go together, else 0. */
static uint64_t together_bytes(const f2i_output *outputs, size_t count, int64_t rows) {
  f2i_call shapes[F2I_MAX_LAYERS];
  const f2i_call *const calls[F2I_MAX_LAYERS] = {&shapes[0], &shapes[1], &shapes[2]};
  uint64_t bytes = F2I_ALIGN;
  if (rows != 1) return 0;
  for (size_t i = 0; i < count; ++i) {
    shapes[i] = f2i_shape_call(outputs[i].plan, 1);
    f2i_next_group(&shapes[i], 1);
    if (shapes[i].panel != NULL) return 0;
    bytes += f2i_opened_bytes(&shapes[i]);
  }
  return bytes + f2i_rows_workspace(calls, count);
}

/* Workspace of all layers, and whether they go together. */
static f2i_status size_within(uint64_t limit, const f2i_output *outputs, size_t count, int64_t rows, size_t *bytes,
                              int *together, f2i_message *message) {
  f2i_status status = check_plans(outputs, count, message);
  if (status != F2I_OK) return status;
  const uint64_t needed = together_bytes(outputs, count, rows);
  *together = needed > 0;
  if (needed > limit) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT,
                    "workspace: expected at most %llu bytes on this CPU, K=%lld and %zu layers need %llu",
                    (unsigned long long)limit, (long long)outputs[0].plan->weights.k, count,
                    (unsigned long long)needed);
  }
  size_t most = (size_t)needed;
  for (size_t i = 0; i < count && !*together; ++i) {
    size_t alone = 0;
    status = f2i_workspace_size_within(limit, outputs[i].plan, rows, &alone, message);
    if (status != F2I_OK) return status;
    most = alone > most ? alone : most;
  }
  *bytes = most;
  return f2i_ok(message);
}

f2i_status f2i_matmuls_workspace_size_within(uint64_t limit, const f2i_output *outputs, size_t count, int64_t rows,
                                             size_t *bytes, f2i_message *message) {
  int together;
  if (bytes == NULL) return f2i_fail(message, F2I_INVALID_ARGUMENT, "workspace: expected an address for its size");
  return size_within(limit, outputs, count, rows, bytes, &together, message);
}

f2i_status f2i_matmuls_workspace_size(const f2i_output *outputs, size_t count, int64_t rows, size_t *bytes,
                                      f2i_message *message) {
  return f2i_matmuls_workspace_size_within(F2I_SIZE_LIMIT, outputs, count, rows, bytes, message);
}

static f2i_status check_rows(const f2i_output *outputs, size_t count, const float *x, int64_t ldx,
                             f2i_message *message) {
  const int64_t k = outputs[0].plan->weights.k;
  if (x == NULL || ldx < k) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "x: expected rows at least K=%lld floats apart, got %lld",
                    (long long)k, x == NULL ? 0LL : (long long)ldx);
  }
  for (size_t i = 0; i < count; ++i) {
    const int64_t n = outputs[i].plan->weights.n;
    if (outputs[i].y == NULL || outputs[i].ldy < n) {
      return f2i_fail(message, F2I_INVALID_ARGUMENT,
                      "layer %zu: y: expected rows at least N=%lld floats apart, got %lld", i, (long long)n,
                      outputs[i].y == NULL ? 0LL : (long long)outputs[i].ldy);
    }
  }
  return F2I_OK;
}

/* A single row of x through all layers. */
static void run_together(const f2i_output *outputs, size_t count, const float *x, void *workspace,
                         const f2i_parallel *parallel) {
  f2i_layer layers[F2I_MAX_LAYERS];
  const f2i_call *const calls[F2I_MAX_LAYERS] = {&layers[0].c, &layers[1].c, &layers[2].c};
  uint8_t *memory = f2i_align(workspace);
  for (size_t i = 0; i < count; ++i) {
    f2i_layer *layer = &layers[i];
    f2i_call *c = &layer->c;
    f2i_open_layer(layer, outputs[i].plan, 1);
    c->x = x;
    c->ldx = c->w->k;
    c->bias = outputs[i].bias;
    c->y = outputs[i].y;
    c->ldy = outputs[i].ldy;
    c->parallel = parallel;
    f2i_next_group(c, 1);
    f2i_open_group(c, &layer->range, &layer->rounding, memory);
    memory += f2i_opened_bytes(c);
  }
  f2i_rows_group(calls, count, memory);
}

f2i_status f2i_matmuls(const f2i_output *outputs, size_t count, int64_t rows, const float *x, int64_t ldx,
                       void *workspace, size_t workspace_bytes, const f2i_parallel *parallel, f2i_message *message) {
  size_t needed = 0;
  int together = 0;
  f2i_status status = size_within(F2I_SIZE_LIMIT, outputs, count, rows, &needed, &together, message);
  if (status != F2I_OK) return status;
  if (rows == 0) return f2i_ok(message);
  status = check_rows(outputs, count, x, ldx, message);
  if (status != F2I_OK) return status;
  if (workspace == NULL || workspace_bytes < needed) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "workspace: expected %zu bytes, got %zu", needed,
                    workspace == NULL ? (size_t)0 : workspace_bytes);
  }
  if (together) {
    run_together(outputs, count, x, workspace, parallel);
    return f2i_ok(message);
  }
  for (size_t i = 0; i < count; ++i) {
    const f2i_output *o = &outputs[i];
    status = f2i_matmul(o->plan, rows, x, ldx, o->bias, o->y, o->ldy, workspace, workspace_bytes, parallel, message);
    if (status != F2I_OK) return status;
  }
  return F2I_OK;
}
