/* matmul.c - the driver: validated layer in, rows of y out, for any kernel and any number of threads.
 *
 * Rows of x go in groups: for each group, first all look-up tables are built (work item: one K-block of one row), then
 * the weights are walked once (work item: one strip of row tiles). A strip goes through its K-blocks in order, and
 * within a block through a few rows of x, so that the packed bytes come from memory once and each output is summed by
 * one thread in one order: the result does not depend on the number of threads.
 */
#include <stdint.h>

#include "kernels.h"
#include "message.h"

enum {
  ROWS_AT_ONCE = 16,    /* rows of x that share one pass over a strip */
  STRIP_TILES = 16,     /* row tiles of a strip for a single row of x: long runs of packed bytes */
  STRIP_TILES_MANY = 4, /* for more rows: the accumulators of all of them stay in the first-level cache */
  ACC_FLOATS = F2I_ACC_PER_TILE * ROWS_AT_ONCE * STRIP_TILES_MANY, /* on the stack, 16 KiB */
  MIN_STRIPS = 8,    /* so that several threads find even work in small layers */
  ALONE_BLOCKS = 48, /* operands of so few blocks, and strips of so few bytes, are not worth waking other threads */
  ALONE_BYTES = 48 << 10,
  GROUP_ROWS = 32, /* rows of x whose tables exist at one time */
  ALIGN = 64,
};
_Static_assert(STRIP_TILES *F2I_ACC_PER_TILE <= ACC_FLOATS, "accumulators of a single row fit too");

typedef struct call {
  const f2i_weights *w;
  const f2i_kernel *kernel;
  const float *x, *bias;
  float *y;
  int64_t ldx, ldy;
  size_t n, m;                  /* complex rows and columns */
  size_t tiles, blocks, strips; /* row tiles, K-blocks, strips of row tiles */
  size_t strip_tiles;
  size_t operand_bytes; /* of one K-block of one row of x */
  size_t rows;          /* of this group */
  const void *shared;   /* what the kernel derived from the scales */
  float *units;         /* [blocks][rows] */
  uint8_t *operands;    /* [blocks][rows][operand_bytes] */
} call;

static size_t ceil_div(size_t a, size_t b) { return (a + b - 1) / b; }

static size_t rows_of_group(int64_t rows) { return rows < GROUP_ROWS ? (size_t)rows : GROUP_ROWS; }

static void shape_call(call *c, const f2i_plan *plan, int64_t rows) {
  c->w = &plan->weights;
  c->kernel = plan->kernel;
  c->n = (size_t)c->w->n / 2;
  c->m = (size_t)c->w->k / 2;
  c->tiles = ceil_div(c->n, F2I_TILE_ROWS);
  c->blocks = ceil_div(c->m, F2I_BLOCK_COLS);
  const size_t longest = rows > 1 ? STRIP_TILES_MANY : STRIP_TILES,
               even = c->tiles < MIN_STRIPS ? 1 : c->tiles / MIN_STRIPS;
  c->strip_tiles = even < longest ? even : longest;
  c->strips = ceil_div(c->tiles, c->strip_tiles);
  c->operand_bytes = (size_t)c->w->stages * c->kernel->operand_bytes;
}

/* Sizes cannot overflow: blocks <= 2^18, operand_bytes <= 2^14, group rows <= 2^5. */
static size_t units_bytes(const call *c, size_t rows) {
  return ceil_div(rows * c->blocks * sizeof(float), ALIGN) * ALIGN;
}

f2i_status f2i_workspace_size(const f2i_plan *plan, int64_t rows, size_t *bytes, f2i_message *message) {
  if (plan == NULL || plan->kernel == NULL || bytes == NULL || rows < 0) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "workspace: expected an initialized plan and rows >= 0");
  }
  call c = {0};
  shape_call(&c, plan, rows);
  const size_t group = rows_of_group(rows);
  *bytes = ALIGN + units_bytes(&c, group) + group * c.blocks * c.operand_bytes;
  return f2i_ok(message);
}

/* Work item: the operands of row (index % rows) for K-block (index / rows). All rows of a block lie together, as the
 * kernel reads them. */
static void build_task(void *arg, size_t index) {
  const call *c = arg;
  const size_t row = index % c->rows, block = index / c->rows, first = block * F2I_BLOCK_COLS;
  const float *x = c->x + (int64_t)row * c->ldx;
  const float *factor = c->w->col_multiplier;
  float re[F2I_BLOCK_COLS], im[F2I_BLOCK_COLS];
  for (size_t j = 0; j < F2I_BLOCK_COLS; ++j) {
    const size_t column = first + j;
    const int inside = column < c->m;
    re[j] = inside ? x[column] : 0.0f;
    im[j] = inside ? x[c->m + column] : 0.0f;
    if (inside && factor != NULL) {
      re[j] *= factor[column];
      im[j] *= factor[c->m + column];
    }
  }
  c->units[index] = c->kernel->build(re, im, c->w->scales, (int)c->w->stages, c->operands + index * c->operand_bytes);
}

/* y of one row of x and one row tile: multiplier and bias, rows beyond n dropped. */
static void finish(const call *c, size_t row, size_t tile, const float *acc) {
  float *y = c->y + (int64_t)row * c->ldy;
  const float *factor = c->w->row_multiplier;
  const size_t first = tile * F2I_TILE_ROWS;
  const size_t count = c->n - first < F2I_TILE_ROWS ? c->n - first : F2I_TILE_ROWS;
  for (size_t part = 0; part < 2; ++part) {
    for (size_t i = 0; i < count; ++i) {
      const size_t output = part * c->n + first + i;
      float value = acc[part * F2I_TILE_ROWS + i];
      if (factor != NULL) value *= factor[output];
      if (c->bias != NULL) value += c->bias[output];
      y[output] = value;
    }
  }
}

/* Work item: all rows of the group for one strip of row tiles. */
static void strip_task(void *arg, size_t index) {
  const call *c = arg;
  const size_t first = index * c->strip_tiles;
  const size_t tiles = c->tiles - first < c->strip_tiles ? c->tiles - first : c->strip_tiles;
  const size_t tile_bytes = (size_t)c->w->stages * F2I_PLANE_BYTES;
  float acc[ACC_FLOATS];
  f2i_block block = {
      .shared = c->shared,
      .tiles = tiles,
      .stages = (int)c->w->stages,
      .operand_stride = c->operand_bytes,
      .unit_stride = 1,
      .acc = acc,
      .acc_stride = tiles * F2I_ACC_PER_TILE,
  };
  for (size_t row = 0; row < c->rows; row += ROWS_AT_ONCE) {
    block.rows = c->rows - row < ROWS_AT_ONCE ? c->rows - row : ROWS_AT_ONCE;
    for (size_t i = 0; i < block.rows * block.acc_stride; ++i) acc[i] = 0.0f;
    for (size_t k = 0; k < c->blocks; ++k) {
      block.packed = c->w->packed + (k * c->tiles + first) * tile_bytes;
      /* what this thread reads next: the strip's next block, or the first one of the strip behind it */
      const size_t next = k + 1 < c->blocks ? (k + 1) * c->tiles + first : (first + tiles) % c->tiles;
      block.ahead = c->w->packed + next * tile_bytes;
      block.operands = c->operands + (k * c->rows + row) * c->operand_bytes;
      block.units = c->units + k * c->rows + row;
      c->kernel->block(&block);
    }
    for (size_t r = 0; r < block.rows; ++r) {
      for (size_t t = 0; t < tiles; ++t) {
        finish(c, row + r, first + t, acc + r * block.acc_stride + t * F2I_ACC_PER_TILE);
      }
    }
  }
}

static void run(const f2i_parallel *parallel, f2i_task task, size_t count, void *arg) {
  if (parallel != NULL && count > 1) {
    parallel->run(parallel->context, task, count, arg);
  } else {
    for (size_t i = 0; i < count; ++i) task(arg, i);
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
  call c = {0};
  shape_call(&c, plan, rows);
  const size_t group = rows_of_group(rows);
  const uintptr_t aligned = ((uintptr_t)workspace + ALIGN - 1) / ALIGN * ALIGN;
  c.units = (float *)aligned;
  c.operands = (uint8_t *)aligned + units_bytes(&c, group);
  c.bias = bias;
  _Alignas(ALIGN) uint8_t shared[F2I_SHARED_BYTES];
  if (c.kernel->prepare != NULL) c.kernel->prepare(c.w->scales, (int)c.w->stages, shared);
  c.shared = shared;
  c.ldx = ldx;
  c.ldy = ldy;
  for (int64_t row = 0; row < rows; row += GROUP_ROWS) {
    c.rows = rows_of_group(rows - row);
    c.x = x + row * ldx;
    c.y = y + row * ldy;
    run(c.rows * c.blocks > ALONE_BLOCKS ? parallel : NULL, build_task, c.rows * c.blocks, &c);
    run(c.rows * c.w->packed_bytes > ALONE_BYTES ? parallel : NULL, strip_task, c.strips, &c);
  }
  return f2i_ok(message);
}
