/* range.h - scales and activations far from 1 are brought nearer by powers of two, and the sums taken back.
 *
 * Kernels multiply and divide in float32, where products of small numbers vanish and sums of large ones overflow long
 * before the outputs would. So a kernel only sees scales whose sums over the stages are from 2^-30 to 2^100 at the
 * largest, and rows of x whose largest value is at least 2^-30; f2i_finish multiplies by the powers of two that were
 * taken away, in float64, before multiplier and bias. Rows and scales of such sizes, which is all that models have, are
 * left as they are, bit by bit. What is done to a row depends on the scales and the row alone.
 */
#ifndef F2I_RANGE_H
#define F2I_RANGE_H

#include <stddef.h>

#include "kernels/kernels.h"

typedef struct f2i_call f2i_call;

typedef struct f2i_range {
  int scale_exponent; /* the layer's scales are 2^scale_exponent times those that kernels see */
  float scales[F2I_MAX_STAGES * 4];
  double up[F2I_PANEL_MOST];   /* of each row of x in the group: what it is multiplied by */
  double back[F2I_PANEL_MOST]; /* of each row: what its sums are multiplied by */
} f2i_range;

/* Sets c->scales, to those of the layer or to r->scales. */
void f2i_range_scales(f2i_call *c, f2i_range *r);

/* Sets c->range for the present group of rows: r, or NULL where nothing is to be done. */
void f2i_range_rows(f2i_call *c, f2i_range *r);

/* f2i_load_block and f2i_finish for rows that f2i_is_far (call.h) says yes to. */
void f2i_range_load(const f2i_call *c, size_t row, size_t step, float *re, float *im);
void f2i_range_finish(const f2i_call *c, size_t row, size_t tile, const float *acc);

#endif
