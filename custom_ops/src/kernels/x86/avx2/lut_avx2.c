/* flags: -mavx2 */
/* lut_avx2.c - "lut" with 32-byte shuffles. */
#include <immintrin.h>
#include <string.h>

#include "kernels/column_terms.h"
#include "kernels/kernels.h"
#include "kernels/whole_pairs.h"

f2i_build_fn f2i_build_lut__avx2;
f2i_block_fn f2i_block_lut__avx2;
f2i_block_fn f2i_block_lut__avx2_near;
extern const uint8_t f2i_order_lut__avx2[F2I_ACC_PER_TILE];

static __m256 magnitude(__m256 v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }

/* Sums of neighbouring columns' largest terms are the largest entries: every sign combination is in the table. */
static __m256 pair_maximum(__m256 largest, __m256 column) {
  const __m256 neighbour = _mm256_permute_ps(column, 0xB1);
  return _mm256_max_ps(largest, _mm256_add_ps(column, neighbour));
}

static float horizontal_maximum(__m256 v) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  m = _mm_max_ss(m, _mm_shuffle_ps(m, m, 1));
  return _mm_cvtss_f32(m);
}

static float find_largest(const float *re, const float *im, const float *scales, int stages) {
  __m256 largest = _mm256_setzero_ps(), finite = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
  for (int j = 0; j < F2I_BLOCK_COLS; j += 8) {
    const __m256 r = magnitude(_mm256_loadu_ps(re + j)), i = magnitude(_mm256_loadu_ps(im + j));
    finite = _mm256_and_ps(finite, _mm256_cmp_ps(r, _mm256_set1_ps(FLT_MAX), _CMP_LE_OQ));
    finite = _mm256_and_ps(finite, _mm256_cmp_ps(i, _mm256_set1_ps(FLT_MAX), _CMP_LE_OQ));
    for (int plane = 0; plane < 2 * stages; ++plane) {
      const __m256 s_re = magnitude(_mm256_set1_ps(scales[2 * plane]));
      const __m256 s_im = magnitude(_mm256_set1_ps(scales[2 * plane + 1]));
      largest = pair_maximum(largest, _mm256_max_ps(_mm256_mul_ps(s_re, r), _mm256_mul_ps(s_im, i)));
      largest = pair_maximum(largest, _mm256_max_ps(_mm256_mul_ps(s_re, i), _mm256_mul_ps(s_im, r)));
    }
  }
  return _mm256_movemask_ps(finite) == 0xFF ? horizontal_maximum(largest) : INFINITY;
}

/* Eight even columns and the eight odd ones beside them. */
typedef struct column_pairs {
  __m256 even, odd;
} column_pairs;

static inline column_pairs load_pairs(const float *values) {
  const __m256 a = _mm256_loadu_ps(values), b = _mm256_loadu_ps(values + 8);
  const __m256 even = _mm256_shuffle_ps(a, b, 0x88), odd = _mm256_shuffle_ps(a, b, 0xDD);
  const column_pairs p = {_mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(even), 0xD8)),
                          _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(odd), 0xD8))};
  return p;
}

static inline __m256i rounded(__m256 sum, __m256 inverse) { return _mm256_cvtps_epi32(_mm256_mul_ps(sum, inverse)); }

/* Stores the tables of eight pairs of columns. With the terms of a column by stored code a, -b, b, -a, a table has
 * eight different magnitudes; entry i is even[i & 3] + odd[i >> 2], negative ones of the eight stand at odd i. */
static inline void store_tables(column_pairs a, column_pairs b, __m256 inverse, uint8_t *tables) {
  const __m256i e[8] = {rounded(_mm256_add_ps(a.even, a.odd), inverse), rounded(_mm256_sub_ps(a.even, a.odd), inverse),
                        rounded(_mm256_add_ps(a.even, b.odd), inverse), rounded(_mm256_sub_ps(a.even, b.odd), inverse),
                        rounded(_mm256_add_ps(b.even, a.odd), inverse), rounded(_mm256_sub_ps(b.even, a.odd), inverse),
                        rounded(_mm256_add_ps(b.even, b.odd), inverse), rounded(_mm256_sub_ps(b.even, b.odd), inverse)};
  const __m256i by_pair =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  __m256i half[2]; /* [pair][magnitudes 0-3 or 4-7], pairs 0-3 and 4-7 by lane */
  for (int h = 0; h < 2; ++h) {
    const __m256i words = _mm256_packs_epi32(e[4 * h], e[4 * h + 1]),
                  more = _mm256_packs_epi32(e[4 * h + 2], e[4 * h + 3]);
    half[h] = _mm256_shuffle_epi8(_mm256_packs_epi16(words, more), by_pair);
  }
  const __m256i two[2] = {_mm256_unpacklo_epi32(half[0], half[1]), _mm256_unpackhi_epi32(half[0], half[1])};
  const __m128i order = _mm_setr_epi8(0, 5, 4, 1, 3, 6, 7, 2, 2, 7, 6, 3, 1, 4, 5, 0);
  const __m256i first = _mm256_broadcastsi128_si256(order);
  const __m256i second = _mm256_add_epi8(first, _mm256_set1_epi8(8));
  const __m256i invert = _mm256_set1_epi16((short)0xFF00); /* at odd i: -e = ~e + 1 */
  const __m256i bias = _mm256_set1_epi16((short)0x8180);   /* 128, and that 1 */
  for (int h = 0; h < 2; ++h) {                            /* pairs 0, 1, 4, 5 and 2, 3, 6, 7: two cells each */
    const __m256i t0 = _mm256_add_epi8(_mm256_xor_si256(_mm256_shuffle_epi8(two[h], first), invert), bias);
    const __m256i t1 = _mm256_add_epi8(_mm256_xor_si256(_mm256_shuffle_epi8(two[h], second), invert), bias);
    uint8_t *cell = tables + h * F2I_CELL_ENTRIES;
    _mm256_storeu_si256((__m256i *)(void *)cell, _mm256_permute2x128_si256(t0, t1, 0x20));
    _mm256_storeu_si256((__m256i *)(void *)(cell + 2 * F2I_CELL_ENTRIES), _mm256_permute2x128_si256(t0, t1, 0x31));
  }
}

static inline column_pairs scaled(float scale, column_pairs p) {
  const column_pairs out = {_mm256_mul_ps(_mm256_set1_ps(scale), p.even), _mm256_mul_ps(_mm256_set1_ps(scale), p.odd)};
  return out;
}

static inline column_pairs negated(column_pairs p) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  const column_pairs out = {_mm256_xor_ps(p.even, sign), _mm256_xor_ps(p.odd, sign)};
  return out;
}

float f2i_build_lut__avx2(const float *re, const float *im, const float *scales, int stages, void *operands) {
  if (scales == NULL) return f2i_build_whole_pairs(re, im, operands);
  float inverse;
  const float unit = f2i_lut_unit(find_largest(re, im, scales, stages), &inverse);
  if (inverse == 0.0f) {
    memset(operands, 128, (size_t)stages * F2I_PLANE_ENTRIES);
    return unit;
  }
  const __m256 per_value = _mm256_set1_ps(inverse);
  for (int j = 0; j < F2I_BLOCK_COLS; j += 16) {
    const column_pairs x_re = load_pairs(re + j), x_im = load_pairs(im + j);
    for (int plane = 0; plane < stages; ++plane) {
      uint8_t *tables =
          (uint8_t *)operands + (size_t)plane * F2I_PLANE_ENTRIES + (size_t)j / F2I_CELL_COLS * F2I_CELL_ENTRIES;
      for (int nibble = 0; nibble < 2; ++nibble, tables += 64) {
        /* the terms of column_terms.h */
        const uint8_t *place = f2i_byte_planes[stages - 1][plane][nibble];
        const float *scale = scales + (place[0] * 2 + place[1]) * 2;
        const column_pairs z = place[1] ? negated(x_im) : x_im;
        store_tables(scaled(scale[0], x_re), scaled(scale[1], z), per_value, tables);
        store_tables(scaled(scale[0], z), negated(scaled(scale[1], x_re)), per_value, tables + 32);
      }
    }
  }
  return unit;
}

/* Sums of unsigned bytes kept in 16-bit lanes: `all` adds even + 256 * odd, `odd` the odd bytes alone. */
typedef struct byte_sums {
  __m256i all, odd;
} byte_sums;

static inline void add_bytes(byte_sums *sums, __m256i bytes) {
  sums->all = _mm256_add_epi16(sums->all, bytes);
  sums->odd = _mm256_add_epi16(sums->odd, _mm256_srli_epi16(bytes, 8));
}

/* Where the driver finds the outputs among the accumulators of a tile, [re, im][row]. A row half has four vectors, each
 * of every fourth row of re and then of im: what widening 16-bit lanes gives without moving them. */
#define PLACES_4(part, row)                                                                    \
  2 * ((row) & 16) + (part) + (row) % 16 / 4, 2 * ((row) & 16) + (part) + (row) % 16 / 4 + 16, \
      2 * ((row) & 16) + (part) + (row) % 16 / 4 + 8, 2 * ((row) & 16) + (part) + (row) % 16 / 4 + 24
#define PLACES_16(part, row) \
  PLACES_4(part, row), PLACES_4(part, (row) + 4), PLACES_4(part, (row) + 8), PLACES_4(part, (row) + 12)
const uint8_t f2i_order_lut__avx2[F2I_ACC_PER_TILE] = {PLACES_16(0, 0), PLACES_16(0, 16), PLACES_16(4, 0),
                                                       PLACES_16(4, 16)};

/* Every look-up adds 128: start with minus the sum of that in a byte column, in `all` for even and for odd bytes. */
static inline byte_sums start(int stages) {
  const int bias = -128 * 2 * F2I_BLOCK_CELLS * stages;
  const byte_sums s = {_mm256_set1_epi16((short)(bias * 257)), _mm256_set1_epi16((short)bias)};
  return s;
}

/* Adds the two byte columns, the lanes of re and of im: rows of re, then of im. */
static inline __m256i add_columns(__m256i re, __m256i im) {
  return _mm256_add_epi16(_mm256_permute2x128_si256(re, im, 0x20), _mm256_permute2x128_si256(re, im, 0x31));
}

static inline void add_to(float *acc, __m256 unit, __m256i sum) {
  _mm256_storeu_ps(acc, _mm256_add_ps(_mm256_loadu_ps(acc), _mm256_mul_ps(unit, _mm256_cvtepi32_ps(sum))));
}

/* One row half. acc: [4][8] */
static inline void flush(const byte_sums *re, const byte_sums *im, __m256 unit, float *acc) {
  const __m256i even = add_columns(_mm256_sub_epi16(re->all, _mm256_slli_epi16(re->odd, 8)),
                                   _mm256_sub_epi16(im->all, _mm256_slli_epi16(im->odd, 8)));
  const __m256i odd = add_columns(re->odd, im->odd);
  add_to(acc, unit, _mm256_srai_epi32(_mm256_slli_epi32(even, 16), 16)); /* rows 0, 4, ... */
  add_to(acc + 8, unit, _mm256_srai_epi32(even, 16));                    /* rows 2, 6, ... */
  add_to(acc + 16, unit, _mm256_srai_epi32(_mm256_slli_epi32(odd, 16), 16));
  add_to(acc + 24, unit, _mm256_srai_epi32(odd, 16));
}

/* near is a constant where this is called: whether to prefetch into the first-level cache, or into the second */
static inline __attribute__((always_inline)) void lut_row(const f2i_block *b, size_t row, const int near) {
  const __m256i low4 = _mm256_set1_epi8(15);
  const __m256 unit = _mm256_set1_ps(b->units[row * b->unit_stride]);
  const size_t cells = (size_t)b->stages * F2I_BLOCK_CELLS;
  const uint8_t *packed = b->packed, *ahead = b->ahead;
  float *acc = b->acc + row * b->acc_stride;
  for (size_t tile = 0; tile < b->tiles; ++tile, acc += F2I_ACC_PER_TILE) {
    const uint8_t *table = b->operands + row * b->operand_stride;
    byte_sums re[2], im[2]; /* by row half */
    for (int half = 0; half < 2; ++half) re[half] = im[half] = start(b->stages);
    for (size_t cell = 0; cell < cells; ++cell, packed += F2I_CELL_BYTES, table += F2I_CELL_ENTRIES) {
      const __m256i low_re = _mm256_loadu_si256((const __m256i *)(const void *)table);
      const __m256i low_im = _mm256_loadu_si256((const __m256i *)(const void *)(table + 32));
      const __m256i high_re = _mm256_loadu_si256((const __m256i *)(const void *)(table + 64));
      const __m256i high_im = _mm256_loadu_si256((const __m256i *)(const void *)(table + 96));
      if (near) _mm_prefetch((const char *)ahead, _MM_HINT_T0);
      else _mm_prefetch((const char *)ahead, _MM_HINT_T1);
      ahead += F2I_CELL_BYTES;
      for (int half = 0; half < 2; ++half) {
        const __m256i bytes = _mm256_loadu_si256((const __m256i *)(const void *)(packed + 32 * half));
        const __m256i low = _mm256_and_si256(bytes, low4);
        const __m256i high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low4);
        add_bytes(&re[half], _mm256_shuffle_epi8(low_re, low));
        add_bytes(&im[half], _mm256_shuffle_epi8(low_im, low));
        add_bytes(&re[half], _mm256_shuffle_epi8(high_re, high));
        add_bytes(&im[half], _mm256_shuffle_epi8(high_im, high));
      }
    }
    for (int half = 0; half < 2; ++half) flush(&re[half], &im[half], unit, acc + half * F2I_TILE_ROWS);
  }
}

void f2i_block_lut__avx2(const f2i_block *b) {
  for (size_t row = 0; row < b->rows; ++row) lut_row(b, row, 0);
}

void f2i_block_lut__avx2_near(const f2i_block *b) {
  for (size_t row = 0; row < b->rows; ++row) lut_row(b, row, 1);
}
