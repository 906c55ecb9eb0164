/* flags of gcc: -fno-schedule-insns -fno-tree-ter */
/* lut_neon_panel.c - "lut" for 8, 16 or 32 rows of x at once, on any 64-bit ARM.
 *
 * TBL looks up many weights in the table of one row of x. Here a vector holds one table entry of 8 rows, real and
 * imaginary output: looking four binary weights up is loading the vector that their index names, which leaves the
 * vector units to the additions. Cores whose TBL is slow gain most (docs/arm.md).
 *
 * The tables of a block are larger than the first-level cache of these cores. So a few row tiles go through a part of
 * the tables before the next part, with their sums in memory between.
 */
#include "kernels/arm/lut_neon_panel.h"

#include <string.h>

#include "kernels/arm/lookup_neon.h"

extern const f2i_panel_kernel f2i_panel_lut__neon;

enum {
  VECTORS =
      8, /* of entries that are added to sums in registers, which take 16: those of 8 / groups rows of the matrix */
  PART_CELLS = 16, /* groups * cells of a part of the tables: 16 KiB */
  TILES = 4,       /* row tiles that share a part; their sums are 16 KiB at most, too */
  MOST_GROUPS = 4,
};

static inline void add(uint8x16_t entry, uint16x8_t sum[2]) {
  sum[0] = vaddw_u8(sum[0], vget_low_u8(entry));
  sum[1] = vaddw_high_u8(sum[1], entry);
}

/* Adds an entry, [groups] vectors, as many as rows of x are groups of F2I_GROUP. sums: [group][real, imaginary] */
static F2I_INLINE void add_entry(const uint8_t *entry, uint16x8_t sums[][2], const int groups) {
  if (groups == 4) {
    const uint8x16x4_t v = vld1q_u8_x4(entry);
    add(v.val[0], sums[0]);
    add(v.val[1], sums[1]);
    add(v.val[2], sums[2]);
    add(v.val[3], sums[3]);
  } else if (groups == 2) {
    const uint8x16x2_t v = vld1q_u8_x2(entry);
    add(v.val[0], sums[0]);
    add(v.val[1], sums[1]);
  } else {
    add(vld1q_u8(entry), sums[0]);
  }
}

/* Where the entry of nibble i of `codes` lies in its table. all: 15 entries in bytes, a mask whose value is hidden from
 * the compiler: it then shifts and masks with one instruction */
static F2I_INLINE uint64_t place_of(uint64_t codes, int i, uint64_t all, const int groups) {
  const int shift = 4 * i - (groups == 4 ? 6 : groups == 2 ? 5 : 4);
  return (shift < 0 ? codes << -shift : codes >> shift) & all;
}

/* The bytes of 2, 4 or 8 rows of the matrix. */
static F2I_INLINE uint64_t load_codes(const uint8_t *packed, const int rows) {
  if (rows == 8) {
    uint64_t codes;
    memcpy(&codes, packed, sizeof codes);
    return codes;
  }
  if (rows == 4) {
    uint32_t codes;
    memcpy(&codes, packed, sizeof codes);
    return codes;
  }
  uint16_t codes;
  memcpy(&codes, packed, sizeof codes);
  return codes;
}

/* Looks up one byte column of VECTORS / groups rows of the matrix, and goes on to the next tables. tables: low, high
 * nibbles; sums: [row][group][real, imaginary] */
static F2I_INLINE void add_column(const uint8_t *packed, const uint8_t *tables[2], uint64_t all,
                                  uint16x8_t sums[VECTORS][2], const int groups) {
  const size_t table_bytes = F2I_ENTRIES * 16 * (size_t)groups;
  const uint64_t codes = load_codes(packed, VECTORS / groups);
  F2I_UNROLL
  for (int row = 0; row < VECTORS / groups; ++row) {
    add_entry(tables[0] + place_of(codes, 2 * row, all, groups), sums + row * groups, groups);
    add_entry(tables[1] + place_of(codes, 2 * row + 1, all, groups), sums + row * groups, groups);
  }
  F2I_ADVANCE(tables[0], 2 * table_bytes);
  F2I_ADVANCE(tables[1], 2 * table_bytes);
}

/* VECTORS / groups rows of the matrix go through some cells, at least one. */
static F2I_INLINE void add_cells(const uint8_t *packed, const uint8_t *table, size_t cells, uint16x8_t sums[VECTORS][2],
                                 const int groups) {
  const size_t table_bytes = F2I_ENTRIES * 16 * (size_t)groups;
  const uint8_t *tables[2] = {table, table + table_bytes};
  uint64_t all = 15 * 16 * (uint64_t)groups;
  __asm__("" : "+r"(all));
  do {
    add_column(packed, tables, all, sums, groups);
    add_column(packed + 16, tables, all, sums, groups);
    packed += F2I_CELL_BYTES;
  } while (--cells > 0);
}

static F2I_INLINE void start(int stages, uint16x8_t sums[VECTORS][2]) {
  F2I_UNROLL
  for (int i = 0; i < 2 * VECTORS; ++i) sums[i / 2][i % 2] = f2i_neon_start(stages);
}

/* The sums of a few rows of the matrix between parts of the tables: [VECTORS][real, imaginary][8] */
static F2I_INLINE void load_sums(const uint16_t *kept, uint16x8_t sums[VECTORS][2]) {
  F2I_UNROLL
  for (int i = 0; i < 2 * VECTORS; ++i) sums[i / 2][i % 2] = vld1q_u16(kept + 8 * i);
}

static F2I_INLINE void store_sums(uint16x8_t sums[VECTORS][2], uint16_t *kept) {
  F2I_UNROLL
  for (int i = 0; i < 2 * VECTORS; ++i) vst1q_u16(kept + 8 * i, sums[i / 2][i % 2]);
}

/* acc: [row][group][real, imaginary][8] */
static F2I_INLINE void flush(uint16x8_t sums[VECTORS][2], const float *units, float *acc, const int groups) {
  F2I_UNROLL
  for (int i = 0; i < VECTORS; ++i) {
    const float *of = units + i % groups * F2I_GROUP;
    const float32x4_t unit[2] = {vld1q_f32(of), vld1q_f32(of + 4)};
    f2i_neon_add_rows(sums[i], unit, acc + 16 * i);
  }
}

/* A row tile goes through `cells` cells. kept: its sums; is_first, is_last: of the parts of a block */
static F2I_INLINE void add_tile(const f2i_panel *p, const uint8_t *packed, const uint8_t *table, size_t cells,
                                uint16_t *kept, float *acc, int is_first, int is_last, const int groups) {
  const size_t step = VECTORS / (size_t)groups;
  for (size_t half = 0; half < 2; ++half, packed += F2I_CELL_BYTES / 2) {
    for (size_t row = 0; row < F2I_HALF_ROWS; row += step, kept += 16 * VECTORS, acc += 16 * VECTORS) {
      uint16x8_t sums[VECTORS][2];
      if (is_first) start(p->stages, sums);
      else load_sums(kept, sums);
      add_cells(packed + row, table, cells, sums, groups);
      if (is_last) flush(sums, p->units, acc, groups);
      else store_sums(sums, kept);
    }
  }
}

static inline void prefetch(const uint8_t *begin, const uint8_t *end) {
  for (; begin < end; begin += 64) __builtin_prefetch(begin, 0, 2);
}

static F2I_INLINE void block(const f2i_panel *p, const int groups) {
  const size_t cells = (size_t)p->stages * F2I_BLOCK_CELLS, tile_bytes = cells * F2I_CELL_BYTES;
  const size_t part = PART_CELLS / (size_t)groups;
  const size_t cell_tables = F2I_CELL_TABLES * F2I_ENTRIES * 16 * (size_t)groups; /* bytes */
  const size_t kept_tile = F2I_TILE_ROWS * 16 * (size_t)groups;                   /* sums */
  const uint8_t *operands = p->operands, *next = operands + cells * cell_tables;
  _Alignas(64) uint16_t kept[TILES * F2I_TILE_ROWS * 16 * MOST_GROUPS];
  for (size_t begin = 0; begin < p->tiles; begin += TILES) {
    const size_t end = begin + TILES < p->tiles ? begin + TILES : p->tiles;
    prefetch(p->ahead + begin * tile_bytes, p->ahead + end * tile_bytes);
    /* the tables of the next block, a share for each tile */
    prefetch(next + begin * cells / p->tiles * cell_tables, next + end * cells / p->tiles * cell_tables);
    for (size_t cell = 0; cell < cells; cell += part) {
      const size_t count = cell + part < cells ? part : cells - cell;
      for (size_t tile = begin; tile < end; ++tile) {
        add_tile(p, p->packed + tile * tile_bytes + cell * F2I_CELL_BYTES, operands + cell * cell_tables, count,
                 kept + (tile - begin) * kept_tile, (float *)p->state + tile * kept_tile, cell == 0,
                 cell + count == cells, groups);
      }
    }
  }
}

/* Four rows of the matrix and of x. from: [row of the matrix], `stride` apart, four rows of x each; out: the other way
 * round, F2I_ACC_PER_TILE apart */
static inline void transpose(const float *from, size_t stride, float *out) {
  float32x4_t v[4];
  for (size_t i = 0; i < 4; ++i) v[i] = vld1q_f32(from + i * stride);
  const float32x4_t a = vzip1q_f32(v[0], v[2]), b = vzip2q_f32(v[0], v[2]);
  const float32x4_t c = vzip1q_f32(v[1], v[3]), d = vzip2q_f32(v[1], v[3]);
  vst1q_f32(out, vzip1q_f32(a, c));
  vst1q_f32(out + F2I_ACC_PER_TILE, vzip2q_f32(a, c));
  vst1q_f32(out + 2 * F2I_ACC_PER_TILE, vzip1q_f32(b, d));
  vst1q_f32(out + 3 * F2I_ACC_PER_TILE, vzip2q_f32(b, d));
}

/* state: [row of the matrix][group][real, imaginary][row of x in the group] */
static F2I_INLINE void read(const float *state, float *out, const size_t groups) {
  for (size_t i = 0; i < 4 * groups; ++i) { /* [group][real, imaginary][four rows of x] */
    const size_t x = i / 4 * F2I_GROUP + i % 2 * 4, part = i / 2 % 2;
    for (size_t row = 0; row < F2I_TILE_ROWS; row += 4) {
      transpose(state + 4 * i + row * 16 * groups, 16 * groups,
                out + x * F2I_ACC_PER_TILE + part * F2I_TILE_ROWS + row);
    }
  }
}

/* The functions for so many rows of x, and what depends on their number. */
#define FORM(rows_of_x)                                                                                         \
  static void build_##rows_of_x(const float *re, const float *im, size_t rows, const float *scales, int stages, \
                                void *operands, float *units) {                                                 \
    (void)rows;                                                                                                 \
    f2i_build_lut_neon_groups(re, im, scales, stages, rows_of_x / F2I_GROUP, operands, units);                  \
  }                                                                                                             \
  static void f2i_block_lut__neon_##rows_of_x##_panel(const f2i_panel *p) { block(p, rows_of_x / F2I_GROUP); }  \
  static void read_##rows_of_x(const void *state, size_t rows, float *out) {                                    \
    (void)rows;                                                                                                 \
    read(state, out, rows_of_x / F2I_GROUP);                                                                    \
  }

FORM(8)
FORM(16)
FORM(32)

#define FIELDS(rows_of_x)                                                                                            \
  .rows = rows_of_x, .strip_most = 16, .strip_least = 8, .build = build_##rows_of_x, .read = read_##rows_of_x,       \
  .block = f2i_block_lut__neon_##rows_of_x##_panel, .operand_bytes = F2I_PLANE_TABLES * F2I_ENTRIES * 2 * rows_of_x, \
  .state_bytes = F2I_TILE_ROWS * 2 * rows_of_x * sizeof(float)

static const f2i_panel_kernel panel_8 = {FIELDS(8), .least = 7, .fewer = NULL};
static const f2i_panel_kernel panel_16 = {FIELDS(16), .least = 14, .fewer = &panel_8};
const f2i_panel_kernel f2i_panel_lut__neon = {FIELDS(32), .least = 26, .fewer = &panel_16};
