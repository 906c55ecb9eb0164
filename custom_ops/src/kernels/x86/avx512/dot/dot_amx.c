/* flags: -mavx512f -mavx512bw -mavx512vl -mavx512dq -mamx-tile -mamx-int8 */
/* only on: Linux */
/* dot_amx.c - "dot" with AMX tiles for many rows of x.
 *
 * One tile instruction is a whole K-block of one part of the output: 64 bytes of 16 rows of x times the 16 steps of 16
 * rows of the matrix.
 */
#include "kernels/x86/avx512/block.h"
#include "kernels/x86/avx512/dot/dot_panel.h"

extern const f2i_panel_kernel f2i_panel_dot__amx;

/* 64 bytes that say how many rows and bytes the eight tile registers have; palette 1. */
typedef struct tile_config {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
} tile_config;

static void configure(void) {
  tile_config config = {.palette = 1};
  for (int i = 0; i < 8; ++i) config.row_bytes[i] = 64, config.rows[i] = 16;
  _tile_loadconfig(&config);
}

/* out += unit * sum, for 16 rows of x. sums: [real, imaginary][row of x][row of the half]; out: those of
 * a panel_state */
static inline void add_sums(const int32_t *sums, const float *units, float *out) {
  __asm__("" : "+r"(sums), "+r"(units), "+r"(out)); /* one base address each: gcc would keep 32 in vector registers */
#pragma GCC unroll 16
  for (int r = 0; r < X_ROWS; ++r) {
    const __m512 unit = _mm512_set1_ps(units[r]);
    for (int part = 0; part < 2; ++part) {
      const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums + (part * X_ROWS + r) * F2I_HALF_ROWS));
      float *to = out + (r * HALVES * 2 + part) * F2I_HALF_ROWS;
      _mm512_store_ps(to, _mm512_add_ps(_mm512_load_ps(to), _mm512_mul_ps(unit, sum)));
    }
  }
}

static void tiles_of_panel(const f2i_panel *p) {
  const size_t tile_bytes = (size_t)p->stages * F2I_PLANE_BYTES;
  const panel_operands *x = p->operands;
  panel_state *state = p->state;
  _Alignas(64) panel_weights weights;
  _Alignas(64) int32_t sums[2][X_ROWS][F2I_HALF_ROWS];
  float units[PANEL_ROWS];
  for (size_t row = 0; row < p->rows; ++row) units[row] = f2i_dot_unit(p->shared, p->units[row]);
  for (size_t row = p->rows; row < PANEL_ROWS; ++row) units[row] = 0.0f;
  for (size_t tile = 0; tile < p->tiles; ++tile) {
    prefetch(p->ahead + tile * tile_bytes, tile_bytes, 0);
    unpack_tile(p->packed + tile * tile_bytes, p->shared, p->stages, 0, &weights);
    for (int half = 0; half < HALVES; ++half) {
      _tile_loadd(0, weights.w[half][0], 64);
      _tile_loadd(1, weights.w[half][1], 64);
      for (size_t row = 0; row < p->rows; row += X_ROWS) {
        _tile_loadd(2, x->x[row], 64);
        _tile_zero(3);
        _tile_zero(4);
        _tile_dpbssd(3, 2, 0);
        _tile_dpbssd(4, 2, 1);
        _tile_stored(3, sums[0], 64);
        _tile_stored(4, sums[1], 64);
        add_sums(sums[0][0], units + row, state[tile].sum[row][half][0]);
      }
    }
  }
}

static void f2i_block_dot__amx_panel(const f2i_panel *p) {
  if (p->rows <= X_ROWS) { /* hardly more than one tile of x */
    f2i_panel_dot__avx512.block(p);
    return;
  }
  configure();
  tiles_of_panel(p);
  _tile_release();
}

const f2i_panel_kernel f2i_panel_dot__amx = F2I_DOT_PANEL(8, f2i_block_dot__amx_panel);
