/* lut_row.h - one K-block of "lut" for one row of x, with 64-byte shuffles on the tables of lut_avx512_tables.c, for
 * any way of adding up bytes and of prefetching.
 *
 * Which are the fastest is a matter of the processor, not of its instruction set; all give the same sums. A file that
 * includes this has defined, before that,
 *   byte_sums                       what two cells of a tile add to
 *   start(stages)                   a byte_sums that makes up for the 128 that is added to every table entry
 *   add_four(sums, v0, v1, v2, v3)  adds four vectors of looked-up bytes
 *   widen(sums)                     word_sums: 16-bit sums of the even and of the odd bytes
 */
#ifndef F2I_LUT_ROW_H
#define F2I_LUT_ROW_H

#include <immintrin.h>

#include "kernels/kernels.h"
#include "kernels/x86/avx512/block.h"

/* Adds the two byte columns. Lanes of re and im: rows 0-15 of the first and of the second one, then rows 16-31.
 * Returns re of rows 0-15, of rows 16-31, then im. */
static inline __m512i add_columns(__m512i re, __m512i im) {
  return _mm512_add_epi16(_mm512_shuffle_i64x2(re, im, 0x88), _mm512_shuffle_i64x2(re, im, 0xDD));
}

static inline void flush(const byte_sums *re_bytes, const byte_sums *im_bytes, __m512 unit, float *acc) {
  const word_sums re = widen(re_bytes), im = widen(im_bytes);
  const __m512i even = add_columns(re.even, im.even), odd = add_columns(re.odd, im.odd);
  add_to(acc, unit, low_words(even));       /* rows 0, 4, ... */
  add_to(acc + 16, unit, high_words(even)); /* rows 2, 6, ... */
  add_to(acc + 32, unit, low_words(odd));
  add_to(acc + 48, unit, high_words(odd));
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

static inline void flush_row(const f2i_block *b, size_t row, size_t tile, const byte_sums *re, const byte_sums *im) {
  flush(re, im, _mm512_set1_ps(b->units[row * b->unit_stride]), b->acc + row * b->acc_stride + tile * F2I_ACC_PER_TILE);
}

/* Sums of a tile, or of a row of x. */
typedef struct both_sums {
  byte_sums re, im;
} both_sums;

static inline both_sums start_both(int stages) {
  const both_sums s = {start(stages), start(stages)};
  return s;
}

/* Two cells of a tile. */
static inline void add_cells(both_sums *s, cell_tables first, nibbles a, cell_tables second, nibbles b) {
  add_four(&s->re, _mm512_shuffle_epi8(first.low_re, a.low), _mm512_shuffle_epi8(first.high_re, a.high),
           _mm512_shuffle_epi8(second.low_re, b.low), _mm512_shuffle_epi8(second.high_re, b.high));
  add_four(&s->im, _mm512_shuffle_epi8(first.low_im, a.low), _mm512_shuffle_epi8(first.high_im, a.high),
           _mm512_shuffle_epi8(second.low_im, b.low), _mm512_shuffle_epi8(second.high_im, b.high));
}

/* One row of x, two tiles `apart`: their bytes share the loaded tables. Sums are no arrays, which compilers would keep
 * in memory before and behind the loop. */
static inline void two_tiles(const f2i_block *b, size_t row, size_t tile, size_t apart, int near) {
  const size_t tile_bytes = (size_t)b->stages * F2I_PLANE_BYTES, other = apart * tile_bytes;
  const uint8_t *packed = b->packed + tile * tile_bytes;
  const uint8_t *ahead = b->ahead + tile * tile_bytes, *table = b->operands + row * b->operand_stride;
  both_sums here = start_both(b->stages), there = start_both(b->stages);
#pragma GCC unroll 2
  for (int i = 0; i < b->stages * F2I_BLOCK_CELLS / 2; ++i) {
    const cell_tables first = load_tables(table), second = load_tables(table + F2I_CELL_ENTRIES);
    prefetch(ahead, 2 * F2I_CELL_BYTES, near);
    prefetch(ahead + other, 2 * F2I_CELL_BYTES, near);
    add_cells(&here, first, split(packed), second, split(packed + F2I_CELL_BYTES));
    add_cells(&there, first, split(packed + other), second, split(packed + other + F2I_CELL_BYTES));
    packed += 2 * F2I_CELL_BYTES, ahead += 2 * F2I_CELL_BYTES, table += 2 * F2I_CELL_ENTRIES;
  }
  flush_row(b, row, tile, &here.re, &here.im);
  flush_row(b, row, tile + apart, &there.re, &there.im);
}

static inline void one_tile(const f2i_block *b, size_t row, size_t tile, int near) {
  const size_t tile_bytes = (size_t)b->stages * F2I_PLANE_BYTES;
  const uint8_t *packed = b->packed + tile * tile_bytes;
  const uint8_t *ahead = b->ahead + tile * tile_bytes, *table = b->operands + row * b->operand_stride;
  both_sums here = start_both(b->stages);
#pragma GCC unroll 2
  for (int i = 0; i < b->stages * F2I_BLOCK_CELLS / 2; ++i) {
    prefetch(ahead, 2 * F2I_CELL_BYTES, near);
    add_cells(&here, load_tables(table), split(packed), load_tables(table + F2I_CELL_ENTRIES),
              split(packed + F2I_CELL_BYTES));
    packed += 2 * F2I_CELL_BYTES, ahead += 2 * F2I_CELL_BYTES, table += 2 * F2I_CELL_ENTRIES;
  }
  flush_row(b, row, tile, &here.re, &here.im);
}

/* One row of x. near is a constant where this is called. */
static inline __attribute__((always_inline)) void lut_row(const f2i_block *b, size_t row, const int near) {
  const size_t half = b->tiles / 2; /* pairs this far apart come from memory faster than neighbours: two streams */
  for (size_t tile = 0; tile < half; ++tile) two_tiles(b, row, tile, half, near);
  if (b->tiles % 2) one_tile(b, row, 2 * half, near);
}

#endif
