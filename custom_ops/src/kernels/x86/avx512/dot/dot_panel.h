/* dot_panel.h - "dot" for many rows of x: what VNNI and AMX share. Include where -mavx512bw is on.
 *
 * The weights of a tile and K-block are unpacked to the real 2x2 blocks of dot_operands.h once for all rows of x.
 */
#ifndef F2I_DOT_PANEL_H
#define F2I_DOT_PANEL_H

#include "kernels/dot_panel_operands.h"
#include "kernels/x86/avx512/dot/dot_round.h"
#include "kernels/x86/avx512/dot/dot_unpack.h"

extern const f2i_panel_kernel f2i_panel_dot__avx512; /* for few rows of x better than AMX, too */
extern const f2i_panel_kernel f2i_panel_dot__avx512_vbmi;

enum {
  HALVES = F2I_TILE_ROWS / F2I_HALF_ROWS,
  X_ROWS = 16, /* of x, in a tile register of AMX */
};

/* Unpacked weights: [half of the rows][real, imaginary output][step][row][column] */
typedef struct panel_weights {
  int8_t w[HALVES][2][STEPS][F2I_HALF_ROWS][4];
} panel_weights;

/* Sums of a tile: [row of x][half][real, imaginary][row of the half] */
typedef struct panel_state {
  float sum[PANEL_ROWS][HALVES][2][F2I_HALF_ROWS];
} panel_state;

/* What f2i_build_dot does, for all rows, and for rows of zeros that fill a tile register. VNNI multiplies unsigned by
 * signed bytes, so 128 is added to its weights. */
static inline void build_panel(const float *re, const float *im, size_t rows, const float *scales, int stages,
                               void *operands, float *units) {
  panel_operands *out = operands;
  (void)stages;
  const size_t whole = (rows + X_ROWS - 1) / X_ROWS * X_ROWS; /* a tile register takes so many */
  for (size_t row = 0; row < whole; ++row, re += F2I_BLOCK_COLS, im += F2I_BLOCK_COLS) {
    const rounded x = round_block(re, im, scales);
    const __m256i low = _mm256_unpacklo_epi32(x.re, x.im), high = _mm256_unpackhi_epi32(x.re, x.im);
    _mm256_storeu_si256((__m256i *)(void *)out->x[row], _mm256_permute2x128_si256(low, high, 0x20));
    _mm256_storeu_si256((__m256i *)(void *)out->x[row][STEPS / 2], _mm256_permute2x128_si256(low, high, 0x31));
    out->bias[row] = -128 * (sum_of_bytes(x.re) + sum_of_bytes(x.im));
    units[row] = x.unit;
  }
}

/* Unpacks the K-block of one tile and adds `plus` to every weight. packed: [byte plane][F2I_PLANE_BYTES] */
static inline __attribute__((always_inline)) void unpack_stages(const uint8_t *packed, const f2i_dot_plane *planes,
                                                                const int stages, const int plus, panel_weights *out) {
  for (int half = 0; half < HALVES; ++half) {
    for (int group = 0; group < F2I_BLOCK_CELLS / 2; ++group) {
      const weights_of_group w = unpack_group(packed + group * 2 * F2I_CELL_BYTES, planes, half, stages, plus);
      for (int parity = 0; parity < 2; ++parity) {
        const int step = group * 4 + parity * 2; /* of x_re; that of x_im is the next one */
        _mm512_store_si512(out->w[half][0][step], w.of[parity].re_re);
        _mm512_store_si512(out->w[half][0][step + 1], w.of[parity].re_im);
        _mm512_store_si512(out->w[half][1][step], w.of[parity].im_re);
        _mm512_store_si512(out->w[half][1][step + 1], w.of[parity].im_im);
      }
    }
  }
}

static inline void unpack_tile(const uint8_t *packed, const f2i_dot_plane *planes, int stages, const int plus,
                               panel_weights *out) {
  if (stages == 1) unpack_stages(packed, planes, 1, plus, out);
  if (stages == 2) unpack_stages(packed, planes, 2, plus, out);
  if (stages == 3) unpack_stages(packed, planes, 3, plus, out);
  if (stages == 4) unpack_stages(packed, planes, 4, plus, out);
}

static inline void read_panel(const void *state, size_t rows, float *out) {
  const panel_state *s = state;
  for (size_t row = 0; row < rows; ++row, out += F2I_ACC_PER_TILE) {
    for (size_t i = 0; i < HALVES * 2; ++i) { /* half and part */
      _mm512_storeu_ps(out + i % 2 * F2I_TILE_ROWS + i / 2 * F2I_HALF_ROWS, _mm512_loadu_ps(s->sum[row][i / 2][i % 2]));
    }
  }
}

/* Four tiles at a time go through all blocks: their sums stay in the second-level cache, the operands in the first. */
#define F2I_DOT_PANEL(least_rows, block_fn)       \
  {.rows = PANEL_ROWS,                            \
   .least = least_rows,                           \
   .strip_most = 4,                               \
   .strip_least = 1,                              \
   .operand_bytes = 0,                            \
   .extra_bytes = sizeof(panel_operands),         \
   .state_bytes = sizeof(panel_state),            \
   .row_bytes = sizeof(panel_state) / PANEL_ROWS, \
   .build = build_panel,                          \
   .block = block_fn,                             \
   .read = read_panel}

#endif
