/* flags: -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni */
/* dot_avx512.c - "dot" with AVX-512 VNNI, one row of x.
 *
 * The instruction multiplies unsigned by signed bytes, so 128 is added to the weights and 128 times the sum of the
 * activations subtracted from the result.
 */
#include "kernels/x86/avx512/block.h"
#include "kernels/x86/avx512/dot/dot_round.h"
#include "kernels/x86/avx512/dot/dot_unpack.h"

f2i_build_fn f2i_build_dot__avx512;
f2i_block_fn f2i_block_dot__avx512;

float f2i_build_dot__avx512(const float *re, const float *im, const float *scales, int stages, void *operands) {
  const rounded x = round_block(re, im, scales);
  f2i_dot_activations *out = operands;
  (void)stages;
  memset(out, 0, sizeof *out);
  _mm256_storeu_si256((__m256i *)(void *)out->re, x.re);
  _mm256_storeu_si256((__m256i *)(void *)out->im, x.im);
  out->sum_re = sum_of_bytes(x.re);
  out->sum_im = sum_of_bytes(x.im);
  return x.unit;
}

/* Sums of half a tile. Even and odd columns have sums of their own: the chains of dependent instructions stay short. */
typedef struct sums {
  __m512i re[2], im[2];
} sums;

/* Two cells of one row half of all byte planes, one row of x. */
static inline void add_group(sums *s, const weights_of_group *w, const f2i_dot_activations *x, int group) {
  for (int parity = 0; parity < 2; ++parity) {
    const weights *of = &w->of[parity];
    const __m512i re = four(x->re[group][parity]), im = four(x->im[group][parity]);
    s->re[parity] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(s->re[parity], of->re_re, re), of->re_im, im);
    s->im[parity] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(s->im[parity], of->im_re, re), of->im_im, im);
  }
}

static inline __m512 sum_of(const __m512i by_parity[2]) {
  return _mm512_cvtepi32_ps(_mm512_add_epi32(by_parity[0], by_parity[1]));
}

/* stages is a constant where this is called: all values stay in registers */
static inline __attribute__((always_inline)) void one_row(const f2i_block *b, size_t row, const int stages) {
  const f2i_dot_activations *x = (const void *)(b->operands + row * b->operand_stride);
  const size_t tile_bytes = (size_t)stages * F2I_PLANE_BYTES;
  const __m512 unit = _mm512_set1_ps(f2i_dot_unit(b->shared, b->units[row * b->unit_stride]));
  const __m512i bias = _mm512_set1_epi32(-128 * (x->sum_re + x->sum_im)), zero = _mm512_setzero_si512();
  const uint8_t *packed = b->packed, *ahead = b->ahead;
  float *out = b->acc + row * b->acc_stride;
  for (size_t tile = 0; tile < b->tiles; ++tile, packed += tile_bytes, ahead += tile_bytes, out += F2I_ACC_PER_TILE) {
    sums s[2] = {{{bias, zero}, {bias, zero}}, {{bias, zero}, {bias, zero}}}; /* of the halves */
#pragma GCC unroll 1
    for (int group = 0; group < F2I_BLOCK_CELLS / 2; ++group) {
      const uint8_t *cells = packed + group * 2 * F2I_CELL_BYTES, *next = ahead + group * 2 * F2I_CELL_BYTES;
      for (int p = 0; p < stages; ++p) prefetch(next + p * F2I_PLANE_BYTES, 2 * F2I_CELL_BYTES, 0);
      const weights_of_group upper = unpack_group(cells, b->shared, 0, stages, 128);
      add_group(&s[0], &upper, x, group);
      const weights_of_group lower = unpack_group(cells, b->shared, 1, stages, 128);
      add_group(&s[1], &lower, x, group);
    }
    for (int half = 0; half < 2; ++half) {
      add_to(out + half * F2I_HALF_ROWS, unit, sum_of(s[half].re));
      add_to(out + F2I_TILE_ROWS + half * F2I_HALF_ROWS, unit, sum_of(s[half].im));
    }
  }
}

void f2i_block_dot__avx512(const f2i_block *b) {
  for (size_t row = 0; row < b->rows; ++row) {
    if (b->stages == 1) one_row(b, row, 1);
    if (b->stages == 2) one_row(b, row, 2);
    if (b->stages == 3) one_row(b, row, 3);
    if (b->stages == 4) one_row(b, row, 4);
  }
}
