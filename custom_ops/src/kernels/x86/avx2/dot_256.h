/* dot_256.h - "dot" with 32-byte vectors, for AVX2 and for AVX-VNNI. The including file defines first
 *
 *   DOT(name)                           name with the suffix of the ISA
 *   __m256i dot_add(sum, w, x)          sum += the four products of each 32-bit lane of signed bytes
 *   typedef ready_weights               weights made ready for many rows of x
 *   ready_weights make_ready(__m256i)   from signed bytes
 *   __m256i dot_add_ready(sum, w, x)    as dot_add, but off by what it adds for x = 0
 *   IS_OFF                              whether it adds anything then
 *   WEIGHT_BIAS                         what both add to every weight
 *   AT_ONCE                             rows of x whose sums stay in registers beside a step's weights
 *
 * Byte columns are transposed in groups of four, so that a 32-bit lane is a row: vector v of 0..3 holds rows 4 v ... 4
 * v + 3 in its lower half and 16 rows further in its upper half.
 */
#include <immintrin.h>

#include "kernels/dot_panel_operands.h"

f2i_build_fn DOT(f2i_build_dot);
f2i_block_fn DOT(f2i_block_dot);
extern const f2i_panel_kernel DOT(f2i_panel_dot);
extern const uint8_t DOT(f2i_order_dot)[F2I_ACC_PER_TILE];

enum {
  VECTORS = 4,
  GROUPS = F2I_BLOCK_CELLS / 2,
  LANES = F2I_TILE_ROWS / VECTORS,
  MANY_ROWS = 6, /* of x, that are worth making weights ready for */
};

/* Sums of a tile: [row of x][vector][real, imaginary][lane] */
typedef struct panel_state {
  float sum[PANEL_ROWS][VECTORS][2][LANES];
} panel_state;

/* Unpacked weights of a tile: [vector][real, imaginary output][step][lane][column] */
typedef struct panel_weights {
  int8_t w[VECTORS][2][STEPS][LANES][4];
} panel_weights;

/* The same made ready, and what dot_add_ready adds to the sums of every row of x. */
typedef struct panel_ready {
  ready_weights w[VECTORS][2][STEPS];
  __m256i off[VECTORS][2];
} panel_ready;

/* Operands of one row of x. */
typedef struct row_operands {
  int8_t x[STEPS][4];
  int32_t bias;
} row_operands;

_Static_assert(sizeof(row_operands) <= F2I_DOT_BYTES, "operands of a row");

float DOT(f2i_build_dot)(const float *re, const float *im, const float *scales, int stages, void *operands) {
  row_operands *out = operands;
  (void)stages;
  return f2i_build_dot_row(re, im, scales, WEIGHT_BIAS, out->x, &out->bias);
}

static void build_panel(const float *re, const float *im, size_t rows, const float *scales, int stages, void *operands,
                        float *units) {
  panel_operands *out = operands;
  (void)stages;
  for (size_t row = 0; row < rows; ++row, re += F2I_BLOCK_COLS, im += F2I_BLOCK_COLS) {
    units[row] = f2i_build_dot_row(re, im, scales, WEIGHT_BIAS, out->x[row], &out->bias[row]);
  }
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

static inline __m256i look_up(const int8_t *values, __m256i index) {
  const __m128i table = _mm_loadu_si128((const __m128i *)(const void *)values);
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), index);
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

/* Unpacks one group and parity of columns of a vector: [real, imaginary output][x_re, x_im]. rows: of all byte planes
 */
static inline void unpack(const __m256i *rows, const f2i_dot_plane *planes, int parity, const int stages,
                          __m256i out[2][2]) {
  __m256i u[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()}, w[2] = {u[0], u[0]};
  for (int p = 0; p < stages; ++p) {
    const int low = byte_planes[stages - 1][p][0][1], high = byte_planes[stages - 1][p][1][1]; /* matrices */
    const __m256i index = index_of(rows[p], parity);
    for (int part = 0; part < 2; ++part) {
      if (low == 0) u[part] = _mm256_add_epi8(u[part], look_up(planes[p].value[part], index));
      if (high == 1) w[part] = _mm256_add_epi8(w[part], look_up(planes[p].value[(low == 1 ? 0 : 2) + part], index));
    }
  }
  out[0][0] = _mm256_add_epi8(u[0], w[0]);
  out[0][1] = _mm256_sub_epi8(w[1], u[1]);
  out[1][0] = _mm256_add_epi8(u[1], w[1]);
  out[1][1] = _mm256_sub_epi8(u[0], w[0]);
}

static inline void prefetch_cells(const uint8_t *ahead) {
  _mm_prefetch((const char *)ahead, _MM_HINT_T1);
  _mm_prefetch((const char *)ahead + F2I_CELL_BYTES, _MM_HINT_T1);
}

/* stages is a constant where this is called: all values stay in registers */
static inline __attribute__((always_inline)) void unpack_stages(const uint8_t *packed, const uint8_t *ahead,
                                                                const f2i_dot_plane *planes, const int stages,
                                                                panel_weights *out) {
  for (int group = 0; group < GROUPS; ++group, packed += 2 * F2I_CELL_BYTES, ahead += 2 * F2I_CELL_BYTES) {
    __m256i rows[F2I_MAX_STAGES][VECTORS];
    for (int p = 0; p < stages; ++p) {
      prefetch_cells(ahead + p * F2I_PLANE_BYTES);
      transpose(packed + p * F2I_PLANE_BYTES, rows[p]);
    }
    for (int v = 0; v < VECTORS; ++v) {
      __m256i of_vector[F2I_MAX_STAGES];
      for (int p = 0; p < stages; ++p) of_vector[p] = rows[p][v];
      for (int parity = 0; parity < 2; ++parity) {
        __m256i w[2][2];
        unpack(of_vector, planes, parity, stages, w);
        for (int i = 0; i < 4; ++i) {
          _mm256_store_si256((__m256i *)(void *)out->w[v][i / 2][group * 4 + parity * 2 + i % 2], w[i / 2][i % 2]);
        }
      }
    }
  }
}

static void unpack_tile(const uint8_t *packed, const uint8_t *ahead, const f2i_dot_plane *planes, int stages,
                        panel_weights *out) {
  if (stages == 1) unpack_stages(packed, ahead, planes, 1, out);
  if (stages == 2) unpack_stages(packed, ahead, planes, 2, out);
  if (stages == 3) unpack_stages(packed, ahead, planes, 3, out);
  if (stages == 4) unpack_stages(packed, ahead, planes, 4, out);
}

static inline void add_to(float *out, float unit, __m256i sum) {
  const __m256 product = _mm256_mul_ps(_mm256_set1_ps(unit), _mm256_cvtepi32_ps(sum));
  _mm256_storeu_ps(out, _mm256_add_ps(_mm256_loadu_ps(out), product));
}

static inline __m256i weights_at(const panel_weights *weights, int v, int part, int step) {
  return _mm256_load_si256((const __m256i *)(const void *)weights->w[v][part][step]);
}

/* One row of x, a part of a vector of a tile: adds its sums to out. x: [STEPS][4] */
static inline void add_row(const panel_weights *weights, int v, int part, const int8_t (*x)[4], int32_t bias,
                           float unit, float *out) {
  __m256i sum = _mm256_set1_epi32(bias);
  for (int step = 0; step < STEPS; ++step) sum = dot_add(sum, weights_at(weights, v, part, step), four(x[step]));
  add_to(out, unit, sum);
}

static inline void make_panel_ready(const panel_weights *weights, panel_ready *out) {
  for (int v = 0; v < VECTORS; ++v) {
    for (int part = 0; part < 2; ++part) {
      __m256i off = _mm256_setzero_si256();
      for (int step = 0; step < STEPS; ++step) {
        const ready_weights w = out->w[v][part][step] = make_ready(weights_at(weights, v, part, step));
        if (IS_OFF) off = dot_add_ready(off, w, _mm256_setzero_si256());
      }
      out->off[v][part] = off;
    }
  }
}

/* The rows of x from `row` on, `count` of them; a constant where this is called: sums stay in registers, if gcc does
 * not mix up the rows. */
static inline __attribute__((always_inline)) void add_rows(const f2i_panel *p, const panel_ready *weights, size_t row,
                                                           const int count, panel_state *state) {
  const panel_operands *x = p->operands;
  const int8_t (*rows)[STEPS][4] = x->x + row;
  for (int v = 0; v < VECTORS; ++v) {
    __m256i sums[AT_ONCE][2];
    for (int r = 0; r < count; ++r) {
      const __m256i bias = _mm256_set1_epi32(x->bias[row + (size_t)r]);
      for (int part = 0; part < 2; ++part) sums[r][part] = _mm256_sub_epi32(bias, weights->off[v][part]);
    }
    for (int step = 0; step < STEPS; ++step) {
      const ready_weights re = weights->w[v][0][step], im = weights->w[v][1][step];
      for (int r = 0; r < count; ++r) {
        const __m256i values = four(rows[r][step]);
        sums[r][0] = dot_add_ready(sums[r][0], re, values);
        sums[r][1] = dot_add_ready(sums[r][1], im, values);
        __asm__ volatile("" : "+x"(sums[r][0]), "+x"(sums[r][1]));
      }
    }
    for (int r = 0; r < count; ++r) {
      const float unit = f2i_dot_unit(p->shared, p->units[row + (size_t)r]);
      for (int part = 0; part < 2; ++part) add_to(state->sum[row + (size_t)r][v][part], unit, sums[r][part]);
    }
  }
}

/* Few rows of x. */
static void add_each(const f2i_panel *p, const panel_weights *weights, panel_state *state) {
  const panel_operands *x = p->operands;
  for (size_t row = 0; row < p->rows; ++row) {
    const float unit = f2i_dot_unit(p->shared, p->units[row]);
    for (int v = 0; v < VECTORS; ++v) {
      for (int part = 0; part < 2; ++part) {
        add_row(weights, v, part, x->x[row], x->bias[row], unit, state->sum[row][v][part]);
      }
    }
  }
}

static void panel_block(const f2i_panel *p) {
  const size_t tile_bytes = (size_t)p->stages * F2I_PLANE_BYTES;
  panel_state *state = p->state;
  _Alignas(32) panel_weights weights;
  panel_ready ready;
  for (size_t tile = 0; tile < p->tiles; ++tile) {
    unpack_tile(p->packed + tile * tile_bytes, p->ahead + tile * tile_bytes, p->shared, p->stages, &weights);
    if (p->rows < MANY_ROWS) {
      add_each(p, &weights, &state[tile]);
      continue;
    }
    make_panel_ready(&weights, &ready);
    size_t row = 0;
    for (; row + AT_ONCE <= p->rows; row += AT_ONCE) add_rows(p, &ready, row, AT_ONCE, &state[tile]);
    for (; row < p->rows; ++row) add_rows(p, &ready, row, 1, &state[tile]);
  }
}

/* The rows of a tile that lane i of vector v is for. */
static inline size_t row_of(size_t v, size_t i) { return 4 * v + i % 4 + i / 4 * F2I_HALF_ROWS; }

static void read_panel(const void *state, size_t rows, float *out) {
  const panel_state *s = state;
  for (size_t row = 0; row < rows; ++row, out += F2I_ACC_PER_TILE) {
    for (size_t v = 0; v < VECTORS; ++v) {
      for (size_t i = 0; i < 2 * LANES; ++i) {
        out[i / LANES * F2I_TILE_ROWS + row_of(v, i % LANES)] = s->sum[row][v][i / LANES][i % LANES];
      }
    }
  }
}

/* Four tiles at a time go through all blocks: their sums stay in the second-level cache, the operands in the first. */
const f2i_panel_kernel DOT(f2i_panel_dot) = {.rows = PANEL_ROWS,
                                             .least = 2,
                                             .strip_most = 4,
                                             .strip_least = 1,
                                             .operand_bytes = 0,
                                             .extra_bytes = sizeof(panel_operands),
                                             .state_bytes = sizeof(panel_state),
                                             .row_bytes = sizeof(panel_state) / PANEL_ROWS,
                                             .build = build_panel,
                                             .block = panel_block,
                                             .read = read_panel};

/* Where the driver finds the outputs among the accumulators of a tile, [vector][re, im][lane]. */
#define PLACES_4(part, row)                                                               \
  (part) + (row) % 16 * 4 + (row) / 16 * 4, (part) + (row) % 16 * 4 + (row) / 16 * 4 + 1, \
      (part) + (row) % 16 * 4 + (row) / 16 * 4 + 2, (part) + (row) % 16 * 4 + (row) / 16 * 4 + 3
#define PLACES_16(part, row) \
  PLACES_4(part, row), PLACES_4(part, (row) + 4), PLACES_4(part, (row) + 8), PLACES_4(part, (row) + 12)
const uint8_t DOT(f2i_order_dot)[F2I_ACC_PER_TILE] = {PLACES_16(0, 0), PLACES_16(0, 16), PLACES_16(8, 0),
                                                      PLACES_16(8, 16)};

/* Weights are unpacked for each row of x: where this is called there is only one. */
void DOT(f2i_block_dot)(const f2i_block *b) {
  const size_t tile_bytes = (size_t)b->stages * F2I_PLANE_BYTES;
  _Alignas(32) panel_weights weights;
  for (size_t row = 0; row < b->rows; ++row) {
    const row_operands *x = (const void *)(b->operands + row * b->operand_stride);
    const float unit = f2i_dot_unit(b->shared, b->units[row * b->unit_stride]);
    float *acc = b->acc + row * b->acc_stride;
    for (size_t tile = 0; tile < b->tiles; ++tile, acc += F2I_ACC_PER_TILE) {
      unpack_tile(b->packed + tile * tile_bytes, b->ahead + tile * tile_bytes, b->shared, b->stages, &weights);
      for (int v = 0; v < VECTORS; ++v) {
        for (int part = 0; part < 2; ++part) {
          add_row(&weights, v, part, x->x, x->bias, unit, acc + (v * 2 + part) * LANES);
        }
      }
    }
  }
}
