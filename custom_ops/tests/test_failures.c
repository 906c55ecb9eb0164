/* test_failures.c - a model is registered, loaded and run once, again and again, and each time another call or
 * allocation of it fails: there must be an error status, or the right result where the failure does not matter, and
 * nothing may be left over. The functions of fairy2i.h must not allocate at all.
 *
 * Linked with --wrap for malloc, calloc and realloc, which sends the library's calls here.
 */
#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#include "base/half.h"
#include "fairy2i.h"
#include "fake_ort.h"
#include "harness.h"

void *__real_calloc(size_t count, size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);
void *__wrap_realloc(void *memory, size_t bytes);

static long allocations;

void *__wrap_malloc(size_t bytes) {
  ++allocations;
  return fails() ? NULL : __real_malloc(bytes);
}
void *__wrap_calloc(size_t count, size_t bytes) {
  ++allocations;
  return fails() ? NULL : __real_calloc(count, bytes);
}
void *__wrap_realloc(void *memory, size_t bytes) { /* nobody is known to call it */
  (void)memory;
  (void)bytes;
  ++allocations;
  return NULL;
}

enum { K = 70, N = 66, STAGES = 2, ROWS = 3, BLOCKS = 2, TILES = 2, PACKED = BLOCKS * TILES * STAGES * 512 };

static uint8_t packed[PACKED];
static float scales[STAGES * 4], row_multiplier[N], col_multiplier[K], bias[N], x[ROWS * K], expected[ROWS * N];
static uint16_t half_bias[N], half_x[ROWS * K];
static float y[ROWS * N];

static void fill(float *values, size_t count) {
  for (size_t i = 0; i < count; ++i) values[i] = f2i_half_to_float(f2i_float_to_half((float)random_bits() * 0x1p-32f));
}

/* Register, load, run. Returns 1 if each said that it succeeded. */
static int scenario(int is_half) {
  OrtStatus *status = Fairy2i_RegisterCustomOps(NULL, &fake_base);
  gone(status);
  if (status != NULL) return 0;
  const OrtCustomOp *op = fake.ops[is_half];
  void *kernel = NULL;
  status = op->CreateKernelV2(op, get_api(18), NULL, &kernel);
  gone(status);
  if (status != NULL) return 0;
  status = op->KernelComputeV2(kernel, NULL);
  op->KernelDestroy(kernel);
  gone(status);
  return status == NULL;
}

static int is_right(int is_half) {
  for (int i = 0; i < ROWS * N; ++i) {
    if (is_half ? ((uint16_t *)fake.y.data)[i] != f2i_float_to_half(expected[i]) : y[i] != expected[i]) return 0;
  }
  return 1;
}

static void test_every_failure(int is_half, int as_inputs, int null_memory) {
  char what[96];
  long n = 0;
  const ONNXTensorElementDataType type =
      is_half ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  fake_tensor tensors[6] = {{type, 2, {ROWS, K}, is_half ? (void *)half_x : x},
                            {ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, 1, {PACKED}, packed},
                            {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, 3, {STAGES, 2, 2}, scales},
                            {type, 1, {N}, is_half ? (void *)half_bias : bias},
                            {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, 1, {N}, row_multiplier},
                            {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, 1, {K}, col_multiplier}};
  for (int i = 0; i < 6; ++i) fake.inputs[i] = &tensors[i];
  fake.inputs_count = 6;
  fake.as_inputs = as_inputs;
  fake.null_memory = null_memory;
  fake.y = (fake_tensor){type, 2, {ROWS, N}, y};
  const int64_t attributes[5] = {K, N, STAGES, 1, 0};
  memcpy(fake.attributes, attributes, sizeof attributes);
  const int domains = fake.live; /* the domain of the first registration stays */
  do {
    fake.fail_at = ++n;
    fake.calls = fake.failed = 0;
    memset(y, 0x5A, sizeof y);
    const int ok = scenario(is_half);
    snprintf(what, sizeof what, "call %ld%s%s%s", n, is_half ? ", half" : "", as_inputs ? ", inputs" : "",
             null_memory ? ", NULL" : "");
    check(!ok || is_right(is_half), what, "success, and a wrong result");
    check(fake.live == domains || (domains == 0 && fake.live == 1 && fake.ops_count > 0), what, "something is left");
    if (!fake.failed) check(ok, what, "fails although nothing did");
  } while (fake.failed && n < 1000);
  check(n > 40 && n < 1000, what, "number of calls");
  printf("%ld calls that may fail\n", n - 1);
}

/* The public functions: a whole call without a single allocation. */
static void compute_expected(void) {
  static uint8_t workspace[1 << 20];
  f2i_weights w = {.k = K, .n = N, .stages = STAGES, .layout_version = 1, .packed = packed, .packed_bytes = PACKED};
  w.scales = scales, w.scales_count = STAGES * 4;
  w.row_multiplier = row_multiplier, w.row_multiplier_count = N;
  w.col_multiplier = col_multiplier, w.col_multiplier_count = K;
  f2i_plan plan;
  f2i_message message;
  size_t bytes = 0;
  f2i_status status = f2i_plan_init(&plan, &w, "lut", "scalar", &message);
  if (status == F2I_OK) status = f2i_workspace_size(&plan, ROWS, &bytes, &message);
  if (status == F2I_OK) {
    status = f2i_matmul(&plan, ROWS, x, K, bias, expected, N, workspace, sizeof workspace, NULL, &message);
  }
  check(status == F2I_OK && bytes <= sizeof workspace, "f2i_matmul", message.text);
  check(allocations == 0, "f2i_matmul", "allocates");
}

int main(void) {
  for (size_t i = 0; i < PACKED; ++i) packed[i] = (uint8_t)random_bits();
  fill(scales, STAGES * 4);
  fill(row_multiplier, N);
  fill(col_multiplier, K);
  fill(bias, N);
  fill(x, ROWS * K);
  for (int i = 0; i < N; ++i) half_bias[i] = f2i_float_to_half(bias[i]);
  for (int i = 0; i < ROWS * K; ++i) half_x[i] = f2i_float_to_half(x[i]);
  unsetenv("FAIRY2I_KERNEL");
  unsetenv("FAIRY2I_ISA");
  compute_expected();
  for (int variant = 0; variant < 8; ++variant) test_every_failure(variant & 1, variant >> 1 & 1, variant >> 2 & 1);
  check(allocations > 0, "the operator", "no allocation was seen: is the test linked with --wrap?");
  printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
