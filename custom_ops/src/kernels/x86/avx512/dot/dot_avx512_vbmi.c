/* flags: -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vbmi -mavx512vnni */
/* dot_avx512_vbmi.c - "dot" for few rows of x where there is VBMI: weights are unpacked into registers, multiplied
 * there by all rows and forgotten.
 *
 * VPERMB looks at six bits of an index and has tables of 64 entries. A byte of codes is the index of its even column
 * as it is, and moved right by two bits that of the odd one: bits 0 and 1 are the code of the low plane, bits 4 and 5
 * that of the high one, and entries do not depend on bits 2 and 3.
 */
#include <immintrin.h>

#include "kernels/dot_operands.h"
#include "kernels/x86/avx512/block.h"
#include "kernels/x86/avx512/dot/dot_weights.h"

f2i_block_fn f2i_block_dot__avx512_vbmi;

enum { FEW_ROWS = 4, GROUPS = F2I_BLOCK_CELLS / 2 };

/* Where VPERMT2B finds the bytes of half a tile in two cells: [row][byte column]. */
static inline __m512i rows_of_half(int half) {
#define ROW(row) (row), 16 + (row), F2I_CELL_BYTES + (row), F2I_CELL_BYTES + 16 + (row)
#define ROWS_4(row) ROW(row), ROW((row) + 1), ROW((row) + 2), ROW((row) + 3)
  static const uint8_t upper[64] = {ROWS_4(0), ROWS_4(4), ROWS_4(8), ROWS_4(12)};
  return _mm512_add_epi8(_mm512_loadu_si512(upper), _mm512_set1_epi8((char)(half * 32)));
}

/* Tables of a byte plane for a matrix. */
typedef struct tables {
  __m512i re, im;
} tables;

/* value: [16], by two codes */
static inline __m512i table_of(const int8_t *value, int plus) {
  const __m512i by_high_code = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  const __m128i values = _mm_add_epi8(_mm_loadu_si128((const __m128i *)(const void *)value), _mm_set1_epi8((char)plus));
  return _mm512_permutexvar_epi32(by_high_code, _mm512_broadcast_i32x4(values));
}

static inline tables tables_of(const int8_t value[2][16], int plus) {
  const tables t = {table_of(value[0], plus), table_of(value[1], plus)};
  return t;
}

/* All tables of a layer: of U and W by byte plane, those that a plane has; 128 is added to the weights, which the
 * instruction takes for unsigned. */
typedef struct layer_tables {
  tables u[F2I_MAX_STAGES], w[F2I_MAX_STAGES];
} layer_tables;

static inline __attribute__((always_inline)) layer_tables load_tables(const f2i_dot_plane *planes, const int stages) {
  layer_tables t;
  for (int p = 0; p < stages; ++p) {
    const int low = byte_planes[stages - 1][p][0][1], high = byte_planes[stages - 1][p][1][1]; /* matrices */
    if (low == 0) t.u[p] = tables_of(planes[p].value, p == 0 ? 128 : 0);                       /* U comes first */
    if (high == 1) t.w[p] = tables_of(planes[p].value + (low == 1 ? 0 : 2), 0);
  }
  return t;
}

/* index: of the byte planes */
static inline __attribute__((always_inline)) weights look_up(const layer_tables *t, const __m512i *index,
                                                             const int stages) {
  __m512i u[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()}, w[2] = {u[0], u[0]};
  for (int p = 0; p < stages; ++p) {
    const int low = byte_planes[stages - 1][p][0][1], high = byte_planes[stages - 1][p][1][1];
    if (low == 0) {
      u[0] = _mm512_add_epi8(u[0], _mm512_permutexvar_epi8(index[p], t->u[p].re));
      u[1] = _mm512_add_epi8(u[1], _mm512_permutexvar_epi8(index[p], t->u[p].im));
    }
    if (high == 1) {
      w[0] = _mm512_add_epi8(w[0], _mm512_permutexvar_epi8(index[p], t->w[p].re));
      w[1] = _mm512_add_epi8(w[1], _mm512_permutexvar_epi8(index[p], t->w[p].im));
    }
  }
  return add_up(u, w);
}

/* stages and rows are constants where this is called: all values stay in registers.
 * packed: [byte plane][F2I_PLANE_BYTES]; x: [rows] */
static inline __attribute__((always_inline)) void one_tile(const f2i_block *b, const layer_tables *t,
                                                           const uint8_t *packed, const uint8_t *ahead, size_t first,
                                                           float *acc, const int stages, const int rows) {
  const __m512i order[2] = {rows_of_half(0), rows_of_half(1)};
  __m512i re[FEW_ROWS][2], im[FEW_ROWS][2]; /* by half of the tile */
  const f2i_dot_activations *x[FEW_ROWS];
  for (int r = 0; r < rows; ++r) {
    x[r] = (const void *)(b->operands + (first + (size_t)r) * b->operand_stride);
    for (int h = 0; h < 2; ++h) re[r][h] = im[r][h] = _mm512_set1_epi32(-128 * (x[r]->sum_re + x[r]->sum_im));
  }
#pragma GCC unroll 1
  for (int group = 0; group < GROUPS; ++group, packed += 2 * F2I_CELL_BYTES) {
    __m512i bytes[2][F2I_MAX_STAGES];
    prefetch(ahead, (size_t)stages * 2 * F2I_CELL_BYTES, 0);
    ahead += (size_t)stages * 2 * F2I_CELL_BYTES;
    for (int p = 0; p < stages; ++p) {
      const uint8_t *cells = packed + p * F2I_PLANE_BYTES;
      const __m512i a = _mm512_loadu_si512(cells), c = _mm512_loadu_si512(cells + F2I_CELL_BYTES);
      for (int h = 0; h < 2; ++h) bytes[h][p] = _mm512_permutex2var_epi8(a, order[h], c);
    }
    for (int parity = 0; parity < 2; ++parity) {
      for (int h = 0; h < 2; ++h) {
        const weights w = look_up(t, bytes[h], stages);
        for (int r = 0; r < rows; ++r) {
          const __m512i x_re = four(x[r]->re[group][parity]), x_im = four(x[r]->im[group][parity]);
          re[r][h] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(re[r][h], w.re_re, x_re), w.re_im, x_im);
          im[r][h] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(im[r][h], w.im_re, x_re), w.im_im, x_im);
        }
        for (int p = 0; p < stages; ++p) bytes[h][p] = _mm512_srli_epi16(bytes[h][p], 2);
      }
    }
  }
  for (int r = 0; r < rows; ++r) {
    const size_t row = first + (size_t)r;
    const __m512 unit = _mm512_set1_ps(f2i_dot_unit(b->shared, b->units[row * b->unit_stride]));
    float *out = acc + row * b->acc_stride;
    for (int h = 0; h < 2; ++h) {
      add_to(out + h * F2I_HALF_ROWS, unit, _mm512_cvtepi32_ps(re[r][h]));
      add_to(out + h * F2I_HALF_ROWS + F2I_TILE_ROWS, unit, _mm512_cvtepi32_ps(im[r][h]));
    }
  }
}

static inline __attribute__((always_inline)) void rows_of(const f2i_block *b, const layer_tables *t, size_t first,
                                                          const int stages, const int rows) {
  const size_t tile_bytes = (size_t)stages * F2I_PLANE_BYTES;
  for (size_t tile = 0; tile < b->tiles; ++tile) {
    one_tile(b, t, b->packed + tile * tile_bytes, b->ahead + tile * tile_bytes, first, b->acc + tile * F2I_ACC_PER_TILE,
             stages, rows);
  }
}

static inline __attribute__((always_inline)) void of_stages(const f2i_block *b, const int stages) {
  const layer_tables t = load_tables(b->shared, stages);
  size_t row = 0;
  for (; row + 4 <= b->rows; row += 4) rows_of(b, &t, row, stages, 4);
  if (stages == 2 && row + 3 == b->rows) { /* others in two steps: less code */
    rows_of(b, &t, row, stages, 3);
    return;
  }
  if (row + 2 <= b->rows) {
    rows_of(b, &t, row, stages, 2);
    row += 2;
  }
  if (row < b->rows) rows_of(b, &t, row, stages, 1);
}

void f2i_block_dot__avx512_vbmi(const f2i_block *b) {
  if (b->stages == 1) of_stages(b, 1);
  if (b->stages == 2) of_stages(b, 2);
  if (b->stages == 3) of_stages(b, 3);
  if (b->stages == 4) of_stages(b, 4);
}
