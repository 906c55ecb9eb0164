/* rows.c - the driver for groups of few rows of x, by the `block` of kernels.
 *
 * First the operands (look-up tables) are built, work item: one K-block of one row; then the weights are walked once,
 * work item: one strip of row tiles. A strip goes through its K-blocks in order, and within a block through a few rows
 * of x, so that the packed bytes come from memory once and each output is summed by one thread in one order: the result
 * does not depend on the number of threads.
 *
 * A single row of x may go through several layers: their strips then stand in one list. A thread, or each of a few that
 * take equal parts of it and then help each other, builds the operands of a layer for itself when it meets the first
 * strip of it: all in one step, for handing over from the builders to the others takes as long as a small layer. So do
 * a few rows with kernels that take them at once.
 */
#include <stdatomic.h>
#include <stdint.h>

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
};
_Static_assert(STRIP_TILES *F2I_ACC_PER_TILE <= ACC_FLOATS, "accumulators of a single row fit too");

typedef struct rows_layer {
  const f2i_call *c;
  size_t blocks;        /* work items of building: [steps][rows] */
  size_t strips;        /* work items of walking */
  size_t operand_bytes; /* of one K-block of one row of x */
  float *units;         /* [steps][rows] */
  uint8_t *operands;    /* [steps][rows][operand_bytes] */
} rows_layer;

typedef struct rows_call {
  size_t count;
  rows_layer layers[F2I_MAX_LAYERS];
} rows_call;

static size_t operand_bytes(const f2i_call *c) { return (size_t)c->w->stages * c->kernel->operand_bytes; }

/* Bytes of units and operands of a layer. */
static uint64_t built_bytes(const f2i_call *c) {
  return f2i_aligned(f2i_rows_bytes(c->rows, c->steps, operand_bytes(c)));
}

/* Bytes of weights that are walked, as often as they are. */
static uint64_t walked_bytes(const f2i_call *c) { return (uint64_t)c->rows * c->steps * c->tiles * f2i_tile_bytes(c); }

/* How many threads build all operands, each for itself, or 1: they then share them. More than a few, or those of layers
 * with fewer weights than operands, would build longer than they multiply. */
static size_t builders(const f2i_call *const *calls, size_t count) {
  const size_t cpus = f2i_cpu_count();
  uint64_t operands = 0, weights = 0;
  for (size_t i = 0; i < count; ++i) {
    if (calls[i]->rows > f2i_at_once(calls[i])) return 1;
    operands += (uint64_t)calls[i]->rows * calls[i]->steps * operand_bytes(calls[i]);
    weights += walked_bytes(calls[i]);
  }
  return cpus > BUILDERS_MOST || operands > weights ? 1 : cpus;
}

uint64_t f2i_rows_workspace(const f2i_call *const *calls, size_t count) {
  uint64_t bytes = 0;
  for (size_t i = 0; i < count; ++i) bytes += built_bytes(calls[i]);
  return builders(calls, count) * bytes;
}

/* The operands of row (index % rows) for step (index / rows). All rows of a step lie together, as the kernel reads
 * them. */
static void build_block(const rows_layer *l, size_t index) {
  const f2i_call *c = l->c;
  float re[F2I_BLOCK_COLS], im[F2I_BLOCK_COLS];
  const size_t row = index % c->rows, step = index / c->rows;
  f2i_load(c, row, step, re, im);
  l->units[index] =
      c->kernel->build(re, im, f2i_step_scales(c, step), (int)c->w->stages, l->operands + index * l->operand_bytes);
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

/* All rows of the group through one strip of row tiles. */
static void walk_strip(const rows_layer *l, size_t index) {
  const f2i_call *c = l->c;
  const size_t first = f2i_strip_begin(c, l->strips, index);
  const size_t tiles = f2i_strip_begin(c, l->strips, index + 1) - first;
  float acc[ACC_FLOATS];
  f2i_block block = {
      .tiles = tiles,
      .stages = (int)c->w->stages,
      .operand_stride = l->operand_bytes,
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
      block.packed = f2i_strip_bytes(c, k, first);
      block.ahead = f2i_ahead(c, k, first, tiles);
      block.operands = l->operands + (step * c->rows + row) * l->operand_bytes;
      block.units = l->units + step * c->rows + row;
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

/* Work item: a block of the operands of all layers. */
static void build_task(void *arg, size_t index) {
  const rows_layer *l = ((const rows_call *)arg)->layers;
  while (index >= l->blocks) index -= l++->blocks;
  build_block(l, index);
}

/* Work item: a strip of those of all layers. */
static void strip_task(void *arg, size_t index) {
  const rows_layer *l = ((const rows_call *)arg)->layers;
  while (index >= l->strips) index -= l++->strips;
  walk_strip(l, index);
}

/* A part of the list of strips, which threads take strips from. */
typedef struct strip_range {
  _Alignas(F2I_ALIGN) atomic_size_t next;
  size_t end;
} strip_range;

typedef struct builders_call {
  const rows_call *r;
  size_t builders;
  strip_range ranges[BUILDERS_MOST];
} builders_call;

/* The number of the strip that the first `bytes` of the walked bytes of all layers end at, to the nearest. */
static size_t strip_at(const rows_call *r, uint64_t bytes) {
  size_t before = 0;
  for (size_t i = 0; i < r->count; ++i) {
    const rows_layer *l = &r->layers[i];
    const uint64_t all = walked_bytes(l->c), tiles = l->c->tiles;
    if (bytes < all) {
      const uint64_t tile = bytes / (all / tiles); /* less than 2^18, as there are tiles and strips */
      return before + (size_t)((2 * tile * l->strips + tiles) / (2 * tiles));
    }
    bytes -= all;
    before += l->strips;
  }
  return before;
}

/* All operands of a layer, by the thread that goes through this strip then: what it reads first comes from memory
 * meanwhile, a share with each block. */
static void build_before(const rows_layer *l, size_t strip) {
  const f2i_call *c = l->c;
  const size_t first = f2i_strip_begin(c, l->strips, strip), tiles = f2i_strip_begin(c, l->strips, strip + 1) - first;
  const size_t ahead = f2i_blocks_ahead(c, tiles), bytes = tiles * f2i_tile_bytes(c);
  const size_t share = f2i_ceil_div((ahead < c->blocks ? ahead : c->blocks) * bytes, l->blocks);
  size_t k = 0, at = 0; /* the next K-block of the strip, and byte of it */
  for (size_t block = 0; block < l->blocks; ++block) {
    for (size_t i = 0; i < share && k < c->blocks; i += F2I_ALIGN) {
      __builtin_prefetch(f2i_strip_bytes(c, k, first) + at, 0, 2);
      at += F2I_ALIGN;
      if (at == bytes) at = 0, ++k;
    }
    build_block(l, block);
  }
}

/* Work item: a range of strips, then what is left of the other ranges, with operands of its own. */
static void builder_task(void *arg, size_t index) {
  builders_call *b = arg;
  rows_call mine = *b->r;
  int built[F2I_MAX_LAYERS] = {0};
  for (size_t i = 0; i < mine.count; ++i) {
    rows_layer *l = &mine.layers[i];
    const size_t before = index * (size_t)built_bytes(l->c);
    l->units = (void *)((uint8_t *)l->units + before);
    l->operands += before;
  }
  for (size_t i = 0; i < b->builders; ++i) {
    strip_range *range = &b->ranges[(index + i) % b->builders];
    size_t strip;
    while ((strip = atomic_fetch_add(&range->next, 1)) < range->end) {
      size_t layer = 0;
      while (strip >= mine.layers[layer].strips) strip -= mine.layers[layer++].strips;
      const rows_layer *l = &mine.layers[layer];
      if (!built[layer]) build_before(l, strip);
      built[layer] = 1;
      walk_strip(l, strip);
    }
  }
}

/* Builds and walks at once. bytes: walked, of all layers */
static void run_builders(const rows_call *r, size_t count, uint64_t bytes, const f2i_parallel *parallel) {
  builders_call b = {.r = r, .builders = count};
  size_t begin = 0;
  for (size_t i = 0; i < count; ++i) {
    const size_t end = strip_at(r, i + 1 < count ? bytes / count * (i + 1) : bytes);
    atomic_init(&b.ranges[i].next, begin);
    b.ranges[i].end = begin = end;
  }
  f2i_run(parallel, builder_task, count, &b);
}

void f2i_rows_group(const f2i_call *const *calls, size_t count, void *workspace) {
  const size_t each = builders(calls, count);
  rows_call r = {.count = count};
  uint8_t *memory = workspace;
  uint64_t bytes = 0;
  size_t blocks = 0, strips = 0;
  for (size_t i = 0; i < count; ++i) {
    const f2i_call *c = calls[i];
    r.layers[i] = (rows_layer){.c = c,
                               .blocks = c->steps * c->rows,
                               .strips = f2i_strips(c, c->rows > 1 ? STRIP_TILES_MANY : STRIP_TILES, STRIP_LEAST),
                               .operand_bytes = operand_bytes(c),
                               .units = (void *)memory,
                               .operands = memory + f2i_unit_bytes(c->rows, c->steps)};
    memory += each * (size_t)built_bytes(c);
    blocks += r.layers[i].blocks;
    strips += r.layers[i].strips;
    bytes += walked_bytes(c);
  }
  const f2i_parallel *building = blocks > ALONE_BLOCKS ? calls[0]->parallel : NULL;
  const f2i_parallel *walking = bytes > calls[0]->alone_bytes ? calls[0]->parallel : NULL;
  if (each > 1 && walking != NULL) {
    run_builders(&r, each, bytes, walking);
  } else if (calls[0]->rows <= f2i_at_once(calls[0]) && building == NULL && walking == NULL) {
    run_builders(&r, 1, bytes, NULL);
  } else {
    f2i_run(building, build_task, blocks, &r);
    f2i_run(walking, strip_task, strips, &r);
  }
}
