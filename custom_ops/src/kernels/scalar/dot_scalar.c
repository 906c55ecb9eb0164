/* dot_scalar.c - "dot" in portable C: the weight tables of all ISAs, and the reference their sums must equal. */
#include "kernels/dot_operands.h"

f2i_build_fn f2i_build_dot__scalar;
f2i_block_fn f2i_block_dot__scalar;

void f2i_prepare_dot(const float *scales, int stages, int whole, int count, void *shared) {
  f2i_dot_plane *planes = shared;
  const float grid = whole ? 1.0f : f2i_dot_grid(scales, stages, count);
  const float steps = grid > 0.0f ? 1.0f / grid : 0.0f;
  /* by stored code (Gray): 1, i, -i, -1 */
  static const float unit_re[4] = {1, 0, 0, -1}, unit_im[4] = {0, 1, -1, 0};
  memset(planes, 0, (size_t)stages * sizeof *planes);
  for (int p = 0; p < stages; ++p) {
    const uint8_t *low = f2i_byte_planes[stages - 1][p][0], *high = f2i_byte_planes[stages - 1][p][1];
    const float *a = scales + (low[0] * 2 + low[1]) * 2, *b = scales + (high[0] * 2 + high[1]) * 2;
    planes[p].both = low[1] != high[1];
    planes[p].matrix = low[1];
    planes[p].grid = grid;
    for (int i = 0; i < 16; ++i) {
      const float values[4] = {a[0] * unit_re[i & 3], a[1] * unit_im[i & 3], b[0] * unit_re[i >> 2],
                               b[1] * unit_im[i >> 2]};
      for (int v = 0; v < 4; ++v) {
        const float value = planes[p].both ? values[v] : v < 2 ? values[v] + values[v + 2] : 0.0f;
        planes[p].value[v][i] = (int8_t)rintf(value * steps);
      }
    }
  }
}

float f2i_build_dot__scalar(const float *re, const float *im, const float *scales, int stages, void *operands) {
  (void)stages;
  return f2i_build_dot(re, im, scales, operands);
}

/* Adds the product of one column: w = (w_re, w_im) of U or W with the activation of that column. */
static inline void add_product(int32_t sum[2], int w_re, int w_im, int x_re, int x_im, int matrix) {
  const int z = matrix ? -x_im : x_im;
  sum[0] += w_re * x_re - w_im * z;
  sum[1] += w_re * z + w_im * x_re;
}

static void add_byte(int32_t sum[2], uint8_t byte, const f2i_dot_plane *plane, const f2i_dot_activations *x,
                     int byte_column) {
  for (int parity = 0; parity < 2; ++parity) {
    const int index = (byte >> (2 * parity) & 3) | (byte >> (4 + 2 * parity) & 3) << 2;
    const int x_re = x->re[byte_column / 4][parity][byte_column % 4];
    const int x_im = x->im[byte_column / 4][parity][byte_column % 4];
    add_product(sum, plane->value[0][index], plane->value[1][index], x_re, x_im, plane->both ? 0 : plane->matrix);
    if (plane->both) add_product(sum, plane->value[2][index], plane->value[3][index], x_re, x_im, 1);
  }
}

void f2i_block_dot__scalar(const f2i_block *b) {
  const f2i_dot_plane *planes = b->shared;
  for (size_t row = 0; row < b->rows; ++row) {
    const f2i_dot_activations *x = (const void *)(b->operands + row * b->operand_stride);
    const float unit = f2i_dot_unit(planes, b->units[row * b->unit_stride]);
    const uint8_t *packed = b->packed;
    float *acc = b->acc + row * b->acc_stride;
    for (size_t tile = 0; tile < b->tiles; ++tile, acc += F2I_ACC_PER_TILE) {
      int32_t sums[F2I_TILE_ROWS][2] = {{0}};
      for (int p = 0; p < b->stages; ++p) {
        for (int cell = 0; cell < F2I_BLOCK_CELLS; ++cell) {
          for (int i = 0; i < F2I_CELL_BYTES; ++i) { /* [row half][byte column][row] */
            add_byte(sums[i / 32 * 16 + i % 16], *packed++, &planes[p], x, 2 * cell + i % 32 / 16);
          }
        }
      }
      for (size_t i = 0; i < F2I_TILE_ROWS; ++i) {
        acc[i] += unit * (float)sums[i][0];
        acc[F2I_TILE_ROWS + i] += unit * (float)sums[i][1];
      }
    }
  }
}
