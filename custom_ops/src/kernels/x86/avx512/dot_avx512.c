/* flags: -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni */
/* dot_avx512.c - "dot" with AVX-512 VNNI.
 *
 * A cell holds 32 rows x 2 byte columns. Two cells (four byte columns) are transposed to one vector for each half of 16
 * rows, a 32-bit lane being a row and its four bytes the four byte columns, as the dot-product instruction wants them;
 * each byte then splits into the table indices of an even and an odd column. The instruction multiplies unsigned by
 * signed bytes, so 128 is added to the weights and 128 times the sum of the activations subtracted from the result.
 */
#include "kernels/x86/avx512/dot_unpack.h"

f2i_build_fn f2i_build_dot__avx512;
f2i_block_fn f2i_block_dot__avx512;

enum { ROWS = 8 }; /* rows of x whose sums fill half the registers */

float f2i_build_dot__avx512(const float *re, const float *im, const float *scales, int stages, void *operands) {
  return f2i_build_dot(re, im, scales, stages, operands);
}

static inline __m512i table(const int8_t *values) {
  const __m128i v = _mm_loadu_si128((const __m128i *)(const void *)values);
  return _mm512_broadcast_i32x4(_mm_xor_si128(v, _mm_set1_epi8((char)0x80))); /* + 128 */
}

static inline __m512i four(const int8_t *bytes) {
  int32_t value;
  memcpy(&value, bytes, sizeof value);
  return _mm512_set1_epi32(value);
}

/* Sums of one row of x or one set of weights. */
typedef struct sums {
  __m512i re, im;
} sums;

/* Activations of four byte columns, columns of one parity: x for U, conj(x) for W. */
typedef struct operands {
  __m512i re, im, minus_im;
} operands;

static inline operands load_operands(const f2i_dot_activations *x, int group, int parity, int matrix) {
  const __m512i im = four(x->im[group][parity]), minus_im = four(x->minus_im[group][parity]);
  const operands o = {four(x->re[group][parity]), matrix ? minus_im : im, matrix ? im : minus_im};
  return o;
}

/* (w_re + i w_im) (re + i im) */
static inline void multiply(sums *s, __m512i w_re, __m512i w_im, operands x) {
  s->re = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(s->re, w_re, x.re), w_im, x.minus_im);
  s->im = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(s->im, w_re, x.im), w_im, x.re);
}

/* One byte plane, both row halves of a tile, one row of x. Even and odd columns have sums of their own: the chains of
 * dependent instructions stay short. */
static inline void plane_of_row(const uint8_t *packed, const uint8_t *ahead, const f2i_dot_plane *plane,
                                const f2i_dot_activations *x, sums acc[2][2]) {
  const __m512i table_re = table(plane->value[0]), table_im = table(plane->value[1]);
  for (int group = 0; group < F2I_BLOCK_CELLS / 2; ++group) {
    const size_t offset = (size_t)group * 2 * F2I_CELL_BYTES;
    _mm_prefetch((const char *)ahead + offset, _MM_HINT_T1);
    _mm_prefetch((const char *)ahead + offset + F2I_CELL_BYTES, _MM_HINT_T1);
    for (int half = 0; half < 2; ++half) {
      __m512i index[2];
      indices(transpose(packed + offset, half), index);
      for (int parity = 0; parity < 2; ++parity) {
        multiply(&acc[half][parity], _mm512_shuffle_epi8(table_re, index[parity]),
                 _mm512_shuffle_epi8(table_im, index[parity]), load_operands(x, group, parity, plane->matrix));
      }
    }
  }
}

/* One byte plane, one row half of a tile, ROWS rows of x that share the decoded weights. */
static inline void plane_of_rows(const uint8_t *packed, const f2i_dot_plane *plane, int half, const uint8_t *rows,
                                 size_t stride, sums acc[ROWS]) {
  const __m512i table_re = table(plane->value[0]), table_im = table(plane->value[1]);
  for (int group = 0; group < F2I_BLOCK_CELLS / 2; ++group) {
    __m512i index[2];
    indices(transpose(packed + group * 2 * F2I_CELL_BYTES, half), index);
    for (int parity = 0; parity < 2; ++parity) {
      const __m512i w_re = _mm512_shuffle_epi8(table_re, index[parity]);
      const __m512i w_im = _mm512_shuffle_epi8(table_im, index[parity]);
      for (int r = 0; r < ROWS; ++r) {
        const f2i_dot_activations *x = (const void *)(rows + (size_t)r * stride);
        multiply(&acc[r], w_re, w_im, load_operands(x, group, parity, plane->matrix));
      }
    }
  }
}

/* The planes of a layer, those that hold U (low) and W (high) of one stage taken apart; returns how many. */
static inline int single_planes(const f2i_block *b, f2i_dot_plane out[F2I_MAX_STAGES + 1], size_t offset[]) {
  const f2i_dot_plane *planes = b->shared;
  int count = 0;
  for (int p = 0; p < b->stages; ++p) {
    for (int part = 0; part < 1 + planes[p].both; ++part, ++count) {
      out[count] = planes[p];
      offset[count] = (size_t)p * F2I_PLANE_BYTES;
      if (!planes[p].both) continue;
      out[count].matrix = part;
      memcpy(out[count].value[0], planes[p].value[2 * part], 2 * sizeof planes[p].value[0]);
    }
  }
  return count;
}

static inline void add_to(float *acc, __m512 unit, __m512i sum) {
  _mm512_storeu_ps(acc, _mm512_add_ps(_mm512_loadu_ps(acc), _mm512_mul_ps(unit, _mm512_cvtepi32_ps(sum))));
}

/* Every plane carries the bias of its weights: over U and W together both outputs see 128 * 2 * sum_re, the imaginary
 * activations cancel. */
static inline sums start(int planes, const f2i_dot_activations *x) {
  const __m512i bias = _mm512_set1_epi32(-128 * planes * x->sum_re);
  return (sums){bias, bias};
}

static void one_row(const f2i_block *b, size_t row) {
  const f2i_dot_activations *x = (const void *)(b->operands + row * b->operand_stride);
  const size_t tile_bytes = (size_t)b->stages * F2I_PLANE_BYTES;
  const __m512 unit = _mm512_set1_ps(b->units[row * b->unit_stride]);
  f2i_dot_plane planes[F2I_MAX_STAGES + 1];
  size_t offset[F2I_MAX_STAGES + 1];
  const int count = single_planes(b, planes, offset);
  for (size_t tile = 0; tile < b->tiles; ++tile) {
    const __m512i zero = _mm512_setzero_si512();
    sums acc[2][2] = {{start(count, x), {zero, zero}}, {start(count, x), {zero, zero}}};
    for (int p = 0; p < count; ++p) {
      plane_of_row(b->packed + tile * tile_bytes + offset[p], b->ahead + tile * tile_bytes + offset[p], &planes[p], x,
                   acc);
    }
    float *out = b->acc + row * b->acc_stride + tile * F2I_ACC_PER_TILE;
    for (int half = 0; half < 2; ++half, out += F2I_HALF_ROWS) {
      add_to(out, unit, _mm512_add_epi32(acc[half][0].re, acc[half][1].re));
      add_to(out + F2I_TILE_ROWS, unit, _mm512_add_epi32(acc[half][0].im, acc[half][1].im));
    }
  }
}

static void many_rows(const f2i_block *b, size_t row) {
  const uint8_t *rows = b->operands + row * b->operand_stride;
  const size_t tile_bytes = (size_t)b->stages * F2I_PLANE_BYTES;
  f2i_dot_plane planes[F2I_MAX_STAGES + 1];
  size_t offset[F2I_MAX_STAGES + 1];
  const int count = single_planes(b, planes, offset);
  for (size_t i = 0; i < 2 * b->tiles; ++i) {
    const size_t tile = i / 2;
    const int half = (int)(i % 2);
    sums acc[ROWS];
    for (size_t at = 0; row == 0 && half == 0 && at < tile_bytes; at += F2I_CELL_BYTES) {
      _mm_prefetch((const char *)b->ahead + tile * tile_bytes + at, _MM_HINT_T1); /* once for all rows */
    }
    for (size_t r = 0; r < ROWS; ++r) acc[r] = start(count, (const void *)(rows + r * b->operand_stride));
    for (int p = 0; p < count; ++p) {
      plane_of_rows(b->packed + tile * tile_bytes + offset[p], &planes[p], half, rows, b->operand_stride, acc);
    }
    for (size_t r = 0; r < ROWS; ++r) {
      const __m512 unit = _mm512_set1_ps(b->units[(row + r) * b->unit_stride]);
      float *out = b->acc + (row + r) * b->acc_stride + tile * F2I_ACC_PER_TILE + half * F2I_HALF_ROWS;
      add_to(out, unit, acc[r].re);
      add_to(out + F2I_TILE_ROWS, unit, acc[r].im);
    }
  }
}

void f2i_block_dot__avx512(const f2i_block *b) {
  size_t row = 0;
  for (; row + ROWS <= b->rows; row += ROWS) many_rows(b, row);
  for (; row < b->rows; ++row) one_row(b, row);
}
