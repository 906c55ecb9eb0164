/* flags: -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni */
/* dot_avx512_panel.c - "dot" with AVX-512 VNNI for many rows of x. */
#include "kernels/x86/avx512/dot_panel.h"

enum { AT_ONCE = 8 }; /* rows of x whose sums fill half the registers */

/* `count` rows of x and half a tile. The count is a constant where this is called: sums stay in registers. */
static inline void multiply(const panel_weights *weights, int half, const panel_operands *x, size_t row,
                            const int count, const f2i_dot_plane *planes, const float *units, panel_state *state) {
  __m512i sums[AT_ONCE][2];
  for (int r = 0; r < count; ++r) sums[r][0] = sums[r][1] = _mm512_set1_epi32(x->bias[row + (size_t)r]);
  for (int step = 0; step < STEPS; ++step) {
    const __m512i re = _mm512_load_si512(weights->w[half][0][step]);
    const __m512i im = _mm512_load_si512(weights->w[half][1][step]);
    for (int r = 0; r < count; ++r) {
      const __m512i values = four(x->x[row + (size_t)r][step]);
      sums[r][0] = _mm512_dpbusd_epi32(sums[r][0], re, values);
      sums[r][1] = _mm512_dpbusd_epi32(sums[r][1], im, values);
    }
  }
  for (size_t r = 0; r < (size_t)count; ++r) {
    const __m512 unit = _mm512_set1_ps(f2i_dot_unit(planes, units[row + r]));
    for (int part = 0; part < 2; ++part) {
      float *out = state->sum[half][row + r][part];
      _mm512_store_ps(out, _mm512_add_ps(_mm512_load_ps(out), _mm512_mul_ps(unit, _mm512_cvtepi32_ps(sums[r][part]))));
    }
  }
}

static inline __attribute__((always_inline)) void tiles_of_panel(const f2i_panel *p, const int stages) {
  const size_t tile_bytes = (size_t)stages * F2I_PLANE_BYTES;
  panel_state *state = p->state;
  _Alignas(64) panel_weights weights;
  for (size_t tile = 0; tile < p->tiles; ++tile) {
    prefetch_tile(p->ahead + tile * tile_bytes, tile_bytes);
    unpack_tile(p->packed + tile * tile_bytes, p->shared, stages, 128, &weights);
    for (int half = 0; half < HALVES; ++half) {
      size_t row = 0;
      for (; row + AT_ONCE <= p->rows; row += AT_ONCE) {
        multiply(&weights, half, p->operands, row, AT_ONCE, p->shared, p->units, &state[tile]);
      }
      for (; row + 4 <= p->rows; row += 4)
        multiply(&weights, half, p->operands, row, 4, p->shared, p->units, &state[tile]);
      for (; row < p->rows; ++row) multiply(&weights, half, p->operands, row, 1, p->shared, p->units, &state[tile]);
    }
  }
}

static void f2i_block_dot__avx512_panel(const f2i_panel *p) {
  if (p->stages == 1) tiles_of_panel(p, 1);
  if (p->stages == 2) tiles_of_panel(p, 2);
  if (p->stages == 3) tiles_of_panel(p, 3);
  if (p->stages == 4) tiles_of_panel(p, 4);
}

const f2i_panel_kernel f2i_panel_dot__avx512 = F2I_DOT_PANEL(f2i_block_dot__avx512_panel);
