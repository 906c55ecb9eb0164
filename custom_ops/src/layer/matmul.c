/* matmul.c - the driver: validated layer in, rows of y out, for any kernel and any number of threads.
 *
 * Rows of x go in groups. Kernels that have a panel form get whole panels (panel.c). For other groups, first all
 * look-up tables are built (work item: one K-block of one row), then the weights are walked once (work item: one strip
 * of row tiles). A strip goes through its K-blocks in order, and within a block through a few rows of x, so that the
 * packed bytes come from memory once and each output is summed by one thread in one order: the result does not depend
 * on the number of threads. Of small layers each thread takes some rows of x for itself (work item: a share), and
 * operands of a single row are built by each of a few threads.
 */
#include <stdatomic.h>
#include <stdint.h>

#include "base/message.h"
#include "layer/call.h"

enum {
  ROWS_AT_ONCE = 8,     /* rows of x that share one pass over a strip: their tables stay near */
  STRIP_TILES = 16,     /* row tiles of a strip for a single row of x: long runs of packed bytes ... */
  STRIP_LEAST = 4,      /* ... if there are enough */
  STRIP_TILES_MANY = 8, /* for more rows: the accumulators of all of them stay in the first-level cache */
  ACC_FLOATS = F2I_ACC_PER_TILE * ROWS_AT_ONCE * STRIP_TILES_MANY, /* on the stack, 16 KiB */
  ALONE_BLOCKS = 16, /* operands of so few blocks are not worth waking other threads */
#if defined(__x86_64__)
  BUILDERS_MOST = 4,
#else
  BUILDERS_MOST = 1, /* tables take longer there */
#endif
  GROUP_ROWS = 32,         /* rows of x whose tables exist at one time, unless a panel takes more */
  SHARE_MOST = 1 << 20,    /* bytes of weights that every thread may walk, each for some of the rows of x ... */
  SHARE_LEAST = 128 << 10, /* ... if there is so much to do, bytes times rows */
};
_Static_assert((int)GROUP_ROWS <= (int)F2I_PANEL_MOST, "f2i_range has room for a group");
_Static_assert(STRIP_TILES *F2I_ACC_PER_TILE <= ACC_FLOATS, "accumulators of a single row fit too");

typedef struct rows_call {
  const f2i_call *c;
  size_t strips;
  size_t operand_bytes; /* of one K-block of one row of x */
  float *units;         /* [steps][rows] */
  uint8_t *operands;    /* [steps][rows][operand_bytes] */
} rows_call;

/* The panel form for so many rows of x, or NULL. */
static const f2i_panel_kernel *panel_for(const f2i_call *c, int64_t rows) {
  const f2i_panel_kernel *panel = c->kernel->panel;
  while (panel != NULL && rows < (int64_t)(panel->least / c->lanes)) panel = panel->fewer;
  return panel;
}

/* Takes the next rows of x off `rows` into c->rows, and how to treat them into c->panel. */
static void next_group(f2i_call *c, int64_t rows) {
  c->panel = panel_for(c, rows);
  const size_t most = (c->panel != NULL ? c->panel->rows : GROUP_ROWS) / c->lanes;
  c->rows = (rows < (int64_t)most ? (size_t)rows : most) * c->lanes;
}

static f2i_call shape_call(const f2i_plan *plan, int64_t rows) {
  const f2i_weights *w = &plan->weights;
  f2i_call c = {.w = w,
                .kernel = f2i_kernel_for(plan, rows),
                .n = (size_t)w->n / 2,
                .m = (size_t)w->k / 2,
                .tiles = (size_t)f2i_tiles_of(w->n),
                .blocks = (size_t)f2i_blocks_of(w->layout_version, w->k),
                .parts = (size_t)f2i_parts_of(w->layout_version),
                .columns = (size_t)f2i_columns_of(w->layout_version, w->k),
                .alone_bytes = (uint64_t)plan->alone_bytes};
  c.lanes = w->activation_bits != 0 && c.kernel->whole != F2I_WHOLE_NOT ? 2 : 1;
  if (c.lanes == 2 && c.kernel->whole == F2I_WHOLE_PAIRS) c.parts = 1; /* both at once */
  c.steps = c.blocks * c.parts;
  return c;
}

/* Rows of x of the present group. */
static int64_t group_rows(const f2i_call *c) { return (int64_t)(c->rows / c->lanes); }

static size_t operand_bytes(const f2i_call *c) { return (size_t)c->w->stages * c->kernel->operand_bytes; }

/* How many rows of x a thread takes for itself, or all: then threads share the operands of all rows, and each has some
 * of the weights. Operands that another core has written come from its cache, which for small layers takes longer than
 * computing with them. */
static int64_t rows_of_share(const f2i_call *c, int64_t rows) {
  const int64_t cpus = (int64_t)f2i_cpu_count();
  const uint64_t bytes = (uint64_t)c->w->packed_bytes;
  if (cpus == 1 || rows < 2 || bytes > SHARE_MOST || (uint64_t)rows * bytes < SHARE_LEAST) return rows;
  const f2i_panel_kernel *panel = panel_for(c, rows);
  /* what does not take longer for fewer rows: single ones, four of a panel that keeps rows apart, half of another */
  const int64_t least = panel == NULL ? 1 : panel->row_bytes > 0 ? 4 : (int64_t)(panel->rows / c->lanes / 2);
  const int64_t share = ((rows + cpus - 1) / cpus + least - 1) / least * least;
  return share < rows ? share : rows;
}

/* How many threads build the operands of a single row of x, each for itself, or 1: they then share them. More than a
 * few, or those of a layer with fewer weights than operands, would build longer than they multiply. */
static size_t builders(const f2i_call *c) {
  const size_t cpus = f2i_cpu_count();
  if (c->rows > 1 || cpus > BUILDERS_MOST || operand_bytes(c) > c->tiles * f2i_tile_bytes(c)) return 1;
  return cpus;
}

static uint64_t rows_bytes(const f2i_call *c) {
  return builders(c) * f2i_rows_bytes(c->rows, c->steps, operand_bytes(c));
}

/* Bytes of workspace for the rows of a share. */
static uint64_t share_bytes(const f2i_call *call, int64_t rows) {
  f2i_call c = *call;
  uint64_t most = 0;
  for (int64_t rest = rows; rest > 0; rest %= group_rows(&c)) { /* one of many equal groups, then smaller ones */
    next_group(&c, rest);
    uint64_t group = c.panel != NULL ? f2i_panel_workspace(&c) : rows_bytes(&c);
    if (c.w->activation_bits != 0) group += f2i_rounded_bytes((uint64_t)group_rows(&c), c.w->k);
    most = group > most ? group : most;
  }
  return (most + F2I_ALIGN - 1) / F2I_ALIGN * F2I_ALIGN;
}

f2i_status f2i_workspace_size_within(uint64_t limit, const f2i_plan *plan, int64_t rows, size_t *bytes,
                                     f2i_message *message) {
  if (plan == NULL || plan->kernel == NULL || bytes == NULL || rows < 0) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "workspace: expected an initialized plan and rows >= 0");
  }
  const f2i_call c = shape_call(plan, rows);
  const int64_t share = rows_of_share(&c, rows);
  const uint64_t alone = share_bytes(&c, rows); /* what it takes without other threads */
  const uint64_t shared = share < rows ? (uint64_t)((rows + share - 1) / share) * share_bytes(&c, share) : 0;
  return f2i_workspace_within(limit, F2I_ALIGN + (alone > shared ? alone : shared), c.w, rows, bytes, message);
}

f2i_status f2i_workspace_size(const f2i_plan *plan, int64_t rows, size_t *bytes, f2i_message *message) {
  return f2i_workspace_size_within(F2I_SIZE_LIMIT, plan, rows, bytes, message);
}

/* Work item: the operands of row (index % rows) for step (index / rows). All rows of a step lie together, as the kernel
 * reads them. */
static void build_task(void *arg, size_t index) {
  const rows_call *r = arg;
  const f2i_call *c = r->c;
  float re[F2I_BLOCK_COLS], im[F2I_BLOCK_COLS];
  const size_t row = index % c->rows, step = index / c->rows;
  f2i_load(c, row, step, re, im);
  r->units[index] =
      c->kernel->build(re, im, f2i_step_scales(c, step), (int)c->w->stages, r->operands + index * r->operand_bytes);
}

/* The accumulators of a tile in order: as they are, or in `sums`. */
static const float *in_order(const f2i_call *c, const float *acc, float *sums) {
  const uint8_t *order = c->kernel->order;
  if (order == NULL) return acc;
  for (size_t i = 0; i < F2I_ACC_PER_TILE; ++i) sums[i] = acc[order[i]];
  return sums;
}

/* acc: of the row, and of the next one `stride` further on */
static void finish_tile(const f2i_call *c, size_t row, size_t tile, const float *acc, size_t stride) {
  float sums[F2I_ACC_PER_TILE], others[F2I_ACC_PER_TILE];
  const float *ordered = in_order(c, acc, sums);
  if (c->rounding != NULL) f2i_rounding_finish(c, row, tile, ordered, in_order(c, acc + stride, others));
  else if (f2i_is_far(c, row)) f2i_range_finish(c, row, tile, ordered);
  else f2i_finish(c, row, tile, ordered);
}

/* Work item: all rows of the group for one strip of row tiles. */
static void strip_task(void *arg, size_t index) {
  const rows_call *r = arg;
  const f2i_call *c = r->c;
  const size_t first = f2i_strip_begin(c, r->strips, index);
  const size_t tiles = f2i_strip_begin(c, r->strips, index + 1) - first;
  float acc[ACC_FLOATS];
  f2i_block block = {
      .tiles = tiles,
      .stages = (int)c->w->stages,
      .operand_stride = r->operand_bytes,
      .unit_stride = 1,
      .acc = acc,
      .acc_stride = tiles * F2I_ACC_PER_TILE,
  };
  for (size_t row = 0; row < c->rows; row += ROWS_AT_ONCE) {
    block.rows = c->rows - row < ROWS_AT_ONCE ? c->rows - row : ROWS_AT_ONCE;
    for (size_t i = 0; i < block.rows * block.acc_stride; ++i) acc[i] = 0.0f;
    for (size_t step = 0; step < c->steps; ++step) {
      const size_t k = step / c->parts;
      block.shared = f2i_step_shared(c, step);
      block.packed = c->w->packed + (k * c->tiles + first) * f2i_tile_bytes(c);
      block.ahead = f2i_ahead(c, k, first, tiles);
      block.operands = r->operands + (step * c->rows + row) * r->operand_bytes;
      block.units = r->units + step * c->rows + row;
      c->kernel->block(&block);
    }
    for (size_t i = 0; i < block.rows; i += c->lanes) {
      const float *sums = acc + i * block.acc_stride;
      for (size_t t = 0; t < tiles; ++t) {
        finish_tile(c, row + i, first + t, sums + t * F2I_ACC_PER_TILE, block.acc_stride);
      }
    }
  }
}

typedef struct alone_call {
  const rows_call *r;
  size_t bytes; /* of workspace, for each builder */
  atomic_size_t next;
} alone_call;

/* Work item: strips, as long as there are some, with operands of its own. */
static void alone_task(void *arg, size_t index) {
  alone_call *a = arg;
  rows_call mine = *a->r;
  size_t strip = atomic_fetch_add(&a->next, 1);
  if (strip >= mine.strips) return;
  mine.units = (void *)((uint8_t *)mine.units + index * a->bytes);
  mine.operands += index * a->bytes;
  for (size_t step = 0; step < mine.c->steps; ++step) build_task(&mine, step);
  for (; strip < mine.strips; strip = atomic_fetch_add(&a->next, 1)) strip_task(&mine, strip);
}

static void rows_group(const f2i_call *c, void *workspace) {
  rows_call r = {.c = c,
                 .strips = f2i_strips(c, c->rows > 1 ? STRIP_TILES_MANY : STRIP_TILES, STRIP_LEAST),
                 .operand_bytes = operand_bytes(c),
                 .units = workspace,
                 .operands = (uint8_t *)workspace + f2i_unit_bytes(c->rows, c->steps)};
  const uint64_t bytes = (uint64_t)c->rows * c->parts * c->w->packed_bytes;
  const f2i_parallel *others = bytes > c->alone_bytes ? c->parallel : NULL;
  const size_t each = builders(c);
  if (each > 1 && others != NULL) {
    alone_call a = {.r = &r, .bytes = (size_t)f2i_rows_bytes(c->rows, c->steps, operand_bytes(c))};
    atomic_init(&a.next, 0);
    f2i_run(others, alone_task, each, &a);
    return;
  }
  f2i_run(c->rows * c->steps > ALONE_BLOCKS ? c->parallel : NULL, build_task, c->rows * c->steps, &r);
  f2i_run(others, strip_task, r.strips, &r);
}

/* Fills c->part_scales. A layer without U goes through its bytes twice: once with what stands at the place of U, the
 * first half of the columns, and once with the second half, the other's scales zero. */
static void split_scales(f2i_call *c) {
  const size_t count = 4 * (size_t)c->w->stages;
  for (size_t part = 0; part < c->parts; ++part) {
    for (size_t i = 0; i < count; ++i) {
      c->part_scales[part][i] = c->parts == 1 || i / 2 == part ? c->scales[i] : 0.0f;
    }
  }
}

/* A call whose rows of x are shared out. */
typedef struct shares_call {
  const f2i_call *c; /* without a group */
  const f2i_range *range;
  const f2i_rounding *rounding;
  int64_t rows, share; /* of x: in all, and of a share */
  uint8_t *memory;     /* [shares][bytes] */
  size_t bytes;
} shares_call;

/* Work item: some rows of x. */
static void share_task(void *arg, size_t index) {
  const shares_call *s = arg;
  const int64_t first = (int64_t)index * s->share, rest = s->rows - first;
  const int64_t end = first + (rest < s->share ? rest : s->share);
  f2i_call c = *s->c;
  f2i_range range;
  f2i_rounding rounding;
  range.scale_exponent = s->range->scale_exponent;
  if (c.w->activation_bits != 0) rounding = *s->rounding;
  if (c.rounding != NULL) c.rounding = &rounding;
  for (int64_t row = first; row < end; row += group_rows(&c)) {
    uint8_t *memory = s->memory + index * s->bytes;
    next_group(&c, end - row);
    c.x = s->c->x + row * s->c->ldx;
    c.ldx = s->c->ldx;
    c.y = s->c->y + row * c.ldy;
    if (c.w->activation_bits != 0) {
      f2i_rounding_rows(&c, &rounding, (float *)(void *)memory);
      memory += f2i_rounded_bytes((uint64_t)group_rows(&c), c.w->k);
    }
    if (c.rounding == NULL) f2i_range_rows(&c, &range);
    if (c.panel != NULL) {
      f2i_panel_group(&c, memory);
    } else {
      rows_group(&c, memory);
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
  f2i_call c = shape_call(plan, rows);
  const int64_t share = parallel != NULL ? rows_of_share(&c, rows) : rows;
  _Alignas(F2I_ALIGN) uint8_t shared[2 * F2I_SHARED_BYTES];
  f2i_range range;
  f2i_rounding rounding;
  f2i_range_scales(&c, &range);
  if (c.w->activation_bits != 0) f2i_rounding_init(&c, &rounding);
  split_scales(&c);
  for (size_t part = 0; part < c.parts && c.kernel->prepare != NULL; ++part) {
    c.kernel->prepare(c.part_scales[part], (int)c.w->stages, c.rounding != NULL, plan->dot_steps,
                      shared + part * F2I_SHARED_BYTES);
  }
  c.shared = shared;
  c.bias = bias;
  c.x = x;
  c.ldx = ldx;
  c.y = y;
  c.ldy = ldy;
  c.parallel = share < rows ? NULL : parallel;
  shares_call s = {.c = &c,
                   .range = &range,
                   .rounding = &rounding,
                   .rows = rows,
                   .share = share,
                   .memory = (void *)(((uintptr_t)workspace + F2I_ALIGN - 1) / F2I_ALIGN * F2I_ALIGN),
                   .bytes = share < rows ? (size_t)share_bytes(&c, share) : 0};
  f2i_run(parallel, share_task, (size_t)((rows + share - 1) / share), &s);
  return f2i_ok(message);
}
