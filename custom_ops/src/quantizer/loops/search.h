/* loops/search.h - codes of a pair of columns that belong together, in a metric: what calibration searches with.
 *
 * Columns j and j + m of a real matrix hold the complex entries (U, W) of column j: with u and w the chosen points of a
 * complex row,
 *     upper real row: x0 = w.re + u.re, x1 = w.im - u.im        lower real row: x0 = w.im + u.im, x1 = u.re - w.re
 * (x0 in column j, x1 in j + m; in units of the multipliers). What is minimised is, summed over the two real rows,
 * r^2 * Q(target - x) with one quadratic form Q for both and r the multiplier of the row. As a function of u and w that
 * is a u.re^2 + b u.im^2 + g u.re u.im  +  a w.re^2 + b w.im^2 - g w.re w.im  +  (terms u times w)  +  (linear terms),
 * so with one of u and w given, every point of the other costs two multiplications. With up to two stages all
 * combinations of u and w are tried; with more, u given w and w given u take turns.
 *
 * Plain C over chunks of complex rows that compilers vectorize; no sums across rows, so every ISA gives the same bits.
 */
#ifndef F2I_LOOPS_SEARCH_H
#define F2I_LOOPS_SEARCH_H

#include <stdint.h>

#include "fairy2i.h"
#include "quantizer/loops/codes.h"
#include "quantizer/search.h"

enum {
  F2I_SEARCH_ROWS = 32, /* complex rows of a chunk: costs of all points of a stage stay in the caches */
  F2I_SEARCH_POINTS = 256,
  F2I_SEARCH_TURNS = 3, /* where there are no codes yet; with codes one: sweeps come back */
};

/* A chunk of complex rows at one pair of columns. U is 0, W is 1. */
typedef struct f2i_chunk {
  int rows;
  float target[2][2][F2I_SEARCH_ROWS];               /* [upper, lower][column], in units of the multipliers */
  float square[2][F2I_SEARCH_ROWS];                  /* r^2 of the upper and the lower rows */
  float cost[2][F2I_SEARCH_POINTS][F2I_SEARCH_ROWS]; /* of every point alone, quadratic part */
  float linear[2][2][F2I_SEARCH_ROWS];               /* [U, W][re, im] */
  float cross[2][2][F2I_SEARCH_ROWS];                /* [re, im of W][re, im of U] */
  int32_t found[2][F2I_SEARCH_ROWS];                 /* points of U and of W */
} f2i_chunk;

/* The terms of the costs from targets, squares and the form (m00, m01, m11), everything divided by 2. */
F2I_INLINE void set_costs(f2i_chunk *c, const f2i_codebook *book, const float form[3]) {
  const float m00 = form[0], m01 = form[1], m11 = form[2];
  float a[F2I_SEARCH_ROWS], b[F2I_SEARCH_ROWS], g[F2I_SEARCH_ROWS];
  for (int i = 0; i < F2I_SEARCH_ROWS; ++i) {
    const float up = c->square[0][i], low = c->square[1][i];
    const float p0 = c->target[0][0][i], p1 = c->target[0][1][i], s0 = c->target[1][0][i], s1 = c->target[1][1][i];
    const float up0 = up * (m00 * p0 + m01 * p1), up1 = up * (m01 * p0 + m11 * p1);
    const float low0 = low * (m00 * s0 + m01 * s1), low1 = low * (m01 * s0 + m11 * s1);
    a[i] = 0.5f * (up * m00 + low * m11);
    b[i] = 0.5f * (up * m11 + low * m00);
    g[i] = (low - up) * m01;
    c->linear[0][0][i] = -(up0 + low1);
    c->linear[0][1][i] = up1 - low0;
    c->linear[1][0][i] = low1 - up0;
    c->linear[1][1][i] = -(up1 + low0);
    c->cross[0][0][i] = up * m00 - low * m11;
    c->cross[0][1][i] = -(up + low) * m01;
    c->cross[1][0][i] = (up + low) * m01;
    c->cross[1][1][i] = low * m00 - up * m11;
  }
  for (int matrix = 0; matrix < 2; ++matrix) {
    const float sign = matrix == 0 ? 1.0f : -1.0f;
    for (int k = 0; k < book->count; ++k) {
      const float re = book->re[matrix][k], im = book->im[matrix][k];
      const float re2 = re * re, im2 = im * im, both = sign * re * im;
      float *cost = c->cost[matrix][k];
      for (int i = 0; i < F2I_SEARCH_ROWS; ++i) cost[i] = a[i] * re2 + b[i] * im2 + g[i] * both;
    }
  }
}

/* Of all points of a matrix the cheapest, if the linear terms are (re, im); keeps least and found unless there is a
 * strictly cheaper one. base is added to what is found. */
F2I_INLINE void cheapest(const f2i_chunk *c, const f2i_codebook *book, int matrix, const float *re, const float *im,
                         float *least, int32_t *found, int32_t base) {
  for (int k = 0; k < book->count; k += 4) {
    const float *x = book->re[matrix] + k, *y = book->im[matrix] + k;
    const float x0 = x[0], x1 = x[1], x2 = x[2], x3 = x[3], y0 = y[0], y1 = y[1], y2 = y[2], y3 = y[3];
    const float *c0 = c->cost[matrix][k], *c1 = c->cost[matrix][k + 1];
    const float *c2 = c->cost[matrix][k + 2], *c3 = c->cost[matrix][k + 3];
    for (int i = 0; i < F2I_SEARCH_ROWS; ++i) {
      const float d0 = c0[i] + re[i] * x0 + im[i] * y0, d1 = c1[i] + re[i] * x1 + im[i] * y1;
      const float d2 = c2[i] + re[i] * x2 + im[i] * y2, d3 = c3[i] + re[i] * x3 + im[i] * y3;
      float best = least[i];
      int32_t at = found[i];
      at = d0 < best ? base + k : at;
      best = d0 < best ? d0 : best;
      at = d1 < best ? base + k + 1 : at;
      best = d1 < best ? d1 : best;
      at = d2 < best ? base + k + 2 : at;
      best = d2 < best ? d2 : best;
      at = d3 < best ? base + k + 3 : at;
      best = d3 < best ? d3 : best;
      least[i] = best;
      found[i] = at;
    }
  }
}

/* The best point of one matrix where that of the other is (re, im) */
F2I_INLINE void take_turn(f2i_chunk *c, const f2i_codebook *book, int matrix, const float *re, const float *im) {
  float linear[2][F2I_SEARCH_ROWS], least[F2I_SEARCH_ROWS];
  for (int axis = 0; axis < 2; ++axis) {
    const float *of_re = matrix == 0 ? c->cross[0][axis] : c->cross[axis][0];
    const float *of_im = matrix == 0 ? c->cross[1][axis] : c->cross[axis][1];
    for (int i = 0; i < F2I_SEARCH_ROWS; ++i) {
      linear[axis][i] = c->linear[matrix][axis][i] + of_re[i] * re[i] + of_im[i] * im[i];
    }
  }
  for (int i = 0; i < F2I_SEARCH_ROWS; ++i) {
    least[i] = 3.0e38f;
    c->found[matrix][i] = 0;
  }
  cheapest(c, book, matrix, linear[0], linear[1], least, c->found[matrix], 0);
}

F2I_INLINE void points_of_rows(const f2i_chunk *c, const f2i_codebook *book, int matrix, float *re, float *im) {
  for (int i = 0; i < F2I_SEARCH_ROWS; ++i) {
    re[i] = book->re[matrix][c->found[matrix][i]];
    im[i] = book->im[matrix][c->found[matrix][i]];
  }
}

/* All combinations: few points. */
F2I_CHUNKWISE void search_all(f2i_chunk *c, const f2i_codebook *book) {
  float re[F2I_SEARCH_ROWS], im[F2I_SEARCH_ROWS], least[F2I_SEARCH_ROWS], inner[F2I_SEARCH_ROWS];
  int32_t found[F2I_SEARCH_ROWS], both[F2I_SEARCH_ROWS];
  for (int i = 0; i < F2I_SEARCH_ROWS; ++i) {
    least[i] = 3.0e38f;
    both[i] = 0;
  }
  for (int u = 0; u < book->count; ++u) {
    const float u_re = book->re[0][u], u_im = book->im[0][u];
    for (int i = 0; i < F2I_SEARCH_ROWS; ++i) {
      re[i] = c->linear[1][0][i] + c->cross[0][0][i] * u_re + c->cross[0][1][i] * u_im;
      im[i] = c->linear[1][1][i] + c->cross[1][0][i] * u_re + c->cross[1][1][i] * u_im;
      inner[i] = 3.0e38f;
      found[i] = 0;
    }
    cheapest(c, book, 1, re, im, inner, found, 0);
    for (int i = 0; i < F2I_SEARCH_ROWS; ++i) {
      const float cost = inner[i] + (c->cost[0][u][i] + c->linear[0][0][i] * u_re + c->linear[0][1][i] * u_im);
      both[i] = cost < least[i] ? found[i] + F2I_SEARCH_POINTS * u : both[i];
      least[i] = cost < least[i] ? cost : least[i];
    }
  }
  for (int i = 0; i < F2I_SEARCH_ROWS; ++i) {
    c->found[0][i] = both[i] / F2I_SEARCH_POINTS;
    c->found[1][i] = both[i] % F2I_SEARCH_POINTS;
  }
}

/* In turns, from W as it is in found[1]. */
F2I_CHUNKWISE void search_in_turns(f2i_chunk *c, const f2i_codebook *book, int turns) {
  float re[F2I_SEARCH_ROWS], im[F2I_SEARCH_ROWS];
  for (int turn = 0; turn < turns; ++turn) {
    points_of_rows(c, book, 1, re, im);
    take_turn(c, book, 0, re, im);
    points_of_rows(c, book, 0, re, im);
    take_turn(c, book, 1, re, im);
  }
}

/* W to begin with where there is none: the best one if U needed no rounding. */
F2I_CHUNKWISE void begin_with_w(f2i_chunk *c, const f2i_codebook *book) {
  float re[F2I_SEARCH_ROWS], im[F2I_SEARCH_ROWS];
  for (int i = 0; i < F2I_SEARCH_ROWS; ++i) {
    re[i] = 0.5f * (c->target[0][0][i] + c->target[1][1][i]);
    im[i] = 0.5f * (c->target[1][0][i] - c->target[0][1][i]);
  }
  take_turn(c, book, 1, re, im);
}

/* Targets of complex rows [first, first + rows) in units of the multipliers. wanted: what the pair's values should be,
 * of row first in the upper half and the left column; the lower half lies `half` behind it, the right column `column`.
 */
F2I_CHUNKWISE void load_targets(f2i_chunk *c, const f2i_search *s, int64_t pair, int64_t first, const float *wanted,
                                int64_t half, int64_t column) {
  for (int h = 0; h < 2; ++h) {
    const float *multiplier = s->rows + h * s->n + first;
    for (int j = 0; j < 2; ++j) {
      const float *from = wanted + h * half + j * column, unit = s->columns[2 * pair + j];
      for (int i = 0; i < c->rows; ++i) c->target[h][j][i] = from[i] / (multiplier[i] * unit);
      for (int i = c->rows; i < F2I_SEARCH_ROWS; ++i) c->target[h][j][i] = 0;
    }
    for (int i = 0; i < c->rows; ++i) c->square[h][i] = multiplier[i] * multiplier[i];
    for (int i = c->rows; i < F2I_SEARCH_ROWS; ++i) c->square[h][i] = 1;
  }
}

F2I_INLINE int32_t code_at(const f2i_search *s, int64_t stage, int matrix, int64_t pair, int64_t row) {
  return s->codes[((2 * stage + matrix) * s->m + pair) * s->n + row] & 3;
}

F2I_CHUNKWISE void load_w(f2i_chunk *c, const f2i_search *s, int64_t pair, int64_t first) {
  for (int i = 0; i < F2I_SEARCH_ROWS; ++i) {
    c->found[1][i] = 0;
    for (int64_t t = 0; i < c->rows && t < s->stages; ++t) {
      c->found[1][i] = c->found[1][i] << 2 | code_at(s, t, 1, pair, first + i);
    }
  }
}

/* Codes and dense values of what was found */
F2I_CHUNKWISE void store_found(const f2i_chunk *c, const f2i_search *s, const f2i_codebook *book, int64_t pair,
                               int64_t first) {
  for (int matrix = 0; matrix < 2; ++matrix) {
    for (int64_t t = 0; t < s->stages; ++t) {
      uint8_t *out = s->codes + ((2 * t + matrix) * s->m + pair) * s->n + first;
      const int shift = (int)(2 * (s->stages - 1 - t));
      for (int i = 0; i < c->rows; ++i) out[i] = (uint8_t)(c->found[matrix][i] >> shift & 3);
    }
  }
  float u_re[F2I_SEARCH_ROWS], u_im[F2I_SEARCH_ROWS], w_re[F2I_SEARCH_ROWS], w_im[F2I_SEARCH_ROWS];
  points_of_rows(c, book, 0, u_re, u_im);
  points_of_rows(c, book, 1, w_re, w_im);
  float *dense = s->dense + 4 * pair * s->n + first;
  const float *upper = s->rows + first, *lower = upper + s->n;
  const float left = s->columns[2 * pair], right = s->columns[2 * pair + 1];
  for (int i = 0; i < c->rows; ++i) {
    dense[i] = (w_re[i] + u_re[i]) * (upper[i] * left);
    dense[s->n + i] = (w_im[i] + u_im[i]) * (lower[i] * left);
    dense[2 * s->n + i] = (w_im[i] - u_im[i]) * (upper[i] * right);
    dense[3 * s->n + i] = (u_re[i] - w_re[i]) * (lower[i] * right);
  }
}

/* rows [begin, end) of both halves of a column: out -= factor * in */
F2I_CHUNKWISE void subtract_column(const f2i_search *s, int64_t begin, int64_t end, float factor, const float *in,
                                   float *out) {
  for (int half = 0; half < 2; ++half) {
    const float *from = in + half * s->n;
    float *to = out + half * s->n;
    for (int64_t i = begin; i < end; ++i) to[i] -= factor * from[i];
  }
}

F2I_INLINE void search_chunk(f2i_chunk *c, const f2i_search *s, const f2i_codebook *book, const float form[3],
                             int64_t pair, int64_t first, int has_codes) {
  const float left = s->columns[2 * pair], right = s->columns[2 * pair + 1];
  const float units[3] = {form[0] * left * left, form[1] * left * right, form[2] * right * right};
  set_costs(c, book, units);
  if (s->stages <= 2) {
    search_all(c, book);
  } else {
    if (has_codes) {
      load_w(c, s, pair, first);
    } else {
      begin_with_w(c, book);
    }
    search_in_turns(c, book, has_codes ? 1 : F2I_SEARCH_TURNS);
  }
  store_found(c, s, book, pair, first);
}

static void feed_back(const f2i_search *s, const f2i_codebook *book, int64_t from, int64_t to, int64_t begin,
                      int64_t end, float *values) {
  const int64_t k = 2 * s->m, column = 2 * s->n;
  f2i_chunk chunk;
  for (int64_t pair = from; pair < to; ++pair) {
    const float *factor = s->metric + 2 * pair * k + 2 * pair; /* the 2 x 2 block of the factor, upper triangular */
    const float b00 = factor[0], b01 = factor[1], b11 = factor[k + 1], tilt = b01 / (b00 * b11);
    const float form[3] = {1 / (b00 * b00) + tilt * tilt, -tilt / b11, 1 / (b11 * b11)};
    float *value = values + 2 * pair * column;
    const float *dense = s->dense + 2 * pair * column;
    for (int64_t first = begin; first < end; first += F2I_SEARCH_ROWS) {
      chunk.rows = (int)(end - first < F2I_SEARCH_ROWS ? end - first : F2I_SEARCH_ROWS);
      load_targets(&chunk, s, pair, first, value + first, s->n, column);
      search_chunk(&chunk, s, book, form, pair, first, 0);
    }
    for (int half = 0; half < 2; ++half) {
      float *v0 = value + half * s->n, *v1 = v0 + column;
      const float *d0 = dense + half * s->n, *d1 = d0 + column;
      for (int64_t i = begin; i < end; ++i) {
        const float e0 = (v0[i] - d0[i]) / b00;
        v0[i] = e0;
        v1[i] = ((v1[i] - d1[i]) - e0 * b01) / b11;
      }
    }
    for (int64_t later = 2 * pair + 2; later < 2 * to; ++later) {
      subtract_column(s, begin, end, s->metric[2 * pair * k + later], value, values + later * column);
      subtract_column(s, begin, end, s->metric[(2 * pair + 1) * k + later], value + column, values + later * column);
    }
  }
}

#endif
