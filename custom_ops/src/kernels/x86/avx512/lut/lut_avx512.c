/* flags: -mavx512f -mavx512bw -mavx512vl -mavx512dq */
/* lut_avx512.c - "lut" with carry-save additions.
 *
 * Widening looked-up bytes to 16 bits costs more than looking them up, so bytes are first added bit by bit: a
 * carry-save adder (two ternary operations) turns three bytes into a sum and a carry of twice the weight without
 * leaving the byte. Two levels of it leave one byte of weight four to widen for every four looked up.
 */
#include "kernels/kernels.h"
#include "kernels/x86/avx512/lut/byte_sums.h"

f2i_block_fn f2i_block_lut__avx512;
f2i_block_fn f2i_block_lut__avx512_near;
extern const uint8_t f2i_order_lut__avx512[F2I_ACC_PER_TILE];

/* Where the driver finds the outputs among the accumulators of a tile, [re, im][row]: a float vector holds every fourth
 * row, that is what widening 16-bit lanes gives without moving them. */
#define PLACES_4(part, row) \
  (part) + (row) / 4, (part) + (row) / 4 + 32, (part) + (row) / 4 + 16, (part) + (row) / 4 + 48
#define PLACES_16(part, row) \
  PLACES_4(part, row), PLACES_4(part, (row) + 4), PLACES_4(part, (row) + 8), PLACES_4(part, (row) + 12)
const uint8_t f2i_order_lut__avx512[F2I_ACC_PER_TILE] = {PLACES_16(0, 0), PLACES_16(0, 16), PLACES_16(8, 0),
                                                         PLACES_16(8, 16)};

/* Every look-up adds 128: start with minus the sum of that in a byte column, which counts four times in `all` (even
 * bytes once, odd ones 256 times) and in `odd`. */
static inline byte_sums start(int stages) {
  const int bias = -128 * 2 * F2I_BLOCK_CELLS * stages / 4;
  const byte_sums s = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_set1_epi16((short)(bias * 257)),
                       _mm512_set1_epi16((short)bias)};
  return s;
}

static inline void add_four(byte_sums *s, __m512i v0, __m512i v1, __m512i v2, __m512i v3) {
  const __m512i first = add_carry(&s->ones, v0, v1), second = add_carry(&s->ones, v2, v3);
  add_fours(s, first, second);
}

#include "kernels/x86/avx512/lut/lut_row.h"

enum { SPLIT_LEAST = 4 }; /* so many rows of x are worth storing split bytes */

/* Table indices of a tile: [cell][low, high nibbles][64] */
typedef struct tile_indices {
  _Alignas(64) uint8_t of[F2I_MAX_STAGES * F2I_BLOCK_CELLS][2 * F2I_CELL_BYTES];
} tile_indices;

static inline void split_tile(const f2i_block *b, size_t tile, tile_indices *indices) {
  const size_t cells = (size_t)b->stages * F2I_BLOCK_CELLS;
  const uint8_t *packed = b->packed + tile * cells * F2I_CELL_BYTES;
  prefetch(b->ahead + tile * cells * F2I_CELL_BYTES, cells * F2I_CELL_BYTES, 0); /* once for all rows */
  for (size_t cell = 0; cell < cells; ++cell) {
    const nibbles n = split(packed + cell * F2I_CELL_BYTES);
    _mm512_store_si512(indices->of[cell], n.low);
    _mm512_store_si512(indices->of[cell] + F2I_CELL_BYTES, n.high);
  }
}

static inline nibbles load_nibbles(const uint8_t *indices) {
  const nibbles n = {_mm512_load_si512(indices), _mm512_load_si512(indices + F2I_CELL_BYTES)};
  return n;
}

/* Two tiles, all rows of x: bytes are split once for all of them, and a row's tables are loaded once for both. */
static void two_split_tiles(const f2i_block *b, size_t tile) {
  tile_indices indices[2];
  split_tile(b, tile, &indices[0]);
  split_tile(b, tile + 1, &indices[1]);
  for (size_t row = 0; row < b->rows; ++row) {
    const uint8_t *table = b->operands + row * b->operand_stride;
    both_sums here = start_both(b->stages), there = start_both(b->stages);
#pragma GCC unroll 2
    for (int i = 0; i < b->stages * F2I_BLOCK_CELLS; i += 2, table += 2 * F2I_CELL_ENTRIES) {
      const cell_tables first = load_tables(table), second = load_tables(table + F2I_CELL_ENTRIES);
      add_cells(&here, first, load_nibbles(indices[0].of[i]), second, load_nibbles(indices[0].of[i + 1]));
      add_cells(&there, first, load_nibbles(indices[1].of[i]), second, load_nibbles(indices[1].of[i + 1]));
    }
    flush_row(b, row, tile, &here.re, &here.im);
    flush_row(b, row, tile + 1, &there.re, &there.im);
  }
}

/* A tile, two rows of x that share its split bytes. */
static inline void tile_of_two(const f2i_block *b, size_t row, size_t tile) {
  const size_t tile_bytes = (size_t)b->stages * F2I_PLANE_BYTES;
  const uint8_t *packed = b->packed + tile * tile_bytes, *table = b->operands + row * b->operand_stride;
  const uint8_t *next = table + b->operand_stride;
  both_sums upper = start_both(b->stages), lower = start_both(b->stages);
  if (row == 0) prefetch(b->ahead + tile * tile_bytes, tile_bytes, 0); /* once for all rows */
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
  const size_t pairs = b->rows < SPLIT_LEAST ? 0 : b->tiles / 2;
  for (size_t pair = 0; pair < pairs; ++pair) two_split_tiles(b, 2 * pair);
  if (2 * pairs == b->tiles) return;
  size_t row = 0;
  for (; row + 2 <= b->rows; row += 2) {
    for (size_t tile = 2 * pairs; tile < b->tiles; ++tile) tile_of_two(b, row, tile);
  }
  if (row == b->rows) return;
  if (pairs == 0) lut_row(b, row, 0);
  else one_tile(b, row, 2 * pairs, 0);
}

void f2i_block_lut__avx512_near(const f2i_block *b) {
  if (b->rows == 1) lut_row(b, 0, 1);
  else f2i_block_lut__avx512(b);
}
