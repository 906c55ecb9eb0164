/* call.c - see call.h. */
#include "layer/call.h"

_Static_assert((int)F2I_GROUP_ROWS <= (int)F2I_PANEL_MOST, "f2i_range has room for a group");

f2i_call f2i_shape_call(const f2i_plan *plan, int64_t rows) {
  const f2i_weights *w = &plan->weights;
  f2i_call c = {.w = w,
                .kernel = f2i_kernel_for(plan, rows),
                .n = (size_t)w->n / 2,
                .m = (size_t)w->k / 2,
                .tiles = (size_t)f2i_tiles_of(w->n),
                .blocks = (size_t)f2i_blocks_of(w->layout_version, w->k),
                .parts = (size_t)f2i_parts_of(w->layout_version),
                .columns = (size_t)f2i_columns_of(w->layout_version, w->k)};
  c.lanes = w->activation_bits != 0 && c.kernel->whole != F2I_WHOLE_NOT ? 2 : 1;
  if (c.lanes == 2 && c.kernel->whole == F2I_WHOLE_PAIRS) c.parts = 1; /* both at once */
  c.steps = c.blocks * c.parts;
  return c;
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

void f2i_open_layer(f2i_layer *layer, const f2i_plan *plan, int64_t rows) {
  f2i_call *c = &layer->c;
  *c = f2i_shape_call(plan, rows);
  f2i_range_scales(c, &layer->range);
  if (c->w->activation_bits != 0) f2i_rounding_init(c, &layer->rounding);
  split_scales(c);
  for (size_t part = 0; part < c->parts && c->kernel->prepare != NULL; ++part) {
    c->kernel->prepare(c->part_scales[part], (int)c->w->stages, c->rounding != NULL, plan->dot_steps,
                       layer->shared + part * F2I_SHARED_BYTES);
  }
  c->shared = layer->shared;
}

const f2i_panel_kernel *f2i_panel_for(const f2i_call *c, int64_t rows) {
  const f2i_panel_kernel *panel = c->kernel->panel;
  while (panel != NULL && rows < (int64_t)(panel->least / c->lanes)) panel = panel->fewer;
  return panel;
}

void f2i_next_group(f2i_call *c, int64_t rows) {
  c->panel = f2i_panel_for(c, rows);
  const size_t most = (c->panel != NULL ? c->panel->rows : F2I_GROUP_ROWS) / c->lanes;
  c->rows = (rows < (int64_t)most ? (size_t)rows : most) * c->lanes;
}

void f2i_open_group(f2i_call *c, f2i_range *range, f2i_rounding *rounding, void *memory) {
  if (c->w->activation_bits != 0) f2i_rounding_rows(c, rounding, memory);
  if (c->rounding == NULL) f2i_range_rows(c, range);
}
