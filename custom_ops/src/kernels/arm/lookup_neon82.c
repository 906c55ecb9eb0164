/* flags of gcc: -fno-schedule-insns -fno-tree-ter */
/* lookup_neon82.c - "lut" and "exact" for cores of the ARMv8.2 generation (Cortex-A76, Neoverse N1 and later, Apple).
 *
 * Uses no instruction that older cores lack, but those on which these are fast: TBL with a table of 32 bytes costs as
 * little as one with 16. So the bytes of two columns are interleaved by row, bit 4 of an index says which column's
 * table to use, and neighbouring results, both of one row, are added and widened by a single UADALP instead of two
 * additions.
 */
#include "kernels/arm/lookup_neon.h"

f2i_block_fn f2i_block_lut__neon82;
f2i_block_fn f2i_block_exact__neon82;

/* Indices of 8 rows in two columns. */
static inline void split(uint8x16_t bytes, uint8x16_t *low, uint8x16_t *high) {
  const uint8x16_t column = vreinterpretq_u8_u16(vdupq_n_u16(0x1000)); /* bit 4 of the odd bytes */
  *high = vsriq_n_u8(column, bytes, 4);
  *low = vbslq_u8(vdupq_n_u8(15), bytes, column);
}

/* Indices of a row half of a cell: [rows 0-7, 8-15]. */
static inline void split_half(const uint8_t *bytes, uint8x16_t low[2], uint8x16_t high[2]) {
  const uint8x16_t even = vld1q_u8(bytes), odd = vld1q_u8(bytes + 16);
  split(vzip1q_u8(even, odd), &low[0], &high[0]);
  split(vzip2q_u8(even, odd), &low[1], &high[1]);
}

/* Of a cell: [row half][rows 0-7, 8-15] */
static inline void split_cell(const uint8_t *packed, uint8x16_t low[2][2], uint8x16_t high[2][2]) {
  split_half(packed, low[0], high[0]);
  split_half(packed + 32, low[1], high[1]);
}

/* Indices of one nibble of a cell: 8 rows in two columns each. */
enum { CELL_INDICES = 2 * 2 * 16, TILE_INDICES = 2 * CELL_INDICES * F2I_MAX_STAGES * F2I_BLOCK_CELLS };

/* Adds what the tables of two byte columns say for one output, and goes on to the next tables. */
static inline void look_up(const uint8_t **table, const uint8x16_t index[2][2], uint16x8_t sums[2][2]) {
  const uint8x16x2_t t = vld1q_u8_x2(*table);
  F2I_ADVANCE(*table, 32);
  for (int half = 0; half < 2; ++half) {
    for (int i = 0; i < 2; ++i) sums[half][i] = vpadalq_u8(sums[half][i], vqtbl2q_u8(t, index[half][i]));
  }
}

/* Has sums added before more tables are loaded: clang would look up much first, and keep it on the stack. */
static inline void add_now(uint16x8_t sums[2][2]) {
  __asm__ volatile("" : "+w"(sums[0][0]), "+w"(sums[0][1]), "+w"(sums[1][0]), "+w"(sums[1][1]));
}

/* The same for both outputs of `rows` (1 or 2) rows of x, which share the indices. */
static F2I_INLINE void look_up_rows(const uint8_t *tables[2], const uint8x16_t index[2][2], f2i_neon_sums sums[2],
                                    const int rows) {
  look_up(&tables[0], index, sums[0].re);
  if (rows == 2) add_now(sums[0].re);
  look_up(&tables[0], index, sums[0].im);
  if (rows == 1) return;
  add_now(sums[0].im);
  look_up(&tables[1], index, sums[1].re);
  add_now(sums[1].re);
  look_up(&tables[1], index, sums[1].im);
  add_now(sums[1].im);
}

/* Takes the indices of one nibble of a cell from split_tile's. */
static inline void next_indices(const uint8_t **indices, uint8x16_t index[2][2]) {
  const uint8x16x4_t v = vld1q_u8_x4(*indices);
  F2I_ADVANCE(*indices, CELL_INDICES);
  for (int i = 0; i < 4; ++i) index[i / 2][i % 2] = v.val[i];
}

/* One tile for `rows` (1 or 2) rows of x. indices: those of split_tile if `is_split`, else not used */
static F2I_INLINE void lut_tile(const f2i_block *b, size_t row, size_t tile, const uint8_t *indices, const int is_split,
                                const int rows) {
  const size_t cells = (size_t)b->stages * F2I_BLOCK_CELLS, tile_bytes = cells * F2I_CELL_BYTES;
  const uint8_t *packed = b->packed + tile * tile_bytes, *ahead = b->ahead + tile * tile_bytes;
  const uint8_t *tables[2] = {b->operands + row * b->operand_stride, b->operands + (row + 1) * b->operand_stride};
  f2i_neon_sums sums[2] = {f2i_neon_clear(b->stages), f2i_neon_clear(b->stages)};
  for (size_t cell = 0; cell < cells; ++cell) {
    uint8x16_t low[2][2], high[2][2];
    if (is_split) {
      next_indices(&indices, low);
      look_up_rows(tables, low, sums, rows);
      next_indices(&indices, high);
    } else {
      __builtin_prefetch(ahead);
      ahead += F2I_CELL_BYTES;
      split_cell(packed, low, high);
      packed += F2I_CELL_BYTES;
      look_up_rows(tables, low, sums, rows);
    }
    look_up_rows(tables, high, sums, rows);
  }
  float *acc = b->acc + row * b->acc_stride + tile * F2I_ACC_PER_TILE;
  f2i_neon_flush(&sums[0], b->units[row * b->unit_stride], acc);
  if (rows == 2) f2i_neon_flush(&sums[1], b->units[(row + 1) * b->unit_stride], acc + b->acc_stride);
}

/* Stores the indices of a tile: [cell][low, high nibbles][row half][rows 0-7, 8-15]. */
static inline void split_tile(const f2i_block *b, size_t tile, uint8_t *indices) {
  const size_t tile_bytes = (size_t)b->stages * F2I_PLANE_BYTES;
  const uint8_t *packed = b->packed + tile * tile_bytes, *ahead = b->ahead + tile * tile_bytes;
  for (const uint8_t *end = packed + tile_bytes; packed < end; packed += F2I_CELL_BYTES) {
    uint8x16_t low[2][2], high[2][2];
    __builtin_prefetch(ahead);
    ahead += F2I_CELL_BYTES;
    split_cell(packed, low, high);
    for (int i = 0; i < 4; ++i) vst1q_u8(indices + 16 * i, low[i / 2][i % 2]);
    indices += CELL_INDICES;
    for (int i = 0; i < 4; ++i) vst1q_u8(indices + 16 * i, high[i / 2][i % 2]);
    indices += CELL_INDICES;
  }
}

void f2i_block_lut__neon82(const f2i_block *b) {
  uint8_t indices[TILE_INDICES];
  for (size_t tile = 0; tile < b->tiles; ++tile) {
    if (b->rows == 1) {
      lut_tile(b, 0, tile, NULL, 0, 1);
      continue;
    }
    split_tile(b, tile, indices);
    size_t row = 0;
    for (; row + 2 <= b->rows; row += 2) lut_tile(b, row, tile, indices, 1, 2);
    if (row < b->rows) lut_tile(b, row, tile, indices, 1, 1);
  }
}

/* Adds what the tables of two byte columns say for one output and one byte of the entries. */
static inline void look_up_half(const uint8_t *table, const uint8x16_t index[2], uint16x8_t *first,
                                uint16x8_t *second) {
  const uint8x16x2_t t = vld1q_u8_x2(table);
  *first = vpadalq_u8(*first, vqtbl2q_u8(t, index[0]));
  *second = vpadalq_u8(*second, vqtbl2q_u8(t, index[1]));
}

/* A row half of a tile. */
static inline void exact_half(const uint8_t *packed, const uint8_t *tables, int stages, float32x4_t unit, float *acc) {
  const uint16x8_t zero = vdupq_n_u16(0);
  /* [rows 0-7, 8-15][byte of the entries] */
  uint16x8_t re[2][F2I_NEON_ENTRY_BYTES] = {{zero, zero, zero}, {zero, zero, zero}};
  uint16x8_t im[2][F2I_NEON_ENTRY_BYTES] = {{zero, zero, zero}, {zero, zero, zero}};
  for (int cell = 0; cell < stages * F2I_BLOCK_CELLS; ++cell, packed += F2I_CELL_BYTES, tables += F2I_CELL_ENTRIES) {
    uint8x16_t low[2], high[2];
    split_half(packed, low, high);
    for (int byte = 0; byte < F2I_NEON_ENTRY_BYTES; ++byte) {
      const uint8_t *t = tables + (size_t)byte * f2i_neon_byte_stride(stages);
      look_up_half(t, low, &re[0][byte], &re[1][byte]);
      look_up_half(t + 32, low, &im[0][byte], &im[1][byte]);
      look_up_half(t + 64, high, &re[0][byte], &re[1][byte]);
      look_up_half(t + 96, high, &im[0][byte], &im[1][byte]);
    }
  }
  const uint32x4_t bias = f2i_neon_exact_bias(stages);
  for (int i = 0; i < 2; ++i) {
    f2i_neon_add_exact(re[i], bias, unit, acc + 8 * i);
    f2i_neon_add_exact(im[i], bias, unit, acc + F2I_TILE_ROWS + 8 * i);
  }
}

void f2i_block_exact__neon82(const f2i_block *b) {
  const size_t tile_bytes = (size_t)b->stages * F2I_PLANE_BYTES;
  for (size_t tile = 0; tile < b->tiles; ++tile) {
    for (size_t row = 0; row < b->rows; ++row) {
      const float32x4_t unit = vdupq_n_f32(b->units[row * b->unit_stride]);
      float *acc = b->acc + row * b->acc_stride + tile * F2I_ACC_PER_TILE;
      for (size_t half = 0; half < 2; ++half) {
        exact_half(b->packed + tile * tile_bytes + 32 * half, b->operands + row * b->operand_stride, b->stages, unit,
                   acc + 16 * half);
      }
    }
  }
}
