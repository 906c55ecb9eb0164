/* kernel_dot_avx512.c - "dot" with AVX-512 VNNI. Compiled with -mavx512bw -mavx512vnni.
 *
 * A cell holds 32 rows x 2 byte columns. Two cells (four byte columns) are transposed to one vector for each half of 16
 * rows, a 32-bit lane being a row and its four bytes the four byte columns, as the dot-product instruction wants them;
 * each byte then splits into the table indices of an even and an odd column. The instruction multiplies unsigned by
 * signed bytes, so 128 is added to the weights and 128 times the sum of the activations subtracted from the result.
 */
#include <immintrin.h>

#include "dot_operands.h"

enum { ROWS = 4 }; /* rows of x whose accumulators fit the registers beside the decoded weights */

float f2i_build_dot__avx512(const float *re, const float *im, const float *scales, int stages, void *operands) {
  return f2i_build_dot(re, im, scales, stages, operands);
}

static inline __m512i table(const int8_t *values) {
  const __m128i v = _mm_loadu_si128((const __m128i *)(const void *)values);
  return _mm512_broadcast_i32x4(_mm_xor_si128(v, _mm_set1_epi8((char)0x80))); /* + 128 */
}

/* Bytes of two cells to [16 rows][4 byte columns], rows 0-15 and 16-31. */
static inline void transpose(const uint8_t *cells, __m512i rows[2]) {
  const __m512i a = _mm512_loadu_si512(cells), b = _mm512_loadu_si512(cells + F2I_CELL_BYTES);
  const __m512i upper = _mm512_setr_epi32(0, 4, 16, 20, 1, 5, 17, 21, 2, 6, 18, 22, 3, 7, 19, 23);
  const __m512i lower = _mm512_setr_epi32(8, 12, 24, 28, 9, 13, 25, 29, 10, 14, 26, 30, 11, 15, 27, 31);
  const __m512i by_row = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  rows[0] = _mm512_shuffle_epi8(_mm512_permutex2var_epi32(a, upper, b), by_row);
  rows[1] = _mm512_shuffle_epi8(_mm512_permutex2var_epi32(a, lower, b), by_row);
}

/* Table indices: low plane's code in bits 0-1, high plane's in bits 2-3, of the even and of the odd columns. */
static inline void indices(__m512i bytes, __m512i index[2]) {
  const __m512i low2 = _mm512_set1_epi8(3), next2 = _mm512_set1_epi8(12);
  const __m512i by2 = _mm512_srli_epi16(bytes, 2), by4 = _mm512_srli_epi16(bytes, 4);
  /* (a & b) | (c & d) in two steps: the second is one ternary operation */
  index[0] = _mm512_ternarylogic_epi32(_mm512_and_si512(bytes, low2), by2, next2, 0xF8);
  index[1] = _mm512_ternarylogic_epi32(_mm512_and_si512(by2, low2), by4, next2, 0xF8);
}

static inline __m512i four(const int8_t *bytes) {
  int32_t value;
  memcpy(&value, bytes, sizeof value);
  return _mm512_set1_epi32(value);
}

typedef struct sums {
  __m512i re[2], im[2]; /* by row half */
} sums;

/* One byte plane of one tile for `count` rows of x. */
static inline void plane_of_tile(const uint8_t *packed, const uint8_t *ahead, const f2i_dot_plane *plane,
                                 const f2i_block *b, size_t row, const int count, sums *acc) {
  const __m512i table_re = table(plane->value[0]), table_im = table(plane->value[1]);
  for (int group = 0; group < F2I_BLOCK_CELLS / 2; ++group) {
    __m512i half[2];
    transpose(packed + group * 2 * F2I_CELL_BYTES, half);
    _mm_prefetch((const char *)ahead + group * 2 * F2I_CELL_BYTES, _MM_HINT_T0);
    _mm_prefetch((const char *)ahead + group * 2 * F2I_CELL_BYTES + F2I_CELL_BYTES, _MM_HINT_T0);
    for (int h = 0; h < 2; ++h) {
      __m512i index[2];
      indices(half[h], index);
      for (int parity = 0; parity < 2; ++parity) {
        const __m512i re = _mm512_shuffle_epi8(table_re, index[parity]);
        const __m512i im = _mm512_shuffle_epi8(table_im, index[parity]);
        for (int r = 0; r < count; ++r) {
          const f2i_dot_activations *x = (const void *)(b->operands + (row + (size_t)r) * b->operand_stride);
          const int8_t *x_im = x->im[group][parity], *minus = x->minus_im[group][parity];
          /* U x: re - im, im + re; W conj(x): the same with -im for im */
          const __m512i a = four(x->re[group][parity]), c = four(plane->matrix ? minus : x_im),
                        d = four(plane->matrix ? x_im : minus);
          acc[r].re[h] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(acc[r].re[h], re, a), im, d);
          acc[r].im[h] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(acc[r].im[h], re, c), im, a);
        }
      }
    }
  }
}

/* The same for a byte plane that holds U (low) and W (high) of one stage. */
static inline void both_of_tile(const uint8_t *packed, const f2i_dot_plane *plane, const f2i_block *b, size_t row,
                                const int count, sums *acc) {
  f2i_dot_plane one = *plane;
  one.both = 0;
  for (int matrix = 0; matrix < 2; ++matrix) {
    one.matrix = matrix;
    memcpy(one.value[0], plane->value[2 * matrix], 16);
    memcpy(one.value[1], plane->value[2 * matrix + 1], 16);
    plane_of_tile(packed, packed, &one, b, row, count, acc);
  }
}

static inline void tile_of_rows(const f2i_block *b, size_t tile, size_t row, const int count) {
  const f2i_dot_plane *planes = b->shared;
  const size_t tile_bytes = (size_t)b->stages * F2I_PLANE_BYTES;
  sums acc[ROWS];
  int matrices = 0; /* each plane that is added carries the bias of the weights */
  for (int p = 0; p < b->stages; ++p) matrices += planes[p].both ? 2 : 1;
  for (int r = 0; r < count; ++r) {
    const f2i_dot_activations *x = (const void *)(b->operands + (row + (size_t)r) * b->operand_stride);
    /* over U and W together both outputs see 128 * 2 * sum_re: the imaginary activations cancel */
    const __m512i start = _mm512_set1_epi32(-128 * matrices * x->sum_re);
    acc[r] = (sums){{start, start}, {start, start}};
  }
  for (int p = 0; p < b->stages; ++p) {
    const uint8_t *packed = b->packed + tile * tile_bytes + (size_t)p * F2I_PLANE_BYTES;
    const uint8_t *ahead = b->ahead + tile * tile_bytes + (size_t)p * F2I_PLANE_BYTES;
    if (planes[p].both) both_of_tile(packed, &planes[p], b, row, count, acc);
    else plane_of_tile(packed, ahead, &planes[p], b, row, count, acc);
  }
  for (int r = 0; r < count; ++r) {
    const __m512 unit = _mm512_set1_ps(b->units[(row + (size_t)r) * b->unit_stride]);
    float *out = b->acc + (row + (size_t)r) * b->acc_stride + tile * F2I_ACC_PER_TILE;
    for (int h = 0; h < 2; ++h, out += 16) {
      const __m512 re = _mm512_mul_ps(unit, _mm512_cvtepi32_ps(acc[r].re[h]));
      const __m512 im = _mm512_mul_ps(unit, _mm512_cvtepi32_ps(acc[r].im[h]));
      _mm512_storeu_ps(out, _mm512_add_ps(_mm512_loadu_ps(out), re));
      _mm512_storeu_ps(out + F2I_TILE_ROWS, _mm512_add_ps(_mm512_loadu_ps(out + F2I_TILE_ROWS), im));
    }
  }
}

void f2i_block_dot__avx512(const f2i_block *b) {
  for (size_t tile = 0; tile < b->tiles; ++tile) {
    size_t row = 0;
    for (; row + ROWS <= b->rows; row += ROWS) tile_of_rows(b, tile, row, ROWS);
    for (; row < b->rows; ++row) tile_of_rows(b, tile, row, 1);
  }
}
