/* lut_panel_table.h - a look-up table of two columns for several rows of x at once, with vectors of any size.
 *
 * A file that includes this has defined, before that,
 *   lanes                                       a float of each row of x
 *   columns                                     lanes re[F2I_BLOCK_COLS], im[F2I_BLOCK_COLS]
 *   scaled(factor, &lanes), negative(lanes), sum(a, b), difference(a, b)
 *   store_entry(table, index, real, imaginary, &inverse)
 *                                               rounds and stores an entry, and the one of the opposite codes
 */
#ifndef F2I_LUT_PANEL_TABLE_H
#define F2I_LUT_PANEL_TABLE_H

/* The table of columns j and j + 1: the terms of column_terms.h, a, -b, b, -a and c, d, -d, -c by stored code, summed
 * in the order of lut_avx2.c. */
static inline void store_table(const columns *x, int j, const float *scale, int matrix, const lanes *inverse,
                               uint8_t *table) {
  lanes a[2], b[2], c[2], d[2];
  for (int i = 0; i < 2; ++i) {
    a[i] = scaled(scale[0], &x->re[j + i]);
    b[i] = scaled(matrix ? -scale[1] : scale[1], &x->im[j + i]);
    c[i] = scaled(matrix ? -scale[0] : scale[0], &x->im[j + i]);
    d[i] = scaled(scale[1], &x->re[j + i]);
  }
  store_entry(table, 0, sum(a[0], a[1]), sum(c[0], c[1]), inverse);
  store_entry(table, 12, difference(a[0], a[1]), difference(c[0], c[1]), inverse);
  store_entry(table, 8, sum(a[0], b[1]), difference(c[0], d[1]), inverse);
  store_entry(table, 4, difference(a[0], b[1]), sum(c[0], d[1]), inverse);
  store_entry(table, 2, sum(b[0], a[1]), difference(c[1], d[0]), inverse);
  store_entry(table, 1, difference(a[1], b[0]), sum(d[0], c[1]), inverse);
  store_entry(table, 5, difference(negative(b[0]), b[1]), sum(d[0], d[1]), inverse);
  store_entry(table, 6, difference(b[0], b[1]), difference(d[1], d[0]), inverse);
}

#endif
