/* panel.c - the driver for kernels that take many rows of x together.
 *
 * First the operands of every step are built (work item: a step), then strips of row tiles go through all steps
 * (work item: a strip), with sums in the kernel's own form in memory that belongs to the strip.
 */
#include <string.h>

#include "layer/call.h"

typedef struct panel_call {
  const f2i_call *c;
  const f2i_panel_kernel *kernel;
  size_t strips;
  size_t operand_bytes; /* of one step */
  float *units;         /* [steps][rows of the kernel] */
  uint8_t *operands;    /* [steps][operand_bytes] */
  uint8_t *state;       /* [tiles][state_bytes] */
} panel_call;

static panel_call shape(const f2i_call *c) {
  const f2i_panel_kernel *kernel = c->panel;
  const panel_call p = {.c = c,
                        .kernel = kernel,
                        .strips = f2i_strips(c, kernel->strip_most, kernel->strip_least),
                        .operand_bytes = (size_t)c->w->stages * kernel->operand_bytes + kernel->extra_bytes};
  return p;
}

uint64_t f2i_panel_workspace(const f2i_call *c) {
  const panel_call p = shape(c);
  return f2i_panel_bytes(p.kernel->rows, c->steps, p.operand_bytes, c->tiles, p.kernel->state_bytes);
}

static void build_task(void *arg, size_t step) {
  const panel_call *p = arg;
  float re[F2I_PANEL_MOST * F2I_BLOCK_COLS], im[F2I_PANEL_MOST * F2I_BLOCK_COLS];
  for (size_t row = 0; row < p->c->rows; ++row) {
    float *row_re = re + row * F2I_BLOCK_COLS, *row_im = im + row * F2I_BLOCK_COLS;
    f2i_load(p->c, row, step, row_re, row_im);
  }
  const size_t used = p->c->rows * F2I_BLOCK_COLS;
  const size_t rest = p->kernel->rows * F2I_BLOCK_COLS - used;
  memset(re + used, 0, rest * sizeof(float));
  memset(im + used, 0, rest * sizeof(float));
  p->kernel->build(re, im, p->c->rows, f2i_step_scales(p->c, step), (int)p->c->w->stages,
                   p->operands + step * p->operand_bytes, p->units + step * p->kernel->rows);
}

static void strip_task(void *arg, size_t index) {
  const panel_call *p = arg;
  const f2i_call *c = p->c;
  const size_t first = f2i_strip_begin(c, p->strips, index);
  const size_t tiles = f2i_strip_begin(c, p->strips, index + 1) - first;
  uint8_t *state = p->state + first * p->kernel->state_bytes;
  f2i_panel panel = {.tiles = tiles, .stages = (int)c->w->stages, .rows = c->rows, .state = state};
  const size_t zeroed = p->kernel->row_bytes > 0 ? c->rows * p->kernel->row_bytes : p->kernel->state_bytes;
  for (size_t tile = 0; tile < tiles; ++tile) memset(state + tile * p->kernel->state_bytes, 0, zeroed);
  for (size_t step = 0; step < c->steps; ++step) {
    const size_t k = step / c->parts;
    panel.shared = f2i_step_shared(c, step);
    panel.packed = f2i_strip_bytes(c, k, first);
    panel.ahead = f2i_ahead(c, k, first, tiles);
    panel.operands = p->operands + step * p->operand_bytes;
    panel.units = p->units + step * p->kernel->rows;
    p->kernel->block(&panel);
  }
  float sums[F2I_PANEL_MOST * F2I_ACC_PER_TILE];
  for (size_t tile = 0; tile < tiles; ++tile) {
    p->kernel->read(state + tile * p->kernel->state_bytes, c->rows, sums);
    for (size_t row = 0; row < c->rows; row += c->lanes) {
      const float *of_row = sums + row * F2I_ACC_PER_TILE;
      if (c->rounding != NULL) f2i_rounding_finish(c, row, first + tile, of_row, of_row + F2I_ACC_PER_TILE);
      else if (f2i_is_far(c, row)) f2i_range_finish(c, row, first + tile, of_row);
      else f2i_finish(c, row, first + tile, of_row);
    }
  }
}

void f2i_panel_group(const f2i_call *c, void *workspace) {
  panel_call p = shape(c);
  p.units = workspace;
  p.operands = (uint8_t *)workspace + c->steps * f2i_unit_bytes(p.kernel->rows, 1);
  p.state = p.operands + c->steps * p.operand_bytes;
  f2i_run(c->parallel, build_task, c->steps, &p);
  f2i_run(c->parallel, strip_task, p.strips, &p);
}
