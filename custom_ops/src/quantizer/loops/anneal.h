/* loops/anneal.h - sweeps over the codes of a matrix that has some: each pair's become those that bring the outputs
 * nearest while all others stay, or, with noise, those that would if what is missing were a little else.
 *
 * A chunk of complex rows goes through all sweeps by itself. What its outputs miss (pull) lies row by row, because few
 * rows change at a pair: only those take their change times two rows of the metric off everything they miss.
 */
#ifndef F2I_LOOPS_ANNEAL_H
#define F2I_LOOPS_ANNEAL_H

#include <math.h>

#include "quantizer/loops/search.h"

/* [upper, lower][column]: of a pair, what its dense values were, and what is missing in the metric */
typedef struct f2i_visit {
  float old[2][2][F2I_SEARCH_ROWS];
  float pull[2][2][F2I_SEARCH_ROWS];
} f2i_visit;

/* An integer hash whose bits all depend on all bits of x. */
F2I_INLINE uint32_t scrambled(uint32_t x) {
  x = (x ^ x >> 16) * 0x21F0AAADu;
  x = (x ^ x >> 15) * 0x735A2D97u;
  return x ^ x >> 15;
}

/* Adds noise to pull: rows of a pair in a sweep have numbers of their own, however they are split into chunks. */
F2I_CHUNKWISE void add_noise(f2i_visit *v, uint32_t key, int64_t first, const float *width, int rows, float left,
                             float right) {
  for (int i = 0; i < rows; ++i) {
    const uint32_t upper = scrambled(key + 0x9E3779B9u * (uint32_t)(first + i)), lower = scrambled(upper + 0x9E3779B9u);
    const float unit = width[i] * (1.0f / 32768);
    v->pull[0][0][i] += left * unit * ((float)(int32_t)(upper & 0xFFFFu) - 32767.5f);
    v->pull[0][1][i] += right * unit * ((float)(int32_t)(upper >> 16) - 32767.5f);
    v->pull[1][0][i] += left * unit * ((float)(int32_t)(lower & 0xFFFFu) - 32767.5f);
    v->pull[1][1][i] += right * unit * ((float)(int32_t)(lower >> 16) - 32767.5f);
  }
}

F2I_CHUNKWISE void load_visit(f2i_visit *v, const f2i_search *s, int64_t pair, int64_t first, int rows,
                              const float *pull, int64_t stride) {
  for (int half = 0; half < 2; ++half) {
    const float *from = pull + (half * s->n + first) * stride + 2 * pair;
    for (int i = 0; i < rows; ++i) {
      v->pull[half][0][i] = from[i * stride];
      v->pull[half][1][i] = from[i * stride + 1];
    }
    for (int column = 0; column < 2; ++column) {
      const float *dense = s->dense + (4 * pair + 2 * column + half) * s->n + first;
      for (int i = 0; i < rows; ++i) v->old[half][column][i] = dense[i];
    }
  }
}

/* pull becomes where the columns would go if they needed no rounding. inverse: of the pair's block of the metric */
F2I_CHUNKWISE void want_no_rounding(f2i_visit *v, int rows, const float inverse[3]) {
  const float i00 = inverse[0], i01 = inverse[1], i11 = inverse[2];
  for (int half = 0; half < 2; ++half) {
    for (int i = 0; i < rows; ++i) {
      const float g0 = v->pull[half][0][i], g1 = v->pull[half][1][i];
      v->pull[half][0][i] = v->old[half][0][i] + (i00 * g0 + i01 * g1);
      v->pull[half][1][i] = v->old[half][1][i] + (i01 * g0 + i11 * g1);
    }
  }
}

/* pull of a row, [columns], less a change of two of its values times what they mean for all */
F2I_CHUNKWISE void subtract_change(float *pull, const float *metric0, const float *metric1, int64_t columns, float x0,
                                   float x1) {
  for (int64_t j = 0; j < columns; ++j) pull[j] -= x0 * metric0[j] + x1 * metric1[j];
}

F2I_INLINE void visit(f2i_chunk *c, const f2i_search *s, const f2i_codebook *book, int64_t pair, int64_t first,
                      float *pull, int64_t stride, const float *width, uint32_t key) {
  const int64_t k = 2 * s->m;
  const float *metric = s->metric + 2 * pair * k, *block = metric + 2 * pair;
  const float form[3] = {block[0], block[1], block[k + 1]};
  const float determinant = form[0] * form[2] - form[1] * form[1];
  const float inverse[3] = {form[2] / determinant, -form[1] / determinant, form[0] / determinant};
  f2i_visit v;
  load_visit(&v, s, pair, first, c->rows, pull, stride);
  if (width != NULL) add_noise(&v, key, first, width, c->rows, sqrtf(form[0]), sqrtf(form[2]));
  want_no_rounding(&v, c->rows, inverse);
  load_targets(c, s, pair, first, v.pull[0][0], 2 * F2I_SEARCH_ROWS, F2I_SEARCH_ROWS);
  search_chunk(c, s, book, form, pair, first, 1);
  for (int half = 0; half < 2; ++half) {
    const float *new0 = s->dense + (4 * pair + half) * s->n + first, *new1 = new0 + 2 * s->n;
    for (int i = 0; i < c->rows; ++i) {
      const float x0 = new0[i] - v.old[half][0][i], x1 = new1[i] - v.old[half][1][i];
      if (x0 != 0 || x1 != 0) subtract_change(pull + (half * s->n + first + i) * stride, metric, metric + k, k, x0, x1);
    }
  }
}

static void anneal(const f2i_search *s, const f2i_codebook *book, int64_t begin, int64_t end, const f2i_sweeps *sweeps,
                   float *pull) {
  f2i_chunk chunk;
  for (int64_t first = begin; first < end; first += F2I_SEARCH_ROWS) {
    chunk.rows = (int)(end - first < F2I_SEARCH_ROWS ? end - first : F2I_SEARCH_ROWS);
    for (int64_t sweep = 0; sweep < sweeps->count; ++sweep) {
      const float *width = sweeps->noise == NULL ? NULL : sweeps->noise + sweep * s->n + first;
      const uint32_t start = scrambled(sweeps->seed + 0x9E3779B9u * (uint32_t)sweep);
      for (int64_t pair = 0; pair < s->m; ++pair) {
        visit(&chunk, s, book, pair, first, pull, sweeps->stride, width, scrambled(start + (uint32_t)pair));
      }
    }
  }
}

#endif
