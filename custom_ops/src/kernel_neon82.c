/* kernel_neon82.c - "lut" for cores of the ARMv8.2 generation (Cortex-A76, Neoverse N1 and later, Apple).
 *
 * Uses no instruction that older cores lack, but those on which these are fast: TBL with a table of 32 bytes costs as
 * little as one with 16. So the bytes of two columns are interleaved by row, bit 4 of an index says which column's
 * table to use, and neighbouring results, both of one row, are added and widened by a single UADALP instead of two
 * additions.
 */
#include "neon_lut.h"

/* Indices of 8 rows in two columns. */
static inline void split(uint8x16_t bytes, uint8x16_t *low, uint8x16_t *high) {
  const uint8x16_t column = vreinterpretq_u8_u16(vdupq_n_u16(0x1000)); /* bit 4 of the odd bytes */
  *high = vsriq_n_u8(column, bytes, 4);
  *low = vbslq_u8(vdupq_n_u8(15), bytes, column);
}

/* Adds what the tables of two byte columns say for one output. */
static inline void look_up(const uint8_t *table, const uint8x16_t index[2][2], uint16x8_t sums[2][2]) {
  const uint8x16x2_t t = vld1q_u8_x2(table);
  for (int half = 0; half < 2; ++half) {
    for (int i = 0; i < 2; ++i) sums[half][i] = vpadalq_u8(sums[half][i], vqtbl2q_u8(t, index[half][i]));
  }
}

static inline void look_up_all(const uint8_t *table, const uint8x16_t low[2][2], const uint8x16_t high[2][2],
                               f2i_neon_sums *sums) {
  look_up(table, low, sums->re);
  look_up(table + 32, low, sums->im);
  look_up(table + 64, high, sums->re);
  look_up(table + 96, high, sums->im);
}

/* One tile for `rows` (1 or 2) rows of x, which share the indices. */
static F2I_INLINE void lut_tile(const f2i_block *b, size_t row, size_t tile, const int rows) {
  const size_t cells = (size_t)b->stages * F2I_BLOCK_CELLS, tile_bytes = cells * F2I_CELL_BYTES;
  const uint8_t *packed = b->packed + tile * tile_bytes, *ahead = b->ahead + tile * tile_bytes;
  const uint8_t *table = b->operands + row * b->operand_stride;
  f2i_neon_sums sums[2] = {f2i_neon_clear(b->stages), f2i_neon_clear(b->stages)};
  for (size_t cell = 0; cell < cells; ++cell, packed += F2I_CELL_BYTES, table += F2I_CELL_ENTRIES) {
    __builtin_prefetch(ahead);
    ahead += F2I_CELL_BYTES;
    uint8x16_t low[2][2], high[2][2];
    for (int half = 0; half < 2; ++half) {
      const uint8x16_t even = vld1q_u8(packed + 32 * half), odd = vld1q_u8(packed + 32 * half + 16);
      split(vzip1q_u8(even, odd), &low[half][0], &high[half][0]);
      split(vzip2q_u8(even, odd), &low[half][1], &high[half][1]);
    }
    look_up_all(table, low, high, &sums[0]);
    if (rows == 2) look_up_all(table + b->operand_stride, low, high, &sums[1]);
  }
  for (int r = 0; r < rows; ++r) {
    const size_t x = row + (size_t)r;
    f2i_neon_flush(&sums[r], b->units[x * b->unit_stride], b->acc + x * b->acc_stride + tile * F2I_ACC_PER_TILE);
  }
}

void f2i_block_lut__neon82(const f2i_block *b) {
  for (size_t tile = 0; tile < b->tiles; ++tile) {
    size_t row = 0;
    for (; row + 2 <= b->rows; row += 2) lut_tile(b, row, tile, 2);
    if (row < b->rows) lut_tile(b, row, tile, 1);
  }
}
