/* lookup_scalar.c - portable kernels: the reference that every other ISA must equal, and the fallback. */
#include <math.h>
#include <string.h>

#include "kernels/column_terms.h"
#include "kernels/kernels.h"
#include "kernels/whole_pairs.h"

f2i_build_fn f2i_build_lut__scalar;
f2i_block_fn f2i_block_lut__scalar;
f2i_build_fn f2i_build_exact__scalar;
f2i_block_fn f2i_block_exact__scalar;

/* The 16 sums of a pair of columns, real and imaginary output. */
static void pair_sums(const float *re, const float *im, const float scale[2], int matrix, float sum_re[16],
                      float sum_im[16]) {
  const f2i_terms first = f2i_column_terms(re[0], im[0], scale, matrix);
  const f2i_terms second = f2i_column_terms(re[1], im[1], scale, matrix);
  for (int i = 0; i < 16; ++i) {
    sum_re[i] = first.re[i & 3] + second.re[i >> 2];
    sum_im[i] = first.im[i & 3] + second.im[i >> 2];
  }
}

static int all_finite(const float *re, const float *im) {
  for (int j = 0; j < F2I_BLOCK_COLS; ++j) {
    if (!isfinite(re[j]) || !isfinite(im[j])) return 0;
  }
  return 1;
}

/* Calls visit for the 16 entries of every table of the block, in storage order. */
typedef void (*visit_fn)(void *state, size_t offset, const float sum[16]);

static void for_each_table(const float *re, const float *im, const float *scales, int stages, visit_fn visit,
                           void *state) {
  for (int plane = 0; plane < stages; ++plane) {
    for (int column = 0; column < F2I_BLOCK_COLS; column += 2) {
      const size_t cell = (size_t)column / F2I_CELL_COLS, byte_column = (size_t)column % F2I_CELL_COLS / 2;
      for (int nibble = 0; nibble < 2; ++nibble) {
        const uint8_t *place = f2i_byte_planes[stages - 1][plane][nibble];
        float sum_re[16], sum_im[16];
        pair_sums(re + column, im + column, scales + (place[0] * 2 + place[1]) * 2, place[1], sum_re, sum_im);
        const size_t base = (size_t)plane * F2I_PLANE_ENTRIES + cell * F2I_CELL_ENTRIES + byte_column * 16;
        visit(state, base + (size_t)(2 * nibble) * 32, sum_re);
        visit(state, base + (size_t)(2 * nibble + 1) * 32, sum_im);
      }
    }
  }
}

/* --- lut: int8 entries, stored with 128 added --- */

typedef struct lut_state {
  uint8_t *tables;
  float largest, inverse;
} lut_state;

static void find_largest(void *state, size_t offset, const float sum[16]) {
  lut_state *s = state;
  (void)offset;
  for (int i = 0; i < 16; ++i) s->largest = fmaxf(s->largest, fabsf(sum[i]));
}

static void store_bytes(void *state, size_t offset, const float sum[16]) {
  const lut_state *s = state;
  for (int i = 0; i < 16; ++i) s->tables[offset + (size_t)i] = (uint8_t)((int)rintf(sum[i] * s->inverse) + 128);
}

float f2i_build_lut__scalar(const float *re, const float *im, const float *scales, int stages, void *tables) {
  if (scales == NULL) return f2i_build_whole_pairs(re, im, tables);
  lut_state state = {tables, 0.0f, 0.0f};
  if (all_finite(re, im)) for_each_table(re, im, scales, stages, find_largest, &state);
  else state.largest = INFINITY;
  const float unit = f2i_lut_unit(state.largest, &state.inverse);
  if (state.inverse == 0.0f) memset(tables, 128, (size_t)stages * F2I_PLANE_ENTRIES);
  else for_each_table(re, im, scales, stages, store_bytes, &state);
  return unit;
}

/* The byte of one row: byte column 0 to 15 of a byte plane. */
static inline uint8_t byte_at(const uint8_t *plane, size_t byte_column, size_t row) {
  return plane[byte_column / 2 * F2I_CELL_BYTES + row / F2I_HALF_ROWS * 32 + byte_column % 2 * 16 +
               row % F2I_HALF_ROWS];
}

/* The tables of a byte column: at +0 low re, +32 low im, +64 high re, +96 high im. */
static inline size_t table_of(size_t byte_column) { return byte_column / 2 * F2I_CELL_ENTRIES + byte_column % 2 * 16; }

static void lut_row(const f2i_block *b, size_t row) {
  const size_t planes = (size_t)b->stages;
  const int32_t bias = 128 * 2 * 2 * F2I_BLOCK_CELLS * b->stages; /* 128 for each look-up */
  const uint8_t *tables = b->operands + row * b->operand_stride, *packed = b->packed;
  const float unit = b->units[row * b->unit_stride];
  float *acc = b->acc + row * b->acc_stride;
  for (size_t tile = 0; tile < b->tiles; ++tile, packed += planes * F2I_PLANE_BYTES, acc += F2I_ACC_PER_TILE) {
    for (size_t i = 0; i < F2I_TILE_ROWS; ++i) {
      int32_t sum_re = -bias, sum_im = -bias;
      for (size_t plane = 0; plane < planes; ++plane) {
        for (size_t column = 0; column < 2 * F2I_BLOCK_CELLS; ++column) {
          const uint8_t byte = byte_at(packed + plane * F2I_PLANE_BYTES, column, i);
          const uint8_t *table = tables + plane * F2I_PLANE_ENTRIES + table_of(column);
          sum_re += table[byte & 15] + table[64 + (byte >> 4)];
          sum_im += table[32 + (byte & 15)] + table[96 + (byte >> 4)];
        }
      }
      acc[i] += unit * (float)sum_re;
      acc[F2I_TILE_ROWS + i] += unit * (float)sum_im;
    }
  }
}

void f2i_block_lut__scalar(const f2i_block *b) {
  for (size_t row = 0; row < b->rows; ++row) lut_row(b, row);
}

/* --- exact: float entries --- */

static void store_floats(void *state, size_t offset, const float sum[16]) {
  memcpy((float *)state + offset, sum, 16 * sizeof(float));
}

float f2i_build_exact__scalar(const float *re, const float *im, const float *scales, int stages, void *tables) {
  if (!all_finite(re, im)) {
    memset(tables, 0, (size_t)stages * F2I_PLANE_ENTRIES * sizeof(float));
    return NAN;
  }
  for_each_table(re, im, scales, stages, store_floats, tables);
  return 1.0f;
}

static void exact_row(const f2i_block *b, size_t row) {
  const size_t planes = (size_t)b->stages;
  const float *tables = (const float *)(const void *)(b->operands + row * b->operand_stride);
  const uint8_t *packed = b->packed;
  const float unit = b->units[row * b->unit_stride];
  float *acc = b->acc + row * b->acc_stride;
  for (size_t tile = 0; tile < b->tiles; ++tile, packed += planes * F2I_PLANE_BYTES, acc += F2I_ACC_PER_TILE) {
    for (size_t i = 0; i < F2I_TILE_ROWS; ++i) {
      float sum_re = 0.0f, sum_im = 0.0f;
      for (size_t plane = 0; plane < planes; ++plane) {
        for (size_t column = 0; column < 2 * F2I_BLOCK_CELLS; ++column) {
          const uint8_t byte = byte_at(packed + plane * F2I_PLANE_BYTES, column, i);
          const float *table = tables + plane * F2I_PLANE_ENTRIES + table_of(column);
          sum_re += table[byte & 15] + table[64 + (byte >> 4)];
          sum_im += table[32 + (byte & 15)] + table[96 + (byte >> 4)];
        }
      }
      acc[i] += unit * sum_re;
      acc[F2I_TILE_ROWS + i] += unit * sum_im;
    }
  }
}

void f2i_block_exact__scalar(const f2i_block *b) {
  for (size_t row = 0; row < b->rows; ++row) exact_row(b, row);
}
