/* test_failures.c - a model of one node is registered, loaded and run once, again and again, and each time another call
 * or allocation of it fails: there must be an error status, or the right result where the failure does not matter, and
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

/* Layer i of a node; ROWS rows of x are more than one, one row is as in decoding. */
enum { LAYERS = 3, K = 70, ROWS = 3, MOST_N = 66, BLOCKS = 2, MOST_STAGES = 3 };
static const int64_t features[LAYERS] = {MOST_N, 34, 2}, stages[LAYERS] = {2, MOST_STAGES, 1};

static uint8_t packed[LAYERS][BLOCKS * 2 * MOST_STAGES * 512];
static float scales[LAYERS][MOST_STAGES * 4], row_multiplier[LAYERS][MOST_N], col_multiplier[LAYERS][K];
static float bias[LAYERS][MOST_N], x[ROWS * K], expected[LAYERS][ROWS * MOST_N], y[LAYERS][ROWS * MOST_N];
static uint16_t half_bias[LAYERS][MOST_N], half_x[ROWS * K];

static void fill(float *values, size_t count) {
  for (size_t i = 0; i < count; ++i) values[i] = f2i_half_to_float(f2i_float_to_half((float)random_bits() * 0x1p-32f));
}

static size_t packed_bytes(int layer) {
  return (size_t)(BLOCKS * ((features[layer] / 2 + 31) / 32) * stages[layer] * 512);
}

/* One way to register, load and run. */
typedef struct variant {
  int layers, rows;
  int is_half, as_inputs, null_memory;
} variant;

/* Returns 1 if each said that it succeeded. */
static int scenario(const variant *v) {
  OrtStatus *status = Fairy2i_RegisterCustomOps(NULL, &fake_base);
  gone(status);
  if (status != NULL) return 0;
  const OrtCustomOp *op = fake.ops[2 * (v->layers - 1) + v->is_half];
  void *kernel = NULL;
  status = op->CreateKernelV2(op, get_api(18), NULL, &kernel);
  gone(status);
  if (status != NULL) return 0;
  status = op->KernelComputeV2(kernel, NULL);
  op->KernelDestroy(kernel);
  gone(status);
  return status == NULL;
}

static int is_right(const variant *v) {
  int right = 1;
  for (int l = 0; l < v->layers; ++l) {
    const uint16_t *half_y = fake.y[l].data;
    for (int i = 0; i < v->rows * features[l]; ++i) {
      right &= v->is_half ? half_y[i] == f2i_float_to_half(expected[l][i]) : y[l][i] == expected[l][i];
    }
  }
  return right;
}

static void set_operands(const variant *v) {
  static fake_tensor tensors[1 + 5 * LAYERS];
  const ONNXTensorElementDataType type = v->is_half ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16
                                                    : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
                                  number = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  static const char *const names[LAYERS][2] = {{"N_0", "stages_0"}, {"N_1", "stages_1"}, {"N_2", "stages_2"}};
  fake_attribute *attribute = fake.attributes;
  memset(fake.attributes, 0, sizeof fake.attributes);
  *attribute++ = (fake_attribute){"K", K};
  *attribute++ = (fake_attribute){"layout_version", 1};
  *attribute++ = (fake_attribute){"scale_scope", 0};
  tensors[0] = (fake_tensor){type, 2, {v->rows, K}, v->is_half ? (void *)half_x : x};
  for (int l = 0; l < v->layers; ++l) {
    fake_tensor *t = tensors + 1 + 5 * l;
    const int64_t n = features[l];
    *t++ = (fake_tensor){ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, 1, {(int64_t)packed_bytes(l)}, packed[l]};
    *t++ = (fake_tensor){number, 3, {stages[l], 2, 2}, scales[l]};
    *t++ = (fake_tensor){type, 1, {n}, v->is_half ? (void *)half_bias[l] : bias[l]};
    *t++ = (fake_tensor){number, 1, {n}, row_multiplier[l]};
    *t++ = (fake_tensor){number, 1, {K}, col_multiplier[l]};
    fake.y[l] = (fake_tensor){type, 2, {v->rows, n}, y[l]};
    *attribute++ = (fake_attribute){v->layers == 1 ? "N" : names[l][0], n};
    *attribute++ = (fake_attribute){v->layers == 1 ? "stages" : names[l][1], stages[l]};
  }
  fake.inputs_count = (size_t)(1 + 5 * v->layers);
  for (size_t i = 0; i < fake.inputs_count; ++i) fake.inputs[i] = &tensors[i];
}

static void test_every_failure(const variant *v) {
  char what[96];
  long n = 0;
  set_operands(v);
  fake.as_inputs = v->as_inputs;
  fake.null_memory = v->null_memory;
  const int domains = fake.live; /* the domain of the first registration stays */
  do {
    fake.fail_at = ++n;
    fake.calls = fake.failed = 0;
    memset(y, 0x5A, sizeof y);
    const int ok = scenario(v);
    snprintf(what, sizeof what, "call %ld, %d layers, %d rows%s%s%s", n, v->layers, v->rows, v->is_half ? ", half" : "",
             v->as_inputs ? ", inputs" : "", v->null_memory ? ", NULL" : "");
    check(!ok || is_right(v), what, "success, and a wrong result");
    check(fake.live == domains || (domains == 0 && fake.live == 1 && fake.ops_count > 0), what, "something is left");
    if (!fake.failed) check(ok, what, "fails although nothing did");
  } while (fake.failed && n < 1000);
  check(n > 20 + 30 * v->layers && n < 1000, what, "number of calls");
  printf("%d layers: %ld calls that may fail\n", v->layers, n - 1);
}

/* The public functions: whole calls without a single allocation. */
static void compute_expected(void) {
  static uint8_t workspace[1 << 20];
  static float again[LAYERS][ROWS * MOST_N];
  f2i_plan plans[LAYERS];
  f2i_output outputs[LAYERS];
  f2i_message message;
  size_t bytes = 0;
  for (int l = 0; l < LAYERS; ++l) {
    const int64_t n = features[l];
    f2i_weights w = {.k = K, .n = n, .stages = stages[l], .layout_version = 1, .packed = packed[l]};
    w.packed_bytes = packed_bytes(l);
    w.scales = scales[l], w.scales_count = (size_t)stages[l] * 4;
    w.row_multiplier = row_multiplier[l], w.row_multiplier_count = (size_t)n;
    w.col_multiplier = col_multiplier[l], w.col_multiplier_count = K;
    f2i_status status = f2i_plan_init(&plans[l], &w, "lut", "scalar", &message);
    if (status == F2I_OK) status = f2i_workspace_size(&plans[l], ROWS, &bytes, &message);
    if (status == F2I_OK) {
      status = f2i_matmul(&plans[l], ROWS, x, K, bias[l], expected[l], n, workspace, sizeof workspace, NULL, &message);
    }
    check(status == F2I_OK && bytes <= sizeof workspace, "f2i_matmul", message.text);
    outputs[l] = (f2i_output){&plans[l], bias[l], again[l], n};
  }
  for (int64_t rows = 1; rows <= ROWS; rows += ROWS - 1) {
    f2i_status status = f2i_matmuls_workspace_size(outputs, LAYERS, rows, &bytes, &message);
    if (status == F2I_OK) {
      status = f2i_matmuls(outputs, LAYERS, rows, x, K, workspace, sizeof workspace, NULL, &message);
    }
    check(status == F2I_OK && bytes <= sizeof workspace, "f2i_matmuls", message.text);
    for (int l = 0; l < LAYERS; ++l) {
      check(memcmp(again[l], expected[l], (size_t)(rows * features[l]) * sizeof(float)) == 0, "f2i_matmuls", "differs");
    }
  }
  check(allocations == 0, "f2i_matmul, f2i_matmuls", "allocate");
}

int main(void) {
  fill(x, ROWS * K);
  for (int i = 0; i < ROWS * K; ++i) half_x[i] = f2i_float_to_half(x[i]);
  for (int l = 0; l < LAYERS; ++l) {
    for (size_t i = 0; i < sizeof packed[l]; ++i) packed[l][i] = (uint8_t)random_bits();
    fill(scales[l], MOST_STAGES * 4);
    fill(row_multiplier[l], MOST_N);
    fill(col_multiplier[l], K);
    fill(bias[l], MOST_N);
    for (int i = 0; i < MOST_N; ++i) half_bias[l][i] = f2i_float_to_half(bias[l][i]);
  }
  unsetenv("FAIRY2I_KERNEL");
  unsetenv("FAIRY2I_ISA");
  compute_expected();
  for (int layers = 1; layers <= LAYERS; ++layers) {
    for (int i = 0; i < 16; ++i) {
      const variant v = {layers, i & 8 ? 1 : ROWS, i & 1, i >> 1 & 1, i >> 2 & 1};
      test_every_failure(&v);
    }
  }
  check(allocations > 0, "the operator", "no allocation was seen: is the test linked with --wrap?");
  printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
