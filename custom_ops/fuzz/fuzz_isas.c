/* fuzz_isas.c - good layers with numbers of any kind: every instruction set this CPU has gives the bits of the scalar
 * kernel ("exact" of NEON: nearly), rows together what they give alone, and all of them what docs/format.md says.
 */
#include "reference.h"

static void run(const layer_input *l, const f2i_kernel_info *kernel, int64_t rows, const float *x, float *y) {
  f2i_plan plan;
  f2i_message message;
  size_t bytes = 0;
  f2i_status status = f2i_plan_init(&plan, &l->w, kernel->family, kernel->isa, &message);
  if (status == F2I_OK) status = f2i_workspace_size(&plan, rows, &bytes, &message);
  EXPECT(status == F2I_OK, "%s", message.text);
  void *workspace = allocated(bytes);
  memset(workspace, 0xFF, bytes); /* NaN, should anything be read before it is written */
  const f2i_parallel backwards = {run_backwards, NULL};
  status = f2i_matmul(&plan, rows, x, l->ldx, l->bias, y, l->w.n, workspace, bytes, &backwards, &message);
  EXPECT(status == F2I_OK, "%s", message.text);
  free(workspace);
}

static int is_fixed_point(const f2i_kernel_info *kernel) {
  return strcmp(kernel->family, "exact") == 0 && strncmp(kernel->isa, "neon", 4) == 0;
}

/* One row of y against float64. */
static void check_row(const layer_input *l, const f2i_kernel_info *kernel, const reference *right, const float *y) {
  const double allowed = strcmp(kernel->family, "lut") == 0   ? right->lut
                         : strcmp(kernel->family, "dot") == 0 ? right->dot
                                                              : right->exact;
  for (size_t i = 0; i < (size_t)l->w.n; ++i) {
    const double factor = l->w.row_multiplier == NULL ? 1.0 : (double)l->w.row_multiplier[i];
    const double error = fabs((double)y[i] - right->y[i]);
    if (!right->is_finite)
      EXPECT(isnan(y[i]), "%s %s: a row that is not finite: %g", kernel->family, kernel->isa, y[i]);
    /* too large, on the way or in the end: not a number worth looking at */
    if (!right->is_finite || !isfinite(right->y[i]) || right->size > 3e38) continue;
    if (fabs(right->y[i]) + allowed * fabs(factor) > 3e38 || right->size * fabs(factor) > 3e38) continue;
    const double most = allowed * fabs(factor) * 1.01 + 1e-6 * fabs(right->y[i]) + 3e-45 * (1.0 + fabs(factor));
    const double of_bias = l->bias == NULL ? 0.0 : 1e-6 * fabs((double)l->bias[i]);
    EXPECT(error <= most + of_bias, "%s %s output %zu: %.9g, expected %.9g, allowed %g", kernel->family, kernel->isa, i,
           (double)y[i], right->y[i], most);
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  input in = input_of(data, size);
  layer_input l = good_layer(&in);
  const size_t n = (size_t)l.w.n, count = (size_t)l.rows * n;
  float *expected = allocated(count * sizeof *expected), *y = allocated(count * sizeof *y);
  reference *right = allocated((size_t)l.rows * sizeof *right);
  double *dense = dense_matrix(&l.w);
  for (int64_t row = 0; row < l.rows; ++row) {
    compute_reference(&l.w, dense, l.x + row * l.ldx, l.bias, right + row);
  }
  free(dense);
  f2i_kernel_info kernel, scalar = {"", "scalar", 1, 0};
  for (size_t i = 0; i < f2i_kernel_count(); ++i) {
    if (f2i_kernel_at(i, &kernel) != F2I_OK) abort();
    if (!kernel.available) continue;
    if (strcmp(kernel.family, scalar.family) != 0) {
      scalar.family = kernel.family;
      for (int64_t row = 0; row < l.rows; ++row) { /* alone */
        run(&l, &scalar, 1, l.x + row * l.ldx, expected + (size_t)row * n);
        check_row(&l, &scalar, right + row, expected + (size_t)row * n);
      }
    }
    if (l.rows == 0) continue;
    run(&l, &kernel, l.rows, l.x, y); /* together */
    if (is_fixed_point(&kernel)) {
      for (int64_t row = 0; row < l.rows; ++row) check_row(&l, &kernel, right + row, y + (size_t)row * n);
    } else {
      EXPECT(same_floats(y, expected, count), "%s %s differs from scalar", kernel.family, kernel.isa);
    }
  }
  free(expected);
  free(y);
  free(right);
  free_layer(&l);
  return 0;
}
