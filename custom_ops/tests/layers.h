/* layers.h - what tests of layers share: random ones in guarded memory, threads, the kernels that this CPU can run. */
#ifndef F2I_TESTS_LAYERS_H
#define F2I_TESTS_LAYERS_H

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "fairy2i.h"
#include "harness.h"

static float random_float(void) { return (float)(int32_t)random_bits() * 0x1p-31f; }

static buffer random_floats(size_t count) {
  const buffer b = guarded(count * sizeof(float));
  for (size_t i = 0; i < count; ++i) ((float *)b.data)[i] = random_float();
  return b;
}

/* --- layers --- */

typedef struct layer {
  f2i_weights w;
  buffer packed, scales, row_multiplier, col_multiplier, bias;
} layer;

/* stages: 0 for a layer without U */
static layer random_layer(int64_t n, int64_t k, int64_t stages) {
  layer l = {.w = {.k = k, .n = n, .stages = stages, .layout_version = 1}};
  if (stages == 0) l.w.layout_version = 2, l.w.stages = stages = 1, l.w.activation_bits = random_bits() & 1 ? 8 : 0;
  if (f2i_layout_size(l.w.layout_version, k, n, stages, &l.w.packed_bytes, NULL) != F2I_OK) exit(2);
  const size_t shift = random_bits() % 63 + 1; /* the bytes then lie at any alignment */
  l.packed = guarded(l.w.packed_bytes + shift);
  for (size_t i = 0; i < l.w.packed_bytes; ++i) ((uint8_t *)l.packed.data)[i] = (uint8_t)random_bits();
  l.w.packed = l.packed.data;
  memmove((uint8_t *)l.packed.data + shift, l.packed.data, l.w.packed_bytes);
  l.w.packed += shift;
  l.w.scales_count = (size_t)stages * 4;
  l.scales = random_floats(l.w.scales_count);
  if (l.w.layout_version == 2) memcpy((float *)l.scales.data + 2, l.scales.data, 2 * sizeof(float));
  l.w.scales = l.scales.data;
  l.w.row_multiplier_count = (size_t)n;
  l.row_multiplier = random_floats((size_t)n);
  l.w.col_multiplier_count = (size_t)k;
  l.col_multiplier = random_floats((size_t)k);
  l.bias = random_floats((size_t)n);
  if (random_bits() & 1) l.w.row_multiplier = l.row_multiplier.data;
  else l.w.row_multiplier_count = 0;
  if (random_bits() & 1) l.w.col_multiplier = l.col_multiplier.data;
  else l.w.col_multiplier_count = 0;
  return l;
}

static void free_layer(layer *l) {
  release(&l->packed);
  release(&l->scales);
  release(&l->row_multiplier);
  release(&l->col_multiplier);
  release(&l->bias);
}

/* --- threads --- */

typedef struct job {
  f2i_task task;
  void *arg;
  size_t count;
  atomic_size_t next;
} job;

static void *work(void *arg) {
  job *j = arg;
  for (size_t i = atomic_fetch_add(&j->next, 1); i < j->count; i = atomic_fetch_add(&j->next, 1)) {
    j->task(j->arg, j->count - 1 - i); /* last first: the order must not matter */
  }
  return NULL;
}

/* context: the number of threads, 1 to 8 */
static void run_threads(void *context, f2i_task task, size_t count, void *arg) {
  enum { MOST = 8 };
  const int threads = *(const int *)context;
  job j = {.task = task, .arg = arg, .count = count};
  pthread_t ids[MOST];
  for (int i = 1; i < threads; ++i) {
    if (pthread_create(&ids[i], NULL, work, &j) != 0) exit(2);
  }
  work(&j);
  for (int i = 1; i < threads; ++i) pthread_join(ids[i], NULL);
}

/* The kernels that can run here; returns how many. */
static size_t runnable(f2i_kernel_info kernels[], size_t most) {
  size_t count = 0;
  for (size_t i = 0; i < f2i_kernel_count() && count < most; ++i) {
    if (f2i_kernel_at(i, &kernels[count]) == F2I_OK && kernels[count].available) ++count;
  }
  return count;
}

#endif
