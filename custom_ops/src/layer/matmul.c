/* matmul.c - one layer: a validated plan in, rows of y out, for any kernel and any number of threads.
 *
 * Rows of x go in groups. Kernels that have a panel form get whole panels (panel.c), other groups go to rows.c; either
 * shares the weights out to threads. Of small layers each thread takes some rows of x for itself instead (work item: a
 * share).
 */
#include <stdint.h>

#include "base/message.h"
#include "layer/call.h"

enum {
  SHARE_MOST = 1 << 20,    /* bytes of weights that every thread may walk, each for some of the rows of x ... */
  SHARE_LEAST = 128 << 10, /* ... if there is so much to do, bytes times rows */
};

/* How many rows of x a thread takes for itself, or all: then threads share the operands of all rows, and each has some
 * of the weights. Operands that another core has written come from its cache, which for small layers takes longer than
 * computing with them. */
static int64_t rows_of_share(const f2i_call *c, int64_t rows) {
  const int64_t cpus = (int64_t)f2i_cpu_count();
  const uint64_t bytes = (uint64_t)c->w->packed_bytes;
  if (cpus == 1 || rows < 2 || bytes > SHARE_MOST || (uint64_t)rows * bytes < SHARE_LEAST) return rows;
  if (rows <= (int64_t)((f2i_at_once(c) + c->lanes - 1) / c->lanes)) return rows; /* hardly longer than one */
  const int64_t even = (rows + cpus - 1) / cpus;
  const f2i_panel_kernel *panel = f2i_panel_for(c, even);
  /* of a panel, what does not take longer for fewer rows: four if it keeps rows apart, else half of it */
  const int64_t least = panel == NULL ? 1 : panel->row_bytes > 0 ? 4 : (int64_t)(panel->rows / c->lanes / 2);
  const int64_t share = (even + least - 1) / least * least;
  return share < rows ? share : rows;
}

static uint64_t group_bytes(const f2i_call *c) {
  return f2i_opened_bytes(c) + (c->panel != NULL ? f2i_panel_workspace(c) : f2i_rows_workspace(&c, 1));
}

/* Bytes of workspace for the rows of a share. */
static uint64_t share_bytes(const f2i_call *call, int64_t rows) {
  f2i_call c = *call;
  uint64_t most = 0;
  for (int64_t rest = rows; rest > 0; rest %= f2i_group_rows(&c)) { /* one of many equal groups, then smaller ones */
    f2i_next_group(&c, rest);
    const uint64_t group = group_bytes(&c);
    most = group > most ? group : most;
  }
  return f2i_aligned(most);
}

f2i_status f2i_workspace_size_within(uint64_t limit, const f2i_plan *plan, int64_t rows, size_t *bytes,
                                     f2i_message *message) {
  if (plan == NULL || plan->kernel == NULL || bytes == NULL || rows < 0) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "workspace: expected an initialized plan and rows >= 0");
  }
  const f2i_call c = f2i_shape_call(plan, rows);
  const int64_t share = rows_of_share(&c, rows);
  const uint64_t alone = share_bytes(&c, rows); /* what it takes without other threads */
  const uint64_t shared = share < rows ? (uint64_t)((rows + share - 1) / share) * share_bytes(&c, share) : 0;
  return f2i_workspace_within(limit, F2I_ALIGN + (alone > shared ? alone : shared), c.w, rows, bytes, message);
}

f2i_status f2i_workspace_size(const f2i_plan *plan, int64_t rows, size_t *bytes, f2i_message *message) {
  return f2i_workspace_size_within(F2I_SIZE_LIMIT, plan, rows, bytes, message);
}

/* A call whose rows of x are shared out. */
typedef struct shares_call {
  const f2i_layer *layer; /* without a group */
  int64_t rows, share;    /* of x: in all, and of a share */
  uint8_t *memory;        /* [shares][bytes] */
  size_t bytes;
} shares_call;

/* Work item: some rows of x. */
static void share_task(void *arg, size_t index) {
  const shares_call *s = arg;
  const f2i_layer *layer = s->layer;
  const int64_t first = (int64_t)index * s->share, rest = s->rows - first;
  const int64_t end = first + (rest < s->share ? rest : s->share);
  f2i_call c = layer->c;
  f2i_range range;
  f2i_rounding rounding;
  range.scale_exponent = layer->range.scale_exponent;
  if (c.w->activation_bits != 0) rounding = layer->rounding;
  if (c.rounding != NULL) c.rounding = &rounding;
  for (int64_t row = first; row < end; row += f2i_group_rows(&c)) {
    uint8_t *memory = s->memory + index * s->bytes;
    f2i_next_group(&c, end - row);
    c.x = layer->c.x + row * layer->c.ldx;
    c.ldx = layer->c.ldx;
    c.y = layer->c.y + row * c.ldy;
    f2i_open_group(&c, &range, &rounding, memory);
    memory += f2i_opened_bytes(&c);
    if (c.panel != NULL) {
      f2i_panel_group(&c, memory);
    } else {
      const f2i_call *const calls[1] = {&c};
      f2i_rows_group(calls, 1, memory);
    }
  }
}

f2i_status f2i_matmul(const f2i_plan *plan, int64_t rows, const float *x, int64_t ldx, const float *bias, float *y,
                      int64_t ldy, void *workspace, size_t workspace_bytes, const f2i_parallel *parallel,
                      f2i_message *message) {
  size_t needed = 0;
  const f2i_status status = f2i_workspace_size(plan, rows, &needed, message);
  if (status != F2I_OK) return status;
  if (rows == 0) return f2i_ok(message);
  if (x == NULL || y == NULL || ldx < plan->weights.k || ldy < plan->weights.n) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT,
                    "x, y: expected rows at least K=%lld and N=%lld floats apart, got %lld and %lld",
                    (long long)plan->weights.k, (long long)plan->weights.n, (long long)ldx, (long long)ldy);
  }
  if (workspace == NULL || workspace_bytes < needed) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "workspace: expected %zu bytes, got %zu", needed,
                    workspace == NULL ? (size_t)0 : workspace_bytes);
  }
  f2i_layer layer;
  f2i_open_layer(&layer, plan, rows);
  const int64_t share = parallel != NULL ? rows_of_share(&layer.c, rows) : rows;
  layer.c.bias = bias;
  layer.c.x = x;
  layer.c.ldx = ldx;
  layer.c.y = y;
  layer.c.ldy = ldy;
  layer.c.parallel = share < rows ? NULL : parallel;
  shares_call s = {.layer = &layer,
                   .rows = rows,
                   .share = share,
                   .memory = f2i_align(workspace),
                   .bytes = share < rows ? (size_t)share_bytes(&layer.c, share) : 0};
  f2i_run(parallel, share_task, (size_t)((rows + share - 1) / share), &s);
  return f2i_ok(message);
}
