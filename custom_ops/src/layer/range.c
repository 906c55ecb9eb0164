/* range.c - see range.h. */
#include "layer/range.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "layer/call.h"

enum { LEAST = -30, MOST = 100 }; /* exponents of ordinary scales, and LEAST of ordinary rows of x */

/* 2^exponent, for exponents of normal numbers; without frexp and ldexp, which systems keep in different libraries. */
static double power_of_two(int exponent) {
  const uint64_t bits = (uint64_t)(exponent + 1023) << 52;
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

/* The least exponent whose power of two is larger than a positive normal number, as frexp has it. */
static int exponent_above(double value) {
  uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  return (int)(bits >> 52) - 1022;
}

void f2i_range_scales(f2i_call *c, f2i_range *r) {
  const size_t stages = (size_t)c->w->stages;
  double largest = 0.0; /* among the sums of an axis of U or W over the stages, as in dot_operands.h */
  for (size_t i = 0; i < 4; ++i) {
    double sum = 0.0;
    for (size_t t = 0; t < stages; ++t) sum += fabs((double)c->w->scales[4 * t + i]);
    largest = sum > largest ? sum : largest;
  }
  c->scales = c->w->scales;
  r->scale_exponent = 0;
  if (largest == 0.0 || (largest >= power_of_two(LEAST) && largest <= power_of_two(MOST))) return;
  r->scale_exponent = exponent_above(largest);
  if (largest < 1.0) r->scale_exponent -= LEAST + 1;
  for (size_t i = 0; i < 4 * stages; ++i) {
    r->scales[i] = (float)((double)c->w->scales[i] * power_of_two(-r->scale_exponent));
  }
  c->scales = r->scales;
}

/* Whether no value of a row, column multiplier applied, has the least size; a NaN has none. Usually the first has. */
static int is_small(const f2i_call *c, const float *x) {
  const float least = (float)power_of_two(LEAST), *factor = c->w->col_multiplier;
  const size_t k = 2 * c->m;
  for (size_t j = 0; j < k; ++j) {
    if (fabsf(factor == NULL ? x[j] : x[j] * factor[j]) >= least) return 0;
  }
  return 1;
}

/* The exponent that a small row is to lose so that its largest value has the least size; 0 if all are zero. */
static int exponent_of(const f2i_call *c, const float *x) {
  const float *factor = c->w->col_multiplier;
  double largest = 0.0;
  for (size_t j = 0; j < 2 * c->m; ++j) {
    const double size = fabs(factor == NULL ? (double)x[j] : (double)x[j] * (double)factor[j]);
    largest = size > largest ? size : largest;
  }
  return largest == 0.0 ? 0 : exponent_above(largest) - (LEAST + 1);
}

void f2i_range_rows(f2i_call *c, f2i_range *r) {
  c->range = NULL;
  for (size_t row = 0; row < c->rows; ++row) {
    const float *x = c->x + (int64_t)row * c->ldx;
    const int exponent = is_small(c, x) ? exponent_of(c, x) : 0;
    if (exponent == 0 && r->scale_exponent == 0 && c->range == NULL) continue;
    for (size_t before = 0; c->range == NULL && before < row; ++before) r->up[before] = r->back[before] = 1.0;
    c->range = r;
    r->up[row] = power_of_two(-exponent);
    r->back[row] = power_of_two(exponent + r->scale_exponent);
  }
}

void f2i_range_load(const f2i_call *c, size_t row, size_t step, float *re, float *im) {
  size_t first;
  const size_t count = f2i_step_columns(c, step, &first);
  const float *x = c->x + (int64_t)row * c->ldx, *factor = c->w->col_multiplier;
  const double up = c->range->up[row];
  for (size_t j = 0; j < F2I_BLOCK_COLS; ++j) {
    const size_t column = first + j, other = c->m + column;
    const int inside = j < count;
    re[j] = !inside ? 0.0f : (float)((double)x[column] * (factor == NULL ? 1.0 : (double)factor[column]) * up);
    im[j] = !inside ? 0.0f : (float)((double)x[other] * (factor == NULL ? 1.0 : (double)factor[other]) * up);
    if (f2i_conjugates(c, step)) im[j] = -im[j];
  }
}

void f2i_range_finish(const f2i_call *c, size_t row, size_t tile, const float *acc) {
  float *y = c->y + (int64_t)row * c->ldy;
  const double back = c->range->back[row];
  for (size_t i = 0; i < F2I_ACC_PER_TILE; ++i) {
    const size_t complex_row = tile * F2I_TILE_ROWS + i % F2I_TILE_ROWS;
    const size_t output = i / F2I_TILE_ROWS * c->n + complex_row;
    if (complex_row >= c->n) continue;
    double value = (double)acc[i] * back;
    if (c->w->row_multiplier != NULL) value *= (double)c->w->row_multiplier[output];
    if (c->bias != NULL) value += (double)c->bias[output];
    y[output] = (float)value;
  }
}
