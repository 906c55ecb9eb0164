/* test_kernels.c - every kernel this CPU can run against the scalar kernel of its family, without Python or ONNX
 * Runtime.
 *
 *   test_kernels [quick] [cpu features]
 *
 * "quick" leaves out the large shapes (for emulators). With cpu features ("neon dotprod") the library must find exactly
 * these. Every buffer ends at an inaccessible page, so a byte too far is a crash; packed bytes lie unaligned for it.
 */
#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/tuning.h"
#include "fairy2i.h"
#include "layers.h"

/* --- one product --- */

static void product(const layer *l, const char *family, const char *isa, int64_t rows, const float *x, int64_t ldx,
                    float *y, int64_t ldy, int threads) {
  f2i_plan plan;
  f2i_message message;
  f2i_kernel_info info;
  size_t bytes;
  if (f2i_plan_init(&plan, &l->w, family, isa, &message) != F2I_OK ||
      f2i_workspace_size(&plan, rows, &bytes, &message) != F2I_OK) {
    check(0, "plan", message.text);
    return;
  }
  if (f2i_plan_kernel(&plan, &info) != F2I_OK || strcmp(info.family, family) != 0 || strcmp(info.isa, isa) != 0) {
    check(0, "forced kernel is not the one that runs", isa);
  }
  buffer workspace = guarded(bytes);
  memset(workspace.data, 0xFF, bytes); /* NaN: what a kernel does not set first shows */
  const f2i_parallel parallel = {run_threads, &threads};
  const f2i_status status = f2i_matmul(&plan, rows, x, ldx, l->bias.data, y, ldy, workspace.data, bytes,
                                       threads > 0 ? &parallel : NULL, &message);
  if (status != F2I_OK) check(0, "f2i_matmul", message.text);
  release(&workspace);
}

/* Equal bits, or for the fixed-point "exact" kernels of NEON a relative error of 1e-6. A sum that cancels is held
 * against the size that a sum of `terms` such terms usually has. */
static int same(const f2i_kernel_info *kernel, const float *y, const float *expected, size_t count, size_t terms) {
  if (strcmp(kernel->family, "exact") != 0 || strncmp(kernel->isa, "neon", 4) != 0) {
    return memcmp(y, expected, count * sizeof(float)) == 0;
  }
  double error = 0, norm = 0;
  for (size_t i = 0; i < count; ++i) {
    error += ((double)y[i] - expected[i]) * ((double)y[i] - expected[i]);
    norm += (double)expected[i] * expected[i];
  }
  return sqrt(error) <= 1e-6 * fmax(sqrt(norm), 0.4 * sqrt((double)(count * terms)));
}

static const char *describe(const f2i_kernel_info *kernel, const layer *l, int64_t rows) {
  static char text[128];
  snprintf(text, sizeof text, "%s/%s N=%lld K=%lld layout=%lld stages=%lld rows=%lld", kernel->family, kernel->isa,
           (long long)l->w.n, (long long)l->w.k, (long long)l->w.layout_version, (long long)l->w.stages,
           (long long)rows);
  return text;
}

/* --- tests --- */

/* All kernels on one layer, for each number of rows; rows of x and y lie further apart than they are long. */
static void test_layer(int64_t n, int64_t k, int64_t stages, const int *rows, int rows_count) {
  f2i_kernel_info kernels[32];
  const size_t count = runnable(kernels, 32);
  const int64_t most = rows[rows_count - 1], ldx = k + 3, ldy = n + 5;
  const size_t x_size = (size_t)((most - 1) * ldx + k), y_size = (size_t)((most - 1) * ldy + n);
  layer l = random_layer(n, k, stages);
  buffer x = random_floats(x_size), expected = guarded(y_size * sizeof(float));
  const char *family = "";
  for (size_t i = 0; i < count; ++i) {
    if (strcmp(kernels[i].isa, "scalar") == 0) continue;
    if (strcmp(kernels[i].family, family) != 0) {
      family = kernels[i].family;
      product(&l, family, "scalar", most, x.data, ldx, expected.data, ldy, 0);
    }
    for (int r = 0; r < rows_count; ++r) {
      buffer y = guarded((size_t)((rows[r] - 1) * ldy + n) * sizeof(float));
      product(&l, family, kernels[i].isa, rows[r], x.data, ldx, y.data, ldy, (int)(random_bits() % 5));
      int ok = 1;
      for (int64_t row = 0; row < rows[r]; ++row) {
        ok &= same(&kernels[i], (float *)y.data + row * ldy, (float *)expected.data + row * ldy, (size_t)n, (size_t)k);
      }
      check(ok, describe(&kernels[i], &l, rows[r]), "differs from scalar");
      release(&y);
    }
  }
  release(&x);
  release(&expected);
  free_layer(&l);
}

/* Several rows give what each gives alone, to the bit, in every family; a row with NaN or infinity becomes NaN alone.
 */
static void test_rows(const f2i_kernel_info *kernel, int64_t stages) {
  enum { N = 130, K = 202, ROWS = 9 };
  layer l = random_layer(N, K, stages);
  buffer x = random_floats(ROWS * K), all = guarded(ROWS * N * sizeof(float)), one = guarded(N * sizeof(float));
  product(&l, kernel->family, kernel->isa, ROWS, x.data, K, all.data, N, 0);
  int ok = 1;
  for (int row = 0; row < ROWS; ++row) {
    product(&l, kernel->family, kernel->isa, 1, (float *)x.data + row * K, K, one.data, N, 0);
    ok &= memcmp(one.data, (float *)all.data + row * N, N * sizeof(float)) == 0;
  }
  check(ok, describe(kernel, &l, ROWS), "a row alone differs from the row among others");
  const float bad[3] = {NAN, INFINITY, -INFINITY};
  for (int i = 0; i < 3; ++i) {
    buffer y = guarded(ROWS * N * sizeof(float));
    float *at = (float *)x.data + (2 + i) * K + 67 * i; /* real and imaginary part, first and later blocks */
    const float before = *at;
    *at = bad[i];
    product(&l, kernel->family, kernel->isa, ROWS, x.data, K, y.data, N, 0);
    *at = before;
    ok = 1;
    for (int row = 0; row < ROWS; ++row) {
      const float *of = (float *)y.data + row * N;
      if (row != 2 + i) ok &= memcmp(of, (float *)all.data + row * N, N * sizeof(float)) == 0;
      for (int j = 0; row == 2 + i && j < N; ++j) ok &= isnan(of[j]) != 0;
    }
    check(ok, describe(kernel, &l, ROWS), "a row that is not finite must become NaN, and only that row");
    release(&y);
  }
  buffer zeros = guarded(K * sizeof(float)); /* all zero: the bias remains */
  product(&l, kernel->family, kernel->isa, 1, zeros.data, K, one.data, N, 0);
  check(memcmp(one.data, l.bias.data, N * sizeof(float)) == 0, describe(kernel, &l, 1), "x = 0 must give the bias");
  release(&zeros);
  release(&x);
  release(&all);
  release(&one);
  free_layer(&l);
}

/* Names: what is forced runs (checked in product), unknown names are refused with a message, the default is "lut". */
static void test_choice(void) {
  f2i_plan plan;
  f2i_message message;
  f2i_kernel_info info;
  layer l = random_layer(4, 4, 2);
  unsetenv("FAIRY2I_KERNEL");
  unsetenv("FAIRY2I_ISA");
  check(f2i_plan_init(&plan, &l.w, "lut", "doesnotexist", &message) == F2I_UNKNOWN_KERNEL &&
            strstr(message.text, "doesnotexist") != NULL,
        "unknown ISA", message.text);
  check(f2i_plan_init(&plan, &l.w, "fastest", NULL, &message) == F2I_UNKNOWN_KERNEL &&
            strstr(message.text, "lut exact dot auto") != NULL,
        "unknown family", message.text);
  for (size_t i = 0; i < f2i_kernel_count(); ++i) {
    f2i_kernel_at(i, &info);
    check(strlen(info.family) < F2I_NAME_SIZE && strlen(info.isa) < F2I_NAME_SIZE, "a name fits where it is kept",
          info.isa);
    if (info.available) continue;
    /* "not available", also to a family that has no kernel for it */
    const char *families[] = {info.family, "exact"};
    for (size_t f = 0; f < 2; ++f) {
      check(f2i_plan_init(&plan, &l.w, families[f], info.isa, &message) == F2I_UNKNOWN_KERNEL &&
                strstr(message.text, "not available") != NULL,
            "ISA this CPU lacks", info.isa);
    }
  }
  check(f2i_plan_init(&plan, &l.w, NULL, NULL, &message) == F2I_OK && f2i_plan_kernel(&plan, &info) == F2I_OK &&
            strcmp(info.family, "lut") == 0 && info.is_default,
        "default kernel", message.text);
  printf("default: %s/%s\n", info.family, info.isa);
  setenv("FAIRY2I_KERNEL", "exact", 1);
  setenv("FAIRY2I_ISA", "scalar", 1);
  check(f2i_plan_init(&plan, &l.w, NULL, NULL, &message) == F2I_OK && f2i_plan_kernel(&plan, &info) == F2I_OK &&
            strcmp(info.family, "exact") == 0 && strcmp(info.isa, "scalar") == 0,
        "kernel of the environment", message.text);
  unsetenv("FAIRY2I_KERNEL");
  unsetenv("FAIRY2I_ISA");
  int64_t next = -1;
  check(f2i_plan_init(&plan, &l.w, "auto", "scalar", &message) == F2I_OK &&
            f2i_plan_kernel_for(&plan, 1000, &info, &next) == F2I_OK && strcmp(info.family, "lut") == 0 && next == 0,
        "auto where nothing is known", message.text);
  check(f2i_plan_init(&plan, &l.w, "auto", "none", &message) == F2I_UNKNOWN_KERNEL, "auto, unknown ISA", message.text);
  check(f2i_plan_kernel_for(&plan, 1, &info, &next) == F2I_INVALID_ARGUMENT, "a plan that failed", "");
  check(f2i_plan_init(&plan, &l.w, "auto", NULL, &message) == F2I_OK && f2i_plan_kernel(&plan, &info) == F2I_OK &&
            info.is_default && f2i_plan_kernel_for(&plan, 0, &info, &next) == F2I_OK &&
            strcmp(info.family, "lut") == 0 && info.is_default,
        "auto, no row", message.text);
  printf("auto: another kernel from %lld rows on\n", (long long)next);
  if (next > 0) {
    int64_t last = -1;
    check(f2i_plan_kernel_for(&plan, next - 1, &info, &last) == F2I_OK && last == next &&
              strcmp(info.family, "lut") == 0 && f2i_plan_kernel_for(&plan, next, &info, &last) == F2I_OK &&
              last == 0 && strcmp(info.family, "dot") == 0,
          "auto, many rows", info.family);
  }
  check(f2i_plan_kernel_for(&plan, -1, &info, NULL) == F2I_INVALID_ARGUMENT, "auto, rows", "");
  free_layer(&l);
}

/* Settings by processor: what is named runs, the environment's are behind the caller's, anything else is refused. */
static void test_tuning(void) {
  static const char *const wrong[] = {"lut",
                                      "lut=doesnotexist",
                                      "lut=a_name_of_an_ISA_that_is_too_long",
                                      "dot=neon99",
                                      "auto=",
                                      "auto=-1",
                                      "auto=4x",
                                      "auto=1234567890123",
                                      "alone=1k",
                                      "rows=4",
                                      "lut=scalar;auto=1"};
  f2i_plan plan;
  f2i_message message;
  f2i_kernel_info info;
  char text[128];
  layer l = random_layer(4, 4, 2);
  for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; ++i) {
    check(f2i_plan_init_tuned(&plan, &l.w, NULL, NULL, wrong[i], &message) != F2I_OK &&
              strstr(message.text, "tuning") != NULL && plan.kernel == NULL,
          "wrong tuning", wrong[i]);
  }
  const char *all = "lut=scalar dot=scalar  auto=7 alone=1000 ";
  check(f2i_plan_init_tuned(&plan, &l.w, "auto", NULL, all, &message) == F2I_OK &&
            f2i_plan_kernel_for(&plan, 6, &info, NULL) == F2I_OK && strcmp(info.family, "lut") == 0 &&
            strcmp(info.isa, "scalar") == 0 && f2i_plan_kernel_for(&plan, 7, &info, NULL) == F2I_OK &&
            strcmp(info.family, "dot") == 0 && strcmp(info.isa, "scalar") == 0,
        "tuning", message.text);
  check(f2i_plan_tuning(&plan, text, sizeof text) == F2I_OK &&
            strcmp(text, "lut=scalar dot=scalar auto=7 alone=1000") == 0,
        "text of a tuning", text);
  check(f2i_plan_tuning(&plan, text, 4) == F2I_OK && strcmp(text, "lut") == 0, "cut text of a tuning", text);
  check(f2i_plan_init_tuned(&plan, &l.w, "auto", NULL, "auto=0", &message) == F2I_OK &&
            f2i_plan_kernel_for(&plan, 1 << 20, &info, NULL) == F2I_OK && strcmp(info.family, "lut") == 0,
        "auto, never another", message.text);
  check(f2i_plan_init_tuned(&plan, &l.w, "auto", NULL, "auto=1", &message) == F2I_OK &&
            f2i_plan_kernel(&plan, &info) == F2I_OK && strcmp(info.family, "dot") == 0,
        "auto, always the other", message.text);
  check(f2i_plan_init_tuned(&plan, &l.w, "auto", "scalar", "auto=3", &message) == F2I_OK &&
            f2i_plan_kernel_for(&plan, 3, &info, NULL) == F2I_OK && strcmp(info.family, "dot") == 0,
        "auto, a forced ISA and a tuning", message.text);
  setenv("FAIRY2I_TUNING", "lut=scalar alone=5", 1);
  check(f2i_plan_init_tuned(&plan, &l.w, NULL, NULL, "alone=6", &message) == F2I_OK &&
            f2i_plan_tuning(&plan, text, sizeof text) == F2I_OK && strcmp(text, "lut=scalar alone=6") == 0,
        "tuning of the environment", text);
  f2i_kernel_at(0, &info); /* the ISA that a caller names is behind no tuning */
  check(!info.available || (f2i_plan_init(&plan, &l.w, "lut", info.isa, &message) == F2I_OK &&
                            f2i_plan_kernel(&plan, &info) == F2I_OK && strcmp(info.isa, "scalar") != 0),
        "tuning and a forced ISA", info.isa);
  setenv("FAIRY2I_TUNING", "nonsense", 1);
  check(f2i_plan_init(&plan, &l.w, NULL, NULL, &message) == F2I_INVALID_ARGUMENT, "wrong tuning, environment", "");
  unsetenv("FAIRY2I_TUNING");
  free_layer(&l);
}

int main(int argc, char **argv) {
  const int quick = argc > 1 && strcmp(argv[1], "quick") == 0;
  const char *features = argc > 1 + quick ? argv[1 + quick] : NULL;
  char found[128];
  f2i_cpu_features(found, sizeof found);
  printf("CPU features: %s\n", found);
  check(features == NULL || strcmp(features, found) == 0, "CPU features expected", features != NULL ? features : "");

  f2i_kernel_info kernels[32];
  const size_t count = runnable(kernels, 32);
  printf("kernels:");
  for (size_t i = 0; i < count; ++i) printf(" %s/%s", kernels[i].family, kernels[i].isa);
  printf("\n");
  test_choice();
  test_tuning();
  for (size_t i = 0; i < count; ++i) {
    test_rows(&kernels[i], 2);
    test_rows(&kernels[i], 0);
  }

  /* real sizes around tile (64), half tile (32) and block (64) edges, primes doubled, and real layers */
  static const int edges[] = {2, 4, 6, 30, 32, 34, 62, 64, 66, 86, 106, 126, 128, 130, 172, 194, 258};
  static const int few[] = {1, 2, 3, 4, 5, 6, 7, 8, 9}, many[] = {1, 2, 7, 8, 9, 15, 17, 30, 33, 64, 71};
  enum { EDGES = sizeof edges / sizeof edges[0], MANY = sizeof many / sizeof many[0] };
  for (int stages = 0; stages <= 4; ++stages) {
    for (int i = 0; i < EDGES; ++i) {
      for (int j = 0; j < EDGES; ++j) {
        if (quick && (i + 3 * j + stages) % 11 != 0) continue;
        test_layer(edges[i], edges[j], stages, few, 9);
      }
    }
    test_layer(346, 134, stages, many, MANY); /* several strips, more rows than tables exist for at one time */
  }
  test_layer(2050, 66, 2, many, MANY); /* strips of more tiles than panels take at one time */
  test_layer(5504, quick ? 66 : 1376, 2, few, 3);
  test_layer(quick ? 66 : 1376, 5504, 2, few, 3);
  test_layer(quick ? 66 : 1024, 10920, 0, few, 3);
  test_layer(11008, quick ? 2 : 172, 1, few, 2);
  test_layer(quick ? 2 : 172, 11008, 1, few, 2);
  if (!quick) test_layer(1026, 4096, 2, many, MANY - 2);

  printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
