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
  __m512i carry_re[2], carry_im[2];
  look_up(&s->re, &s->im, first, a, &carry_re[0], &carry_im[0]);
  look_up(&s->re, &s->im, second, b, &carry_re[1], &carry_im[1]);
  add_fours(&s->re, carry_re[0], carry_re[1]);
  add_fours(&s->im, carry_im[0], carry_im[1]);
}

/* One row of x, two tiles `apart`: their bytes share the loaded tables. Sums are no arrays, which compilers would keep
 * in memory before and behind the loop. */
static inline void two_tiles(const f2i_block *b, size_t row, size_t tile, size_t apart) {
  const size_t tile_bytes = (size_t)b->stages * F2I_PLANE_BYTES, other = apart * tile_bytes;
  const uint8_t *packed = b->packed + tile * tile_bytes;
  const uint8_t *ahead = b->ahead + tile * tile_bytes, *table = b->operands + row * b->operand_stride;
  both_sums here = start_both(b->stages), there = start_both(b->stages);
#pragma GCC unroll 2
  for (int i = 0; i < b->stages * F2I_BLOCK_CELLS / 2; ++i) {
    const cell_tables first = load_tables(table), second = load_tables(table + F2I_CELL_ENTRIES);
    for (size_t c = 0; c < 2 * F2I_CELL_BYTES; c += F2I_CELL_BYTES) {
      _mm_prefetch((const char *)ahead + c, _MM_HINT_T1);
      _mm_prefetch((const char *)ahead + other + c, _MM_HINT_T1);
    }
    add_cells(&here, first, split(packed), second, split(packed + F2I_CELL_BYTES));
    add_cells(&there, first, split(packed + other), second, split(packed + other + F2I_CELL_BYTES));
    packed += 2 * F2I_CELL_BYTES, ahead += 2 * F2I_CELL_BYTES, table += 2 * F2I_CELL_ENTRIES;
  }
  flush_row(b, row, tile, &here.re, &here.im);
  flush_row(b, row, tile + apart, &there.re, &there.im);
}

static inline void one_tile(const f2i_block *b, size_t row, size_t tile) {
  const size_t tile_bytes = (size_t)b->stages * F2I_PLANE_BYTES;
  const uint8_t *packed = b->packed + tile * tile_bytes;
  const uint8_t *ahead = b->ahead + tile * tile_bytes, *table = b->operands + row * b->operand_stride;
  both_sums here = start_both(b->stages);
#pragma GCC unroll 2
  for (int i = 0; i < b->stages * F2I_BLOCK_CELLS / 2; ++i) {
    _mm_prefetch((const char *)ahead, _MM_HINT_T1);
    _mm_prefetch((const char *)ahead + F2I_CELL_BYTES, _MM_HINT_T1);
    add_cells(&here, load_tables(table), split(packed), load_tables(table + F2I_CELL_ENTRIES),
              split(packed + F2I_CELL_BYTES));
    packed += 2 * F2I_CELL_BYTES, ahead += 2 * F2I_CELL_BYTES, table += 2 * F2I_CELL_ENTRIES;
  }
  flush_row(b, row, tile, &here.re, &here.im);
}

/* A tile, two rows of x that share its split bytes. */
static inline void tile_of_two(const f2i_block *b, size_t row, size_t tile) {
  const size_t tile_bytes = (size_t)b->stages * F2I_PLANE_BYTES;
  const uint8_t *packed = b->packed + tile * tile_bytes, *table = b->operands + row * b->operand_stride;
  const uint8_t *next = table + b->operand_stride;
  both_sums upper = start_both(b->stages), lower = start_both(b->stages);
  for (size_t i = 0; row == 0 && i < tile_bytes; i += F2I_CELL_BYTES) {
    _mm_prefetch((const char *)b->ahead + tile * tile_bytes + i, _MM_HINT_T1); /* once for all rows */
  }
#pragma GCC unroll 2
  for (int i = 0; i < b->stages * F2I_BLOCK_CELLS / 2; ++i) {
    const nibbles first = split(packed), second = split(packed + F2I_CELL_BYTES);
    add_cells(&upper, load_tables(table), first, load_tables(table + F2I_CELL_ENTRIES), second);
    add_cells(&lower, load_tables(next), first, load_tables(next + F2I_CELL_ENTRIES), second);
    packed += 2 * F2I_CELL_BYTES, table += 2 * F2I_CELL_ENTRIES, next += 2 * F2I_CELL_ENTRIES;
  }
  flush_row(b, row, tile, &upper.re, &upper.im);
  flush_row(b, row + 1, tile, &lower.re, &lower.im);
}

void f2i_block_lut__avx512(const f2i_block *b) {
  size_t row = 0;
  for (; row + 2 <= b->rows; row += 2) {
    for (size_t tile = 0; tile < b->tiles; ++tile) tile_of_two(b, row, tile);
  }
  if (row == b->rows) return;
  const size_t half = b->tiles / 2; /* pairs this far apart come from memory faster than neighbours: two streams */
  for (size_t tile = 0; tile < half; ++tile) two_tiles(b, row, tile, half);
  if (b->tiles % 2) one_tile(b, row, 2 * half);
}
