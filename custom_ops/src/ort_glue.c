/* ort_glue.c - Fairy2iMatMul as an ONNX Runtime custom operator: the only file that knows ONNX Runtime.
 *
 * Written for API version 18 (ONNX Runtime 1.18) whatever the version of the header, so that the library loads in every
 * later release (docs/runtime.md says which were tried). Weights that are initializers stay where ONNX Runtime mapped
 * them: only their addresses are kept.
 */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "base/message.h"
#include "base/sizes.h"
#include "fairy2i.h"
#include "onnxruntime_c_api.h"

#define MIN_API 18
#define API_WITH_CONFIG_ENTRIES 24
#define SAFE_SHAPE_INFERENCE 24 /* see ops_without_shapes */

enum { IN_X, IN_PACKED, IN_SCALES, IN_BIAS, IN_ROW_MULTIPLIER, IN_COL_MULTIPLIER, IN_COUNT };

static const char *const input_names[IN_COUNT] = {"X", "packed", "scales", "bias", "row_multiplier", "col_multiplier"};

/* One node. Immutable after creation: Run may be called from several threads at once. */
typedef struct node {
  const OrtApi *api;
  OrtMemoryInfo *memory; /* CPU arena, for scratch */
  char name[96];
  char family[16], isa[16]; /* forced kernel, or "" */
  char tuning[128];         /* settings for this processor, or "" */
  int is_half;              /* X, bias and Y are float16 */
  f2i_weights weights;      /* attributes; addresses of the operands that are constant */
  int constant[IN_COUNT];
  f2i_plan plan; /* made once if all operands but X and bias are constant; else plan.kernel is NULL */
} node;

/* One runtime per process: its entry point, and our domain, made at the first registration and shared by all sessions
 * (session options keep its address, so it is never released). */
static _Atomic(const OrtApiBase *) api_base;
static _Atomic(OrtCustomOpDomain *) shared_domain;

#define RETURN_IF_ERROR(call)            \
  do {                                   \
    OrtStatus *status_ = (call);         \
    if (status_ != NULL) return status_; \
  } while (0)

static OrtStatus *fail(const OrtApi *api, OrtErrorCode code, const char *name, const char *what) {
  f2i_message text;
  (void)f2i_fail(&text, F2I_OK, "Fairy2iMatMul node '%.80s': %.220s", name, what);
  return api->CreateStatus(code, text.text);
}

/* --- operands --- */

/* Address, element count and type of a tensor; a NULL value (absent optional input) leaves *data NULL. An optional
 * input that is there but empty is refused: its address may be NULL too, and nobody means to leave it out that way. */
static OrtStatus *read_tensor(const node *n, const OrtValue *value, int input, const void **data, size_t *count) {
  *data = NULL;
  *count = 0;
  if (value == NULL) return NULL;
  OrtTensorTypeAndShapeInfo *info = NULL;
  RETURN_IF_ERROR(n->api->GetTensorTypeAndShape(value, &info));
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  OrtStatus *status = n->api->GetTensorElementType(info, &type);
  if (status == NULL) status = n->api->GetTensorShapeElementCount(info, count);
  n->api->ReleaseTensorTypeAndShapeInfo(info);
  if (status != NULL) return status;
  const ONNXTensorElementDataType float_type = n->is_half && (input == IN_X || input == IN_BIAS)
                                                   ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16
                                                   : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  if (type != (input == IN_PACKED ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 : float_type)) {
    f2i_message text;
    (void)f2i_fail(&text, F2I_OK, "%s: unexpected element type %d", input_names[input], (int)type);
    return fail(n->api, ORT_INVALID_ARGUMENT, n->name, text.text);
  }
  if (input >= IN_BIAS && *count == 0) {
    f2i_message text;
    (void)f2i_fail(&text, F2I_OK, "%s: expected %lld values, got an empty tensor; to have none, give an empty name",
                   input_names[input], (long long)(input == IN_COL_MULTIPLIER ? n->weights.k : n->weights.n));
    return fail(n->api, ORT_INVALID_ARGUMENT, n->name, text.text);
  }
  void *mutable_data = NULL;
  RETURN_IF_ERROR(n->api->GetTensorMutableData((OrtValue *)value, &mutable_data));
  *data = mutable_data;
  return NULL;
}

/* Puts an operand into the weights. */
static OrtStatus *place_operand(const node *n, f2i_weights *w, int input, const OrtValue *value) {
  const void *data = NULL;
  size_t count = 0;
  RETURN_IF_ERROR(read_tensor(n, value, input, &data, &count));
  switch (input) {
    case IN_PACKED:
      w->packed = data;
      w->packed_bytes = count;
      break;
    case IN_SCALES:
      w->scales = data;
      w->scales_count = count;
      break;
    case IN_ROW_MULTIPLIER:
      w->row_multiplier = data;
      w->row_multiplier_count = count;
      break;
    default:
      w->col_multiplier = data;
      w->col_multiplier_count = count;
      break;
  }
  return NULL;
}

static OrtStatus *check_bias(const node *n, const void *bias, size_t count) {
  if (bias == NULL || count == (size_t)n->weights.n) return NULL;
  f2i_message text;
  (void)f2i_fail(&text, F2I_OK, "bias: expected %lld values, got %zu", (long long)n->weights.n, count);
  return fail(n->api, ORT_INVALID_ARGUMENT, n->name, text.text);
}

/* --- creation --- */

static void copy_text(const char *value, char *out, size_t size) {
  if (value == NULL) return;
  const size_t length = strlen(value) < size - 1 ? strlen(value) : size - 1;
  memcpy(out, value, length);
  out[length] = '\0';
}

/* What the session does not force the environment may; read once, so that all calls of a session run one kernel. */
static void read_environment(const char *variable, char *out, size_t size) {
  if (out[0] == '\0') copy_text(getenv(variable), out, size);
}

/* Whether the runtime is release 1.minor or later. */
static int is_release(const OrtApiBase *base, long minor) {
  const char *version = base->GetVersionString();
  return strncmp(version, "1.", 2) != 0 || strtol(version + 2, NULL, 10) >= minor;
}

/* Session config entries fairy2i.kernel, .isa and .tuning, where the runtime lets a kernel read them. */
static OrtStatus *read_config(node *n, const OrtKernelInfo *info) {
  const OrtApiBase *base = atomic_load(&api_base);
  if (!is_release(base, API_WITH_CONFIG_ENTRIES)) return NULL;
  const OrtApi *api = base->GetApi(API_WITH_CONFIG_ENTRIES);
  if (api == NULL) return NULL;
  OrtKeyValuePairs *entries = NULL;
  RETURN_IF_ERROR(api->KernelInfo_GetConfigEntries(info, &entries));
  copy_text(api->GetKeyValue(entries, "fairy2i.kernel"), n->family, sizeof n->family);
  copy_text(api->GetKeyValue(entries, "fairy2i.isa"), n->isa, sizeof n->isa);
  copy_text(api->GetKeyValue(entries, "fairy2i.tuning"), n->tuning, sizeof n->tuning);
  api->ReleaseKeyValuePairs(entries);
  return NULL;
}

static OrtStatus *read_attributes(node *n, const OrtKernelInfo *info) {
  const struct {
    const char *name;
    int64_t *value;
  } attributes[] = {{"K", &n->weights.k},
                    {"N", &n->weights.n},
                    {"stages", &n->weights.stages},
                    {"layout_version", &n->weights.layout_version},
                    {"scale_scope", &n->weights.scale_scope}};
  for (size_t i = 0; i < sizeof attributes / sizeof attributes[0]; ++i) {
    OrtStatus *status = n->api->KernelInfoGetAttribute_int64(info, attributes[i].name, attributes[i].value);
    if (status != NULL) {
      f2i_message text;
      n->api->ReleaseStatus(status);
      (void)f2i_fail(&text, F2I_OK, "attribute %s: expected an integer, found none", attributes[i].name);
      return fail(n->api, ORT_INVALID_GRAPH, n->name, text.text);
    }
  }
  /* came after layout version 1, whose nodes need not have it; of others it is not guessed */
  OrtStatus *status = n->api->KernelInfoGetAttribute_int64(info, "activation_bits", &n->weights.activation_bits);
  if (status == NULL) return NULL;
  n->api->ReleaseStatus(status);
  n->weights.activation_bits = 0;
  if (n->weights.layout_version == F2I_LAYOUT_VERSION) return NULL;
  return fail(n->api, ORT_INVALID_GRAPH, n->name,
              "attribute activation_bits: expected an integer with layout_version 2, found none");
}

/* Keeps the addresses of constant operands; *all_constant: every one that is given, X and bias apart, is. */
static OrtStatus *read_constants(node *n, const OrtKernelInfo *info, int *all_constant) {
  size_t inputs = 0;
  *all_constant = 1;
  RETURN_IF_ERROR(n->api->KernelInfo_GetInputCount(info, &inputs));
  for (int input = IN_PACKED; input < IN_COUNT && (size_t)input < inputs; ++input) {
    const OrtValue *value = NULL;
    size_t name_size = 0;   /* with the final NUL: 1 for an optional input that is left out */
    if (input == IN_BIAS) { /* read in every call; that it is wrong is said here, if it can be */
      int is_constant = 0;
      const void *bias = NULL;
      size_t count = 0;
      RETURN_IF_ERROR(n->api->KernelInfoGetConstantInput_tensor(info, (size_t)input, &is_constant, &value));
      if (is_constant) RETURN_IF_ERROR(read_tensor(n, value, input, &bias, &count));
      RETURN_IF_ERROR(check_bias(n, bias, count));
      continue;
    }
    RETURN_IF_ERROR(n->api->KernelInfoGetConstantInput_tensor(info, (size_t)input, &n->constant[input], &value));
    if (n->constant[input]) {
      RETURN_IF_ERROR(place_operand(n, &n->weights, input, value));
    } else {
      RETURN_IF_ERROR(n->api->KernelInfo_GetInputName(info, (size_t)input, NULL, &name_size));
      if (name_size > 1) *all_constant = 0;
    }
  }
  return NULL;
}

/* With all operands constant the layer is checked and its kernel chosen here; else only what is known is checked, and
 * the rest at every call. */
static OrtStatus *check_node(node *n, int all_constant) {
  f2i_message message;
  f2i_status status;
  if (all_constant) {
    status = f2i_plan_init_tuned(&n->plan, &n->weights, n->family, n->isa, n->tuning, &message);
  } else {
    size_t bytes = 0;
    status =
        f2i_layout_size(n->weights.layout_version, n->weights.k, n->weights.n, n->weights.stages, &bytes, &message);
    if (status == F2I_OK) {
      status = f2i_check_activation_bits(n->weights.layout_version, n->weights.activation_bits, &message);
    }
  }
  return status == F2I_OK ? NULL : fail(n->api, ORT_INVALID_GRAPH, n->name, message.text);
}

static void ORT_API_CALL destroy(void *kernel) {
  node *n = kernel;
  if (n == NULL) return;
  if (n->memory != NULL) n->api->ReleaseMemoryInfo(n->memory);
  free(n);
}

/* The node's name, of a long one the beginning. */
static OrtStatus *read_name(node *n, const OrtKernelInfo *info) {
  size_t size = 0;
  char *name = NULL;
  RETURN_IF_ERROR(n->api->KernelInfo_GetNodeName(info, NULL, &size));
  name = size == 0 ? NULL : malloc(size);
  if (name == NULL) return NULL; /* errors then come without it */
  OrtStatus *status = n->api->KernelInfo_GetNodeName(info, name, &size);
  if (status == NULL) copy_text(name, n->name, sizeof n->name);
  free(name);
  return status;
}

static OrtStatus *fill_node(node *n, const OrtKernelInfo *info) {
  RETURN_IF_ERROR(read_name(n, info));
  RETURN_IF_ERROR(n->api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &n->memory));
  RETURN_IF_ERROR(read_attributes(n, info));
  RETURN_IF_ERROR(read_config(n, info));
  read_environment("FAIRY2I_KERNEL", n->family, sizeof n->family);
  read_environment("FAIRY2I_ISA", n->isa, sizeof n->isa);
  int all_constant = 0;
  RETURN_IF_ERROR(read_constants(n, info, &all_constant));
  return check_node(n, all_constant);
}

static OrtStatus *create(const OrtApi *api, const OrtKernelInfo *info, int is_half, void **kernel) {
  *kernel = NULL;
  node *n = calloc(1, sizeof *n);
  if (n == NULL) return api->CreateStatus(ORT_FAIL, "Fairy2iMatMul: out of memory");
  n->api = api;
  n->is_half = is_half;
  OrtStatus *status = fill_node(n, info);
  if (status != NULL) destroy(n);
  else *kernel = n;
  return status;
}

static OrtStatus *ORT_API_CALL create_float(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info,
                                            void **kernel) {
  (void)op;
  return create(api, info, 0, kernel);
}

static OrtStatus *ORT_API_CALL create_half(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info,
                                           void **kernel) {
  (void)op;
  return create(api, info, 1, kernel);
}

/* --- execution --- */

typedef struct parallel_context {
  const OrtApi *api;
  const OrtKernelContext *context;
  OrtStatus *status;
} parallel_context;

static void parallel_for(void *context, f2i_task task, size_t count, void *arg) {
  parallel_context *p = context;
  OrtStatus *status = p->api->KernelContext_ParallelFor(p->context, task, count, 0, arg);
  if (status == NULL) return;
  if (p->status == NULL) p->status = status;
  else p->api->ReleaseStatus(status);
}

/* Everything one call works on. */
typedef struct call {
  const void *x, *bias;
  void *y;
  int64_t rows;
  f2i_plan plan;
} call;

static OrtStatus *make_output(const node *n, OrtKernelContext *context, const OrtValue *x, call *c) {
  OrtTensorTypeAndShapeInfo *info = NULL;
  RETURN_IF_ERROR(n->api->GetTensorTypeAndShape(x, &info));
  size_t rank = 0;
  int64_t dims[16];
  OrtStatus *status = n->api->GetDimensionsCount(info, &rank);
  if (status == NULL && rank >= 1 && rank <= 16) status = n->api->GetDimensions(info, dims, rank);
  n->api->ReleaseTensorTypeAndShapeInfo(info);
  if (status != NULL) return status;
  if (rank < 1 || rank > 16 || dims[rank - 1] != n->weights.k) {
    f2i_message text;
    (void)f2i_fail(&text, F2I_OK, "X: expected shape [..., K=%lld], got rank %zu with last dimension %lld",
                   (long long)n->weights.k, rank, rank >= 1 && rank <= 16 ? (long long)dims[rank - 1] : 0LL);
    return fail(n->api, ORT_INVALID_ARGUMENT, n->name, text.text);
  }
  c->rows = 1;
  for (size_t i = 0; i + 1 < rank; ++i) c->rows *= dims[i]; /* ONNX Runtime allocated rows * K: no overflow */
  dims[rank - 1] = n->weights.n;
  OrtValue *y = NULL;
  RETURN_IF_ERROR(n->api->KernelContext_GetOutput(context, 0, dims, rank, &y));
  return n->api->GetTensorMutableData(y, &c->y);
}

static OrtStatus *read_inputs(const node *n, OrtKernelContext *context, call *c) {
  f2i_weights w = n->weights;
  const OrtValue *x = NULL;
  size_t inputs = 0, x_count = 0, bias_count = 0;
  RETURN_IF_ERROR(n->api->KernelContext_GetInputCount(context, &inputs));
  RETURN_IF_ERROR(n->api->KernelContext_GetInput(context, IN_X, &x));
  RETURN_IF_ERROR(read_tensor(n, x, IN_X, &c->x, &x_count));
  for (int input = IN_PACKED; input < IN_COUNT && (size_t)input < inputs; ++input) {
    if (n->constant[input]) continue;
    const OrtValue *value = NULL;
    RETURN_IF_ERROR(n->api->KernelContext_GetInput(context, (size_t)input, &value));
    if (input == IN_BIAS) RETURN_IF_ERROR(read_tensor(n, value, input, &c->bias, &bias_count));
    else RETURN_IF_ERROR(place_operand(n, &w, input, value));
  }
  f2i_message message;
  RETURN_IF_ERROR(check_bias(n, c->bias, bias_count));
  c->plan = n->plan;
  if (c->plan.kernel == NULL && f2i_plan_init_tuned(&c->plan, &w, n->family, n->isa, n->tuning, &message) != F2I_OK) {
    return fail(n->api, ORT_INVALID_ARGUMENT, n->name, message.text);
  }
  return make_output(n, context, x, c);
}

static OrtStatus *run_call(const node *n, OrtKernelContext *context, call *c, float *scratch, size_t floats,
                           size_t workspace_bytes) {
  const float *x = c->x, *bias = c->bias;
  float *y = c->y;
  const size_t x_count = (size_t)(c->rows * n->weights.k), y_count = (size_t)(c->rows * n->weights.n);
  if (n->is_half) {
    const uint16_t *half_x = c->x, *half_bias = c->bias;
    y = scratch + x_count;
    for (size_t i = 0; i < x_count; ++i) scratch[i] = f2i_half_to_float(half_x[i]);
    for (size_t i = 0; half_bias != NULL && i < (size_t)n->weights.n; ++i)
      y[y_count + i] = f2i_half_to_float(half_bias[i]);
    x = scratch;
    bias = half_bias == NULL ? NULL : y + y_count;
  }
  parallel_context pool = {n->api, context, NULL};
  const f2i_parallel parallel = {parallel_for, &pool};
  f2i_message message;
  const f2i_status status = f2i_matmul(&c->plan, c->rows, x, n->weights.k, bias, y, n->weights.n, scratch + floats,
                                       workspace_bytes, &parallel, &message);
  if (pool.status != NULL) return pool.status;
  if (status != F2I_OK) return fail(n->api, ORT_FAIL, n->name, message.text);
  for (size_t i = 0; n->is_half && i < y_count; ++i) ((uint16_t *)c->y)[i] = f2i_float_to_half(y[i]);
  return NULL;
}

static OrtStatus *ORT_API_CALL compute(void *kernel, OrtKernelContext *context) {
  const node *n = kernel;
  call c = {0};
  RETURN_IF_ERROR(read_inputs(n, context, &c));
  size_t bytes = 0, floats = 0; /* of the workspace; before it, X, bias and Y widened, if they are float16 */
  f2i_message message;
  f2i_status needed = f2i_workspace_size(&c.plan, c.rows, &bytes, &message);
  size_t all = bytes;
  if (needed == F2I_OK && n->is_half) {
    needed = f2i_widened_within(F2I_SIZE_LIMIT, c.rows, &c.plan.weights, bytes, &floats, &all, &message);
  }
  if (needed != F2I_OK) return fail(n->api, ORT_FAIL, n->name, message.text);
  OrtAllocator *allocator = NULL;
  RETURN_IF_ERROR(n->api->KernelContext_GetAllocator(context, n->memory, &allocator));
  void *scratch = NULL;
  OrtStatus *status = n->api->AllocatorAlloc(allocator, all, &scratch);
  if (status == NULL) {
    status = scratch == NULL ? fail(n->api, ORT_FAIL, n->name, "out of memory")
                             : run_call(n, context, &c, scratch, floats, bytes);
    if (scratch != NULL) {
      OrtStatus *freed = n->api->AllocatorFree(allocator, scratch);
      if (freed != NULL) n->api->ReleaseStatus(freed);
    }
  }
  n->api->ReleaseAllocator(allocator);
  return status;
}

/* --- description --- */

static const char *ORT_API_CALL op_name(const OrtCustomOp *op) {
  (void)op;
  return "Fairy2iMatMul";
}

static const char *ORT_API_CALL provider(const OrtCustomOp *op) {
  (void)op;
  return NULL; /* CPU */
}

static ONNXTensorElementDataType input_type(size_t index, ONNXTensorElementDataType activation) {
  if (index == IN_PACKED) return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
  return index == IN_X || index == IN_BIAS ? activation : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}

static ONNXTensorElementDataType ORT_API_CALL input_type_float(const OrtCustomOp *op, size_t index) {
  (void)op;
  return input_type(index, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
}

static ONNXTensorElementDataType ORT_API_CALL input_type_half(const OrtCustomOp *op, size_t index) {
  (void)op;
  return input_type(index, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16);
}

static ONNXTensorElementDataType ORT_API_CALL output_type_float(const OrtCustomOp *op, size_t index) {
  (void)op;
  (void)index;
  return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}

static ONNXTensorElementDataType ORT_API_CALL output_type_half(const OrtCustomOp *op, size_t index) {
  (void)op;
  (void)index;
  return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
}

static size_t ORT_API_CALL input_count(const OrtCustomOp *op) {
  (void)op;
  return IN_COUNT;
}

static size_t ORT_API_CALL output_count(const OrtCustomOp *op) {
  (void)op;
  return 1;
}

static OrtCustomOpInputOutputCharacteristic ORT_API_CALL input_kind(const OrtCustomOp *op, size_t index) {
  (void)op;
  return index >= IN_BIAS ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
}

static OrtCustomOpInputOutputCharacteristic ORT_API_CALL output_kind(const OrtCustomOp *op, size_t index) {
  (void)op;
  (void)index;
  return INPUT_OUTPUT_REQUIRED;
}

static OrtMemType ORT_API_CALL memory_type(const OrtCustomOp *op, size_t index) {
  (void)op;
  (void)index;
  return OrtMemTypeDefault;
}

/* ONNX Runtime calls the variadic questions for every operator. */
static int ORT_API_CALL one(const OrtCustomOp *op) {
  (void)op;
  return 1;
}

static OrtStatus *infer_dims(const OrtApi *api, OrtShapeInferContext *context, OrtTensorTypeAndShapeInfo *x,
                             OrtTensorTypeAndShapeInfo *y) {
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  size_t rank = 0, read = 0;
  int64_t dims[16], outputs = 0;
  const char *symbols[16] = {0};
  const OrtOpAttr *attribute = NULL;
  RETURN_IF_ERROR(api->GetTensorElementType(x, &type));
  RETURN_IF_ERROR(api->GetDimensionsCount(x, &rank));
  if (rank < 1 || rank > 16) return NULL; /* unknown here; checked when run */
  RETURN_IF_ERROR(api->GetDimensions(x, dims, rank));
  RETURN_IF_ERROR(api->GetSymbolicDimensions(x, symbols, rank));
  RETURN_IF_ERROR(api->ShapeInferContext_GetAttribute(context, "N", &attribute));
  RETURN_IF_ERROR(api->ReadOpAttr(attribute, ORT_OP_ATTR_INT, &outputs, sizeof outputs, &read));
  dims[rank - 1] = outputs;
  symbols[rank - 1] = "";
  RETURN_IF_ERROR(api->SetDimensions(y, dims, rank));
  RETURN_IF_ERROR(api->SetSymbolicDimensions(y, symbols, rank));
  RETURN_IF_ERROR(api->SetTensorElementType(y, type)); /* one function serves both overloads */
  return api->ShapeInferContext_SetOutputTypeShape(context, 0, y);
}

static OrtStatus *ORT_API_CALL infer_shape(const OrtCustomOp *op, OrtShapeInferContext *context) {
  (void)op;
  const OrtApi *api = atomic_load(&api_base)->GetApi(MIN_API);
  OrtTensorTypeAndShapeInfo *x = NULL, *y = NULL;
  RETURN_IF_ERROR(api->ShapeInferContext_GetInputTypeShape(context, IN_X, &x)); /* owned by the context */
  RETURN_IF_ERROR(api->CreateTensorTypeAndShapeInfo(&y));
  OrtStatus *status = infer_dims(api, context, x, y);
  api->ReleaseTensorTypeAndShapeInfo(y);
  return status;
}

#define OP(suffix, infer_shape_fn)            \
  {                                           \
      .version = MIN_API,                     \
      .GetName = op_name,                     \
      .GetExecutionProviderType = provider,   \
      .GetInputType = input_type_##suffix,    \
      .GetInputTypeCount = input_count,       \
      .GetOutputType = output_type_##suffix,  \
      .GetOutputTypeCount = output_count,     \
      .KernelDestroy = destroy,               \
      .GetInputCharacteristic = input_kind,   \
      .GetOutputCharacteristic = output_kind, \
      .GetInputMemoryType = memory_type,      \
      .GetVariadicInputMinArity = one,        \
      .GetVariadicInputHomogeneity = one,     \
      .GetVariadicOutputMinArity = one,       \
      .GetVariadicOutputHomogeneity = one,    \
      .CreateKernelV2 = create_##suffix,      \
      .KernelComputeV2 = compute,             \
      .InferOutputShapeFn = infer_shape_fn,   \
      .GetStartVersion = one,                 \
      .GetEndVersion = one,                   \
  }

/* Before ONNX Runtime 1.24, having a shape function ends the process as soon as a node has an absent input with an
 * empty name: the context that it would be given is made from the types of all inputs, and the absent one has none
 * (microsoft/onnxruntime pull request 26199). There the shape of Y stays unknown until the node runs. */
static const OrtCustomOp ops[2] = {OP(float, infer_shape), OP(half, infer_shape)};
static const OrtCustomOp ops_without_shapes[2] = {OP(float, NULL), OP(half, NULL)};

static OrtStatus *register_ops(OrtSessionOptions *options, const OrtApiBase *base) {
  const OrtApi *api = base->GetApi(MIN_API);
  if (api == NULL) {
    f2i_message text;
    (void)f2i_fail(&text, F2I_OK, "Fairy2iMatMul needs ONNX Runtime 1.%d or later, this is %.32s", MIN_API,
                   base->GetVersionString());
    return base->GetApi(1)->CreateStatus(ORT_FAIL, text.text);
  }
  atomic_store(&api_base, base);
  OrtCustomOpDomain *domain = atomic_load(&shared_domain);
  if (domain == NULL) {
    const OrtCustomOp *own = is_release(base, SAFE_SHAPE_INFERENCE) ? ops : ops_without_shapes;
    OrtCustomOpDomain *none = NULL;
    RETURN_IF_ERROR(api->CreateCustomOpDomain("ai.fairy2i", &domain));
    OrtStatus *status = NULL;
    for (size_t i = 0; status == NULL && i < 2; ++i) status = api->CustomOpDomain_Add(domain, &own[i]);
    if (status != NULL || !atomic_compare_exchange_strong(&shared_domain, &none, domain)) {
      api->ReleaseCustomOpDomain(domain);
      if (status != NULL) return status;
      domain = none; /* another thread was first */
    }
  }
  return api->AddCustomOpDomain(options, domain);
}

#if !defined(F2I_UNIQUE_NAMES) /* every library of operators has this one, so only one linked into a program may */
F2I_EXPORT OrtStatus *ORT_API_CALL RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base);

F2I_EXPORT OrtStatus *ORT_API_CALL RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
  return register_ops(options, base);
}
#endif

F2I_EXPORT OrtStatus *Fairy2i_RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
  return register_ops(options, base);
}
