/* loops/rows.h - the quantizer, one complex row at a time: what quantize.h wants of an ISA.
 *
 * Included by one file per ISA, which defines F2I_QUANTIZER. Plain C that compilers vectorize: every loop runs over a
 * chunk of columns (loops/parts.h) that stays in the first-level cache, and sums are kept in F2I_LANES lanes that
 * are added in a fixed order, so that every ISA gives the same bits.
 *
 * Nothing of a stage is stored between calls: the residual of stage t is computed again from the latent weights and the
 * scales of the stages before it. That costs little arithmetic and no memory.
 */
#include <stdint.h>
#include <string.h>

#include "quantizer/loops/anneal.h"
#include "quantizer/loops/codes.h"
#include "quantizer/loops/joint.h"
#include "quantizer/loops/parts.h"
#include "quantizer/loops/search.h"
#include "quantizer/points.h"
#include "quantizer/quantize.h"

enum { F2I_LANES = 16 };

F2I_INLINE double total(const double *lanes) {
  double sum = 0;
  for (int i = 0; i < F2I_LANES; ++i) sum += lanes[i];
  return sum;
}

/* lanes += x, count values; x has room for whole groups of lanes */
F2I_CHUNKWISE void add_to_lanes(double *lanes, float *x, int count) {
  const int whole = (count + F2I_LANES - 1) / F2I_LANES * F2I_LANES;
  for (int i = count; i < whole; ++i) x[i] = 0;
  for (int i = 0; i < whole; i += F2I_LANES) {
    for (int j = 0; j < F2I_LANES; ++j) lanes[j] += (double)x[i + j];
  }
}

/* lanes += x^2 */
F2I_CHUNKWISE void add_squares_to_lanes(double *lanes, float *x, int count) {
  const int whole = (count + F2I_LANES - 1) / F2I_LANES * F2I_LANES;
  for (int i = count; i < whole; ++i) x[i] = 0;
  for (int i = 0; i < whole; i += F2I_LANES) {
    for (int j = 0; j < F2I_LANES; ++j) lanes[j] += (double)x[i + j] * (double)x[i + j];
  }
}

static void row_squares(const f2i_latent *latent, int64_t begin, int64_t end, double *squares) {
  const int bf16 = latent->profile == F2I_PROFILE_BF16;
  float x[F2I_CHUNK];
  for (int64_t row = begin; row < end; ++row) {
    for (int half = 0; half < 2; ++half) {
      double lanes[F2I_LANES] = {0};
      for (int64_t column = 0; column < latent->k; column += F2I_CHUNK) {
        const int count = (int)(latent->k - column < F2I_CHUNK ? latent->k - column : F2I_CHUNK);
        load_raw(latent, row + half * latent->n / 2, column, count, x);
        for (int i = 0; i < count; ++i) x[i] = rounded(x[i], bf16);
        add_squares_to_lanes(lanes, x, count);
      }
      squares[2 * (row - begin) + half] = total(lanes);
    }
  }
}

F2I_INLINE void row_sums_of(const f2i_latent *latent, const float *scales, int64_t stage, int64_t row, double *sums,
                            int64_t *counts, int bf16) {
  const int64_t m = latent->k / 2;
  double lanes[2][2][F2I_LANES] = {{{0}}};
  int64_t imaginary[2] = {0, 0};
  f2i_parts parts;
  float on_re[F2I_CHUNK], on_im[F2I_CHUNK];
  for (int64_t column = 0; column < m; column += F2I_CHUNK) {
    const int count = (int)(m - column < F2I_CHUNK ? m - column : F2I_CHUNK);
    split(latent, row, column, count, &parts, bf16);
    for (int matrix = 0; matrix < 2; ++matrix) {
      float *re = parts.re[matrix], *im = parts.im[matrix];
      for (int64_t t = 0; t < stage; ++t) subtract(re, im, count, scales + 4 * t + 2 * matrix, bf16);
      int32_t found = 0;
      for (int i = 0; i < count; ++i) {
        const int32_t imag = code_of(re[i], im[i]) & 1;
        on_re[i] = float_of(bits_of(re[i]) & 0x7FFFFFFFu & (uint32_t)(imag - 1));
        on_im[i] = float_of(bits_of(im[i]) & 0x7FFFFFFFu & (uint32_t)-imag);
        found += imag;
      }
      imaginary[matrix] += found;
      add_to_lanes(lanes[matrix][0], on_re, count);
      add_to_lanes(lanes[matrix][1], on_im, count);
    }
  }
  for (int matrix = 0; matrix < 2; ++matrix) {
    sums[2 * matrix] = total(lanes[matrix][0]);
    sums[2 * matrix + 1] = total(lanes[matrix][1]);
    counts[2 * matrix] = m - imaginary[matrix];
    counts[2 * matrix + 1] = imaginary[matrix];
  }
}

static void row_sums(const f2i_latent *latent, const float *scales, int64_t stage, int64_t begin, int64_t end,
                     double *sums, int64_t *counts) {
  for (int64_t row = begin; row < end; ++row, sums += 4, counts += 4) {
    if (latent->profile == F2I_PROFILE_BF16) {
      row_sums_of(latent, scales, stage, row, sums, counts, 1);
    } else {
      row_sums_of(latent, scales, stage, row, sums, counts, 0);
    }
  }
}

/* errors[0..1] += |A - Q|^2 and |A|^2 of one real row: left and right are the row's halves of Q without multiplier */
F2I_CHUNKWISE void add_errors(const f2i_latent *latent, int64_t row, int64_t column, int count, const float *left,
                              const float *right, double lanes[2][F2I_LANES]) {
  const float factor = latent->row_divisor == NULL ? 1.0f : latent->row_divisor[row];
  float a[F2I_CHUNK], rest[F2I_CHUNK];
  for (int half = 0; half < 2; ++half) {
    const float *q = half == 0 ? left : right;
    const int64_t first = column + half * latent->k / 2;
    load_raw(latent, row, first, count, a);
    if (latent->col_divisor == NULL) {
      for (int i = 0; i < count; ++i) rest[i] = a[i] - q[i] * factor;
    } else {
      for (int i = 0; i < count; ++i) rest[i] = a[i] - q[i] * factor * latent->col_divisor[first + i];
    }
    add_squares_to_lanes(lanes[0], rest, count);
    add_squares_to_lanes(lanes[1], a, count);
  }
}

/* Combinations of a chunk of U or W, which is used up. points: of it, or NULL for the greedy quantizer */
F2I_INLINE void combinations(const f2i_points *points, const float *scales, int64_t stages, float *re, float *im,
                             int count, int32_t *found, int bf16) {
  if (points != NULL) {
    nearest_combinations(points, re, im, count, re, im, found);
  } else {
    greedy_combinations(scales, stages, re, im, count, found, bf16);
  }
}

/* The points of U and W, made in `tables`, or NULL for the greedy quantizer. */
static const f2i_points *points_of(const f2i_latent *latent, const float *scales, f2i_points tables[2]) {
  if (latent->quantizer != F2I_JOINT) return NULL;
  for (int matrix = 0; matrix < 2; ++matrix) f2i_points_fill(tables + matrix, scales + 2 * matrix, 4, latent->stages);
  return tables;
}

/* points: what points_of returns */
F2I_INLINE void row_codes_of(const f2i_latent *latent, const f2i_points *points, const float *scales, int64_t row,
                             int64_t plane, uint8_t *codes, double *errors, int bf16) {
  const int64_t n = latent->n / 2, m = latent->k / 2;
  double lanes[2][2][F2I_LANES] = {{{0}}}; /* [upper, lower real row][error, norm] */
  f2i_parts parts, q;
  float left[F2I_CHUNK], right[F2I_CHUNK];
  int32_t found[F2I_CHUNK];
  for (int64_t column = 0; column < m; column += F2I_CHUNK) {
    const int count = (int)(m - column < F2I_CHUNK ? m - column : F2I_CHUNK);
    split(latent, row, column, count, &parts, bf16);
    for (int matrix = 0; matrix < 2; ++matrix) {
      const float *scale = scales + 2 * matrix;
      combinations(points == NULL ? NULL : points + matrix, scale, latent->stages, parts.re[matrix], parts.im[matrix],
                   count, found, bf16);
      store_codes(found, latent->stages, count, codes + matrix * plane + column, 2 * plane);
      add_stages(found, latent->stages, scale, 4, count, q.re[matrix], q.im[matrix], 0);
    }
    if (errors == NULL) continue;
    for (int i = 0; i < count; ++i) {
      left[i] = q.re[1][i] + q.re[0][i];
      right[i] = q.im[1][i] - q.im[0][i];
    }
    add_errors(latent, row, column, count, left, right, lanes[0]);
    for (int i = 0; i < count; ++i) {
      left[i] = q.im[1][i] + q.im[0][i];
      right[i] = q.re[0][i] - q.re[1][i];
    }
    add_errors(latent, row + n, column, count, left, right, lanes[1]);
  }
  if (errors == NULL) return;
  errors[0] = total(lanes[0][0]) + total(lanes[1][0]);
  errors[1] = total(lanes[0][1]) + total(lanes[1][1]);
}

static void row_codes(const f2i_latent *latent, const float *scales, int64_t begin, int64_t end, uint8_t *codes,
                      double *errors) {
  const int64_t m = latent->k / 2, plane = (end - begin) * m;
  f2i_points tables[2];
  const f2i_points *points = points_of(latent, scales, tables);
  for (int64_t row = begin; row < end; ++row, codes += m) {
    if (latent->profile == F2I_PROFILE_BF16) {
      row_codes_of(latent, points, scales, row, plane, codes, errors, 1);
    } else {
      row_codes_of(latent, points, scales, row, plane, codes, errors, 0);
    }
    if (errors != NULL) errors += 2;
  }
}

static void row_parts(const f2i_latent *latent, int64_t begin, int64_t end, float *out) {
  const int64_t m = latent->k / 2, plane = (end - begin) * m;
  f2i_parts parts;
  for (int64_t row = begin; row < end; ++row, out += m) {
    for (int64_t column = 0; column < m; column += F2I_CHUNK) {
      const int count = (int)(m - column < F2I_CHUNK ? m - column : F2I_CHUNK);
      split(latent, row, column, count, &parts, latent->profile == F2I_PROFILE_BF16);
      for (int matrix = 0; matrix < 2; ++matrix) {
        memcpy(out + 2 * matrix * plane + column, parts.re[matrix], (size_t)count * sizeof(float));
        memcpy(out + (2 * matrix + 1) * plane + column, parts.im[matrix], (size_t)count * sizeof(float));
      }
    }
  }
}

/* Real row `row` of the dequantized matrix, columns [column, column + count) of both halves; multipliers are what the
 * latent weights were divided by. */
F2I_CHUNKWISE void store(const f2i_latent *latent, int64_t row, int64_t column, int count, float *left, float *right,
                         void *out, int64_t dtype) {
  const int64_t m = latent->k / 2;
  if (latent->row_divisor != NULL) {
    const float factor = latent->row_divisor[row];
    for (int i = 0; i < count; ++i) left[i] *= factor;
    for (int i = 0; i < count; ++i) right[i] *= factor;
  }
  if (latent->col_divisor != NULL) {
    const float *factors = latent->col_divisor + column;
    for (int i = 0; i < count; ++i) left[i] *= factors[i];
    for (int i = 0; i < count; ++i) right[i] *= factors[m + i];
  }
  for (int half = 0; half < 2; ++half) {
    const float *values = half == 0 ? left : right;
    const size_t first = (size_t)row * (size_t)latent->k + (size_t)(column + half * m);
    if (dtype == F2I_FLOAT32) {
      memcpy((char *)out + 4 * first, values, 4 * (size_t)count);
      continue;
    }
    uint16_t halves[F2I_CHUNK];
    for (int i = 0; i < count; ++i) halves[i] = (uint16_t)(bits_of(rounded(values[i], 1)) >> 16);
    memcpy((char *)out + 2 * first, halves, 2 * (size_t)count);
  }
}

/* points: what points_of returns */
F2I_INLINE void row_dequantized_of(const f2i_latent *latent, const f2i_points *points, const float *scales, int64_t row,
                                   void *out, int64_t dtype, int bf16) {
  const int64_t n = latent->n / 2, m = latent->k / 2;
  f2i_parts parts, q;
  int32_t found[F2I_CHUNK];
  float left[F2I_CHUNK], right[F2I_CHUNK];
  for (int64_t column = 0; column < m; column += F2I_CHUNK) {
    const int count = (int)(m - column < F2I_CHUNK ? m - column : F2I_CHUNK);
    split(latent, row, column, count, &parts, bf16);
    for (int matrix = 0; matrix < 2; ++matrix) {
      const float *scale = scales + 2 * matrix;
      combinations(points == NULL ? NULL : points + matrix, scale, latent->stages, parts.re[matrix], parts.im[matrix],
                   count, found, bf16);
      add_stages(found, latent->stages, scale, 4, count, q.re[matrix], q.im[matrix], bf16);
    }
    for (int i = 0; i < count; ++i) {
      left[i] = rounded(q.re[1][i] + q.re[0][i], bf16);
      right[i] = rounded(q.im[1][i] - q.im[0][i], bf16);
    }
    store(latent, row, column, count, left, right, out, dtype);
    for (int i = 0; i < count; ++i) {
      left[i] = rounded(q.im[1][i] + q.im[0][i], bf16);
      right[i] = rounded(q.re[0][i] - q.re[1][i], bf16);
    }
    store(latent, row + n, column, count, left, right, out, dtype);
  }
}

static void row_dequantized(const f2i_latent *latent, const float *scales, int64_t begin, int64_t end, void *out,
                            int64_t dtype) {
  f2i_points tables[2];
  const f2i_points *points = points_of(latent, scales, tables);
  for (int64_t row = begin; row < end; ++row) {
    if (latent->profile == F2I_PROFILE_BF16) {
      row_dequantized_of(latent, points, scales, row, out, dtype, 1);
    } else {
      row_dequantized_of(latent, points, scales, row, out, dtype, 0);
    }
  }
}

const f2i_quantizer F2I_QUANTIZER = {row_squares,  row_sums,        row_codes, row_parts, nearest,
                                     nearest_sums, row_dequantized, feed_back, anneal};
