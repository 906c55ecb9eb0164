/* flags: -mavx512f -mavx512bw -mavx512vl -mavx512dq */
/* lut_avx512_plain.c - "lut" with plain 16-bit additions: for processors that do four of them in a cycle and ternary
 * operations at half that rate.
 */
#include <immintrin.h>

#include "kernels/kernels.h"
#include "kernels/x86/avx512/block.h"

f2i_block_fn f2i_block_lut__avx512, f2i_block_lut__avx512_plain;

/* Everything added so far, in 16-bit lanes: even + 256 * odd bytes, modulo 65536, and the odd bytes alone. */
typedef struct byte_sums {
  __m512i all, odd;
} byte_sums;

/* Every look-up adds 128: start with minus the sum of that in a byte column. */
static inline byte_sums start(int stages) {
  const int bias = -128 * 2 * F2I_BLOCK_CELLS * stages;
  const byte_sums s = {_mm512_set1_epi16((short)(bias * 257)), _mm512_set1_epi16((short)bias)};
  return s;
}

static inline void add_one(byte_sums *s, __m512i bytes) {
  s->all = _mm512_add_epi16(s->all, bytes);
  s->odd = _mm512_add_epi16(s->odd, _mm512_srli_epi16(bytes, 8));
}

static inline void add_four(byte_sums *s, __m512i v0, __m512i v1, __m512i v2, __m512i v3) {
  add_one(s, v0);
  add_one(s, v1);
  add_one(s, v2);
  add_one(s, v3);
}

static inline word_sums widen(const byte_sums *s) {
  const word_sums words = {_mm512_sub_epi16(s->all, _mm512_slli_epi16(s->odd, 8)), s->odd};
  return words;
}

#include "kernels/x86/avx512/lut/lut_row.h"

void f2i_block_lut__avx512_plain(const f2i_block *b) {
  if (b->rows == 1) lut_row(b, 0, 1);
  else f2i_block_lut__avx512(b);
}
