/* flags: -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vbmi -mavx512vnni */
/* lut_avx512_vnni.c - "lut" that adds looked-up bytes with dot products: VPDPBUSD by ones adds four neighbouring bytes
 * to a 32-bit lane, so nothing is widened. It multiplies, if only by 1: a variant, for "auto" and those who name it.
 *
 * Neighbouring bytes have to be of one row of the matrix then, and of four byte columns: those of two cells. One
 * permutation makes such a vector of the bytes of 16 rows, and VPERMB looks up in the tables of all four columns at
 * once: bits 4 and 5 of an index say which column it is.
 */
#include <immintrin.h>

#include "kernels/kernels.h"
#include "kernels/x86/avx512/block.h"

f2i_block_fn f2i_block_lut__avx512_vnni;
f2i_block_fn f2i_block_lut__avx512_vnni_near;

/* What the loop over the cells of a block needs all the time. */
typedef struct constants {
  __m512i upper, lower; /* where in two cells the bytes are: [row of the upper or lower half][byte column] */
  __m512i column;       /* bits 4 and 5: the byte column */
  __m512i low4, ones;
} constants;

static inline constants load_constants(void) {
#define ROW(row) (row), 16 + (row), F2I_CELL_BYTES + (row), F2I_CELL_BYTES + 16 + (row)
#define ROWS_4(row) ROW(row), ROW((row) + 1), ROW((row) + 2), ROW((row) + 3)
  static const uint8_t upper[64] = {ROWS_4(0), ROWS_4(4), ROWS_4(8), ROWS_4(12)};
  const constants c = {_mm512_loadu_si512(upper), _mm512_add_epi8(_mm512_loadu_si512(upper), _mm512_set1_epi8(32)),
                       _mm512_set1_epi32(0x30201000), _mm512_set1_epi8(15), _mm512_set1_epi8(1)};
  return c;
}

/* Table indices of 16 rows and four byte columns. */
typedef struct indices {
  __m512i low, high;
} indices;

static inline indices split(const constants *c, __m512i bytes) {
  enum { AND_OR = 0xEA }; /* a & b | c */
  const indices i = {_mm512_ternarylogic_epi32(bytes, c->low4, c->column, AND_OR),
                     _mm512_ternarylogic_epi32(_mm512_srli_epi16(bytes, 4), c->low4, c->column, AND_OR)};
  return i;
}

/* The tables of two cells for a row of x, [byte column][16] each. */
typedef struct tables {
  __m512i low_re, low_im, high_re, high_im;
} tables;

static inline __m512i table_at(const uint8_t *table) {
  const __m256i first = _mm256_loadu_si256((const __m256i *)(const void *)table);
  const __m256i second = _mm256_loadu_si256((const __m256i *)(const void *)(table + F2I_CELL_ENTRIES));
  return _mm512_mask_broadcast_i64x4(_mm512_castsi256_si512(first), 0xF0, second);
}

static inline tables load_tables(const uint8_t *table) {
  const tables t = {table_at(table), table_at(table + 32), table_at(table + 64), table_at(table + 96)};
  return t;
}

/* Sums of a tile for a row of x: 16 rows of the matrix in each. */
typedef struct sums {
  __m512i upper_re, upper_im, lower_re, lower_im;
} sums;

/* Every look-up adds 128. */
static inline sums start(int stages) {
  const __m512i v = _mm512_set1_epi32(-128 * 4 * F2I_BLOCK_CELLS * stages);
  const sums s = {v, v, v, v};
  return s;
}

static inline void add_half(__m512i *re, __m512i *im, const tables *t, indices i, __m512i ones) {
  *re = _mm512_dpbusd_epi32(*re, _mm512_permutexvar_epi8(i.low, t->low_re), ones);
  *im = _mm512_dpbusd_epi32(*im, _mm512_permutexvar_epi8(i.low, t->low_im), ones);
  *re = _mm512_dpbusd_epi32(*re, _mm512_permutexvar_epi8(i.high, t->high_re), ones);
  *im = _mm512_dpbusd_epi32(*im, _mm512_permutexvar_epi8(i.high, t->high_im), ones);
}

/* Two neighbouring cells of a tile. */
static inline void add_cells(sums *s, const tables *t, const constants *c, const uint8_t *cells) {
  const __m512i a = _mm512_loadu_si512(cells), b = _mm512_loadu_si512(cells + F2I_CELL_BYTES);
  add_half(&s->upper_re, &s->upper_im, t, split(c, _mm512_permutex2var_epi8(a, c->upper, b)), c->ones);
  add_half(&s->lower_re, &s->lower_im, t, split(c, _mm512_permutex2var_epi8(a, c->lower, b)), c->ones);
}

static inline void flush(const f2i_block *b, size_t row, size_t tile, const sums *s) {
  const __m512 unit = _mm512_set1_ps(b->units[row * b->unit_stride]);
  float *acc = b->acc + row * b->acc_stride + tile * F2I_ACC_PER_TILE;
  add_to(acc, unit, _mm512_cvtepi32_ps(s->upper_re));
  add_to(acc + F2I_HALF_ROWS, unit, _mm512_cvtepi32_ps(s->lower_re));
  add_to(acc + F2I_TILE_ROWS, unit, _mm512_cvtepi32_ps(s->upper_im));
  add_to(acc + F2I_TILE_ROWS + F2I_HALF_ROWS, unit, _mm512_cvtepi32_ps(s->lower_im));
}

/* One row of x, two tiles `apart`, whose bytes share the loaded tables; or, if that is 0, one tile. */
static inline __attribute__((always_inline)) void add_tiles(const f2i_block *b, size_t row, size_t tile, size_t apart,
                                                            const int two, const int near) {
  const constants c = load_constants();
  const size_t tile_bytes = (size_t)b->stages * F2I_PLANE_BYTES, other = apart * tile_bytes;
  const uint8_t *packed = b->packed + tile * tile_bytes;
  const uint8_t *ahead = b->ahead + tile * tile_bytes, *table = b->operands + row * b->operand_stride;
  sums here = start(b->stages), there = start(b->stages);
  for (int i = 0; i < b->stages * F2I_BLOCK_CELLS / 2; ++i) {
    const tables t = load_tables(table);
    prefetch(ahead, 2 * F2I_CELL_BYTES, near);
    if (two) prefetch(ahead + other, 2 * F2I_CELL_BYTES, near);
    add_cells(&here, &t, &c, packed);
    if (two) add_cells(&there, &t, &c, packed + other);
    packed += 2 * F2I_CELL_BYTES, ahead += 2 * F2I_CELL_BYTES, table += 2 * F2I_CELL_ENTRIES;
  }
  flush(b, row, tile, &here);
  if (two) flush(b, row, tile + apart, &there);
}

static inline __attribute__((always_inline)) void one_row(const f2i_block *b, size_t row, const int near) {
  const size_t half = b->tiles / 2; /* pairs this far apart come from memory faster than neighbours: two streams */
  for (size_t tile = 0; tile < half; ++tile) add_tiles(b, row, tile, half, 1, near);
  if (b->tiles % 2) add_tiles(b, row, 2 * half, 0, 0, near);
}

void f2i_block_lut__avx512_vnni(const f2i_block *b) {
  for (size_t row = 0; row < b->rows; ++row) one_row(b, row, 0);
}

void f2i_block_lut__avx512_vnni_near(const f2i_block *b) {
  if (b->rows == 1) one_row(b, 0, 1);
  else f2i_block_lut__avx512_vnni(b);
}
