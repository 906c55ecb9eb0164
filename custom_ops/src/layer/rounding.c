/* rounding.c - see rounding.h. */
#include "layer/rounding.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "kernels/whole_pairs.h"
#include "layer/call.h"

enum { ALONE_ROWS = 4 }; /* so few rows of x are not worth waking other threads */

static const float ones[4] = {1.0f, 1.0f, 1.0f, 1.0f};

void f2i_rounding_init(f2i_call *c, f2i_rounding *r) {
  r->col_multiplier = c->w->col_multiplier;
  r->weights = *c->w;
  r->weights.col_multiplier = NULL;
  c->w = &r->weights;
  if (c->lanes == 1) return;
  c->rounding = r;
  c->scales = ones;
}

/* The bits of the largest magnitude, which are in the order of magnitudes, those of infinities and NaNs last. */
static int32_t largest_bits(const float *values, size_t count) {
  int32_t largest = 0;
  for (size_t j = 0; j < count; ++j) {
    int32_t bits;
    memcpy(&bits, &values[j], sizeof bits);
    bits &= 0x7FFFFFFF;
    largest = bits > largest ? bits : largest;
  }
  return largest;
}

/* value times factor, at most 127, to the nearest whole number, halves to even: a float has no fraction at this size.
 */
static inline float whole(float value, float factor) {
  const float big = 12582912.0f;
  const float product = value * factor;
  return (product + big) - big;
}

/* P of one half of a row: the two halves of its columns are stored apart. */
static int32_t count_odd(const f2i_call *c, const float *q) {
  int32_t odd = 0;
  for (size_t part = 0; part < c->m; part += c->columns) {
    const size_t end = part + c->columns < c->m ? part + c->columns : c->m;
    for (size_t j = part; j < end; j += 2) odd += f2i_whole_odd(q[j], j + 1 < end ? q[j + 1] : 0.0f);
  }
  return odd;
}

typedef struct rounding_call {
  const f2i_call *c;
  f2i_rounding *r;
} rounding_call;

/* Work item: one row of x. */
static void round_task(void *arg, size_t row) {
  const rounding_call *call = arg;
  const f2i_call *c = call->c;
  f2i_rounding *r = call->r;
  const size_t k = 2 * c->m;
  const float *x = r->x + (int64_t)row * r->ldx, *factor = r->col_multiplier;
  float *values = r->values + row * k;
  for (size_t j = 0; j < k; ++j) values[j] = factor == NULL ? x[j] : x[j] * factor[j];
  int finite = 1;
  float largest[2];
  for (size_t half = 0; half < 2; ++half) {
    const int32_t bits = largest_bits(values + half * c->m, c->m);
    memcpy(&largest[half], &bits, sizeof bits);
    finite &= largest[half] <= FLT_MAX;
  }
  for (size_t half = 0; half < 2; ++half) {
    const size_t lane = 2 * row + half;
    const float steps =
        127.0f / (largest[half] > F2I_SMALLEST_ROUNDED ? largest[half] : F2I_SMALLEST_ROUNDED); /* per value */
    float *q = values + half * c->m;
    if (finite) {
      for (size_t j = 0; j < c->m; ++j) q[j] = whole(q[j], steps);
      for (size_t j = 0; j < c->m && c->lanes == 1; ++j) q[j] /= steps;
    } else if (c->lanes == 2) { /* a kernel without lanes meets what is not finite itself */
      memset(q, 0, c->m * sizeof *q);
    }
    if (c->lanes == 1) continue;
    r->length[lane] = finite ? 1.0 / (double)steps : (double)NAN;
    r->odd[lane] = c->kernel->whole == F2I_WHOLE_PAIRS ? count_odd(c, q) : 0;
  }
}

void f2i_rounding_rows(f2i_call *c, f2i_rounding *r, float *values) {
  const size_t rows = c->rows / c->lanes;
  rounding_call call = {c, r};
  r->x = c->x;
  r->ldx = c->ldx;
  r->values = values;
  f2i_run(rows > ALONE_ROWS ? c->parallel : NULL, round_task, rows, &call);
  c->x = values;
  c->ldx = (int64_t)(2 * c->m / c->lanes);
}

static void copy_block(const float *q, size_t first, size_t count, float *out) {
  memset(out, 0, F2I_BLOCK_COLS * sizeof(float));
  for (size_t j = 0; j < count; ++j) out[j] = q[first + j];
}

void f2i_rounding_load(const f2i_call *c, size_t row, size_t step, float *re, float *im) {
  const float *q = c->x + (int64_t)row * c->ldx;
  size_t first;
  const size_t count = f2i_step_columns(c, step, &first);
  copy_block(q, first, count, re);
  if (c->kernel->whole == F2I_WHOLE_PAIRS) { /* the same columns of the second half, which may have one less */
    const size_t other = c->columns + first, left = other < c->m ? c->m - other : 0;
    copy_block(q, other, left < F2I_BLOCK_COLS ? left : F2I_BLOCK_COLS, im);
  } else {
    copy_block(q, 0, 0, im);
  }
}

/* C_re q and C_im q of one row of the matrix and one half. */
typedef struct products {
  double re, im;
} products;

static inline products read_products(const f2i_call *c, size_t row, const float *sums, size_t i) {
  const double first = (double)sums[i], second = (double)sums[F2I_TILE_ROWS + i];
  const products direct = {first, second};
  if (c->kernel->whole != F2I_WHOLE_PAIRS) return direct;
  /* 2 first + P = C_re q - C_im q, 2 second + P = C_re q + C_im q */
  const products p = {first + second + (double)c->rounding->odd[row], second - first};
  return p;
}

void f2i_rounding_finish(const f2i_call *c, size_t row, size_t tile, const float *of_re, const float *of_im) {
  float *y = c->y + (int64_t)(row / 2) * c->ldy;
  const double length_re = c->rounding->length[row], length_im = c->rounding->length[row + 1];
  const double s_re = (double)c->w->scales[0], s_im = (double)c->w->scales[1];
  const float *factor = c->w->row_multiplier;
  for (size_t i = 0; i < F2I_TILE_ROWS; ++i) {
    const size_t output = tile * F2I_TILE_ROWS + i;
    if (output >= c->n) break;
    const products re = read_products(c, row, of_re, i), im = read_products(c, row + 1, of_im, i);
    double value[2] = {s_re * length_re * re.re + s_im * length_im * im.im,
                       s_im * length_re * re.im - s_re * length_im * im.re};
    for (size_t part = 0; part < 2; ++part) {
      if (factor != NULL) value[part] *= (double)factor[part * c->n + output];
      if (c->bias != NULL) value[part] += (double)c->bias[part * c->n + output];
      y[part * c->n + output] = (float)value[part];
    }
  }
}
