/* kernel_avx512.c - "lut" with 64-byte shuffles, on the tables of the AVX2 builder. Compiled with -mavx512bw.
 *
 * Widening looked-up bytes to 16 bits costs more than looking them up, so bytes are first added bit by bit: a
 * carry-save adder (two ternary operations) turns three bytes into a sum and a carry of twice the weight without
 * leaving the byte. Two levels of it leave one byte of weight four to widen for every four looked up.
 */
#include <immintrin.h>

#include "kernels.h"

/* Everything added so far: ones + 2 twos + 4 (the widened fours), bytes. `all` adds even + 256 * odd bytes of the fours
 * in 16-bit lanes, `odd` the odd bytes alone. */
typedef struct byte_sums {
  __m512i ones, twos, all, odd;
} byte_sums;

/* a + b + *sum = *sum' + 2 carry, in every bit position. */
static inline __m512i add_carry(__m512i *sum, __m512i a, __m512i b) {
  const __m512i carry = _mm512_ternarylogic_epi32(*sum, a, b, 0xE8);
  *sum = _mm512_ternarylogic_epi32(*sum, a, b, 0x96);
  return carry;
}

static inline void add_fours(byte_sums *s, __m512i first, __m512i second) {
  const __m512i fours = add_carry(&s->twos, first, second);
  s->all = _mm512_add_epi16(s->all, fours);
  s->odd = _mm512_add_epi16(s->odd, _mm512_srli_epi16(fours, 8));
}

/* acc[32] += unit * (sum - bias). The 128-bit lanes hold rows 0-15 of two byte columns, then rows 16-31 of the same. */
static inline void flush(const byte_sums *s, __m512i bias, __m512 unit, float *acc) {
  const __m512i low8 = _mm512_set1_epi16(0xFF);
  const __m512i fours = _mm512_sub_epi16(s->all, _mm512_slli_epi16(s->odd, 8));
  const __m512i even = _mm512_add_epi16(
      _mm512_and_si512(s->ones, low8),
      _mm512_slli_epi16(_mm512_add_epi16(_mm512_and_si512(s->twos, low8), _mm512_slli_epi16(fours, 1)), 1));
  const __m512i odd = _mm512_add_epi16(
      _mm512_srli_epi16(s->ones, 8),
      _mm512_slli_epi16(_mm512_add_epi16(_mm512_srli_epi16(s->twos, 8), _mm512_slli_epi16(s->odd, 1)), 1));
  /* lanes: even rows 0-15, even rows 16-31, odd rows 0-15, odd rows 16-31; first and second byte column */
  const __m512i first = _mm512_shuffle_i64x2(even, odd, 0x88), second = _mm512_shuffle_i64x2(even, odd, 0xDD);
  const __m512i both = _mm512_sub_epi16(_mm512_add_epi16(first, second), bias);
  const __m256i evens = _mm512_castsi512_si256(both), odds = _mm512_extracti64x4_epi64(both, 1);
  /* rows 0-7, 16-23 and rows 8-15, 24-31 */
  const __m256i low = _mm256_unpacklo_epi16(evens, odds), high = _mm256_unpackhi_epi16(evens, odds);
  const __m256i rows[2] = {_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31)};
  for (int i = 0; i < 2; ++i) {
    const __m512 sum = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(rows[i]));
    _mm512_storeu_ps(acc + 16 * i, _mm512_add_ps(_mm512_loadu_ps(acc + 16 * i), _mm512_mul_ps(unit, sum)));
  }
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

static inline void clear(byte_sums *s) {
  const __m512i zero = _mm512_setzero_si512();
  *s = (byte_sums){zero, zero, zero, zero};
}

static inline void flush_both(const f2i_block *b, size_t row, size_t tile, const byte_sums *re, const byte_sums *im) {
  const __m512i bias = _mm512_set1_epi16((short)(128 * 4 * F2I_BLOCK_CELLS * b->stages)); /* 128 for each look-up */
  const __m512 unit = _mm512_set1_ps(b->units[row * b->unit_stride]);
  float *acc = b->acc + row * b->acc_stride + tile * F2I_ACC_PER_TILE;
  flush(re, bias, unit, acc);
  flush(im, bias, unit, acc + F2I_TILE_ROWS);
}

/* One row of x, `count` (1 or 2) neighbouring tiles: their bytes share the loaded tables. */
static inline void tiles_of_row(const f2i_block *b, size_t row, size_t tile, const int count) {
  const size_t tile_bytes = (size_t)b->stages * F2I_PLANE_BYTES;
  const uint8_t *packed = b->packed + tile * tile_bytes, *end = packed + tile_bytes;
  const uint8_t *ahead = b->ahead + tile * tile_bytes, *table = b->operands + row * b->operand_stride;
  byte_sums re[2], im[2];
  for (int t = 0; t < count; ++t) clear(&re[t]), clear(&im[t]);
  for (; packed < end; packed += 2 * F2I_CELL_BYTES, ahead += 2 * F2I_CELL_BYTES, table += 2 * F2I_CELL_ENTRIES) {
    __m512i carry_re[2][2], carry_im[2][2];
    for (int c = 0; c < 2; ++c) {
      const cell_tables tables = load_tables(table + c * F2I_CELL_ENTRIES);
      for (int t = 0; t < count; ++t) {
        const size_t offset = (size_t)t * tile_bytes + (size_t)c * F2I_CELL_BYTES;
        _mm_prefetch((const char *)(ahead + offset), _MM_HINT_T1);
        look_up(&re[t], &im[t], tables, split(packed + offset), &carry_re[t][c], &carry_im[t][c]);
      }
    }
    for (int t = 0; t < count; ++t) {
      add_fours(&re[t], carry_re[t][0], carry_re[t][1]);
      add_fours(&im[t], carry_im[t][0], carry_im[t][1]);
    }
  }
  for (int t = 0; t < count; ++t) flush_both(b, row, tile + (size_t)t, &re[t], &im[t]);
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
  for (int r = 0; r < ROWS; ++r) clear(&re[r]), clear(&im[r]);
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
  for (size_t r = 0; r < ROWS; ++r) flush_both(b, row + r, tile, &re[r], &im[r]);
}

void f2i_block_lut__avx512(const f2i_block *b) {
  size_t row = 0;
  for (; row + ROWS <= b->rows; row += ROWS) {
    for (size_t tile = 0; tile < b->tiles; ++tile) tile_of_rows(b, row, tile);
  }
  for (; row < b->rows; ++row) {
    size_t tile = 0;
    for (; tile + 2 <= b->tiles; tile += 2) tiles_of_row(b, row, tile, 2);
    if (tile < b->tiles) tiles_of_row(b, row, tile, 1);
  }
}
