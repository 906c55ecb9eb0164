/* rounding.h - activation_bits: the halves of a row of x rounded to whole numbers q from -127 to 127, as fairy2i.h
 * says.
 *
 * A kernel of float precision gets q / a in place of x. One that adds whole numbers exactly (f2i_whole) gets both
 * halves as rows of their own, without any scale: the real numbers q_re and q_im, to which it gives C_re q and C_im q,
 * with C_re and C_im the real and imaginary parts of the codes. From these four numbers y is made in float64, so that
 * it does not depend on the kernel.
 */
#ifndef F2I_ROUNDING_H
#define F2I_ROUNDING_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

typedef struct f2i_call f2i_call;

typedef struct f2i_rounding {
  const float *x, *col_multiplier; /* of the present group, before rounding; multiplier of the layer, or NULL */
  int64_t ldx;
  float *values;                 /* [rows of x][K]: q, or q / a */
  f2i_weights weights;           /* the layer without col_multiplier */
  double length[F2I_PANEL_MOST]; /* 1 / a of each half; NaN if the row has a value that is not finite */
  int32_t odd[F2I_PANEL_MOST];   /* of each half: P of whole_pairs.h */
} f2i_rounding;

/* Sets what of c is the same for all groups, after f2i_range_scales. */
void f2i_rounding_init(f2i_call *c, f2i_rounding *r);

/* Rounds c->x, the rows of the present group, into values, which c->x then is. */
void f2i_rounding_rows(f2i_call *c, f2i_rounding *r, float *values);

/* f2i_load_block and f2i_finish where c->rounding is set; row is the first of the two that belong to a row of x, of_re
 * and of_im their sums [F2I_ACC_PER_TILE]. */
void f2i_rounding_load(const f2i_call *c, size_t row, size_t step, float *re, float *im);
void f2i_rounding_finish(const f2i_call *c, size_t row, size_t tile, const float *of_re, const float *of_im);

#endif
