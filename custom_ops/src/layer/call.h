/* call.h - one layer and the rows of x that go through it, as the drivers see it: rows.c for few rows, panel.c for
 * many.
 *
 * matmul.c takes one layer and any number of rows, a group at a time; matmuls.c several layers that read the same x.
 */
#ifndef F2I_CALL_H
#define F2I_CALL_H

#include <string.h>

#include "base/cpu.h"
#include "base/sizes.h"
#include "kernels/kernels.h"
#include "layer/range.h"
#include "layer/rounding.h"

enum {
  F2I_STRIPS_PER_CPU = 4,    /* at least, so that threads find even work in small layers */
  F2I_GROUP_ROWS = 32,       /* rows of x whose operands exist at one time, unless a panel takes more */
  F2I_AHEAD_BYTES = 8 << 10, /* distance of prefetching: what memory delivers in about two of its latencies */
};

struct f2i_call {
  const f2i_weights *w;
  const f2i_kernel *kernel;
  const f2i_panel_kernel *panel; /* the form that takes the rows of this group, or NULL: `block` of the kernel */
  const float *x, *bias;         /* x, y: of the first row of the present group */
  float *y;
  int64_t ldx, ldy;
  size_t n, m;           /* complex rows and columns */
  size_t tiles, blocks;  /* row tiles, K-blocks */
  size_t parts, columns; /* 1, m; or of a layer without U 2 and the columns of a half, see f2i_load_block */
  size_t steps;          /* all parts of all K-blocks, in the order in which sums are made */
  size_t lanes;          /* rows that kernels see for a row of x: 1; or 2, its halves, rounded to whole numbers */
  size_t rows;           /* of this group, as kernels see them */
  const float *scales;   /* [stages][2][2]: those of the layer, in range */
  float part_scales[2][F2I_MAX_STAGES * 4]; /* of each part */
  const f2i_range *range;                   /* how to bring the rows of this group into range, or NULL: they are */
  const f2i_rounding *rounding;             /* of whole rows of this group, with two lanes; else NULL */
  const uint8_t *shared; /* what the kernel derived from the scales, F2I_SHARED_BYTES for each part */
  const f2i_parallel *parallel;
  uint64_t alone_bytes; /* of packed bytes, for each row: with so few other threads are not woken */
};

static inline size_t f2i_tile_bytes(const f2i_call *c) { return (size_t)c->w->stages * F2I_PLANE_BYTES; }

/* How many strips the row tiles are cut into, so that a strip has at most `longest` and, unless that leaves processors
 * without one, at least `shortest`: whole rounds of all processors, so that all have as much to do. longest is even. */
static inline size_t f2i_strips(const f2i_call *c, size_t longest, size_t shortest) {
  const size_t cpus = f2i_cpu_count(), least = f2i_ceil_div(c->tiles, longest), most = c->tiles / shortest;
  size_t strips = F2I_STRIPS_PER_CPU * cpus;
  if (strips > most) strips = most > cpus ? most : cpus;
  if (strips < least) strips = least;
  strips = f2i_ceil_div(strips, cpus) * cpus;
  return strips < c->tiles ? strips : c->tiles;
}

/* The first row tile of a strip; that of strip number `strips` is behind the last. Strips of an even number of tiles
 * where there are enough: kernels take two at a time. */
static inline size_t f2i_strip_begin(const f2i_call *c, size_t strips, size_t strip) {
  const size_t step = 2 * strips <= c->tiles ? 2 : 1;
  const uint64_t begin = strip * f2i_ceil_div(c->tiles, step) / strips * step; /* the product may exceed 32 bits */
  return begin < c->tiles ? (size_t)begin : c->tiles;
}

/* The bytes of K-block k of a strip that begins at the tile `first`. */
static inline const uint8_t *f2i_strip_bytes(const f2i_call *c, size_t k, size_t first) {
  return c->w->packed + (k * c->tiles + first) * f2i_tile_bytes(c);
}

/* How many rows, as kernels see them, go through the weights for hardly more than one. */
static inline size_t f2i_at_once(const f2i_call *c) { return c->kernel->at_once > 1 ? c->kernel->at_once : 1; }

/* How many K-blocks of a strip of `tiles` tiles are F2I_AHEAD_BYTES. */
static inline size_t f2i_blocks_ahead(const f2i_call *c, size_t tiles) {
  return f2i_ceil_div(F2I_AHEAD_BYTES, tiles * f2i_tile_bytes(c));
}

/* What the thread that works on K-block k of the strip of `tiles` tiles at `first` should prefetch: the bytes of the
 * same strip F2I_AHEAD_BYTES further on, or beyond its last block those at the start of the strip behind it. */
static inline const uint8_t *f2i_ahead(const f2i_call *c, size_t k, size_t first, size_t tiles) {
  const size_t block = k + f2i_blocks_ahead(c, tiles);
  if (block < c->blocks) return f2i_strip_bytes(c, block, first);
  return f2i_strip_bytes(c, (block - c->blocks) % c->blocks, (first + tiles) % c->tiles);
}

/* Whether f2i_range_load and f2i_range_finish take care of a row. */
static inline int f2i_is_far(const f2i_call *c, size_t row) {
  return c->range != NULL && (c->range->up[row] != 1.0 || c->range->back[row] != 1.0);
}

/* The columns of a step: the first one and how many there are. */
static inline size_t f2i_step_columns(const f2i_call *c, size_t step, size_t *first) {
  const size_t inside = step / c->parts * F2I_BLOCK_COLS, part = step % c->parts * c->columns;
  const size_t end = part + c->columns < c->m ? part + c->columns : c->m;
  *first = part + inside;
  if (*first >= end) return 0;
  return end - *first < F2I_BLOCK_COLS ? end - *first : F2I_BLOCK_COLS;
}

/* Whether a step takes conj(x): half the columns of a W that stands at the place of U, which multiplies what it gets.
 */
static inline int f2i_conjugates(const f2i_call *c, size_t step) { return c->parts == 2 && step % 2 == 0; }

/* The activations of one row and step: [F2I_BLOCK_COLS] each. */
static inline void f2i_load_block(const f2i_call *c, size_t row, size_t step, float *re, float *im) {
  size_t first;
  const size_t count = f2i_step_columns(c, step, &first);
  const float *x = c->x + (int64_t)row * c->ldx + first;
  if (count < F2I_BLOCK_COLS) {
    memset(re, 0, F2I_BLOCK_COLS * sizeof(float));
    memset(im, 0, F2I_BLOCK_COLS * sizeof(float));
    memcpy(re, x, count * sizeof(float));
    memcpy(im, x + c->m, count * sizeof(float));
  } else { /* of a constant size: a few vector moves */
    memcpy(re, x, F2I_BLOCK_COLS * sizeof(float));
    memcpy(im, x + c->m, F2I_BLOCK_COLS * sizeof(float));
  }
  if (c->w->col_multiplier != NULL) {
    const float *factor = c->w->col_multiplier + first;
    for (size_t j = 0; j < count; ++j) {
      re[j] *= factor[j];
      im[j] *= factor[c->m + j];
    }
  }
  for (size_t j = 0; j < count && f2i_conjugates(c, step); ++j) im[j] = -im[j];
}

/* What kernels get of a row and step: activations, or, with two lanes, whole numbers. */
static inline void f2i_load(const f2i_call *c, size_t row, size_t step, float *re, float *im) {
  if (c->rounding != NULL) f2i_rounding_load(c, row, step, re, im);
  else if (f2i_is_far(c, row)) f2i_range_load(c, row, step, re, im);
  else f2i_load_block(c, row, step, re, im);
}

/* The scales of a step: with two parts only the place of its own counts. */
static inline const float *f2i_step_scales(const f2i_call *c, size_t step) {
  return c->rounding != NULL ? NULL : c->part_scales[step % c->parts];
}

static inline const void *f2i_step_shared(const f2i_call *c, size_t step) {
  return c->shared + step % c->parts * F2I_SHARED_BYTES;
}

/* y of one row of x and one row tile: multiplier and bias, rows beyond n dropped. acc: [F2I_ACC_PER_TILE] */
static inline void f2i_finish(const f2i_call *c, size_t row, size_t tile, const float *acc) {
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

/* The first aligned address of a workspace. */
static inline void *f2i_align(void *workspace) {
  return (void *)(((uintptr_t)workspace + F2I_ALIGN - 1) / F2I_ALIGN * F2I_ALIGN);
}

static inline void f2i_run(const f2i_parallel *parallel, f2i_task task, size_t count, void *arg) {
  if (parallel != NULL && count > 1) {
    parallel->run(parallel->context, task, count, arg);
  } else {
    for (size_t i = 0; i < count; ++i) task(arg, i);
  }
}

/* call.c: what is the same for all groups of rows. */
typedef struct f2i_layer {
  f2i_call c; /* points into what follows: not to be copied alone */
  f2i_range range;
  f2i_rounding rounding; /* set if the layer has activation_bits */
  _Alignas(F2I_ALIGN) uint8_t shared[2 * F2I_SHARED_BYTES];
} f2i_layer;

/* The sizes of a call, and the kernel for so many rows of x; all else zero. */
f2i_call f2i_shape_call(const f2i_plan *plan, int64_t rows);

/* Shape, scales and what a kernel derives from them. x, y, bias and parallel are the caller's to set. */
void f2i_open_layer(f2i_layer *layer, const f2i_plan *plan, int64_t rows);

/* The panel form for so many rows, or NULL. */
const f2i_panel_kernel *f2i_panel_for(const f2i_call *c, int64_t rows);

/* Takes the next rows of x off `rows` into c->rows, and how to treat them into c->panel. */
void f2i_next_group(f2i_call *c, int64_t rows);

/* Rows of x of the present group. */
static inline int64_t f2i_group_rows(const f2i_call *c) { return (int64_t)(c->rows / c->lanes); }

/* Bytes of workspace of the present group that f2i_open_group takes. */
static inline uint64_t f2i_opened_bytes(const f2i_call *c) {
  return c->w->activation_bits != 0 ? f2i_rounded_bytes((uint64_t)f2i_group_rows(c), c->w->k) : 0;
}

/* Rounds or brings into range what has to be of the group at c->x. memory: f2i_opened_bytes */
void f2i_open_group(f2i_call *c, f2i_range *range, f2i_rounding *rounding, void *memory);

/* rows.c: bytes of workspace, and the work of one group of rows through a layer; or of a single row of x through
 * several layers, calls [count], whose `parallel` is the same. */
uint64_t f2i_rows_workspace(const f2i_call *const *calls, size_t count);
void f2i_rows_group(const f2i_call *const *calls, size_t count, void *workspace);

/* panel.c: the same for a group whose c->panel is set. */
uint64_t f2i_panel_workspace(const f2i_call *c);
void f2i_panel_group(const f2i_call *c, void *workspace);

/* matmul.c: f2i_workspace_size for a CPU on which no buffer is larger than limit; matmuls.c: of several layers. */
f2i_status f2i_workspace_size_within(uint64_t limit, const f2i_plan *plan, int64_t rows, size_t *bytes,
                                     f2i_message *message);
f2i_status f2i_matmuls_workspace_size_within(uint64_t limit, const f2i_output *outputs, size_t count, int64_t rows,
                                             size_t *bytes, f2i_message *message);

#endif
