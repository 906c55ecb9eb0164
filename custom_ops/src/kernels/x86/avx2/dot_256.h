/* dot_256.h - "dot" with 32-byte vectors, for AVX2 and for AVX-VNNI. The including file defines first
 *
 *   DOT(name)                           name with the suffix of the ISA
 *   typedef weights                     eight rows x four bytes as dot_add wants them
 *   weights as_weights(__m256i)         from signed bytes
 *   __m256i dot_add(sum, weights, x)    sum += the four products of each 32-bit lane with the signed bytes of x
 *   WEIGHT_BIAS                         what as_weights adds to every weight
 *
 * Byte columns are transposed in groups of four, so that a 32-bit lane is a row: vector v of 0..3 holds rows 4 v ... 4
 * v + 3 in its lower half and 16 rows further in its upper half.
 */
#include <immintrin.h>

#include "kernels/dot_operands.h"

f2i_build_fn DOT(f2i_build_dot);
f2i_block_fn DOT(f2i_block_dot);

enum { VECTORS = 4, GROUPS = F2I_BLOCK_CELLS / 2 };

float DOT(f2i_build_dot)(const float *re, const float *im, const float *scales, int stages, void *operands) {
  (void)stages;
  return f2i_build_dot(re, im, scales, operands);
}

/* 16 rows of the upper half and 16 of the lower half of one byte column. */
static inline __m256i byte_column(const uint8_t *cell) {
  const __m128i first = _mm_loadu_si128((const __m128i *)(const void *)cell);
  const __m128i second = _mm_loadu_si128((const __m128i *)(const void *)(cell + 32));
  return _mm256_inserti128_si256(_mm256_castsi128_si256(first), second, 1);
}

static inline void transpose(const uint8_t *cells, __m256i rows[VECTORS]) {
  const __m256i a = byte_column(cells), b = byte_column(cells + 16);
  const __m256i c = byte_column(cells + F2I_CELL_BYTES), d = byte_column(cells + F2I_CELL_BYTES + 16);
  const __m256i ab_low = _mm256_unpacklo_epi8(a, b), cd_low = _mm256_unpacklo_epi8(c, d);
  const __m256i ab_high = _mm256_unpackhi_epi8(a, b), cd_high = _mm256_unpackhi_epi8(c, d);
  rows[0] = _mm256_unpacklo_epi16(ab_low, cd_low);
  rows[1] = _mm256_unpackhi_epi16(ab_low, cd_low);
  rows[2] = _mm256_unpacklo_epi16(ab_high, cd_high);
  rows[3] = _mm256_unpackhi_epi16(ab_high, cd_high);
}

static inline __m256i table(const int8_t *values) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)values));
}

static inline __m256i four(const int8_t *bytes) {
  int32_t value;
  memcpy(&value, bytes, sizeof value);
  return _mm256_set1_epi32(value);
}

/* Low plane's code in bits 0-1, high plane's in bits 2-3, of the even or odd columns. */
static inline __m256i index_of(__m256i bytes, int parity) {
  const __m256i low2 = _mm256_set1_epi8(3), next2 = _mm256_set1_epi8(12);
  const __m256i by2 = _mm256_srli_epi16(bytes, 2);
  return parity ? _mm256_or_si256(_mm256_and_si256(by2, low2), _mm256_and_si256(_mm256_srli_epi16(bytes, 4), next2))
                : _mm256_or_si256(_mm256_and_si256(bytes, low2), _mm256_and_si256(by2, next2));
}

/* One group of byte columns of one byte plane and matrix, for one row of x. re_values, im_values: 16-entry tables. */
static inline void add_group(const __m256i rows[VECTORS], const int8_t *re_values, const int8_t *im_values, int matrix,
                             const f2i_dot_activations *x, int group, __m256i re[VECTORS], __m256i im[VECTORS]) {
  const __m256i re_table = table(re_values), im_table = table(im_values);
  for (int parity = 0; parity < 2; ++parity) {
    const int8_t *x_im = x->im[group][parity], *minus = x->minus_im[group][parity];
    const __m256i a = four(x->re[group][parity]), c = four(matrix ? minus : x_im), d = four(matrix ? x_im : minus);
    for (int v = 0; v < VECTORS; ++v) {
      const __m256i index = index_of(rows[v], parity);
      const weights w_re = as_weights(_mm256_shuffle_epi8(re_table, index));
      const weights w_im = as_weights(_mm256_shuffle_epi8(im_table, index));
      re[v] = dot_add(dot_add(re[v], w_re, a), w_im, d);
      im[v] = dot_add(dot_add(im[v], w_re, c), w_im, a);
    }
  }
}

static inline void add_to(float *acc, __m128 unit, __m128i sum) {
  _mm_storeu_ps(acc, _mm_add_ps(_mm_loadu_ps(acc), _mm_mul_ps(unit, _mm_cvtepi32_ps(sum))));
}

static void tile_of_row(const f2i_block *b, size_t tile, size_t row) {
  const f2i_dot_plane *planes = b->shared;
  const f2i_dot_activations *x = (const void *)(b->operands + row * b->operand_stride);
  const size_t tile_bytes = (size_t)b->stages * F2I_PLANE_BYTES;
  const uint8_t *packed = b->packed + tile * tile_bytes, *ahead = b->ahead + tile * tile_bytes;
  int matrices = 0; /* each plane that is added carries the bias of the weights */
  for (int p = 0; p < b->stages; ++p) matrices += planes[p].both ? 2 : 1;
  __m256i re[VECTORS], im[VECTORS];
  for (int v = 0; v < VECTORS; ++v) re[v] = im[v] = _mm256_set1_epi32(-WEIGHT_BIAS * matrices * x->sum_re);
  for (int p = 0; p < b->stages; ++p) {
    for (int group = 0; group < GROUPS; ++group, packed += 2 * F2I_CELL_BYTES, ahead += 2 * F2I_CELL_BYTES) {
      __m256i rows[VECTORS];
      transpose(packed, rows);
      _mm_prefetch((const char *)ahead, _MM_HINT_T1);
      _mm_prefetch((const char *)ahead + F2I_CELL_BYTES, _MM_HINT_T1);
      add_group(rows, planes[p].value[0], planes[p].value[1], planes[p].both ? 0 : planes[p].matrix, x, group, re, im);
      if (planes[p].both) add_group(rows, planes[p].value[2], planes[p].value[3], 1, x, group, re, im);
    }
  }
  const __m128 unit = _mm_set1_ps(f2i_dot_unit(planes, b->units[row * b->unit_stride]));
  float *acc = b->acc + row * b->acc_stride + tile * F2I_ACC_PER_TILE;
  for (int v = 0; v < VECTORS; ++v) {
    add_to(acc + 4 * v, unit, _mm256_castsi256_si128(re[v]));
    add_to(acc + 16 + 4 * v, unit, _mm256_extracti128_si256(re[v], 1));
    add_to(acc + F2I_TILE_ROWS + 4 * v, unit, _mm256_castsi256_si128(im[v]));
    add_to(acc + F2I_TILE_ROWS + 16 + 4 * v, unit, _mm256_extracti128_si256(im[v], 1));
  }
}

void DOT(f2i_block_dot)(const f2i_block *b) {
  for (size_t tile = 0; tile < b->tiles; ++tile) {
    for (size_t row = 0; row < b->rows; ++row) tile_of_row(b, tile, row);
  }
}
