/* dot_neon.h - what the "dot" kernels for ARM share: unpacking a row tile of a K-block, once for all rows of x.
 *
 * Eight rows and four byte columns are transposed at a time, so that a 32-bit lane is a row and its four bytes are the
 * four byte columns; each byte then splits into the table indices of an even and an odd column.
 */
#ifndef F2I_DOT_NEON_H
#define F2I_DOT_NEON_H

#include "kernels/arm/lookup_neon.h"
#include "kernels/dot_panel_operands.h"

enum { GROUPS = F2I_BLOCK_CELLS / 2, EIGHTS = F2I_TILE_ROWS / 8 };

/* Eight rows of two cells: [rows 0-3, 4-7], a row's four byte columns side by side. */
static inline void transpose(const uint8_t *cells, uint8x16_t rows[2]) {
  const uint8x16_t a = vcombine_u8(vld1_u8(cells), vdup_n_u8(0)), b = vcombine_u8(vld1_u8(cells + 16), vdup_n_u8(0));
  const uint8x16_t c = vcombine_u8(vld1_u8(cells + F2I_CELL_BYTES), vdup_n_u8(0));
  const uint8x16_t d = vcombine_u8(vld1_u8(cells + F2I_CELL_BYTES + 16), vdup_n_u8(0));
  const uint16x8_t ab = vreinterpretq_u16_u8(vzip1q_u8(a, b)), cd = vreinterpretq_u16_u8(vzip1q_u8(c, d));
  rows[0] = vreinterpretq_u8_u16(vzip1q_u16(ab, cd));
  rows[1] = vreinterpretq_u8_u16(vzip2q_u16(ab, cd));
}

/* Low plane's code in bits 0-1, high plane's in bits 2-3, of the even and of the odd columns. */
static inline void split(uint8x16_t bytes, uint8x16_t index[2]) {
  const uint8x16_t low2 = vdupq_n_u8(3), by2 = vshrq_n_u8(bytes, 2);
  index[0] = vandq_u8(vbslq_u8(low2, bytes, by2), vdupq_n_u8(15));
  index[1] = vbslq_u8(low2, by2, vshrq_n_u8(bytes, 4));
}

/* Adds what a byte plane says about a matrix. values: [parity of the column][re, im]; tables: [re, im][16] */
static F2I_INLINE void add_plane(int8x16_t values[2][2], const int8_t tables[2][16], const uint8x16_t index[2]) {
  const int8x16_t re = vld1q_s8(tables[0]), im = vld1q_s8(tables[1]);
  values[0][0] = vaddq_s8(values[0][0], vqtbl1q_s8(re, index[0]));
  values[0][1] = vaddq_s8(values[0][1], vqtbl1q_s8(im, index[0]));
  values[1][0] = vaddq_s8(values[1][0], vqtbl1q_s8(re, index[1]));
  values[1][1] = vaddq_s8(values[1][1], vqtbl1q_s8(im, index[1]));
}

/* Weights of four rows and four byte columns: [parity of the column], of an output (first name) by a part of x. */
typedef struct weights_of_group {
  int8x16_t re_re[2], re_im[2], im_re[2], im_im[2];
} weights_of_group;

/* rows: of each byte plane, transposed, 2 apart. stages is a constant where this is called. */
static F2I_INLINE weights_of_group add_up(const uint8x16_t *rows, const f2i_dot_plane *planes, const int stages) {
  const int8x16_t zero = vdupq_n_s8(0);
  int8x16_t u[2][2] = {{zero, zero}, {zero, zero}}, w[2][2] = {{zero, zero}, {zero, zero}};
  F2I_UNROLL
  for (int p = 0; p < stages; ++p) {
    const int low = byte_planes[stages - 1][p][0][1], high = byte_planes[stages - 1][p][1][1]; /* matrices */
    uint8x16_t index[2];
    split(rows[2 * p], index);
    if (low == 0) add_plane(u, planes[p].value, index);
    if (high == 1) add_plane(w, planes[p].value + (low == 1 ? 0 : 2), index);
  }
  const weights_of_group out = {{vaddq_s8(u[0][0], w[0][0]), vaddq_s8(u[1][0], w[1][0])},
                                {vsubq_s8(w[0][1], u[0][1]), vsubq_s8(w[1][1], u[1][1])},
                                {vaddq_s8(u[0][1], w[0][1]), vaddq_s8(u[1][1], w[1][1])},
                                {vsubq_s8(u[0][0], w[0][0]), vsubq_s8(u[1][0], w[1][0])}};
  return out;
}

/* Unpacked weights of a tile, 4 KiB: [eight rows][real, imaginary output], and in these
 *   for SDOT:   [STEPS][rows 0-3, 4-7][row][4 columns]
 *   for SMMLA:  [STEPS / 2][two of eight rows][row][8 columns], steps of four even and four odd columns */
typedef struct tile_weights {
  int8_t w[EIGHTS][2][STEPS * 8 * 4];
} tile_weights;

/* Stores what four rows of a group have of one output by one part of x (0: real). rows: 0 or 1 of the eight's halves */
static F2I_INLINE void store_weights(const int8x16_t of[2], int group, int part, int rows, const int for_smmla,
                                     int8_t *out) {
  if (for_smmla) {
    const uint32x4_t even = vreinterpretq_u32_s8(of[0]), odd = vreinterpretq_u32_s8(of[1]);
    int8_t *at = out + (group * 2 + part) * 64 + rows * 32;
    vst1q_s8(at, vreinterpretq_s8_u32(vzip1q_u32(even, odd)));
    vst1q_s8(at + 16, vreinterpretq_s8_u32(vzip2q_u32(even, odd)));
  } else {
    int8_t *at = out + (group * 2 + part) * 64 + rows * 16;
    vst1q_s8(at, of[0]);
    vst1q_s8(at + 32, of[1]);
  }
}

static F2I_INLINE void unpack_stages(const uint8_t *packed, const f2i_dot_plane *planes, const int stages,
                                     const int for_smmla, tile_weights *out) {
  for (int eight = 0; eight < EIGHTS; ++eight) {
    const uint8_t *cells = packed + eight / 2 * 32 + eight % 2 * 8;
    F2I_ROLLED
    for (int group = 0; group < GROUPS; ++group, cells += 2 * F2I_CELL_BYTES) {
      uint8x16_t rows[F2I_MAX_STAGES][2];
      F2I_UNROLL
      for (int p = 0; p < stages; ++p) transpose(cells + p * F2I_PLANE_BYTES, rows[p]);
      F2I_UNROLL
      for (int v = 0; v < 2; ++v) {
        const weights_of_group w = add_up(&rows[0][v], planes, stages);
        store_weights(w.re_re, group, 0, v, for_smmla, out->w[eight][0]);
        store_weights(w.re_im, group, 1, v, for_smmla, out->w[eight][0]);
        store_weights(w.im_re, group, 0, v, for_smmla, out->w[eight][1]);
        store_weights(w.im_im, group, 1, v, for_smmla, out->w[eight][1]);
      }
    }
  }
}

/* packed: [byte plane][F2I_PLANE_BYTES] */
static F2I_INLINE void unpack_tile(const uint8_t *packed, const f2i_dot_plane *planes, int stages, const int for_smmla,
                                   tile_weights *out) {
  switch (stages) {
    case 1:
      unpack_stages(packed, planes, 1, for_smmla, out);
      break;
    case 2:
      unpack_stages(packed, planes, 2, for_smmla, out);
      break;
    case 3:
      unpack_stages(packed, planes, 3, for_smmla, out);
      break;
    default:
      unpack_stages(packed, planes, 4, for_smmla, out);
      break;
  }
}

/* As f2i_build_dot. x: out, [group][real, imaginary part][even, odd column][byte column] */
static inline float build_row(const float *re, const float *im, const float *scales, int8_t *x) {
  f2i_dot_activations rounded;
  const float unit = f2i_build_dot(re, im, scales, &rounded);
  for (int group = 0; group < GROUPS; ++group) {
    memcpy(x + 16 * group, rounded.re[group], 8);
    memcpy(x + 16 * group + 8, rounded.im[group], 8);
  }
  return unit;
}

/* Rows of x, as build_row has them, and of sums: row r at x + r * stride, and at acc + r * acc_stride,
 * [F2I_ACC_PER_TILE]. */
typedef struct rows_of_x {
  const int8_t *x;
  const float *units; /* what sums are multiplied by: the unit of the row times the grid of the weights */
  float *acc;
  size_t count, stride, acc_stride;
} rows_of_x;

/* acc[0..7] += unit * sums */
static inline void add_to(float *acc, float unit, int32x4_t first, int32x4_t second) {
  const float32x4_t a = vmulq_n_f32(vcvtq_f32_s32(first), unit), b = vmulq_n_f32(vcvtq_f32_s32(second), unit);
  const float32x4_t before[2] = {vld1q_f32(acc), vld1q_f32(acc + 4)};
  vst1q_f32(acc, vaddq_f32(before[0], a));
  vst1q_f32(acc + 4, vaddq_f32(before[1], b));
}

static inline void skip_rows(rows_of_x *rows, size_t count) {
  rows->x += count * rows->stride;
  rows->units += count;
  rows->acc += count * rows->acc_stride;
  rows->count -= count;
}

/* Multiplies all rows by one tile. */
typedef void multiply_fn(rows_of_x rows, const tile_weights *weights);

/* What one of these kernels does with one K-block: packed, ahead, planes, tiles as in f2i_block. acc_tile: from the
 * sums of a tile to those of the next */
static F2I_INLINE void walk(const uint8_t *packed, const uint8_t *ahead, const f2i_dot_plane *planes, size_t tiles,
                            int stages, rows_of_x rows, size_t acc_tile, multiply_fn *multiply, const int for_smmla) {
  const size_t tile_bytes = (size_t)stages * F2I_PLANE_BYTES;
  _Alignas(64) tile_weights weights;
  for (size_t tile = 0; tile < tiles; ++tile) {
    for (size_t i = 0; i < tile_bytes; i += 64) __builtin_prefetch(ahead + i);
    unpack_tile(packed, planes, stages, for_smmla, &weights);
    multiply(rows, &weights);
    packed += tile_bytes;
    ahead += tile_bytes;
    rows.acc += acc_tile;
  }
}

/* sum += weights of one output times a group of x, whose lanes are [real, imaginary part][even, odd column] */
static inline int32x4_t add_group(int32x4_t sum, const int8x16_t by_re[2], const int8x16_t by_im[2], int8x16_t x) {
  sum = vdotq_laneq_s32(vdotq_laneq_s32(sum, by_re[0], x, 0), by_re[1], x, 1);
  return vdotq_laneq_s32(vdotq_laneq_s32(sum, by_im[0], x, 2), by_im[1], x, 3);
}

/* One row of x: weights are multiplied as soon as they are unpacked. x: [GROUPS][16] */
static F2I_INLINE void tile_of_one_row(const uint8_t *packed, const f2i_dot_plane *planes, const int stages,
                                       const int8_t *x, float unit, float *acc) {
  for (int eight = 0; eight < EIGHTS; ++eight, acc += 8) {
    const uint8_t *cells = packed + eight / 2 * 32 + eight % 2 * 8;
    int32x4_t re[2], im[2]; /* [rows 0-3, 4-7] */
    re[0] = re[1] = im[0] = im[1] = vdupq_n_s32(0);
    F2I_ROLLED
    for (int group = 0; group < GROUPS; ++group, cells += 2 * F2I_CELL_BYTES) {
      const int8x16_t of_group = vld1q_s8(x + 16 * group);
      uint8x16_t rows[F2I_MAX_STAGES][2];
      F2I_UNROLL
      for (int p = 0; p < stages; ++p) transpose(cells + p * F2I_PLANE_BYTES, rows[p]);
      F2I_UNROLL
      for (int v = 0; v < 2; ++v) {
        const weights_of_group w = add_up(&rows[0][v], planes, stages);
        re[v] = add_group(re[v], w.re_re, w.re_im, of_group);
        im[v] = add_group(im[v], w.im_re, w.im_im, of_group);
      }
    }
    add_to(acc, unit, re[0], re[1]);
    add_to(acc + F2I_TILE_ROWS, unit, im[0], im[1]);
  }
}

static F2I_INLINE void walk_one_row(const f2i_block *b, const int stages) {
  const size_t tile_bytes = (size_t)stages * F2I_PLANE_BYTES;
  const float unit = f2i_dot_unit(b->shared, b->units[0]);
  for (size_t tile = 0; tile < b->tiles; ++tile) {
    for (size_t i = 0; i < tile_bytes; i += 64) __builtin_prefetch(b->ahead + tile * tile_bytes + i);
    tile_of_one_row(b->packed + tile * tile_bytes, b->shared, stages, (const int8_t *)b->operands, unit,
                    b->acc + tile * F2I_ACC_PER_TILE);
  }
}

static inline void one_row(const f2i_block *b) {
  switch (b->stages) {
    case 1:
      walk_one_row(b, 1);
      break;
    case 2:
      walk_one_row(b, 2);
      break;
    case 3:
      walk_one_row(b, 3);
      break;
    default:
      walk_one_row(b, 4);
      break;
  }
}

static F2I_INLINE void walk_block(const f2i_block *b, multiply_fn *multiply, const int for_smmla) {
  float units[PANEL_ROWS];
  if (b->rows == 1) {
    one_row(b);
    return;
  }
  for (size_t r = 0; r < b->rows; ++r) units[r] = f2i_dot_unit(b->shared, b->units[r * b->unit_stride]);
  const rows_of_x rows = {(const int8_t *)b->operands, units, b->acc, b->rows, b->operand_stride, b->acc_stride};
  walk(b->packed, b->ahead, b->shared, b->tiles, b->stages, rows, F2I_ACC_PER_TILE, multiply, for_smmla);
}

/* The same for a panel; its state: [PANEL_ROWS][F2I_ACC_PER_TILE] */
static F2I_INLINE void walk_panel(const f2i_panel *p, multiply_fn *multiply, const int for_smmla) {
  const panel_operands *of = p->operands;
  float units[PANEL_ROWS];
  for (size_t r = 0; r < p->rows; ++r) units[r] = f2i_dot_unit(p->shared, p->units[r]);
  const rows_of_x rows = {of->x[0][0], units, p->state, p->rows, sizeof of->x[0], F2I_ACC_PER_TILE};
  walk(p->packed, p->ahead, p->shared, p->tiles, p->stages, rows, (size_t)PANEL_ROWS * F2I_ACC_PER_TILE, multiply,
       for_smmla);
}

static inline void build_panel(const float *re, const float *im, size_t rows, const float *scales, int stages,
                               void *operands, float *units) {
  panel_operands *out = operands;
  (void)stages;
  for (size_t row = 0; row < rows; ++row, re += F2I_BLOCK_COLS, im += F2I_BLOCK_COLS) {
    units[row] = build_row(re, im, scales, out->x[row][0]);
  }
}

static inline void read_panel(const void *state, size_t rows, float *out) {
  memcpy(out, state, rows * F2I_ACC_PER_TILE * sizeof(float));
}

/* The fields of a f2i_panel_kernel that these kernels share. */
#define F2I_DOT_NEON_PANEL                                                                                          \
  .rows = PANEL_ROWS, .strip_most = 8, .strip_least = 2, .operand_bytes = 0, .extra_bytes = sizeof(panel_operands), \
  .build = build_panel, .read = read_panel, .state_bytes = PANEL_ROWS * F2I_ACC_PER_TILE * sizeof(float),           \
  .row_bytes = F2I_ACC_PER_TILE * sizeof(float)

#endif
