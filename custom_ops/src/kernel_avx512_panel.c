/* kernel_avx512_panel.c - "lut" for 32 rows of x at once. Compiled with -mavx512bw.
 *
 * A shuffle looks up many weights in the table of one row of x. Here a vector holds one table entry of all 32 rows,
 * real and imaginary output: looking up four binary weights is loading the vector that their index names, and the port
 * that shuffles run on is left to the additions. These are the carry-save additions of kernel_avx512.c.
 */
#include <immintrin.h>

#include "byte_sums_avx512.h"
#include "kernels.h"

enum {
  ROWS = 32,
  HALF = ROWS / 2,
  ENTRY_BYTES = 64, /* [half of the rows][real, imaginary][place of the row] */
  TABLE_BYTES = 16 * ENTRY_BYTES,
  CELL_TABLES = 4, /* [byte column][low, high nibble] */
  PLANE_TABLES = F2I_BLOCK_CELLS * CELL_TABLES,
};

/* Sums of one row of the matrix. The 128-bit lanes of a vector are real outputs of rows 0-15 of x, imaginary ones of
 * the same, and so for rows 16-31. In a lane of bytes the rows are placed such that every fourth byte, widened to a
 * lane of four floats, belongs to four neighbouring rows: value[i] holds rows 4 i to 4 i + 3 of either half. */
typedef struct row_sums {
  byte_sums bytes; /* while a block has byte planes left */
  __m512 value[4];
} row_sums;

/* Transposes 16x16 bytes in each 128-bit lane: four perfect shuffles. */
static inline void transpose(__m512i v[16]) {
  for (int step = 0; step < 4; ++step) {
    __m512i next[16];
    for (int i = 0; i < 8; ++i) {
      next[2 * i] = _mm512_unpacklo_epi8(v[i], v[i + 8]);
      next[2 * i + 1] = _mm512_unpackhi_epi8(v[i], v[i + 8]);
    }
    for (int i = 0; i < 16; ++i) v[i] = next[i];
  }
}

/* From the tables of HALF single rows, [row][plane][cell][low re, low im, high re, high im][byte column][16], to those
 * rows' half of [plane][cell][byte column][low, high][16][ENTRY_BYTES]. */
static void arrange(const uint8_t *tables, size_t stride, size_t planes, uint8_t *out) {
  for (size_t i = 0; i < planes * F2I_BLOCK_CELLS * 2; ++i) { /* cells and their nibbles */
    __m512i v[HALF];
    for (size_t place = 0; place < HALF; ++place) {
      v[place] = _mm512_loadu_si512(tables + (place % 4 * 4 + place / 4) * stride + i * 64);
    }
    transpose(v);
    uint8_t *table = out + i / 2 * CELL_TABLES * TABLE_BYTES + i % 2 * TABLE_BYTES;
    for (size_t e = 0; e < 16; ++e, table += ENTRY_BYTES) {
      const __m512i columns = _mm512_shuffle_i64x2(v[e], v[e], 0xD8); /* re, im of the first; re, im of the second */
      _mm256_store_si256((__m256i *)(void *)table, _mm512_castsi512_si256(columns));
      _mm256_store_si256((__m256i *)(void *)(table + 2 * TABLE_BYTES), _mm512_extracti64x4_epi64(columns, 1));
    }
  }
}

static void build(const float *re, const float *im, const float *scales, int stages, void *operands, float *units) {
  _Alignas(64) uint8_t tables[HALF * F2I_MAX_STAGES * F2I_PLANE_ENTRIES]; /* 64 KiB */
  const size_t stride = (size_t)stages * F2I_PLANE_ENTRIES;
  for (size_t row = 0; row < ROWS; ++row) {
    units[row] = f2i_build_lut__avx2(re + row * F2I_BLOCK_COLS, im + row * F2I_BLOCK_COLS, scales, stages,
                                     tables + row % HALF * stride);
    if (row % HALF == HALF - 1) arrange(tables, stride, (size_t)stages, (uint8_t *)operands + row / HALF * 32);
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

/* value[i] += unit * sum, for the rows of x of vector i; sums of bytes 4 j + i are `low` halves of 32-bit lanes or not.
 */
static inline void add_to(__m512 *value, __m512 unit, __m512i sums, int low) {
  const __m512i wide = _mm512_srai_epi32(low ? _mm512_slli_epi32(sums, 16) : sums, 16);
  *value = _mm512_add_ps(*value, _mm512_mul_ps(unit, _mm512_cvtepi32_ps(wide)));
}

/* Scales the sums of a finished block, for the rows of a tile. */
static inline void flush(row_sums *state, const __m512 unit[4]) {
  for (row_sums *s = state; s < state + F2I_TILE_ROWS; ++s) {
    const word_sums words = widen(&s->bytes);
    add_to(&s->value[0], unit[0], words.even, 1);
    add_to(&s->value[1], unit[1], words.odd, 1);
    add_to(&s->value[2], unit[2], words.even, 0);
    add_to(&s->value[3], unit[3], words.odd, 0);
  }
}

/* One byte plane for the 32 rows of a tile. */
static inline void add_plane(const uint8_t *tables, const uint16_t *offsets, row_sums *state, int stages,
                             const int is_first) {
  /* every look-up adds 128: start with minus a quarter of all that, as it counts four times; in `all` for even bytes
   * and 256 times for odd ones */
  const int bias = -128 * PLANE_TABLES * stages / 4;
  const __m512i zero = _mm512_setzero_si512();
  const byte_sums start = {zero, zero, _mm512_set1_epi16((short)(bias * 257)), _mm512_set1_epi16((short)bias)};
  for (int row = 0; row < F2I_TILE_ROWS; ++row) {
    row_sums *s = state + row;
    const uint16_t *at = offsets + row / F2I_HALF_ROWS * F2I_CELL_BYTES + row % F2I_HALF_ROWS;
    byte_sums sums = is_first ? start : s->bytes;
#pragma GCC unroll 8
    for (int cell = 0; cell < F2I_BLOCK_CELLS; ++cell) {
      const uint8_t *table = tables + cell * CELL_TABLES * TABLE_BYTES;
      const uint16_t *of_cell = at + cell * 2 * F2I_CELL_BYTES;
      const __m512i a = _mm512_load_si512(table + of_cell[0]);
      const __m512i b = _mm512_load_si512(table + TABLE_BYTES + of_cell[32]);
      const __m512i c = _mm512_load_si512(table + 2 * TABLE_BYTES + of_cell[16]);
      const __m512i d = _mm512_load_si512(table + 3 * TABLE_BYTES + of_cell[48]);
      const __m512i first = add_carry(&sums.ones, a, b), second = add_carry(&sums.ones, c, d);
      add_fours(&sums, first, second);
    }
    s->bytes = sums;
  }
}

static void f2i_block_lut__avx512_panel(const f2i_panel *p) {
  const size_t tile_bytes = (size_t)p->stages * F2I_PLANE_BYTES;
  _Alignas(64) uint16_t offsets[2 * F2I_PLANE_BYTES];
  __m512 unit[4];
  for (int i = 0; i < 4; ++i) {
    const __m512 first = _mm512_broadcast_f32x4(_mm_loadu_ps(p->units + 4 * i));
    unit[i] = _mm512_mask_broadcast_f32x4(first, 0xFF00, _mm_loadu_ps(p->units + HALF + 4 * i));
  }
  for (int plane = 0; plane < p->stages; ++plane) {
    const uint8_t *tables = (const uint8_t *)p->operands + (size_t)plane * PLANE_TABLES * TABLE_BYTES;
    for (size_t tile = 0; tile < p->tiles; ++tile) {
      const size_t at = tile * tile_bytes + (size_t)plane * F2I_PLANE_BYTES;
      row_sums *state = (row_sums *)p->state + tile * F2I_TILE_ROWS;
      for (size_t i = 0; i < F2I_PLANE_BYTES; i += 64) _mm_prefetch((const char *)p->ahead + at + i, _MM_HINT_T1);
      index_plane(p->packed + at, offsets);
      if (plane == 0) {
        add_plane(tables, offsets, state, p->stages, 1);
      } else {
        add_plane(tables, offsets, state, p->stages, 0);
      }
      if (plane + 1 == p->stages) flush(state, unit);
    }
  }
}

static void read(const void *state, float *out) {
  const row_sums *sums = state;
  for (size_t row = 0; row < F2I_TILE_ROWS; ++row) {
    _Alignas(64) float values[4][2][2][4]; /* [of x / 4 % 4][half][real, imaginary][of x % 4] */
    for (int i = 0; i < 4; ++i) _mm512_store_ps(values[i][0][0], sums[row].value[i]);
    for (size_t x = 0; x < ROWS; ++x) {
      out[x * F2I_ACC_PER_TILE + row] = values[x / 4 % 4][x / HALF][0][x % 4];
      out[x * F2I_ACC_PER_TILE + F2I_TILE_ROWS + row] = values[x / 4 % 4][x / HALF][1][x % 4];
    }
  }
}

const f2i_panel_kernel f2i_panel_lut__avx512 = {.rows = ROWS,
                                                .least = 24,
                                                .strip_tiles = 8,
                                                .operand_bytes = PLANE_TABLES * TABLE_BYTES,
                                                .extra_bytes = 0,
                                                .state_bytes = F2I_TILE_ROWS * sizeof(row_sums),
                                                .build = build,
                                                .block = f2i_block_lut__avx512_panel,
                                                .read = read};
