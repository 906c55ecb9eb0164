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

#endif
