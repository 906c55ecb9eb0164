/* flags: -mavx2 */
/* flags of gcc: -fno-tree-reassoc -fno-tree-ter */
/* lut_avx2_panel.c - "lut" for 8 rows of x at once.
 *
 * A vector holds one table entry of all 8 rows, real and imaginary output, in 16 bits: to look four binary weights up
 * is to add the vector that their index names, an addition with its operand in memory. Nothing is shuffled or widened
 * until the K-block is done. Indices are taken from 8 bytes of codes at a time, of 8 rows of the matrix, in integer
 * registers.
 */
#include <immintrin.h>
#include <string.h>

#include "kernels/column_terms.h"
#include "kernels/kernels.h"
#include "kernels/whole_pairs.h"

extern const f2i_panel_kernel f2i_panel_lut__avx2;

enum {
  ROWS = 8,
  ENTRY_BYTES = 32, /* 16 bits each: real of rows 0-3, imaginary of them, real of rows 4-7, imaginary of them */
  TABLE_BYTES = 16 * ENTRY_BYTES,
  PLANE_TABLES = F2I_BLOCK_CELLS * 2 * 2, /* [byte column][low, high nibble] */
  AT_ONCE = 8,                            /* rows of the matrix, whose sums are in registers */
  STRIP_TILES = 16,
};

/* Sums of one row of the matrix, in the order of an entry. */
typedef struct row_sums {
  __m256 value[2];
} row_sums;

typedef __m256 lanes; /* a value of each row of x */

/* The activations of a block by column. */
typedef struct columns {
  lanes re[F2I_BLOCK_COLS], im[F2I_BLOCK_COLS];
} columns;

static inline void transpose(const __m256 in[8], __m256 out[8]) {
  for (int half = 0; half < 2; ++half) {
    __m256 v[4]; /* four values of in[i] and of in[i + 4] */
    for (int i = 0; i < 4; ++i) {
      v[i] = half ? _mm256_permute2f128_ps(in[i], in[i + 4], 0x31) : _mm256_permute2f128_ps(in[i], in[i + 4], 0x20);
    }
    const __m256 low01 = _mm256_unpacklo_ps(v[0], v[1]), low23 = _mm256_unpacklo_ps(v[2], v[3]);
    const __m256 high01 = _mm256_unpackhi_ps(v[0], v[1]), high23 = _mm256_unpackhi_ps(v[2], v[3]);
    out[4 * half] = _mm256_shuffle_ps(low01, low23, 0x44);
    out[4 * half + 1] = _mm256_shuffle_ps(low01, low23, 0xEE);
    out[4 * half + 2] = _mm256_shuffle_ps(high01, high23, 0x44);
    out[4 * half + 3] = _mm256_shuffle_ps(high01, high23, 0xEE);
  }
}

/* --- tables --- */

/* x: [ROWS][F2I_BLOCK_COLS]; out: [F2I_BLOCK_COLS] */
static inline void load_columns(const float *x, __m256 *out) {
  for (int j = 0; j < F2I_BLOCK_COLS; j += 8) {
    __m256 rows[ROWS];
    for (int i = 0; i < ROWS; ++i) rows[i] = _mm256_loadu_ps(x + i * F2I_BLOCK_COLS + j);
    transpose(rows, out + j);
  }
}

static inline __m256 magnitude(__m256 v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }

static inline __m256 larger_term(__m256 re, __m256 im, const float *scale) {
  return _mm256_max_ps(_mm256_mul_ps(magnitude(_mm256_set1_ps(scale[0])), re),
                       _mm256_mul_ps(magnitude(_mm256_set1_ps(scale[1])), im));
}

/* What find_largest of lut_avx2.c finds: infinity where an activation is not finite. */
static __m256 find_largest(const columns *x, const float *scales, int stages) {
  const __m256 most = _mm256_set1_ps(FLT_MAX);
  __m256 largest = _mm256_setzero_ps(), finite = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
  for (int j = 0; j < F2I_BLOCK_COLS; j += 2) {
    __m256 re[2], im[2];
    for (int i = 0; i < 2; ++i) {
      re[i] = magnitude(x->re[j + i]);
      im[i] = magnitude(x->im[j + i]);
      finite = _mm256_and_ps(finite, _mm256_cmp_ps(re[i], most, _CMP_LE_OQ));
      finite = _mm256_and_ps(finite, _mm256_cmp_ps(im[i], most, _CMP_LE_OQ));
    }
    for (const float *scale = scales; scale < scales + 4 * stages; scale += 2) {
      const __m256 real = _mm256_add_ps(larger_term(re[0], im[0], scale), larger_term(re[1], im[1], scale));
      const __m256 imaginary = _mm256_add_ps(larger_term(im[0], re[0], scale), larger_term(im[1], re[1], scale));
      largest = _mm256_max_ps(largest, _mm256_max_ps(real, imaginary));
    }
  }
  return _mm256_blendv_ps(_mm256_set1_ps(INFINITY), largest, finite);
}

static inline __m256i rounded(__m256 sum, __m256 inverse) { return _mm256_cvtps_epi32(_mm256_mul_ps(sum, inverse)); }

static inline lanes scaled(float scale, const lanes *x) { return _mm256_mul_ps(_mm256_set1_ps(scale), *x); }
static inline lanes sum(lanes a, lanes b) { return _mm256_add_ps(a, b); }
static inline lanes difference(lanes a, lanes b) { return _mm256_sub_ps(a, b); }
static inline lanes negative(lanes x) { return _mm256_xor_ps(x, _mm256_set1_ps(-0.0f)); }

/* Stores an entry, and the one of the opposite codes, its negative. */
static inline void store_entry(uint8_t *table, int index, lanes real, lanes imaginary, const lanes *inverse) {
  const __m256i sums = _mm256_packs_epi32(rounded(real, *inverse), rounded(imaginary, *inverse));
  _mm256_store_si256((__m256i *)(void *)(table + index * ENTRY_BYTES), sums);
  _mm256_store_si256((__m256i *)(void *)(table + (15 - index) * ENTRY_BYTES),
                     _mm256_sub_epi16(_mm256_setzero_si256(), sums));
}

#include "kernels/x86/lut_panel_table.h"

/* The table of whole_pairs.h of two columns. */
static inline void store_whole_pair(const __m256 *x, uint8_t *table) {
  const __m256i first = _mm256_cvtps_epi32(x[0]), second = _mm256_cvtps_epi32(x[1]);
  const __m256i both = _mm256_add_epi32(first, second);
  const __m256i sums[4] = {both, _mm256_sub_epi32(second, first), _mm256_sub_epi32(first, second),
                           _mm256_sub_epi32(_mm256_setzero_si256(), both)};
  for (int i = 0; i < 16; ++i) {
    const __m256i real = _mm256_srai_epi32(sums[f2i_whole_signs(i)], 1);
    const __m256i imaginary = _mm256_srai_epi32(sums[f2i_whole_signs(i >> 1)], 1);
    _mm256_store_si256((__m256i *)(void *)(table + i * ENTRY_BYTES), _mm256_packs_epi32(real, imaginary));
  }
}

static void build(const float *re, const float *im, size_t rows, const float *scales, int stages, void *operands,
                  float *units) {
  (void)rows;
  columns x;
  uint8_t *table = operands;
  load_columns(re, x.re);
  load_columns(im, x.im);
  if (scales == NULL) { /* what f2i_build_whole_pairs does, for all rows */
    for (int j = 0; j < F2I_BLOCK_COLS; j += 2, table += 2 * TABLE_BYTES) {
      store_whole_pair(x.re + j, table);
      store_whole_pair(x.im + j, table + TABLE_BYTES);
    }
    for (int i = 0; i < ROWS; ++i) units[i] = 1.0f;
    return;
  }
  float largest[ROWS], per_value[ROWS];
  _mm256_storeu_ps(largest, find_largest(&x, scales, stages));
  for (int i = 0; i < ROWS; ++i) units[i] = f2i_lut_unit(largest[i], &per_value[i]);
  const __m256 inverse = _mm256_loadu_ps(per_value);
  for (int plane = 0; plane < stages; ++plane) {
    for (int j = 0; j < F2I_BLOCK_COLS; j += 2) {
      for (int nibble = 0; nibble < 2; ++nibble, table += TABLE_BYTES) {
        const uint8_t *place = f2i_byte_planes[stages - 1][plane][nibble]; /* stage and matrix */
        store_table(&x, j, scales + 4 * place[0] + 2 * place[1], place[1], &inverse, table);
      }
    }
  }
}

/* --- sums --- */

/* offset: in eighths */
static inline __m256i add_entry(__m256i sum, const uint8_t *table, size_t offset) {
  return _mm256_add_epi16(sum, _mm256_load_si256((const __m256i *)(const void *)(table + 8 * offset)));
}

/* Adds the entries of AT_ONCE rows of the matrix. offsets: a byte for each of them, in eighths */
static inline void add_entries(__m256i sums[AT_ONCE], const uint8_t *table, const uint8_t *offsets) {
  uint64_t rest;
  memcpy(&rest, offsets, sizeof rest);
  for (int i = 0; i < AT_ONCE; i += 2, rest >>= 16) {
    __asm__("" : "+Q"(rest)); /* a register of which an instruction takes the second byte: gcc would shift for each */
    sums[i] = add_entry(sums[i], table, rest & 0xFF);
    sums[i + 1] = add_entry(sums[i + 1], table, rest >> 8 & 0xFF);
  }
}

/* Offsets of table entries of the nibbles of a byte plane, in eighths: [low, high][F2I_PLANE_BYTES] */
static inline void split(const uint8_t *packed, uint8_t offsets[2 * F2I_PLANE_BYTES]) {
  const __m256i mask = _mm256_set1_epi8(15 * ENTRY_BYTES / 8);
  for (int i = 0; i < F2I_PLANE_BYTES; i += 32) {
    const __m256i bytes = _mm256_loadu_si256((const __m256i *)(const void *)(packed + i));
    const __m256i low = _mm256_and_si256(_mm256_slli_epi16(bytes, 2), mask);
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(bytes, 2), mask);
    _mm256_store_si256((__m256i *)(void *)(offsets + i), low);
    _mm256_store_si256((__m256i *)(void *)(offsets + F2I_PLANE_BYTES + i), high);
  }
}

/* A byte plane of AT_ONCE rows of the matrix. offsets: of the first of them; table: [PLANE_TABLES][TABLE_BYTES] */
static inline void add_plane(__m256i sums[AT_ONCE], const uint8_t *offsets, const uint8_t *table) {
  for (int cell = 0; cell < F2I_BLOCK_CELLS; ++cell, offsets += F2I_CELL_BYTES) {
    for (int column = 0; column < 2; ++column, table += 2 * TABLE_BYTES) {
      add_entries(sums, table, offsets + 16 * column);
      add_entries(sums, table + TABLE_BYTES, offsets + F2I_PLANE_BYTES + 16 * column);
    }
  }
}

static inline void flush(__m256i sum, const __m256 unit[2], row_sums *out) {
  const __m256i four[2] = {_mm256_cvtepi16_epi32(_mm256_castsi256_si128(sum)),
                           _mm256_cvtepi16_epi32(_mm256_extracti128_si256(sum, 1))};
  for (int i = 0; i < 2; ++i) {
    out->value[i] = _mm256_add_ps(out->value[i], _mm256_mul_ps(unit[i], _mm256_cvtepi32_ps(four[i])));
  }
}

/* A byte plane of a tile. kept: sums of the planes before, and where they go until the last one */
static inline void add_tile(const f2i_panel *p, size_t tile, int plane, const __m256 unit[2],
                            __m256i kept[F2I_TILE_ROWS]) {
  const size_t offset = (tile * (size_t)p->stages + (size_t)plane) * F2I_PLANE_BYTES;
  const uint8_t *table = (const uint8_t *)p->operands + (size_t)plane * PLANE_TABLES * TABLE_BYTES;
  row_sums *state = (row_sums *)p->state + tile * F2I_TILE_ROWS;
  _Alignas(32) uint8_t offsets[2 * F2I_PLANE_BYTES];
  for (int i = 0; i < F2I_PLANE_BYTES; i += 64) _mm_prefetch((const char *)p->ahead + offset + i, _MM_HINT_T1);
  split(p->packed + offset, offsets);
  for (size_t row = 0; row < F2I_TILE_ROWS; row += AT_ONCE) {
    __m256i sums[AT_ONCE];
    for (int i = 0; i < AT_ONCE; ++i) sums[i] = plane == 0 ? _mm256_setzero_si256() : kept[row + i];
    add_plane(sums, offsets + row / F2I_HALF_ROWS * (F2I_CELL_BYTES / 2) + row % F2I_HALF_ROWS, table);
    for (int i = 0; i < AT_ONCE; ++i) {
      if (plane == p->stages - 1) flush(sums[i], unit, state + row + i);
      else kept[row + i] = sums[i];
    }
  }
}

/* One K-block, a byte plane after the other: the tables of one fill half of the first-level cache. */
static void f2i_block_lut__avx2_panel(const f2i_panel *p) {
  const __m256 units = _mm256_loadu_ps(p->units);
  const __m256 unit[2] = {_mm256_permute2f128_ps(units, units, 0x00), _mm256_permute2f128_ps(units, units, 0x11)};
  __m256i kept[STRIP_TILES][F2I_TILE_ROWS];
  for (int plane = 0; plane < p->stages; ++plane) {
    for (size_t tile = 0; tile < p->tiles; ++tile) add_tile(p, tile, plane, unit, kept[tile]);
  }
}

static void read(const void *state, size_t count, float *out) {
  const row_sums *sums = state;
  for (size_t row = 0; row < F2I_TILE_ROWS; row += 8) {
    for (size_t half = 0; half < 2; ++half) { /* of the rows of x */
      __m256 values[8], of_x[8];              /* [row of the matrix]; [real, imaginary][row of x] */
      for (size_t i = 0; i < 8; ++i) values[i] = sums[row + i].value[half];
      transpose(values, of_x);
      for (size_t i = 0; i < 8; ++i) {
        const size_t x = 4 * half + i % 4;
        if (x < count) _mm256_storeu_ps(out + x * F2I_ACC_PER_TILE + i / 4 * F2I_TILE_ROWS + row, of_x[i]);
      }
    }
  }
}

const f2i_panel_kernel f2i_panel_lut__avx2 = {.rows = ROWS,
                                              .least = 7,
                                              .strip_most = STRIP_TILES,
                                              .strip_least = 2,
                                              .operand_bytes = PLANE_TABLES * TABLE_BYTES,
                                              .extra_bytes = 0,
                                              .state_bytes = F2I_TILE_ROWS * sizeof(row_sums),
                                              .build = build,
                                              .block = f2i_block_lut__avx2_panel,
                                              .read = read};
