/* lut_units.h - what a step of the int8 entries of the "lut" kernels is worth.
 *
 * The finer the steps, the smaller the error, and one large activation makes them coarse for all columns that share
 * them. In a cell, what the first and the second byte column say is in different places of a vector until the end of a
 * block, so that each of the two may have steps of its own at no cost: a multiplication that scales and adds both
 * replaces the addition.
 */
#ifndef F2I_LUT_UNITS_H
#define F2I_LUT_UNITS_H

#include <float.h>
#include <math.h>
#include <string.h>

#include "kernels/kernels.h"

/* The int8 entries of a block's tables. Byte columns of even and of odd number have units of their own, multiplier[0]
 * and multiplier[1] times `unit`: with s[0] and s[1] the integer sums over the former and the latter, a row's sum is
 * worth unit * (float)(multiplier[0] * s[0] + multiplier[1] * s[1]). */
typedef struct f2i_lut_units {
  float unit;
  float inverse[2];      /* entry steps per value; 0 where all entries are 0 */
  int16_t multiplier[2]; /* 0 to F2I_LUT_MOST */
} f2i_lut_units;

enum { F2I_LUT_MOST = 32767 };

/* even, odd: the largest magnitude among the entries of such byte columns, infinity if an activation is not finite. The
 * unit is 0 when all entries are so small that they count as zero, NaN when the largest is not finite. */
static inline f2i_lut_units f2i_lut_units_for(float even, float odd) {
  const float largest[2] = {even, odd}, louder = even > odd ? even : odd;
  f2i_lut_units u = {louder < 1e-30f ? 0.0f : NAN, {0.0f, 0.0f}, {0, 0}};
  if (!(louder >= 1e-30f && louder <= FLT_MAX)) return u;
  const float per_value = (float)F2I_LUT_MOST / louder;
  u.unit = louder * (1.0f / (127.0f * F2I_LUT_MOST));
  for (int i = 0; i < 2; ++i) {
    const float exact = largest[i] * per_value;
    int steps = (int)exact;
    steps += (float)steps < exact; /* up, so that the largest entry fits */
    if (steps > F2I_LUT_MOST) steps = F2I_LUT_MOST;
    u.multiplier[i] = (int16_t)steps;
    if (steps > 0) u.inverse[i] = 127.0f / (float)steps * per_value;
  }
  return u;
}

/* All entries of such a block stand for zero, and their values may not be finite: nothing to round. */
static inline int f2i_lut_is_empty(const f2i_lut_units *units) { return !(units->unit > 0.0f); }

static inline void f2i_lut_clear(int stages, void *tables) { memset(tables, 128, (size_t)stages * F2I_PLANE_ENTRIES); }

/* Where a kernel keeps the multipliers: behind the tables, F2I_LUT_EXTRA bytes. */
static inline void f2i_lut_keep(const f2i_lut_units *units, int stages, void *tables) {
  memcpy((uint8_t *)tables + (size_t)stages * F2I_PLANE_ENTRIES, units->multiplier, sizeof units->multiplier);
}

/* The same for all rows of a matrix: multiplier[0] in the low and multiplier[1] in the high half. */
static inline int32_t f2i_lut_multipliers(const uint8_t *tables, int stages) {
  int32_t pair;
  memcpy(&pair, tables + (size_t)stages * F2I_PLANE_ENTRIES, sizeof pair);
  return pair;
}

#endif
