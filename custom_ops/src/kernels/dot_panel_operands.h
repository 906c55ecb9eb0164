/* dot_panel_operands.h - what the "dot" kernels for many rows of x read of them.
 *
 * A step is the four columns of one byte column group and parity, and one of x_re, x_im: four bytes for each row of a
 * tile, and four of each row of x.
 */
#ifndef F2I_DOT_PANEL_OPERANDS_H
#define F2I_DOT_PANEL_OPERANDS_H

#include "kernels/dot_operands.h"

enum {
  PANEL_ROWS = 64, /* of x */
  STEPS = 2 * F2I_BLOCK_COLS / 4,
};

/* Operands of a K-block. bias: what the kernel adds to all weights adds to each sum of a row of x, with the sign
 * changed. */
typedef struct panel_operands {
  int8_t x[PANEL_ROWS][STEPS][4];
  int32_t bias[PANEL_ROWS];
} panel_operands;

/* Rounds a block of one row of x, as f2i_build_dot. plus: what is added to all weights; x: out, [STEPS][4] */
static inline float f2i_build_dot_row(const float *re, const float *im, const float *scales, int plus, int8_t (*x)[4],
                                      int32_t *bias) {
  f2i_dot_activations rounded;
  const float unit = f2i_build_dot(re, im, scales, &rounded);
  for (int step = 0; step < STEPS; step += 2) {
    memcpy(x[step], rounded.re[step / 4][step / 2 % 2], 4);
    memcpy(x[step + 1], rounded.im[step / 4][step / 2 % 2], 4);
  }
  *bias = -plus * (rounded.sum_re + rounded.sum_im);
  return unit;
}

#endif
