/* flags: -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni */
/* dot_avx512_panel.c - "dot" with AVX-512 VNNI for many rows of x. */
#include "kernels/x86/avx512/block.h"
#include "kernels/x86/avx512/dot/dot_panel.h"

/* `count` rows of x from `row` on, and `halves` halves of a tile from `half` on: as many sums as half the registers
 * hold, and enough for the latency of the instruction. Constants where this is called: sums stay in registers. */
static inline __attribute__((always_inline)) void multiply(const f2i_panel *p, const panel_weights *weights, size_t row,
                                                           const int count, int half, const int halves,
                                                           panel_state *state) {
  const panel_operands *x = p->operands;
  __m512i sums[8][2]; /* [row of x, half][real, imaginary] */
  for (int i = 0; i < count * halves; ++i) {
    sums[i][0] = sums[i][1] = _mm512_set1_epi32(x->bias[row + (size_t)(i / halves)]);
  }
  for (int step = 0; step < STEPS; ++step) {
    for (int h = 0; h < halves; ++h) {
      const __m512i re = _mm512_load_si512(weights->w[half + h][0][step]);
      const __m512i im = _mm512_load_si512(weights->w[half + h][1][step]);
      for (int r = 0; r < count; ++r) {
        const __m512i values = four(x->x[row + (size_t)r][step]);
        __m512i *sum = sums[r * halves + h];
        sum[0] = _mm512_dpbusd_epi32(sum[0], re, values);
        sum[1] = _mm512_dpbusd_epi32(sum[1], im, values);
      }
    }
  }
  for (int i = 0; i < count * halves; ++i) {
    const size_t of_row = row + (size_t)(i / halves);
    const __m512 unit = _mm512_set1_ps(f2i_dot_unit(p->shared, p->units[of_row]));
    for (int part = 0; part < 2; ++part) {
      float *out = state->sum[of_row][half + i % halves][part];
      _mm512_store_ps(out, _mm512_add_ps(_mm512_load_ps(out), _mm512_mul_ps(unit, _mm512_cvtepi32_ps(sums[i][part]))));
    }
  }
}

static void f2i_block_dot__avx512_panel(const f2i_panel *p) {
  const size_t tile_bytes = (size_t)p->stages * F2I_PLANE_BYTES;
  panel_state *state = p->state;
  _Alignas(64) panel_weights weights;
  for (size_t tile = 0; tile < p->tiles; ++tile, ++state) {
    prefetch(p->ahead + tile * tile_bytes, tile_bytes, 0);
    unpack_tile(p->packed + tile * tile_bytes, p->shared, p->stages, 128, &weights);
    size_t row = 0;
    for (; row + 8 <= p->rows; row += 8) {
      for (int half = 0; half < HALVES; ++half) multiply(p, &weights, row, 8, half, 1, state);
    }
    for (; row + 4 <= p->rows; row += 4) multiply(p, &weights, row, 4, 0, HALVES, state);
    for (; row + 2 <= p->rows; row += 2) multiply(p, &weights, row, 2, 0, HALVES, state);
    for (; row < p->rows; ++row) multiply(p, &weights, row, 1, 0, HALVES, state);
  }
}

const f2i_panel_kernel f2i_panel_dot__avx512 = F2I_DOT_PANEL(2, f2i_block_dot__avx512_panel);

/* dot_avx512_vbmi.c has a faster way for fewer rows */
const f2i_panel_kernel f2i_panel_dot__avx512_vbmi = F2I_DOT_PANEL(12, f2i_block_dot__avx512_panel);
