/* test_threads.c - the functions that the operator calls, from many threads at once and from the first call on: shared
 * plans and own ones, all kernels, mixed shapes. Meant for a build with F2I_SANITIZE=thread, which finds what two
 * threads touch without saying so; without it, that results are those of one thread.
 *
 *   test_threads [runs of each thread, 1000]
 */
#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#include <pthread.h>
#include <string.h>

#include "fairy2i.h"
#include "harness.h"

enum {
  THREADS = 8,
  SHAPES = 6,
  KERNELS = 32,
  MOST_ROWS = 33,
  MOST = 200,
  MOST_LAYERS = F2I_MAX_LAYERS,
  WORKSPACE = 4 << 20
};

static const struct {
  int64_t k, n, stages, rows;
} shapes[SHAPES] = {{2, 2, 1, 1},    {64, 64, 2, 1},  {130, 66, 2, 3},
                    {34, 200, 3, 9}, {200, 34, 4, 6}, {66, 130, 2, MOST_ROWS}};

static f2i_weights weights[SHAPES];
static f2i_plan shared[SHAPES];
static float x[MOST_ROWS * MOST], bias[MOST];
static uint8_t *expected[SHAPES][KERNELS]; /* y of each shape and kernel, or NULL */
static pthread_barrier_t barrier;
static long runs = 1000;

typedef struct worker {
  pthread_t id;
  uint32_t random; /* xorshift */
  int errors;
  float y[MOST_LAYERS][MOST_ROWS * MOST];
  uint8_t *workspace;
} worker;

static uint32_t next(worker *w) {
  w->random ^= w->random << 13;
  w->random ^= w->random >> 17;
  return w->random ^= w->random << 5;
}

/* Work items in another order. */
static void backwards(void *context, f2i_task task, size_t count, void *arg) {
  (void)context;
  while (count > 0) task(arg, --count);
}

/* The same layer into `count` outputs, or by itself if that is 0. */
static int run_once(const f2i_plan *plan, int shape, int in_order, int count, float (*y)[MOST_ROWS * MOST],
                    uint8_t *workspace) {
  const f2i_parallel backward = {backwards, NULL}, *parallel = in_order ? NULL : &backward;
  const int64_t rows = shapes[shape].rows, k = shapes[shape].k, n = shapes[shape].n;
  f2i_output outputs[MOST_LAYERS];
  f2i_message message;
  size_t bytes = 0;
  for (int i = 0; i < count; ++i) outputs[i] = (f2i_output){plan, bias, y[i], n};
  if (count > 0) {
    return f2i_matmuls_workspace_size(outputs, (size_t)count, rows, &bytes, &message) == F2I_OK && bytes <= WORKSPACE &&
           f2i_matmuls(outputs, (size_t)count, rows, x, k, workspace, bytes, parallel, &message) == F2I_OK;
  }
  if (f2i_workspace_size(plan, rows, &bytes, &message) != F2I_OK || bytes > WORKSPACE) return 0;
  return f2i_matmul(plan, rows, x, k, bias, y[0], n, workspace, bytes, parallel, &message) == F2I_OK;
}

static size_t y_bytes(int shape) { return (size_t)(shapes[shape].rows * shapes[shape].n) * sizeof(float); }

static void *work(void *arg) {
  worker *w = arg;
  pthread_barrier_wait(&barrier); /* so that even the first look at the CPU is everyone's */
  for (long i = 0; i < runs; ++i) {
    const int shape = (int)(next(w) % SHAPES), own = (int)(next(w) % 2);
    f2i_plan plan = shared[shape];
    f2i_kernel_info kernel;
    size_t index = next(w) % f2i_kernel_count();
    if (own) {
      if (f2i_kernel_at(index, &kernel) != F2I_OK) ++w->errors;
      if (!kernel.available || index >= KERNELS) continue;
      if (f2i_plan_init(&plan, &weights[shape], kernel.family, kernel.isa, NULL) != F2I_OK) ++w->errors;
    } else {
      index = 0; /* what the shared plans run */
    }
    const int in_order = (int)(next(w) % 2), count = (int)(next(w) % (MOST_LAYERS + 1));
    if (!run_once(own ? &plan : &shared[shape], shape, in_order, count, w->y, w->workspace)) ++w->errors;
    for (int l = 0; l < (count > 0 ? count : 1); ++l) {
      if (memcmp(w->y[l], expected[shape][index], y_bytes(shape)) != 0) ++w->errors;
    }
  }
  return NULL;
}

/* What one thread finds; and the layers. index 0 of a shape is its shared plan. */
static void prepare(void) {
  uint8_t *workspace = malloc(WORKSPACE);
  for (size_t i = 0; i < MOST_ROWS * MOST; ++i) x[i] = (float)(int32_t)random_bits() * 0x1p-31f;
  for (size_t i = 0; i < MOST; ++i) bias[i] = (float)i;
  x[70] = 1e-42f; /* with some rows of sizes far from 1 among the ordinary ones */
  for (size_t i = 200; i < 400; ++i) x[i] *= 0x1p-90f;
  for (int s = 0; s < SHAPES; ++s) {
    f2i_weights *w = &weights[s];
    *w = (f2i_weights){.k = shapes[s].k, .n = shapes[s].n, .stages = shapes[s].stages, .layout_version = 1};
    if (f2i_packed_size(w->k, w->n, w->stages, &w->packed_bytes, NULL) != F2I_OK) exit(2);
    uint8_t *packed = malloc(w->packed_bytes);
    float *scales = malloc(16 * sizeof *scales);
    for (size_t i = 0; i < w->packed_bytes; ++i) packed[i] = (uint8_t)random_bits();
    for (size_t i = 0; i < 16; ++i) scales[i] = (float)random_bits() * (s == 4 ? 0x1p-140f : 0x1p-32f);
    w->packed = packed;
    w->scales = scales;
    w->scales_count = 4 * (size_t)w->stages;
    for (size_t i = 0; i < f2i_kernel_count() && i < KERNELS; ++i) {
      f2i_kernel_info kernel;
      f2i_plan plan;
      f2i_kernel_at(i, &kernel);
      if (i == 0) kernel.family = "lut", kernel.isa = "scalar";
      else if (!kernel.available) continue;
      expected[s][i] = malloc(y_bytes(s));
      check(f2i_plan_init(&plan, w, kernel.family, kernel.isa, NULL) == F2I_OK &&
                run_once(&plan, s, 1, 0, (float (*)[MOST_ROWS * MOST])(void *)expected[s][i], workspace),
            kernel.family, kernel.isa);
    }
  }
  free(workspace);
}

int main(int argc, char **argv) {
  static worker workers[THREADS];
  if (argc > 1) runs = strtol(argv[1], NULL, 10);
  unsetenv("FAIRY2I_KERNEL");
  unsetenv("FAIRY2I_ISA");
  prepare();
  for (int s = 0; s < SHAPES; ++s) {
    if (f2i_plan_init(&shared[s], &weights[s], NULL, NULL, NULL) != F2I_OK) return 2;
  }
  if (pthread_barrier_init(&barrier, NULL, THREADS) != 0) return 2;
  for (uint32_t i = 0; i < THREADS; ++i) {
    workers[i].random = 2463534242u + i;
    workers[i].workspace = malloc(WORKSPACE);
    if (pthread_create(&workers[i].id, NULL, work, &workers[i]) != 0) return 2;
  }
  for (int i = 0; i < THREADS; ++i) {
    pthread_join(workers[i].id, NULL);
    check(workers[i].errors == 0, "thread", "results differ from those of one thread");
    free(workers[i].workspace);
  }
  for (int s = 0; s < SHAPES; ++s) {
    free((void *)weights[s].packed);
    free((void *)weights[s].scales);
    for (int i = 0; i < KERNELS; ++i) free(expected[s][i]);
  }
  printf("%d threads, %ld runs each: %d passed, %d failed\n", THREADS, runs, passed, failed);
  return failed != 0;
}
