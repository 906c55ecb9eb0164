/* quantize_rows.h - the quantizer, one complex row at a time: split into U and W, codes, residuals, sums.
 *
 * Included by one file per ISA, which defines F2I_QUANTIZER. Plain C that compilers vectorize: every loop runs over a
 * chunk of columns that stays in the first-level cache, and sums are kept in F2I_LANES lanes that are added in a fixed
 * order, so that every ISA gives the same bits.
 *
 * Nothing of a stage is stored between calls: the residual of stage t is computed again from the latent weights and the
 * scales of the stages before it. That costs little arithmetic and no memory.
 */
#include <stdint.h>
#include <string.h>

#include "f2i_layout.h"
#include "half.h"
#include "points.h"
#include "quantize.h"

#if defined(__GNUC__)
#define F2I_INLINE static inline __attribute__((always_inline))
#else
#define F2I_INLINE static inline
#endif

enum { F2I_CHUNK = 512, F2I_LANES = 16 };

/* One chunk of a complex row: the parts of U and W, or of what earlier stages left of them. */
typedef struct f2i_parts {
  float re[2][F2I_CHUNK], im[2][F2I_CHUNK]; /* [U, W] */
} f2i_parts;

F2I_INLINE uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

F2I_INLINE float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

/* Round to the nearest bfloat16, ties to even, where the profile says so. */
F2I_INLINE float rounded(float value, int bf16) {
  if (!bf16) return value;
  const uint32_t bits = bits_of(value);
  return float_of((bits + 0x7FFFu + (bits >> 16 & 1u)) & 0xFFFF0000u);
}

/* Columns [column, column + count) of real row `row` in float32, as stored. */
F2I_INLINE void load_raw(const f2i_latent *latent, int64_t row, int64_t column, int count, float *out) {
  const size_t first = (size_t)row * (size_t)latent->k + (size_t)column;
  if (latent->dtype == F2I_FLOAT32) {
    memcpy(out, (const char *)latent->data + 4 * first, 4 * (size_t)count);
    return;
  }
  const char *from = (const char *)latent->data + 2 * first;
  if (latent->dtype == F2I_BFLOAT16) {
    for (int i = 0; i < count; ++i) {
      uint16_t half;
      memcpy(&half, from + 2 * i, sizeof half);
      out[i] = float_of((uint32_t)half << 16);
    }
  } else {
    for (int i = 0; i < count; ++i) {
      uint16_t half;
      memcpy(&half, from + 2 * i, sizeof half);
      out[i] = f2i_half_to_float(half);
    }
  }
}

/* The same as the quantizer sees them: rounded, divided by the row's divisor and by the columns', each rounded. */
F2I_INLINE void load(const f2i_latent *latent, int64_t row, int64_t column, int count, float *out, int bf16) {
  load_raw(latent, row, column, count, out);
  if (bf16 && latent->dtype != F2I_BFLOAT16) {
    for (int i = 0; i < count; ++i) out[i] = rounded(out[i], 1);
  }
  if (latent->row_divisor != NULL) {
    const float divisor = latent->row_divisor[row];
    for (int i = 0; i < count; ++i) out[i] = rounded(out[i] / divisor, bf16);
  }
  if (latent->col_divisor != NULL) {
    const float *divisors = latent->col_divisor + column;
    for (int i = 0; i < count; ++i) out[i] = rounded(out[i] / divisors[i], bf16);
  }
}

/* U and W of columns [column, column + count) of a complex row (method paper, section 3.1). */
F2I_INLINE void split(const f2i_latent *latent, int64_t row, int64_t column, int count, f2i_parts *parts, int bf16) {
  const int64_t n = latent->n / 2, m = latent->k / 2;
  float a11[F2I_CHUNK], a12[F2I_CHUNK], a21[F2I_CHUNK], a22[F2I_CHUNK];
  load(latent, row, column, count, a11, bf16);
  load(latent, row, column + m, count, a12, bf16);
  load(latent, row + n, column, count, a21, bf16);
  load(latent, row + n, column + m, count, a22, bf16);
  for (int i = 0; i < count; ++i) {
    parts->re[0][i] = rounded(0.5f * rounded(a11[i] + a22[i], bf16), bf16);
    parts->im[0][i] = rounded(0.5f * rounded(a21[i] - a12[i], bf16), bf16);
    parts->re[1][i] = rounded(0.5f * rounded(a11[i] - a22[i], bf16), bf16);
    parts->im[1][i] = rounded(0.5f * rounded(a12[i] + a21[i], bf16), bf16);
  }
}

/* The nearest axis direction of re + i im as code k, which stands for i^k. Sectors are those of the reference,
 * [-pi/4, pi/4) -> 1 and so on counter-clockwise, decided by magnitudes instead of angles: on a border equal signs go
 * to the imaginary axis, opposite signs to the real one. Zero becomes 1, or -1 when both parts are negative zeros. */
F2I_INLINE int32_t code_of(float re, float im) {
  const uint32_t re_bits = bits_of(re), im_bits = bits_of(im);
  const int32_t abs_re = (int32_t)(re_bits & 0x7FFFFFFFu), abs_im = (int32_t)(im_bits & 0x7FFFFFFFu);
  const int32_t neg_re = (int32_t)(re_bits >> 31), neg_im = (int32_t)(im_bits >> 31);
  /* magnitudes are compared as integers; opposite signs (neg_re ^ neg_im) turn "at most" into "less" */
  const int32_t imag = abs_re <= abs_im - (neg_re ^ neg_im);
  const int32_t code = 2 * (imag ? neg_im : neg_re) + imag;
  return (abs_re | abs_im) == 0 ? 2 * (neg_re & neg_im) : code;
}

/* What a code stands for on the real and on the imaginary axis: the scale with the code's sign, or 0. Masks instead of
 * conditions, which not every compiler vectorizes. */
F2I_INLINE float real_part(uint32_t scale_bits, int32_t code) {
  return float_of((scale_bits ^ (uint32_t)(code & 2) << 30) & ((uint32_t)(code & 1) - 1u));
}

F2I_INLINE float imag_part(uint32_t scale_bits, int32_t code) {
  return float_of((scale_bits ^ (uint32_t)(code & 2) << 30) & (0u - (uint32_t)(code & 1)));
}

/* Subtract one stage from U or W. */
F2I_INLINE void subtract(float *re, float *im, int count, const float *scale, int bf16) {
  const uint32_t scale_re = bits_of(scale[0]), scale_im = bits_of(scale[1]);
  for (int i = 0; i < count; ++i) {
    const float x = re[i], y = im[i];
    const int32_t code = code_of(x, y);
    re[i] = rounded(x - real_part(scale_re, code), bf16);
    im[i] = rounded(y - imag_part(scale_im, code), bf16);
  }
}

F2I_INLINE double total(const double *lanes) {
  double sum = 0;
  for (int i = 0; i < F2I_LANES; ++i) sum += lanes[i];
  return sum;
}

/* lanes += x, count values; x has room for whole groups of lanes */
F2I_INLINE void add_to_lanes(double *lanes, float *x, int count) {
  const int whole = (count + F2I_LANES - 1) / F2I_LANES * F2I_LANES;
  for (int i = count; i < whole; ++i) x[i] = 0;
  for (int i = 0; i < whole; i += F2I_LANES) {
    for (int j = 0; j < F2I_LANES; ++j) lanes[j] += (double)x[i + j];
  }
}

/* lanes += x^2 */
F2I_INLINE void add_squares_to_lanes(double *lanes, float *x, int count) {
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
F2I_INLINE void add_errors(const f2i_latent *latent, int64_t row, int64_t column, int count, const float *left,
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

/* An entry's codes of all stages make a combination: 2 bits each, stage 1 in the highest. */
F2I_INLINE int32_t code_in(int32_t combination, int64_t stages, int64_t stage) {
  return combination >> (2 * (stages - 1 - stage)) & 3;
}

/* Codes [stages][stride] of one chunk. */
F2I_INLINE void store_codes(const int32_t *found, int64_t stages, int count, uint8_t *codes, int64_t stride) {
  for (int64_t t = 0; t < stages; ++t) {
    for (int i = 0; i < count; ++i) codes[t * stride + i] = (uint8_t)code_in(found[i], stages, t);
  }
}

/* What combinations stand for, stages added in their order. scales: of stage t at scales + t * stride, (re, im) */
F2I_INLINE void add_stages(const int32_t *found, int64_t stages, const float *scales, int64_t stride, int count,
                           float *q_re, float *q_im, int bf16) {
  for (int i = 0; i < count; ++i) q_re[i] = q_im[i] = 0;
  for (int64_t t = 0; t < stages; ++t) {
    const uint32_t scale_re = bits_of(scales[t * stride]), scale_im = bits_of(scales[t * stride + 1]);
    for (int i = 0; i < count; ++i) {
      const int32_t code = code_in(found[i], stages, t);
      q_re[i] = rounded(q_re[i] + real_part(scale_re, code), bf16);
      q_im[i] = rounded(q_im[i] + imag_part(scale_im, code), bf16);
    }
  }
}

#include "quantize_joint.h"

/* The greedy quantizer's combinations, one stage after the other; re and im become what all stages leave. */
F2I_INLINE void greedy_combinations(const float *scales, int64_t stages, float *re, float *im, int count,
                                    int32_t *found, int bf16) {
  for (int i = 0; i < count; ++i) found[i] = 0;
  for (int64_t t = 0; t < stages; ++t) {
    for (int i = 0; i < count; ++i) found[i] = found[i] << 2 | code_of(re[i], im[i]);
    subtract(re, im, count, scales + 4 * t, bf16);
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
F2I_INLINE void store(const f2i_latent *latent, int64_t row, int64_t column, int count, float *left, float *right,
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

const f2i_quantizer F2I_QUANTIZER = {row_squares, row_sums,     row_codes,      row_parts,
                                     nearest,     nearest_sums, row_dequantized};
