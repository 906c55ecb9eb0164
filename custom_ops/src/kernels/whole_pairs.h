/* whole_pairs.h - tables of "lut" that hold sums of whole numbers exactly, F2I_WHOLE_PAIRS.
 *
 * A number q, at most 127, is given to both outputs: the real one gets q Re(c) - q Im(c), the imaginary one
 * q Re(c) + q Im(c), that is q (1 + i) times the code c. By the two stored bits of a code these are q or -q: bit 0 is
 * the sign of one, bit 1 of the other. The sum s of two neighbouring columns may be 254, but is odd or even whatever
 * the codes. With p = 1 if it is odd, else 0, an entry is (s - p) / 2, which fits int8 exactly. A sum E of entries then
 * stands for 2 E + P, with P the sum of the p of all pairs of columns (f2i_whole_odd).
 */
#ifndef F2I_WHOLE_PAIRS_H
#define F2I_WHOLE_PAIRS_H

#include <string.h>

#include "kernels/kernels.h"

/* The signs of both numbers of a pair, bits 0 and 2 of a table index, as two bits. */
static inline int f2i_whole_signs(int index) { return (index & 1) | (index >> 1 & 2); }

/* p of a pair. */
static inline int f2i_whole_odd(float first, float second) { return ((int)first ^ (int)second) & 1; }

/* The tables of a pair, real at `tables` and imaginary 32 bytes behind it. Shifted right, a negative number is rounded
 * down, which all compilers do: no entry needs p itself. */
static inline void f2i_whole_tables(int first, int second, uint8_t *tables) {
  const uint8_t v[4] = {(uint8_t)(((first + second) >> 1) + 128), (uint8_t)(((second - first) >> 1) + 128),
                        (uint8_t)(((first - second) >> 1) + 128), (uint8_t)(((-first - second) >> 1) + 128)};
  const uint8_t re[8] = {v[0], v[1], v[0], v[1], v[2], v[3], v[2], v[3]};
  const uint8_t im[16] = {v[0], v[0], v[1], v[1], v[0], v[0], v[1], v[1],
                          v[2], v[2], v[3], v[3], v[2], v[2], v[3], v[3]};
  memcpy(tables, re, sizeof re);
  memcpy(tables + sizeof re, re, sizeof re);
  memcpy(tables + 32, im, sizeof im);
}

/* All tables of a K-block at one stage, the layout of kernels.h; returns the unit. low, high: [F2I_BLOCK_COLS], whole
 * numbers for the low and the high nibbles. */
static inline float f2i_build_whole_pairs(const float *low, const float *high, void *operands) {
  for (int j = 0; j < F2I_BLOCK_COLS; j += 2) {
    uint8_t *tables = (uint8_t *)operands + j / F2I_CELL_COLS * F2I_CELL_ENTRIES + j % F2I_CELL_COLS / 2 * 16;
    f2i_whole_tables((int)low[j], (int)low[j + 1], tables);
    f2i_whole_tables((int)high[j], (int)high[j + 1], tables + 64);
  }
  return 1.0f;
}

#endif
