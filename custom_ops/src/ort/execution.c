/* execution.c - see node.h. */
#include "base/half.h"
#include "base/message.h"
#include "base/sizes.h"
#include "ort/node.h"

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
  f2i_x x;
  int64_t rows;
  struct {
    const void *bias;
    void *y;
    f2i_plan own; /* if there is none for all calls */
    const f2i_plan *plan;
  } layers[F2I_MAX_LAYERS];
} call;

static OrtStatus *make_outputs(const f2i_node *n, OrtKernelContext *context, call *c) {
  c->rows = 1; /* ONNX Runtime allocated rows * K: no overflow */
  for (size_t i = 0; i + 1 < c->x.rank; ++i) c->rows *= c->x.dims[i];
  for (size_t i = 0; i < n->count; ++i) {
    OrtValue *y = NULL;
    c->x.dims[c->x.rank - 1] = n->layers[i].operands.weights.n;
    F2I_RETURN_IF_ERROR(n->api->KernelContext_GetOutput(context, i, c->x.dims, c->x.rank, &y));
    F2I_RETURN_IF_ERROR(n->api->GetTensorMutableData(y, &c->layers[i].y));
  }
  return NULL;
}

/* The operands of a layer that were not known when the node was made, and a plan of them. */
static OrtStatus *read_layer(const f2i_node *n, size_t layer, OrtKernelContext *context, size_t inputs, call *c) {
  const f2i_node_layer *l = &n->layers[layer];
  f2i_operands operands = l->operands;
  for (int operand = 0; operand < F2I_OPERANDS; ++operand) {
    const size_t input = f2i_input(layer, (size_t)operand);
    const OrtValue *value = NULL;
    if (l->known[operand] || input >= inputs) continue;
    F2I_RETURN_IF_ERROR(n->api->KernelContext_GetInput(context, input, &value));
    F2I_RETURN_IF_ERROR(f2i_read_operand(n, layer, operand, value, &operands));
  }
  c->layers[layer].bias = operands.bias;
  c->layers[layer].plan = &l->plan;
  if (l->plan.kernel != NULL) return NULL;
  f2i_message message;
  c->layers[layer].plan = &c->layers[layer].own;
  if (f2i_plan_init_tuned(&c->layers[layer].own, &operands.weights, n->family, n->isa, n->tuning, &message) == F2I_OK) {
    return NULL;
  }
  return f2i_node_fail(n, layer, ORT_INVALID_ARGUMENT, message.text);
}

static OrtStatus *read_inputs(const f2i_node *n, OrtKernelContext *context, call *c) {
  const OrtValue *x = NULL;
  size_t inputs = 0;
  F2I_RETURN_IF_ERROR(n->api->KernelContext_GetInputCount(context, &inputs));
  F2I_RETURN_IF_ERROR(n->api->KernelContext_GetInput(context, F2I_IN_X, &x));
  F2I_RETURN_IF_ERROR(f2i_read_x(n, x, &c->x));
  for (size_t i = 0; i < n->count; ++i) F2I_RETURN_IF_ERROR(read_layer(n, i, context, inputs, c));
  return make_outputs(n, context, c);
}

/* X, biases and outputs of float16 as floats: [rows][K], then for each layer [rows][N] and its bias [N]. */
static void widen(const f2i_node *n, const call *c, float *scratch, const float **x, f2i_output *outputs) {
  const size_t count = (size_t)(c->rows * n->layers[0].operands.weights.k);
  const uint16_t *half_x = c->x.data;
  *x = scratch;
  for (size_t i = 0; i < count; ++i) *scratch++ = f2i_half_to_float(half_x[i]);
  for (size_t l = 0; l < n->count; ++l) {
    const size_t features = (size_t)n->layers[l].operands.weights.n;
    const uint16_t *half_bias = c->layers[l].bias;
    outputs[l].y = scratch;
    scratch += (size_t)c->rows * features;
    outputs[l].bias = half_bias == NULL ? NULL : scratch;
    for (size_t i = 0; half_bias != NULL && i < features; ++i) scratch[i] = f2i_half_to_float(half_bias[i]);
    scratch += features;
  }
}

static void narrow(const f2i_node *n, const call *c, const f2i_output *outputs) {
  for (size_t l = 0; l < n->count; ++l) {
    const size_t count = (size_t)(c->rows * n->layers[l].operands.weights.n);
    uint16_t *half_y = c->layers[l].y;
    for (size_t i = 0; i < count; ++i) half_y[i] = f2i_float_to_half(outputs[l].y[i]);
  }
}

/* scratch: floats that widen takes, then the workspace */
static OrtStatus *run_call(const f2i_node *n, OrtKernelContext *context, const call *c, f2i_output *outputs,
                           float *scratch, size_t floats, size_t workspace_bytes) {
  const float *x = c->x.data;
  if (n->is_half) widen(n, c, scratch, &x, outputs);
  parallel_context pool = {n->api, context, NULL};
  const f2i_parallel parallel = {parallel_for, &pool};
  f2i_message message;
  const f2i_status status = f2i_matmuls(outputs, n->count, c->rows, x, n->layers[0].operands.weights.k,
                                        scratch + floats, workspace_bytes, &parallel, &message);
  if (pool.status != NULL) return pool.status;
  if (status != F2I_OK) return f2i_node_fail(n, F2I_WHOLE_NODE, ORT_FAIL, message.text);
  if (n->is_half) narrow(n, c, outputs);
  return NULL;
}

OrtStatus *ORT_API_CALL f2i_node_compute(void *kernel, OrtKernelContext *context) {
  const f2i_node *n = kernel;
  call c = {0};
  f2i_output outputs[F2I_MAX_LAYERS];
  f2i_weights all_layers = n->layers[0].operands.weights; /* as one with the outputs of all */
  F2I_RETURN_IF_ERROR(read_inputs(n, context, &c));
  all_layers.n = 0;
  for (size_t i = 0; i < n->count; ++i) {
    const int64_t features = n->layers[i].operands.weights.n;
    outputs[i] = (f2i_output){.plan = c.layers[i].plan, .bias = c.layers[i].bias, .y = c.layers[i].y, .ldy = features};
    all_layers.n += features;
  }
  size_t bytes = 0, floats = 0; /* of the workspace; before it, X, biases and outputs widened, if they are float16 */
  f2i_message message;
  f2i_status needed = f2i_matmuls_workspace_size(outputs, n->count, c.rows, &bytes, &message);
  size_t all = bytes;
  if (needed == F2I_OK && n->is_half) {
    needed = f2i_widened_within(F2I_SIZE_LIMIT, c.rows, &all_layers, bytes, &floats, &all, &message);
  }
  if (needed != F2I_OK) return f2i_node_fail(n, F2I_WHOLE_NODE, ORT_FAIL, message.text);
  OrtAllocator *allocator = NULL;
  F2I_RETURN_IF_ERROR(n->api->KernelContext_GetAllocator(context, n->memory, &allocator));
  void *scratch = NULL;
  OrtStatus *status = n->api->AllocatorAlloc(allocator, all, &scratch);
  if (status == NULL) {
    status = scratch == NULL ? f2i_node_fail(n, F2I_WHOLE_NODE, ORT_FAIL, "out of memory")
                             : run_call(n, context, &c, outputs, scratch, floats, bytes);
    if (scratch != NULL) {
      OrtStatus *freed = n->api->AllocatorFree(allocator, scratch);
      if (freed != NULL) n->api->ReleaseStatus(freed);
    }
  }
  n->api->ReleaseAllocator(allocator);
  return status;
}
