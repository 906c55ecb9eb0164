/* layer_input.h - a layer and its activations out of an input. */
#ifndef F2I_FUZZ_LAYER_INPUT_H
#define F2I_FUZZ_LAYER_INPUT_H

#include "input.h"

typedef struct layer_input {
  f2i_weights w;
  uint8_t *packed;
  float *scales, *row_multiplier, *col_multiplier, *bias, *x;
  int64_t rows, ldx, ldy;
} layer_input;

/* Mostly around a tile and a block; with many rows of x less, as the address sanitizer makes them slow. */
static inline int64_t a_size(input *in, int64_t rows) {
  return 2 * (int64_t)(1 + below(in, rows > 9 ? 40 : a_byte(in) % 8 == 0 ? 150 : 36));
}

/* A layer of k inputs as the format wants it; x [rows][ldx]. */
static inline layer_input good_layer_of(input *in, int64_t rows, int64_t k) {
  layer_input l = {.w = {.k = k, .n = a_size(in, rows), .layout_version = 1}, .rows = rows};
  const uint8_t kind = a_byte(in) % 10;
  l.w.stages = kind % 5;
  if (l.w.stages == 0) l.w.stages = 1, l.w.layout_version = 2, l.w.activation_bits = kind == 5 ? 8 : 0; /* without U */
  if (f2i_layout_size(l.w.layout_version, l.w.k, l.w.n, l.w.stages, &l.w.packed_bytes, NULL) != F2I_OK) abort();
  l.w.scales_count = (size_t)l.w.stages * 4;
  const uint8_t given = a_byte(in);
  l.scales = floats(in, l.w.scales_count, 1);
  if (l.w.layout_version == 2) memcpy(l.scales + 2, l.scales, 2 * sizeof(float));
  l.row_multiplier = given & 1 ? floats(in, (size_t)l.w.n, 0) : NULL;
  l.col_multiplier = given & 2 ? floats(in, (size_t)l.w.k, 0) : NULL;
  l.bias = given & 4 ? floats(in, (size_t)l.w.n, 0) : NULL;
  l.w.row_multiplier_count = given & 1 ? (size_t)l.w.n : 0;
  l.w.col_multiplier_count = given & 2 ? (size_t)l.w.k : 0;
  l.ldx = l.w.k + (given & 8 ? 3 : 0);
  l.ldy = l.w.n + (given & 16 ? 5 : 0);
  l.x = allocated((size_t)(l.rows * l.ldx) * sizeof(float));
  for (int64_t row = 0; row < l.rows; ++row) { /* each in its own way */
    float *values = floats(in, (size_t)l.ldx, 0);
    memcpy(l.x + row * l.ldx, values, (size_t)l.ldx * sizeof(float));
    free(values);
  }
  l.packed = some_bytes(in, l.w.packed_bytes);
  l.w.packed = l.packed;
  l.w.scales = l.scales;
  l.w.row_multiplier = l.row_multiplier;
  l.w.col_multiplier = l.col_multiplier;
  return l;
}

static inline layer_input good_layer(input *in) {
  const int64_t rows = (int64_t)below(in, a_byte(in) % 16 == 0 ? 72 : 5);
  return good_layer_of(in, rows, a_size(in, rows));
}

static inline void free_layer(layer_input *l) {
  free(l->packed);
  free(l->scales);
  free(l->row_multiplier);
  free(l->col_multiplier);
  free(l->bias);
  free(l->x);
}

#endif
