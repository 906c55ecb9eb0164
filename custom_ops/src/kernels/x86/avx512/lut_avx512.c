/* flags: -mavx512f -mavx512bw -mavx512vl -mavx512dq */
/* lut_avx512.c - "lut" with 64-byte shuffles, on the tables of lut_avx512_tables.c.
 *
 * Widening looked-up bytes to 16 bits costs more than looking them up, so bytes are first added bit by bit: a
 * carry-save adder (two ternary operations) turns three bytes into a sum and a carry of twice the weight without
 * leaving the byte. Two levels of it leave one byte of weight four to widen for every four looked up.
 */
#include <immintrin.h>

#include "kernels/kernels.h"
#include "kernels/x86/avx512/byte_sums.h"

f2i_block_fn f2i_block_lut__avx512;
extern const uint8_t f2i_order_lut__avx512[F2I_ACC_PER_TILE];

/* Where the driver finds the outputs among the accumulators of a tile, [re, im][row]: a float vector holds every fourth
 * row, that is what widening 16-bit lanes gives without moving them. */
#define PLACES_4(part, row) \
  (part) + (row) / 4, (part) + (row) / 4 + 32, (part) + (row) / 4 + 16, (part) + (row) / 4 + 48
#define PLACES_16(part, row) \
  PLACES_4(part, row), PLACES_4(part, (row) + 4), PLACES_4(part, (row) + 8), PLACES_4(part, (row) + 12)
const uint8_t f2i_order_lut__avx512[F2I_ACC_PER_TILE] = {PLACES_16(0, 0), PLACES_16(0, 16), PLACES_16(8, 0),
                                                         PLACES_16(8, 16)};

/* Adds the two byte columns. Lanes of re and im: rows 0-15 of the first and of the second one, then rows 16-31.
 * Returns re of rows 0-15, of rows 16-31, then im. */
static inline __m512i add_columns(__m512i re, __m512i im) {
  return _mm512_add_epi16(_mm512_shuffle_i64x2(re, im, 0x88), _mm512_shuffle_i64x2(re, im, 0xDD));
}

static inline void add_to(float *acc, __m512 unit, __m512i sum) {
  _mm512_storeu_ps(acc, _mm512_add_ps(_mm512_loadu_ps(acc), _mm512_mul_ps(unit, _mm512_cvtepi32_ps(sum))));
}

static inline void flush(const byte_sums *re_bytes, const byte_sums *im_bytes, __m512 unit, float *acc) {
  const word_sums re = widen(re_bytes), im = widen(im_bytes);
  const __m512i even = add_columns(re.even, im.even), odd = add_columns(re.odd, im.odd);
  add_to(acc, unit, _mm512_srai_epi32(_mm512_slli_epi32(even, 16), 16)); /* rows 0, 4, ... */
  add_to(acc + 16, unit, _mm512_srai_epi32(even, 16));                   /* rows 2, 6, ... */
  add_to(acc + 32, unit, _mm512_srai_epi32(_mm512_slli_epi32(odd, 16), 16));
  add_to(acc + 48, unit, _mm512_srai_epi32(odd, 16));
}

static inline __m512i table_at(const uint8_t *table) {
  return _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(const void *)table));
}

/* The four tables of a cell. */
typedef struct cell_tables {
  __m512i low_re, low_im, high_re, high_im;
} cell_tables;

static inline cell_tables load_tables(const uint8_t *table) {
  const cell_tables t = {table_at(table), table_at(table + 32), table_at(table + 64), table_at(table + 96)};
  return t;
}

/* Table indices of a cell. */
typedef struct nibbles {
  __m512i low, high;
} nibbles;

static inline nibbles split(const uint8_t *cell) {
  const __m512i bytes = _mm512_loadu_si512(cell), low4 = _mm512_set1_epi8(15);
  const nibbles n = {_mm512_and_si512(bytes, low4), _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low4)};
  return n;
}

/* Looks up one cell: carries of weight two for both outputs. */
static inline void look_up(byte_sums *re, byte_sums *im, cell_tables t, nibbles n, __m512i *carry_re,
                           __m512i *carry_im) {
  *carry_re = add_carry(&re->ones, _mm512_shuffle_epi8(t.low_re, n.low), _mm512_shuffle_epi8(t.high_re, n.high));
  *carry_im = add_carry(&im->ones, _mm512_shuffle_epi8(t.low_im, n.low), _mm512_shuffle_epi8(t.high_im, n.high));
}

/* Every look-up adds 128: start with minus the sum of that in a byte column, which counts four times in `all` (even
 * bytes once, odd ones 256 times) and in `odd`. */
static inline byte_sums start(int stages) {
  const int bias = -128 * 2 * F2I_BLOCK_CELLS * stages / 4;
  const byte_sums s = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_set1_epi16((short)(bias * 257)),
                       _mm512_set1_epi16((short)bias)};
  return s;
}

static inline void flush_row(const f2i_block *b, size_t row, size_t tile, const byte_sums *re, const byte_sums *im) {
  flush(re, im, _mm512_set1_ps(b->units[row * b->unit_stride]), b->acc + row * b->acc_stride + tile * F2I_ACC_PER_TILE);
}

/* One row of x, `count` (1 or 2) tiles `apart`: their bytes share the loaded tables. */
static inline void tiles_of_row(const f2i_block *b, size_t row, size_t tile, size_t apart, const int count) {
  const size_t tile_bytes = (size_t)b->stages * F2I_PLANE_BYTES;
  const uint8_t *packed = b->packed + tile * tile_bytes, *end = packed + tile_bytes;
  const uint8_t *ahead = b->ahead + tile * tile_bytes, *table = b->operands + row * b->operand_stride;
  byte_sums re[2], im[2];
  for (int t = 0; t < count; ++t) re[t] = im[t] = start(b->stages);
  for (; packed < end; packed += 2 * F2I_CELL_BYTES, ahead += 2 * F2I_CELL_BYTES, table += 2 * F2I_CELL_ENTRIES) {
    __m512i carry_re[2][2], carry_im[2][2];
    for (int c = 0; c < 2; ++c) {
      const cell_tables tables = load_tables(table + c * F2I_CELL_ENTRIES);
      for (int t = 0; t < count; ++t) {
        const size_t offset = (size_t)t * apart * tile_bytes + (size_t)c * F2I_CELL_BYTES;
        _mm_prefetch((const char *)(ahead + offset), _MM_HINT_T1);
        look_up(&re[t], &im[t], tables, split(packed + offset), &carry_re[t][c], &carry_im[t][c]);
      }
    }
    for (int t = 0; t < count; ++t) {
      add_fours(&re[t], carry_re[t][0], carry_re[t][1]);
      add_fours(&im[t], carry_im[t][0], carry_im[t][1]);
    }
  }
  for (int t = 0; t < count; ++t) flush_row(b, row, tile + (size_t)t * apart, &re[t], &im[t]);
}

enum { ROWS = 2 }; /* rows of x that share the split bytes of a tile; their sums fill half the registers */

static inline void tile_of_rows(const f2i_block *b, size_t row, size_t tile) {
  const size_t tile_bytes = (size_t)b->stages * F2I_PLANE_BYTES;
  const uint8_t *packed = b->packed + tile * tile_bytes, *end = packed + tile_bytes;
  const uint8_t *table = b->operands + row * b->operand_stride;
  byte_sums re[ROWS], im[ROWS];
  for (size_t i = 0; row == 0 && i < tile_bytes; i += F2I_CELL_BYTES) {
    _mm_prefetch((const char *)b->ahead + tile * tile_bytes + i, _MM_HINT_T1); /* once for all rows */
  }
  for (int r = 0; r < ROWS; ++r) re[r] = im[r] = start(b->stages);
  for (; packed < end; packed += 2 * F2I_CELL_BYTES, table += 2 * F2I_CELL_ENTRIES) {
    const nibbles cells[2] = {split(packed), split(packed + F2I_CELL_BYTES)};
    for (int r = 0; r < ROWS; ++r) {
      const uint8_t *of_row = table + (size_t)r * b->operand_stride;
      __m512i carry_re[2], carry_im[2];
      for (int c = 0; c < 2; ++c) {
        look_up(&re[r], &im[r], load_tables(of_row + c * F2I_CELL_ENTRIES), cells[c], &carry_re[c], &carry_im[c]);
      }
      add_fours(&re[r], carry_re[0], carry_re[1]);
      add_fours(&im[r], carry_im[0], carry_im[1]);
    }
  }
  for (size_t r = 0; r < ROWS; ++r) flush_row(b, row + r, tile, &re[r], &im[r]);
}

void f2i_block_lut__avx512(const f2i_block *b) {
  size_t row = 0;
  for (; row + ROWS <= b->rows; row += ROWS) {
    for (size_t tile = 0; tile < b->tiles; ++tile) tile_of_rows(b, row, tile);
  }
  const size_t half = b->tiles / 2; /* pairs this far apart come from memory faster than neighbours: two streams */
  for (; row < b->rows; ++row) {
    for (size_t tile = 0; tile < half; ++tile) tiles_of_row(b, row, tile, half, 2);
    if (b->tiles % 2) tiles_of_row(b, row, 2 * half, 0, 1);
  }
}
