/* fake_ort.h - as much of ONNX Runtime as the operator asks for, in which any call can be made to fail.
 *
 * Every call that may fail and every allocation is counted; the one numbered fake.fail_at fails. What is handed out is
 * counted, too, until it is released. Not for threads.
 */
#ifndef F2I_TESTS_FAKE_ORT_H
#define F2I_TESTS_FAKE_ORT_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "onnxruntime_c_api.h"

typedef struct fake_tensor { /* an OrtValue, and an OrtTensorTypeAndShapeInfo */
  ONNXTensorElementDataType type;
  size_t rank;
  int64_t dims[4];
  void *data;
} fake_tensor;

typedef struct fake_attribute {
  const char *name;
  int64_t value;
} fake_attribute;

static struct {
  long calls, fail_at; /* 0: nothing fails */
  int failed, live;
  int null_memory;           /* a failing allocator gives NULL instead of a status */
  int as_inputs;             /* operands are not constant */
  const OrtCustomOp *ops[6]; /* Fairy2iMatMul, 2 and 3, each for float32 and float16 */
  size_t ops_count, inputs_count;
  fake_tensor *inputs[16], y[3];
  fake_attribute attributes[12]; /* to the first without a name */
} fake;

static int object; /* stands for everything that is handed out without contents */

static int fails(void) {
  ++fake.calls;
  if (fake.calls != fake.fail_at) return 0;
  fake.failed = 1;
  return 1;
}

static OrtStatus *made(void) {
  ++fake.live;
  return (OrtStatus *)&object;
}

#define FAIL_OR(statement)      \
  do {                          \
    if (fails()) return made(); \
    statement;                  \
    return NULL;                \
  } while (0)

static OrtStatus *ORT_API_CALL create_status(OrtErrorCode code, const char *text) {
  (void)code;
  (void)text;
  return made();
}
static void gone(void *value) { fake.live -= value != NULL; }
static void ORT_API_CALL release_status(OrtStatus *v) { gone(v); }
static void ORT_API_CALL release_memory_info(OrtMemoryInfo *v) { gone(v); }
static void ORT_API_CALL release_allocator(OrtAllocator *v) { gone(v); }
static void ORT_API_CALL release_domain(OrtCustomOpDomain *v) { gone(v); }
static void ORT_API_CALL release_info(OrtTensorTypeAndShapeInfo *v) { gone(v); }
static void ORT_API_CALL release_entries(OrtKeyValuePairs *v) { gone(v); }

static OrtStatus *ORT_API_CALL create_domain(const char *name, OrtCustomOpDomain **out) {
  (void)name;
  FAIL_OR(*out = (OrtCustomOpDomain *)made(); fake.ops_count = 0);
}
static OrtStatus *ORT_API_CALL domain_add(OrtCustomOpDomain *domain, const OrtCustomOp *op) {
  (void)domain;
  FAIL_OR(fake.ops[fake.ops_count++ % 6] = op);
}
static OrtStatus *ORT_API_CALL add_domain(OrtSessionOptions *options, OrtCustomOpDomain *domain) {
  (void)options;
  (void)domain;
  FAIL_OR((void)0);
}
static OrtStatus *ORT_API_CALL create_memory_info(OrtAllocatorType type, OrtMemType memory, OrtMemoryInfo **out) {
  (void)type;
  (void)memory;
  FAIL_OR(*out = (OrtMemoryInfo *)made());
}
static OrtStatus *ORT_API_CALL type_and_shape(const OrtValue *value, OrtTensorTypeAndShapeInfo **out) {
  FAIL_OR(*out = (OrtTensorTypeAndShapeInfo *)value; ++fake.live);
}
static OrtStatus *ORT_API_CALL element_type(const OrtTensorTypeAndShapeInfo *info, ONNXTensorElementDataType *out) {
  FAIL_OR(*out = ((const fake_tensor *)info)->type);
}
static OrtStatus *ORT_API_CALL element_count(const OrtTensorTypeAndShapeInfo *info, size_t *out) {
  const fake_tensor *t = (const fake_tensor *)info;
  if (fails()) return made();
  *out = 1;
  for (size_t i = 0; i < t->rank; ++i) *out *= (size_t)t->dims[i];
  return NULL;
}
static OrtStatus *ORT_API_CALL dims_count(const OrtTensorTypeAndShapeInfo *info, size_t *out) {
  FAIL_OR(*out = ((const fake_tensor *)info)->rank);
}
static OrtStatus *ORT_API_CALL dims_of(const OrtTensorTypeAndShapeInfo *info, int64_t *out, size_t count) {
  FAIL_OR(memcpy(out, ((const fake_tensor *)info)->dims, count * sizeof *out));
}
static OrtStatus *ORT_API_CALL mutable_data(OrtValue *value, void **out) {
  FAIL_OR(*out = ((fake_tensor *)value)->data);
}

static OrtStatus *ORT_API_CALL config_entries(const OrtKernelInfo *info, OrtKeyValuePairs **out) {
  (void)info;
  FAIL_OR(*out = (OrtKeyValuePairs *)made());
}
static const char *ORT_API_CALL key_value(const OrtKeyValuePairs *entries, const char *key) {
  (void)entries;
  return strcmp(key, "fairy2i.isa") == 0 ? "scalar" : NULL;
}
static OrtStatus *ORT_API_CALL attribute(const OrtKernelInfo *info, const char *name, int64_t *out) {
  (void)info;
  for (const fake_attribute *a = fake.attributes; a->name != NULL; ++a) {
    if (strcmp(name, a->name) == 0) FAIL_OR(*out = a->value);
  }
  return made();
}
static OrtStatus *ORT_API_CALL info_input_count(const OrtKernelInfo *info, size_t *out) {
  (void)info;
  FAIL_OR(*out = fake.inputs_count);
}
static OrtStatus *ORT_API_CALL constant_input(const OrtKernelInfo *info, size_t index, int *is, const OrtValue **out) {
  (void)info;
  if (fails()) return made();
  *is = !fake.as_inputs && fake.inputs[index] != NULL;
  *out = *is ? (const OrtValue *)fake.inputs[index] : NULL;
  return NULL;
}
static OrtStatus *ORT_API_CALL input_name(const OrtKernelInfo *info, size_t index, char *out, size_t *size) {
  (void)info;
  (void)out;
  FAIL_OR(*size = fake.inputs[index] == NULL ? 1 : 2);
}
static OrtStatus *ORT_API_CALL node_name(const OrtKernelInfo *info, char *out, size_t *size) {
  (void)info;
  FAIL_OR(if (out != NULL) memcpy(out, "node", 5); *size = 5); /* without a place for it: its size alone */
}
static OrtStatus *ORT_API_CALL context_input_count(const OrtKernelContext *context, size_t *out) {
  (void)context;
  FAIL_OR(*out = fake.inputs_count);
}
static OrtStatus *ORT_API_CALL context_input(const OrtKernelContext *context, size_t index, const OrtValue **out) {
  (void)context;
  FAIL_OR(*out = (const OrtValue *)fake.inputs[index]);
}
static OrtStatus *ORT_API_CALL context_output(OrtKernelContext *context, size_t index, const int64_t *dims, size_t rank,
                                              OrtValue **out) {
  (void)context;
  (void)dims;
  (void)rank;
  FAIL_OR(*out = (OrtValue *)&fake.y[index]);
}
static OrtStatus *ORT_API_CALL context_allocator(const OrtKernelContext *context, const OrtMemoryInfo *memory,
                                                 OrtAllocator **out) {
  (void)context;
  (void)memory;
  FAIL_OR(*out = (OrtAllocator *)made());
}
void *__real_malloc(size_t bytes);
static OrtStatus *ORT_API_CALL allocator_alloc(OrtAllocator *allocator, size_t bytes, void **out) {
  (void)allocator;
  *out = NULL;
  if (fails()) return fake.null_memory ? NULL : made();
  *out = __real_malloc(bytes);
  ++fake.live;
  return NULL;
}
static OrtStatus *ORT_API_CALL allocator_free(OrtAllocator *allocator, void *memory) {
  (void)allocator;
  free(memory);
  --fake.live;
  FAIL_OR((void)0);
}
static OrtStatus *ORT_API_CALL parallel_for_all(const OrtKernelContext *context, void (*task)(void *, size_t),
                                                size_t total, size_t batch, void *arg) {
  (void)context;
  (void)batch;
  if (fails()) return made();
  for (size_t i = 0; i < total; ++i) task(arg, i);
  return NULL;
}

static const OrtApi *ORT_API_CALL get_api(uint32_t version) {
  static OrtApi api;
  (void)version;
  api.CreateStatus = create_status;
  api.ReleaseStatus = release_status;
  api.ReleaseMemoryInfo = release_memory_info;
  api.ReleaseAllocator = release_allocator;
  api.ReleaseCustomOpDomain = release_domain;
  api.ReleaseTensorTypeAndShapeInfo = release_info;
  api.ReleaseKeyValuePairs = release_entries;
  api.CreateCustomOpDomain = create_domain;
  api.CustomOpDomain_Add = domain_add;
  api.AddCustomOpDomain = add_domain;
  api.CreateCpuMemoryInfo = create_memory_info;
  api.GetTensorTypeAndShape = type_and_shape;
  api.GetTensorElementType = element_type;
  api.GetTensorShapeElementCount = element_count;
  api.GetDimensionsCount = dims_count;
  api.GetDimensions = dims_of;
  api.GetTensorMutableData = mutable_data;
  api.KernelInfo_GetConfigEntries = config_entries;
  api.GetKeyValue = key_value;
  api.KernelInfoGetAttribute_int64 = attribute;
  api.KernelInfo_GetInputCount = info_input_count;
  api.KernelInfoGetConstantInput_tensor = constant_input;
  api.KernelInfo_GetInputName = input_name;
  api.KernelInfo_GetNodeName = node_name;
  api.KernelContext_GetInputCount = context_input_count;
  api.KernelContext_GetInput = context_input;
  api.KernelContext_GetOutput = context_output;
  api.KernelContext_GetAllocator = context_allocator;
  api.AllocatorAlloc = allocator_alloc;
  api.AllocatorFree = allocator_free;
  api.KernelContext_ParallelFor = parallel_for_all;
  return &api;
}
static const char *ORT_API_CALL get_version(void) { return "1.24.0"; }
static const OrtApiBase fake_base = {get_api, get_version};

#endif
