/* dot_panel.h - "dot" for many rows of x: what VNNI and AMX share. Include where -mavx512bw is on.
 *
 * The weights of a tile and K-block are unpacked to the real 2x2 blocks of dot_operands.h once for all rows of x.
 */
#ifndef F2I_DOT_PANEL_H
#define F2I_DOT_PANEL_H

#include "kernels/dot_panel_operands.h"
#include "kernels/x86/avx512/dot/dot_unpack.h"

extern const f2i_panel_kernel f2i_panel_dot__avx512; /* for few rows of x better than AMX, too */

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

/* The 16 bytes of two groups of columns to [group][parity][place]. */
static inline __m128i by_step(__m512 values, __m512 inverse) {
  const __m128i order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
  return _mm_shuffle_epi8(_mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(values, inverse))), order);
}

/* What f2i_build_dot does, for all rows, and for rows of zeros that fill a tile register. VNNI multiplies unsigned by
 * signed bytes, so 128 is added to its weights. */
static inline void build_panel(const float *re, const float *im, size_t rows, const float *scales, int stages,
                               void *operands, float *units) {
  panel_operands *out = operands;
  (void)stages;
  const __m512 most = _mm512_set1_ps(FLT_MAX);
  const size_t whole = (rows + X_ROWS - 1) / X_ROWS * X_ROWS; /* a tile register takes so many */
  for (size_t row = 0; row < whole; ++row, re += F2I_BLOCK_COLS, im += F2I_BLOCK_COLS) {
    const __m512 r[2] = {_mm512_loadu_ps(re), _mm512_loadu_ps(re + 16)};
    const __m512 i[2] = {_mm512_loadu_ps(im), _mm512_loadu_ps(im + 16)};
    const __m512 size_r = _mm512_max_ps(_mm512_abs_ps(r[0]), _mm512_abs_ps(r[1]));
    const __m512 size_i = _mm512_max_ps(_mm512_abs_ps(i[0]), _mm512_abs_ps(i[1]));
    /* the maximum of a NaN and a number may be the number */
    __mmask16 finite = 0xFFFF;
    for (int v = 0; v < 2; ++v) {
      finite &= _mm512_cmp_ps_mask(_mm512_abs_ps(r[v]), most, _CMP_LE_OQ);
      finite &= _mm512_cmp_ps_mask(_mm512_abs_ps(i[v]), most, _CMP_LE_OQ);
    }
    const float largest = finite == 0xFFFF ? _mm512_reduce_max_ps(_mm512_max_ps(size_r, size_i)) : 0.0f;
    const int usable = largest >= F2I_NEGLIGIBLE;
    units[row] = finite != 0xFFFF ? NAN : !usable ? 0.0f : scales == NULL ? 1.0f : largest / 127.0f;
    __m512i bytes = _mm512_setzero_si512();
    if (usable) {
      const __m512 inverse = _mm512_set1_ps(scales == NULL ? 1.0f : 127.0f / largest);
      const __m256i re_steps = _mm256_set_m128i(by_step(r[1], inverse), by_step(r[0], inverse));
      const __m256i im_steps = _mm256_set_m128i(by_step(i[1], inverse), by_step(i[0], inverse));
      const __m256i low = _mm256_unpacklo_epi32(re_steps, im_steps), high = _mm256_unpackhi_epi32(re_steps, im_steps);
      bytes = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_permute2x128_si256(low, high, 0x20)),
                                 _mm256_permute2x128_si256(low, high, 0x31), 1);
    }
    _mm512_storeu_si512(out->x[row], bytes);
    const __m512i plus128 = _mm512_xor_si512(bytes, _mm512_set1_epi8((char)0x80));
    const int sum = (int)_mm512_reduce_add_epi64(_mm512_sad_epu8(plus128, _mm512_setzero_si512()));
    out->bias[row] = -128 * (sum - 128 * 2 * F2I_BLOCK_COLS);
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
        _mm512_store_si512(out->w[half][0][step], w.re_re[parity]);
        _mm512_store_si512(out->w[half][0][step + 1], w.re_im[parity]);
        _mm512_store_si512(out->w[half][1][step], w.im_re[parity]);
        _mm512_store_si512(out->w[half][1][step + 1], w.im_im[parity]);
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
#define F2I_DOT_PANEL(block_fn)                   \
  {.rows = PANEL_ROWS,                            \
   .least = 2,                                    \
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
