/* test_several.c - f2i_matmuls against f2i_matmul, to the bit: every kernel this CPU can run, one to three layers of
 * different sizes, stages and operands, any number of rows, of threads and of processors that the library counts.
 *
 *   test_several [quick]
 *
 * Linked with --wrap for f2i_cpu_count, on which depends how work is cut up, and for one kernel's build, whose calls
 * are counted. All memory ends at inaccessible pages.
 */
#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fairy2i.h"
#include "kernels/kernels.h"
#include "layer/call.h"
#include "layers.h"

static size_t processors = 1;
size_t __wrap_f2i_cpu_count(void);
size_t __wrap_f2i_cpu_count(void) { return processors; }

static atomic_size_t builds; /* K-blocks whose operands lut/scalar built */
f2i_build_fn __real_f2i_build_lut__scalar, __wrap_f2i_build_lut__scalar;
float __wrap_f2i_build_lut__scalar(const float *re, const float *im, const float *scales, int stages, void *operands) {
  atomic_fetch_add(&builds, 1);
  return __real_f2i_build_lut__scalar(re, im, scales, stages, operands);
}

/* Layers that read the same x, and what each gives alone. */
typedef struct group {
  size_t count;
  layer layers[F2I_MAX_LAYERS];
  f2i_plan plans[F2I_MAX_LAYERS];
  int has_bias[F2I_MAX_LAYERS];
  buffer y[F2I_MAX_LAYERS];
  f2i_output outputs[F2I_MAX_LAYERS];
} group;

typedef struct shape {
  int64_t k;
  size_t count;
  struct {
    int64_t n, stages; /* stages 0: without U */
  } layers[F2I_MAX_LAYERS];
} shape;

static group open_group(const shape *s) {
  group g = {.count = s->count};
  for (size_t i = 0; i < s->count; ++i) {
    g.layers[i] = random_layer(s->layers[i].n, s->k, s->layers[i].stages);
    g.has_bias[i] = random_bits() % 2 == 0;
    if (random_bits() % 4 == 0) { /* far from 1 */
      for (size_t j = 0; j < g.layers[i].w.scales_count; ++j) ((float *)g.layers[i].scales.data)[j] *= 0x1p-120f;
    }
  }
  return g;
}

/* Family and ISA of layer i: kernels[i % kernels_count]. */
static void plan_group(group *g, const f2i_kernel_info *kernels, size_t kernels_count) {
  f2i_message message;
  for (size_t i = 0; i < g->count; ++i) {
    const f2i_kernel_info *kernel = &kernels[i % kernels_count];
    const f2i_status status = f2i_plan_init(&g->plans[i], &g->layers[i].w, kernel->family, kernel->isa, &message);
    check(status == F2I_OK, kernel->isa, message.text);
  }
}

static void close_group(group *g) {
  for (size_t i = 0; i < g->count; ++i) free_layer(&g->layers[i]);
}

static int64_t ldy_of(const group *g, size_t i) { return g->layers[i].w.n + (int64_t)(i % 2 * 5); }
static size_t y_floats(const group *g, size_t i, int64_t rows) {
  return rows == 0 ? 0 : (size_t)((rows - 1) * ldy_of(g, i) + g->layers[i].w.n);
}

/* Outputs into guarded memory full of NaN. */
static void open_outputs(group *g, int64_t rows) {
  for (size_t i = 0; i < g->count; ++i) {
    const size_t bytes = y_floats(g, i, rows) * sizeof(float);
    g->y[i] = guarded(bytes);
    memset(g->y[i].data, 0xFF, bytes);
    g->outputs[i] = (f2i_output){.plan = &g->plans[i],
                                 .bias = g->has_bias[i] ? g->layers[i].bias.data : NULL,
                                 .y = g->y[i].data,
                                 .ldy = ldy_of(g, i)};
  }
}

static buffer poisoned(size_t bytes) {
  const buffer b = guarded(bytes);
  memset(b.data, 0xFF, bytes);
  return b;
}

/* y of every layer by itself, on this thread. */
static void run_alone(const group *g, int64_t rows, const float *x, int64_t ldx, buffer *expected) {
  f2i_message message;
  for (size_t i = 0; i < g->count; ++i) {
    const f2i_output *o = &g->outputs[i];
    size_t bytes = 0;
    expected[i] = poisoned(y_floats(g, i, rows) * sizeof(float));
    check(f2i_workspace_size(o->plan, rows, &bytes, &message) == F2I_OK, "workspace", message.text);
    const buffer workspace = poisoned(bytes);
    check(f2i_matmul(o->plan, rows, x, ldx, o->bias, expected[i].data, o->ldy, workspace.data, bytes, NULL, &message) ==
              F2I_OK,
          "f2i_matmul", message.text);
    release(&workspace);
  }
}

typedef struct counted_pool {
  int threads, regions;
} counted_pool;

static void run_counted(void *context, f2i_task task, size_t count, void *arg) {
  counted_pool *pool = context;
  ++pool->regions;
  run_threads(&pool->threads, task, count, arg);
}

/* threads 0: without f2i_parallel. Returns how often other threads were asked. */
static int run_together(const group *g, int64_t rows, const float *x, int64_t ldx, int threads) {
  counted_pool pool = {threads, 0};
  const f2i_parallel parallel = {run_counted, &pool};
  f2i_message message = {"not written"};
  size_t bytes = 0;
  f2i_status status = f2i_matmuls_workspace_size(g->outputs, g->count, rows, &bytes, &message);
  check(status == F2I_OK, "size of the workspace", message.text);
  const buffer workspace = poisoned(bytes);
  status =
      f2i_matmuls(g->outputs, g->count, rows, x, ldx, workspace.data, bytes, threads > 0 ? &parallel : NULL, &message);
  check(status == F2I_OK && message.text[0] == '\0', "f2i_matmuls", message.text);
  release(&workspace);
  return pool.regions;
}

static void compare(const group *g, int64_t rows, const buffer *expected, const char *what) {
  for (size_t i = 0; i < g->count; ++i) {
    char where[96];
    snprintf(where, sizeof where, "layer %zu, N=%lld K=%lld, %lld rows, %zu processors", i, (long long)g->layers[i].w.n,
             (long long)g->layers[i].w.k, (long long)rows, processors);
    check(memcmp(g->y[i].data, expected[i].data, y_floats(g, i, rows) * sizeof(float)) == 0, what, where);
  }
}

static void test_rows(group *g, int64_t rows, const char *what) {
  const int64_t k = g->layers[0].w.k, ldx = k + 3;
  buffer x = random_floats(rows == 0 ? 0 : (size_t)((rows - 1) * ldx + k)), expected[F2I_MAX_LAYERS];
  const uint32_t special = random_bits() % 6;
  if (rows > 0 && special == 0) ((float *)x.data)[k / 2] = NAN;
  for (int64_t j = 0; rows > 0 && special == 1 && j < k; ++j) ((float *)x.data)[j] *= 0x1p-100f;
  open_outputs(g, rows);
  processors = 1;
  run_alone(g, rows, x.data, ldx, expected);
  for (processors = 1; processors <= 8; ++processors) {
    for (size_t i = 0; i < g->count; ++i) memset(g->y[i].data, 0xFF, y_floats(g, i, rows) * sizeof(float));
    (void)run_together(g, rows, x.data, ldx, rows > 1 ? (int)(random_bits() % 5) : (int)(random_bits() % 9));
    compare(g, rows, expected, what);
  }
  for (size_t i = 0; i < g->count; ++i) {
    release(&g->y[i]);
    release(&expected[i]);
  }
  release(&x);
}

/* Every kernel for all layers of a shape, then another kernel for each of them. */
static void test_shape(const shape *s, const int *rows, size_t rows_count) {
  f2i_kernel_info kernels[32];
  const size_t count = runnable(kernels, 32);
  group g = open_group(s);
  for (size_t i = 0; i <= count; ++i) {
    if (i < count) plan_group(&g, &kernels[i], 1);
    else plan_group(&g, &kernels[random_bits() % (count - 2)], 3);
    for (size_t r = 0; r < rows_count; ++r) test_rows(&g, rows[r], i < count ? kernels[i].family : "mixed kernels");
  }
  close_group(&g);
}

/* The design: one row of x takes one call of `run`, or two where operands are shared, whatever the number of layers;
 * and operands are built once for each thread that meets a layer, not for all that might. */
static void test_regions(void) {
  const shape large = {512, 3, {{1024, 2}, {256, 2}, {256, 1}}}, tiny = {512, 3, {{34, 2}, {2, 1}, {6, 2}}};
  const f2i_kernel_info kernel = {"lut", "scalar", 1, 0};
#if defined(__x86_64__)
  const size_t builders_most = 4;
#else
  const size_t builders_most = 1;
#endif
  for (int is_large = 0; is_large < 2; ++is_large) {
    group g = open_group(is_large ? &large : &tiny);
    const buffer x = random_floats(512);
    const size_t blocks = 3 * 512 / 64; /* of all layers */
    plan_group(&g, &kernel, 1);
    open_outputs(&g, 1);
    for (processors = 1; processors <= 8; ++processors) {
      char what[96];
      atomic_store(&builds, 0);
      /* on one thread, which does the work of all */
      const int regions = run_together(&g, 1, x.data, 512, 1);
      snprintf(what, sizeof what, "%zu processors: %d regions, %zu builds", processors, regions, atomic_load(&builds));
      if (!is_large) check(regions == 1, "tiny layers: blocks of operands alone are shared out", what);
      else if (processors > 1 && processors <= builders_most) check(regions == 1, "one region", what);
      else check(regions == 2, "one region for operands, one for strips", what);
      check(atomic_load(&builds) == blocks, "operands of a layer are built when a strip of it is met", what);
      atomic_store(&builds, 0);
      (void)run_together(&g, 1, x.data, 512, 8);
      snprintf(what, sizeof what, "%zu processors, %zu builds", processors, atomic_load(&builds));
      const size_t most = processors <= builders_most ? processors : 1;
      check(atomic_load(&builds) >= blocks && atomic_load(&builds) <= most * blocks, "builds", what);
    }
    for (size_t i = 0; i < g.count; ++i) release(&g.y[i]);
    release(&x);
    close_group(&g);
  }
}

/* Every strip of all layers is in one part of the list, and parts are about equal: by bytes, of which a strip of this
 * layer has more than one of that. Seen from outside: results with as many processors as strips, and with more. */
static void test_more_threads_than_strips(void) {
  const shape s = {1400, 3, {{66, 4}, {2, 4}, {130, 4}}}; /* 2, 1 and 3 row tiles, more than 48 KiB */
  static const int one_row[] = {1};
  test_shape(&s, one_row, 1);
}

static void refused(const group *g, const f2i_output *outputs, size_t count, int64_t rows, const float *x, int64_t ldx,
                    size_t workspace_bytes, const char *expected) {
  static uint8_t workspace[1 << 20];
  f2i_message message = {""};
  const f2i_status status = f2i_matmuls(outputs, count, rows, x, ldx, workspace_bytes == 0 ? NULL : workspace,
                                        workspace_bytes, NULL, &message);
  check(status == F2I_INVALID_ARGUMENT && strstr(message.text, expected) != NULL, expected, message.text);
  check(f2i_matmuls(outputs, count, rows, x, ldx, workspace_bytes == 0 ? NULL : workspace, workspace_bytes, NULL,
                    NULL) == F2I_INVALID_ARGUMENT,
        expected, "without a message");
  for (size_t i = 0; i < g->count; ++i) {
    for (size_t j = 0; j < (size_t)g->layers[i].w.n; ++j) {
      if (!isnan(((float *)g->y[i].data)[j])) check(0, expected, "an output was written");
    }
  }
}

static void test_wrong_arguments(void) {
  const shape s = {70, 3, {{34, 2}, {66, 1}, {2, 3}}}, other = {72, 1, {{34, 2}}};
  const f2i_kernel_info kernel = {"lut", "scalar", 1, 0};
  enum { ENOUGH = 1 << 20 };
  group g = open_group(&s), longer = open_group(&other);
  const buffer x = random_floats(70);
  f2i_plan empty = {.kernel = NULL};
  f2i_message message;
  size_t bytes = 7;
  processors = 2;
  plan_group(&g, &kernel, 1);
  plan_group(&longer, &kernel, 1);
  open_outputs(&g, 1);
  f2i_output o[F2I_MAX_LAYERS + 1] = {g.outputs[0], g.outputs[1], g.outputs[2], g.outputs[0]};
  refused(&g, NULL, 3, 1, x.data, 70, ENOUGH, "outputs: expected 1 to 3 layers, got 0");
  refused(&g, o, 0, 1, x.data, 70, ENOUGH, "outputs: expected 1 to 3 layers, got 0");
  refused(&g, o, 4, 1, x.data, 70, ENOUGH, "outputs: expected 1 to 3 layers, got 4");
  refused(&g, o, 3, -1, x.data, 70, ENOUGH, "rows >= 0");
  refused(&g, o, 3, 1, NULL, 70, ENOUGH, "x: expected rows at least K=70 floats apart, got 0");
  refused(&g, o, 3, 1, x.data, 69, ENOUGH, "x: expected rows at least K=70 floats apart, got 69");
  o[1].y = NULL;
  refused(&g, o, 3, 1, x.data, 70, ENOUGH, "layer 1: y: expected rows at least N=66 floats apart, got 0");
  o[1] = g.outputs[1];
  o[2].ldy = 1;
  refused(&g, o, 3, 1, x.data, 70, ENOUGH, "layer 2: y: expected rows at least N=2 floats apart, got 1");
  o[2] = g.outputs[2];
  o[2].plan = NULL;
  refused(&g, o, 3, 1, x.data, 70, ENOUGH, "layer 2: expected an initialized plan");
  o[2].plan = &empty;
  refused(&g, o, 3, 1, x.data, 70, ENOUGH, "layer 2: expected an initialized plan");
  o[2] = g.outputs[2];
  o[1].plan = &longer.plans[0];
  refused(&g, o, 3, 1, x.data, 72, ENOUGH, "layer 1: expected K=70 as layer 0 has, got 72");
  o[1] = g.outputs[1];
  check(f2i_matmuls_workspace_size(o, 3, 1, &bytes, &message) == F2I_OK, "size", message.text);
  refused(&g, o, 3, 1, x.data, 70, bytes - 1, "workspace: expected");
  refused(&g, o, 3, 1, x.data, 70, 0, "got 0");
  check(f2i_matmuls_workspace_size(o, 3, 1, NULL, &message) == F2I_INVALID_ARGUMENT, "bytes NULL", message.text);
  size_t within = 7;
  check(f2i_matmuls_workspace_size_within(bytes, o, 3, 1, &within, &message) == F2I_OK && within == bytes, "limit", "");
  within = 7;
  check(f2i_matmuls_workspace_size_within(bytes - 1, o, 3, 1, &within, &message) == F2I_INVALID_ARGUMENT &&
            within == 7 && strstr(message.text, "K=70 and 3 layers need") != NULL,
        "a byte less", message.text);
  check(f2i_matmuls(o, 3, 0, NULL, 0, NULL, 0, NULL, &message) == F2I_OK && message.text[0] == '\0', "no rows",
        message.text);
  for (size_t i = 0; i < g.count; ++i) release(&g.y[i]);
  release(&x);
  close_group(&g);
  close_group(&longer);
}

int main(int argc, char **argv) {
  const int quick = argc > 1 && strcmp(argv[1], "quick") == 0;
  unsetenv("FAIRY2I_KERNEL");
  unsetenv("FAIRY2I_ISA");
  test_wrong_arguments();
  test_regions();
  test_more_threads_than_strips();
  static const int any_rows[] = {0, 1, 2, 5, 130}, few_rows[] = {1, 3};
  static const shape shapes[] = {
      {2, 1, {{2, 1}}},
      {2, 3, {{2, 1}, {4, 4}, {2, 2}}},
      {66, 2, {{66, 2}, {34, 3}}},
      {130, 3, {{258, 1}, {30, 2}, {64, 4}}},
      {70, 3, {{258, 0}, {34, 0}, {64, 0}}},    /* without U */
      {134, 3, {{130, 2}, {66, 0}, {34, 1}}},   /* one of them without */
      {192, 3, {{576, 2}, {192, 2}, {192, 2}}}, /* an attention of a small model */
  };
  for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; ++i) {
    if (quick) test_shape(&shapes[i], few_rows, 2);
    else test_shape(&shapes[i], any_rows, 5);
  }
  for (int i = 0; i < (quick ? 1 : 12); ++i) { /* tall, long, and small beside large */
    shape s = {2 + 2 * (int64_t)(random_bits() % 300), 3, {{0, 0}}};
    for (size_t l = 0; l < 3; ++l) {
      s.layers[l].n = 2 + 2 * (int64_t)(random_bits() % (random_bits() % 2 ? 1000 : 40));
      s.layers[l].stages = 1 + (int64_t)(random_bits() % 4);
    }
    test_shape(&s, few_rows, 2);
  }
  printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
