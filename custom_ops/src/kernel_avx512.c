/* kernel_avx512.c - "lut" with 64-byte shuffles, on the tables of the AVX2 builder. Compiled with -mavx512bw. */
#include <immintrin.h>

#include "kernels.h"

/* Sums of unsigned bytes kept in 16-bit lanes: `all` adds even + 256 * odd, `odd` the odd bytes alone. */
typedef struct byte_sums {
  __m512i all, odd;
} byte_sums;

static inline void add_bytes(byte_sums *sums, __m512i bytes) {
  sums->all = _mm512_add_epi16(sums->all, bytes);
  sums->odd = _mm512_add_epi16(sums->odd, _mm512_srli_epi16(bytes, 8));
}

/* acc[32] += unit * (sum - bias). The 128-bit lanes hold rows 0-15 of two byte columns, then rows 16-31 of the same. */
static inline void flush(const byte_sums *sums, __m512i bias, __m512 unit, float *acc) {
  const __m512i even = _mm512_sub_epi16(sums->all, _mm512_slli_epi16(sums->odd, 8));
  /* lanes: even rows 0-15, even rows 16-31, odd rows 0-15, odd rows 16-31; first and second byte column */
  const __m512i first = _mm512_shuffle_i64x2(even, sums->odd, 0x88);
  const __m512i second = _mm512_shuffle_i64x2(even, sums->odd, 0xDD);
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

/* One row of x, `count` (1 or 2) neighbouring tiles: their bytes share the loaded tables. */
static inline void tiles_of_row(const f2i_block *b, size_t row, size_t tile, const int count) {
  const __m512i low4 = _mm512_set1_epi8(15), zero = _mm512_setzero_si512();
  const size_t cells = (size_t)b->stages * F2I_BLOCK_CELLS, tile_bytes = cells * F2I_CELL_BYTES;
  const uint8_t *packed = b->packed + tile * tile_bytes, *ahead = b->ahead + tile * tile_bytes;
  const uint8_t *table = b->operands + row * b->operand_stride;
  byte_sums re[2] = {{zero, zero}, {zero, zero}}, im[2] = {{zero, zero}, {zero, zero}};
  for (size_t cell = 0; cell < cells; ++cell, packed += F2I_CELL_BYTES, table += F2I_CELL_ENTRIES) {
    const __m512i low_re = table_at(table), low_im = table_at(table + 32);
    const __m512i high_re = table_at(table + 64), high_im = table_at(table + 96);
    for (int t = 0; t < count; ++t) {
      const __m512i bytes = _mm512_loadu_si512(packed + (size_t)t * tile_bytes);
      const __m512i low = _mm512_and_si512(bytes, low4);
      const __m512i high = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low4);
      _mm_prefetch((const char *)(ahead + (size_t)t * tile_bytes), _MM_HINT_T0);
      add_bytes(&re[t], _mm512_shuffle_epi8(low_re, low));
      add_bytes(&im[t], _mm512_shuffle_epi8(low_im, low));
      add_bytes(&re[t], _mm512_shuffle_epi8(high_re, high));
      add_bytes(&im[t], _mm512_shuffle_epi8(high_im, high));
    }
    ahead += F2I_CELL_BYTES;
  }
  const __m512i bias = _mm512_set1_epi16((short)(128 * 4 * F2I_BLOCK_CELLS * b->stages)); /* 128 for each look-up */
  const __m512 unit = _mm512_set1_ps(b->units[row * b->unit_stride]);
  for (int t = 0; t < count; ++t) {
    float *acc = b->acc + row * b->acc_stride + (tile + (size_t)t) * F2I_ACC_PER_TILE;
    flush(&re[t], bias, unit, acc);
    flush(&im[t], bias, unit, acc + F2I_TILE_ROWS);
  }
}

enum { ROWS = 4 }; /* rows of x that share the split bytes of a tile; their sums fill half the registers */

static inline void tile_of_rows(const f2i_block *b, size_t row, size_t tile) {
  const __m512i low4 = _mm512_set1_epi8(15), zero = _mm512_setzero_si512();
  const size_t cells = (size_t)b->stages * F2I_BLOCK_CELLS;
  const uint8_t *packed = b->packed + tile * cells * F2I_CELL_BYTES;
  const uint8_t *table = b->operands + row * b->operand_stride;
  byte_sums re[ROWS], im[ROWS];
  for (int r = 0; r < ROWS; ++r) re[r] = im[r] = (byte_sums){zero, zero};
  for (size_t cell = 0; cell < cells; ++cell, packed += F2I_CELL_BYTES, table += F2I_CELL_ENTRIES) {
    const __m512i bytes = _mm512_loadu_si512(packed);
    const __m512i low = _mm512_and_si512(bytes, low4);
    const __m512i high = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low4);
    for (int r = 0; r < ROWS; ++r) {
      const uint8_t *of_row = table + (size_t)r * b->operand_stride;
      add_bytes(&re[r], _mm512_shuffle_epi8(table_at(of_row), low));
      add_bytes(&im[r], _mm512_shuffle_epi8(table_at(of_row + 32), low));
      add_bytes(&re[r], _mm512_shuffle_epi8(table_at(of_row + 64), high));
      add_bytes(&im[r], _mm512_shuffle_epi8(table_at(of_row + 96), high));
    }
  }
  const __m512i bias = _mm512_set1_epi16((short)(128 * 4 * F2I_BLOCK_CELLS * b->stages)); /* 128 for each look-up */
  for (size_t r = 0; r < ROWS; ++r) {
    const __m512 unit = _mm512_set1_ps(b->units[(row + r) * b->unit_stride]);
    float *acc = b->acc + (row + r) * b->acc_stride + tile * F2I_ACC_PER_TILE;
    flush(&re[r], bias, unit, acc);
    flush(&im[r], bias, unit, acc + F2I_TILE_ROWS);
  }
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
