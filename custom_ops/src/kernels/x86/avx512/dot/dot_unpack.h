/* dot_unpack.h - unpacking weights for the "dot" kernels with 64-byte vectors. Include where -mavx512bw is on.
 *
 * A cell holds 32 rows x 2 byte columns. Two cells (four byte columns) are transposed to one vector for each half of 16
 * rows, a 32-bit lane being a row and its four bytes the four byte columns, as dot-product instructions want them; each
 * byte then splits into the table indices of an even and an odd column.
 */
#ifndef F2I_DOT_UNPACK_H
#define F2I_DOT_UNPACK_H

#include <immintrin.h>

#include "kernels/dot_operands.h"
#include "kernels/x86/avx512/dot/dot_weights.h"

/* Bytes of one row half of two cells to [16 rows][4 byte columns]. */
static inline __m512i transpose(const uint8_t *cells, int half) {
  const __m512i a = _mm512_loadu_si512(cells), b = _mm512_loadu_si512(cells + F2I_CELL_BYTES);
  const __m512i first = _mm512_setr_epi32(0, 4, 16, 20, 1, 5, 17, 21, 2, 6, 18, 22, 3, 7, 19, 23);
  const __m512i four_rows = half ? _mm512_add_epi32(first, _mm512_set1_epi32(8)) : first;
  const __m512i by_row = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  return _mm512_shuffle_epi8(_mm512_permutex2var_epi32(a, four_rows, b), by_row);
}

/* Table indices: low plane's code in bits 0-1, high plane's in bits 2-3, of the even and of the odd columns. */
static inline void indices(__m512i bytes, __m512i index[2]) {
  const __m512i low2 = _mm512_set1_epi8(3), next2 = _mm512_set1_epi8(12);
  const __m512i by2 = _mm512_srli_epi16(bytes, 2), by4 = _mm512_srli_epi16(bytes, 4);
  /* (a & b) | (c & d) in two steps: the second is one ternary operation */
  index[0] = _mm512_ternarylogic_epi32(_mm512_and_si512(bytes, low2), by2, next2, 0xF8);
  index[1] = _mm512_ternarylogic_epi32(_mm512_and_si512(by2, low2), by4, next2, 0xF8);
}

static inline __m512i look_up(const int8_t *values, int plus, __m512i index) {
  const __m128i table = _mm_loadu_si128((const __m128i *)(const void *)values);
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_add_epi8(table, _mm_set1_epi8((char)plus))), index);
}

/* Adds what a byte plane says about a matrix, and `plus`. values: [parity][re, im]; tables: [re, im][16] */
static inline void add_plane(__m512i values[2][2], const int8_t tables[2][16], int plus, const __m512i index[2]) {
  for (int parity = 0; parity < 2; ++parity) {
    for (int part = 0; part < 2; ++part) {
      const __m512i value = look_up(tables[part], plus, index[parity]);
      values[parity][part] = _mm512_add_epi8(values[parity][part], value);
    }
  }
}

typedef struct weights_of_group {
  weights of[2]; /* parities of the columns */
} weights_of_group;

/* Unpacks two cells and adds `plus` to every weight. cells: of the first byte plane; half: of the rows. stages and plus
 * are constants where this is called: all values stay in registers. */
static inline __attribute__((always_inline)) weights_of_group unpack_group(const uint8_t *cells,
                                                                           const f2i_dot_plane *planes, int half,
                                                                           const int stages, const int plus) {
  const __m512i zero = _mm512_setzero_si512();
  __m512i u[2][2] = {{zero, zero}, {zero, zero}}, w[2][2] = {{zero, zero}, {zero, zero}};
  for (int p = 0; p < stages; ++p) {
    const int low = byte_planes[stages - 1][p][0][1], high = byte_planes[stages - 1][p][1][1]; /* matrices */
    __m512i index[2];
    indices(transpose(cells + p * F2I_PLANE_BYTES, half), index);
    if (low == 0) add_plane(u, planes[p].value, p == 0 ? plus : 0, index); /* U comes first */
    if (high == 1) add_plane(w, planes[p].value + (low == 1 ? 0 : 2), 0, index);
  }
  weights_of_group out;
  for (int parity = 0; parity < 2; ++parity) out.of[parity] = add_up(u[parity], w[parity]);
  return out;
}

#endif
