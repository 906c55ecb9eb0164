/* flags: -mavx512f -mavx512bw -mavx512vl -mavx512dq */
/* lut_avx512_panel.c - "lut" for 32 rows of x at once.
 *
 * A shuffle looks up many weights in the table of one row of x. Here a vector holds one table entry of all 32 rows,
 * real and imaginary output: looking up four binary weights is loading the vector that their index names, and the port
 * that shuffles run on is left to the additions. These are the carry-save additions of lut_avx512.c.
 */
#include <immintrin.h>

#include "kernels/column_terms.h"
#include "kernels/kernels.h"
#include "kernels/whole_pairs.h"
#include "kernels/x86/avx512/block.h"
#include "kernels/x86/avx512/lut/byte_sums.h"

extern const f2i_panel_kernel f2i_panel_lut__avx512;

enum {
  ROWS = 32,
  HALF = ROWS / 2,
  ENTRY_BYTES = 64, /* [four rows of a half][half][real, imaginary][row], so that packing vectors makes it */
  TABLE_BYTES = 16 * ENTRY_BYTES,
  CELL_TABLES = 4, /* [byte column][low, high nibble] */
  PLANE_TABLES = F2I_BLOCK_CELLS * CELL_TABLES,
};

/* Sums of one row of the matrix. A 32-bit lane of bytes belongs to four neighbouring rows of x: widened to a lane of
 * floats, value[i] holds the rows 4 j + i of either half. */
typedef struct row_sums {
  __m512 value[4];
} row_sums;

/* A value of each row of x, HALF of them in a vector. */
typedef struct lanes {
  __m512 half[2];
} lanes;

/* The activations of a block, transposed. */
typedef struct columns {
  lanes re[F2I_BLOCK_COLS], im[F2I_BLOCK_COLS];
} columns;

/* Four columns of HALF rows. x: [rows][F2I_BLOCK_COLS] */
static inline void transpose(const float *x, int half, lanes out[4]) {
  __m512 v[4]; /* 128-bit lane i of v[j]: four columns of row 4 i + j */
  for (int j = 0; j < 4; ++j) {
    const float *row = x + j * F2I_BLOCK_COLS;
    v[j] = _mm512_castps128_ps512(_mm_loadu_ps(row));
    v[j] = _mm512_insertf32x4(v[j], _mm_loadu_ps(row + 4 * F2I_BLOCK_COLS), 1);
    v[j] = _mm512_insertf32x4(v[j], _mm_loadu_ps(row + 8 * F2I_BLOCK_COLS), 2);
    v[j] = _mm512_insertf32x4(v[j], _mm_loadu_ps(row + 12 * F2I_BLOCK_COLS), 3);
  }
  const __m512 low01 = _mm512_unpacklo_ps(v[0], v[1]), low23 = _mm512_unpacklo_ps(v[2], v[3]);
  const __m512 high01 = _mm512_unpackhi_ps(v[0], v[1]), high23 = _mm512_unpackhi_ps(v[2], v[3]);
  out[0].half[half] = _mm512_shuffle_ps(low01, low23, 0x44);
  out[1].half[half] = _mm512_shuffle_ps(low01, low23, 0xEE);
  out[2].half[half] = _mm512_shuffle_ps(high01, high23, 0x44);
  out[3].half[half] = _mm512_shuffle_ps(high01, high23, 0xEE);
}

static inline __m512 larger_term(__m512 re, __m512 im, const float *scale) {
  return _mm512_max_ps(_mm512_mul_ps(_mm512_set1_ps(fabsf(scale[0])), re),
                       _mm512_mul_ps(_mm512_set1_ps(fabsf(scale[1])), im));
}

/* What find_largest of lut_avx2.c finds, for HALF rows: infinity where an activation is not finite. */
static __m512 find_largest(const columns *x, int half, const float *scales, int stages) {
  const __m512 most = _mm512_set1_ps(FLT_MAX);
  __m512 largest = _mm512_setzero_ps();
  __mmask16 finite = 0xFFFF;
  for (int j = 0; j < F2I_BLOCK_COLS; j += 2) {
    __m512 re[2], im[2];
    for (int i = 0; i < 2; ++i) {
      re[i] = _mm512_abs_ps(x->re[j + i].half[half]);
      im[i] = _mm512_abs_ps(x->im[j + i].half[half]);
      finite &= _mm512_cmp_ps_mask(re[i], most, _CMP_LE_OQ) & _mm512_cmp_ps_mask(im[i], most, _CMP_LE_OQ);
    }
    for (const float *scale = scales; scale < scales + 4 * stages; scale += 2) {
      const __m512 real = _mm512_add_ps(larger_term(re[0], im[0], scale), larger_term(re[1], im[1], scale));
      const __m512 imaginary = _mm512_add_ps(larger_term(im[0], re[0], scale), larger_term(im[1], re[1], scale));
      largest = _mm512_max_ps(largest, _mm512_max_ps(real, imaginary));
    }
  }
  return _mm512_mask_blend_ps(finite, _mm512_set1_ps(INFINITY), largest);
}

static inline lanes scaled(float scale, const lanes *x) {
  const __m512 factor = _mm512_set1_ps(scale);
  const lanes out = {{_mm512_mul_ps(factor, x->half[0]), _mm512_mul_ps(factor, x->half[1])}};
  return out;
}

static inline lanes sum(lanes a, lanes b) {
  const lanes out = {{_mm512_add_ps(a.half[0], b.half[0]), _mm512_add_ps(a.half[1], b.half[1])}};
  return out;
}

static inline lanes difference(lanes a, lanes b) {
  const lanes out = {{_mm512_sub_ps(a.half[0], b.half[0]), _mm512_sub_ps(a.half[1], b.half[1])}};
  return out;
}

static inline lanes negative(lanes x) {
  const __m512 sign = _mm512_set1_ps(-0.0f);
  const lanes out = {{_mm512_xor_ps(x.half[0], sign), _mm512_xor_ps(x.half[1], sign)}};
  return out;
}

static inline __m512i rounded(lanes values, const lanes *inverse, int half) {
  return _mm512_cvtps_epi32(_mm512_mul_ps(values.half[half], inverse->half[half]));
}

/* Stores an entry, and the one of the opposite codes, its negative. */
static inline void store_entry(uint8_t *table, int index, lanes real, lanes imaginary, const lanes *inverse) {
  const __m512i first = _mm512_packs_epi32(rounded(real, inverse, 0), rounded(imaginary, inverse, 0));
  const __m512i second = _mm512_packs_epi32(rounded(real, inverse, 1), rounded(imaginary, inverse, 1));
  const __m512i bytes = _mm512_packs_epi16(first, second), plus128 = _mm512_set1_epi8((char)0x80);
  _mm512_store_si512(table + index * ENTRY_BYTES, _mm512_add_epi8(plus128, bytes));
  _mm512_store_si512(table + (15 - index) * ENTRY_BYTES, _mm512_sub_epi8(plus128, bytes));
}

#include "kernels/x86/lut_panel_table.h"

/* The table of whole_pairs.h of columns j and j + 1. */
static inline void store_whole_pair(const lanes *x, uint8_t *table) {
  __m512i entries[2][4]; /* [half][signs of the two numbers] */
  for (int half = 0; half < 2; ++half) {
    const __m512i first = _mm512_cvtps_epi32(x[0].half[half]), second = _mm512_cvtps_epi32(x[1].half[half]);
    const __m512i both = _mm512_add_epi32(first, second);
    entries[half][0] = _mm512_srai_epi32(both, 1);
    entries[half][1] = _mm512_srai_epi32(_mm512_sub_epi32(second, first), 1);
    entries[half][2] = _mm512_srai_epi32(_mm512_sub_epi32(first, second), 1);
    entries[half][3] = _mm512_srai_epi32(_mm512_sub_epi32(_mm512_setzero_si512(), both), 1);
  }
  for (int i = 0; i < 16; ++i) {
    const int real = f2i_whole_signs(i), imaginary = f2i_whole_signs(i >> 1);
    const __m512i first = _mm512_packs_epi32(entries[0][real], entries[0][imaginary]);
    const __m512i second = _mm512_packs_epi32(entries[1][real], entries[1][imaginary]);
    const __m512i bytes = _mm512_packs_epi16(first, second);
    _mm512_store_si512(table + i * ENTRY_BYTES, _mm512_add_epi8(bytes, _mm512_set1_epi8((char)0x80)));
  }
}

/* What f2i_build_whole_pairs does, for all rows. */
static void build_whole_pairs(const float *low, const float *high, uint8_t *table, float *units) {
  columns x;
  for (int half = 0; half < 2; ++half, low += HALF * F2I_BLOCK_COLS, high += HALF * F2I_BLOCK_COLS) {
    for (int j = 0; j < F2I_BLOCK_COLS; j += 4) {
      transpose(low + j, half, x.re + j);
      transpose(high + j, half, x.im + j);
    }
  }
  for (int j = 0; j < F2I_BLOCK_COLS; j += 2, table += 2 * TABLE_BYTES) {
    store_whole_pair(x.re + j, table);
    store_whole_pair(x.im + j, table + TABLE_BYTES);
  }
  for (int i = 0; i < ROWS; ++i) units[i] = 1.0f;
}

static void build(const float *re, const float *im, size_t rows, const float *scales, int stages, void *operands,
                  float *units) {
  (void)rows;
  columns x;
  lanes inverse;
  if (scales == NULL) {
    build_whole_pairs(re, im, operands, units);
    return;
  }
  for (int half = 0; half < 2; ++half, re += HALF * F2I_BLOCK_COLS, im += HALF * F2I_BLOCK_COLS) {
    for (int j = 0; j < F2I_BLOCK_COLS; j += 4) {
      transpose(re + j, half, x.re + j);
      transpose(im + j, half, x.im + j);
    }
    float largest[HALF], per_value[HALF];
    _mm512_storeu_ps(largest, find_largest(&x, half, scales, stages));
    for (int i = 0; i < HALF; ++i) units[half * HALF + i] = f2i_lut_unit(largest[i], &per_value[i]);
    inverse.half[half] = _mm512_loadu_ps(per_value);
  }
  uint8_t *table = operands;
  for (int plane = 0; plane < stages; ++plane) {
    for (int j = 0; j < F2I_BLOCK_COLS; j += 2) {
      for (int nibble = 0; nibble < 2; ++nibble, table += TABLE_BYTES) {
        const uint8_t *place = f2i_byte_planes[stages - 1][plane][nibble]; /* stage and matrix */
        store_table(&x, j, scales + 4 * place[0] + 2 * place[1], place[1], &inverse, table);
      }
    }
  }
}

/* Offsets of table entries for a byte plane of a tile. out: [cell][row half][low, high nibble][byte column][16 rows] */
static inline void index_plane(const uint8_t *packed, uint16_t *out) {
  const __m512i low4 = _mm512_set1_epi16(0x0F), high4 = _mm512_set1_epi16(0xF0);
  for (int half = 0; half < 2 * F2I_BLOCK_CELLS; ++half, packed += F2I_CELL_BYTES / 2, out += F2I_CELL_BYTES) {
    const __m512i bytes = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)packed));
    _mm512_store_si512(out, _mm512_slli_epi16(_mm512_and_si512(bytes, low4), 6));
    _mm512_store_si512(out + 32, _mm512_slli_epi16(_mm512_and_si512(bytes, high4), 2));
  }
}

/* Everything added while a block lasts: ones + 2 twos + 4 fours + 8 (the widened eights), bytes. `all` adds even + 256
 * * odd bytes of the eights in 16-bit lanes, `odd` the odd bytes alone. */
typedef struct deep_sums {
  __m512i ones, twos, fours, all, odd;
} deep_sums;

static inline __m512i twice(__m512i v) { return _mm512_slli_epi16(v, 1); }

static inline void flush(const deep_sums *s, const __m512 unit[4], row_sums *out) {
  byte_sums rest = {s->ones, s->twos, _mm512_add_epi16(s->fours, twice(s->all)),
                    _mm512_add_epi16(_mm512_srli_epi16(s->fours, 8), twice(s->odd))};
  const word_sums words = widen(&rest);
  float *value = (float *)out->value;
  add_to(value, unit[0], low_words(words.even));
  add_to(value + 16, unit[1], low_words(words.odd));
  add_to(value + 32, unit[2], high_words(words.even));
  add_to(value + 48, unit[3], high_words(words.odd));
}

/* Looks up one cell: a carry of weight four. table: its CELL_TABLES; offsets: as index_plane lays them out */
static inline __m512i look_up(deep_sums *s, const uint8_t *table, const uint16_t *offsets) {
  const __m512i a = _mm512_load_si512(table + offsets[0]);
  const __m512i b = _mm512_load_si512(table + TABLE_BYTES + offsets[32]);
  const __m512i c = _mm512_load_si512(table + 2 * TABLE_BYTES + offsets[16]);
  const __m512i d = _mm512_load_si512(table + 3 * TABLE_BYTES + offsets[48]);
  const __m512i first = add_carry(&s->ones, a, b), second = add_carry(&s->ones, c, d);
  return add_carry(&s->twos, first, second);
}

/* One K-block for the 32 rows of a tile. tables: [plane][PLANE_TABLES][TABLE_BYTES]; offsets: of index_plane, [plane]
 */
static inline void add_tile(const uint8_t *tables, const uint16_t *offsets, const __m512 unit[4], row_sums *state,
                            int stages) {
  /* every look-up adds 128: start with minus an eighth of all that, as it counts eight times; in `all` for even bytes
   * and 256 times for odd ones */
  const int bias = -128 * PLANE_TABLES * stages / 8;
  const __m512i zero = _mm512_setzero_si512();
  for (int row = 0; row < F2I_TILE_ROWS; ++row) {
    const uint16_t *at = offsets + row / F2I_HALF_ROWS * F2I_CELL_BYTES + row % F2I_HALF_ROWS;
    const uint8_t *table = tables;
    deep_sums s = {zero, zero, zero, _mm512_set1_epi16((short)(bias * 257)), _mm512_set1_epi16((short)bias)};
    for (int plane = 0; plane < stages; ++plane) {
#pragma GCC unroll 4
      for (int i = 0; i < F2I_BLOCK_CELLS / 2; ++i) {
        const __m512i first = look_up(&s, table, at);
        const __m512i second = look_up(&s, table + CELL_TABLES * TABLE_BYTES, at + 2 * F2I_CELL_BYTES);
        const __m512i eights = add_carry(&s.fours, first, second);
        s.all = _mm512_add_epi16(s.all, eights);
        s.odd = _mm512_add_epi16(s.odd, _mm512_srli_epi16(eights, 8));
        table += 2 * CELL_TABLES * TABLE_BYTES;
        at += 4 * F2I_CELL_BYTES;
      }
    }
    flush(&s, unit, &state[row]);
  }
}

static void f2i_block_lut__avx512_panel(const f2i_panel *p) {
  const size_t tile_bytes = (size_t)p->stages * F2I_PLANE_BYTES;
  const size_t tables = (size_t)p->stages * PLANE_TABLES; /* of a block */
  const uint8_t *operands = p->operands;
  _Alignas(64) uint16_t offsets[F2I_MAX_STAGES * 2 * F2I_PLANE_BYTES];
  __m512 unit[4];
  for (int i = 0; i < 4; ++i) {
    float by_lane[ROWS / 4][2]; /* [four rows of a half, half][real, imaginary] */
    for (int j = 0; j < ROWS / 4; ++j) by_lane[j][0] = by_lane[j][1] = p->units[j % 2 * HALF + j / 2 * 4 + i];
    unit[i] = _mm512_loadu_ps(by_lane);
  }
  for (size_t tile = 0; tile < p->tiles; ++tile) {
    const uint8_t *packed = p->packed + tile * tile_bytes, *ahead = p->ahead + tile * tile_bytes;
    const uint8_t *next = operands + tables * TABLE_BYTES; /* the tables of the next block, a share for each tile */
    const size_t first = tile * tables / p->tiles, end = (tile + 1) * tables / p->tiles;
    prefetch(ahead, tile_bytes, 0);
    prefetch(next + first * TABLE_BYTES, (end - first) * TABLE_BYTES, 0);
    for (int plane = 0; plane < p->stages; ++plane) {
      index_plane(packed + plane * F2I_PLANE_BYTES, offsets + plane * 2 * F2I_PLANE_BYTES);
    }
    add_tile(operands, offsets, unit, (row_sums *)p->state + tile * F2I_TILE_ROWS, p->stages);
  }
}

static void read(const void *state, size_t count, float *out) {
  const row_sums *sums = state;
  for (size_t row = 0; row < F2I_TILE_ROWS; ++row) {
    float values[4][HALF / 4][2][2]; /* [of x % 4][of x / 4 in its half][half][real, imaginary] */
    for (int i = 0; i < 4; ++i) _mm512_storeu_ps(values[i], sums[row].value[i]);
    for (size_t x = 0; x < count; ++x) {
      for (size_t part = 0; part < 2; ++part) {
        out[x * F2I_ACC_PER_TILE + part * F2I_TILE_ROWS + row] = values[x % 4][x % HALF / 4][x / HALF][part];
      }
    }
  }
}

const f2i_panel_kernel f2i_panel_lut__avx512 = {.rows = ROWS,
                                                .least = 24,
                                                .strip_most = 32,
                                                .strip_least = 2,
                                                .operand_bytes = PLANE_TABLES * TABLE_BYTES,
                                                .extra_bytes = 0,
                                                .state_bytes = F2I_TILE_ROWS * sizeof(row_sums),
                                                .build = build,
                                                .block = f2i_block_lut__avx512_panel,
                                                .read = read};
