/* creation.c - see node.h. */
#include <stdlib.h>
#include <string.h>

#include "base/message.h"
#include "base/sizes.h"
#include "ort/node.h"

#define API_WITH_CONFIG_ENTRIES 24

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

/* Session config entries fairy2i.kernel and fairy2i.isa, where the runtime lets a kernel read them. */
static OrtStatus *read_config(f2i_node *n, const OrtKernelInfo *info) {
  const OrtApiBase *base = f2i_api_base();
  if (!f2i_is_release(base, API_WITH_CONFIG_ENTRIES)) return NULL;
  const OrtApi *api = base->GetApi(API_WITH_CONFIG_ENTRIES);
  if (api == NULL) return NULL;
  OrtKeyValuePairs *entries = NULL;
  F2I_RETURN_IF_ERROR(api->KernelInfo_GetConfigEntries(info, &entries));
  copy_text(api->GetKeyValue(entries, "fairy2i.kernel"), n->family, sizeof n->family);
  copy_text(api->GetKeyValue(entries, "fairy2i.isa"), n->isa, sizeof n->isa);
  api->ReleaseKeyValuePairs(entries);
  return NULL;
}

static OrtStatus *read_attribute(const f2i_node *n, const OrtKernelInfo *info, const char *name, int64_t *value) {
  OrtStatus *status = n->api->KernelInfoGetAttribute_int64(info, name, value);
  if (status == NULL) return NULL;
  f2i_message text;
  n->api->ReleaseStatus(status);
  (void)f2i_fail(&text, F2I_OK, "attribute %s: expected an integer, found none", name);
  return f2i_node_fail(n, F2I_WHOLE_NODE, ORT_INVALID_GRAPH, text.text);
}

static OrtStatus *read_attributes(f2i_node *n, const OrtKernelInfo *info) {
  f2i_weights common = {0};
  F2I_RETURN_IF_ERROR(read_attribute(n, info, "K", &common.k));
  F2I_RETURN_IF_ERROR(read_attribute(n, info, "layout_version", &common.layout_version));
  F2I_RETURN_IF_ERROR(read_attribute(n, info, "scale_scope", &common.scale_scope));
  /* came after layout version 1, whose nodes need not have it; of others it is not guessed */
  OrtStatus *status = n->api->KernelInfoGetAttribute_int64(info, "activation_bits", &common.activation_bits);
  if (status != NULL) {
    n->api->ReleaseStatus(status);
    common.activation_bits = 0;
    if (common.layout_version == F2I_LAYOUT_CONJUGATE) {
      return f2i_node_fail(n, F2I_WHOLE_NODE, ORT_INVALID_GRAPH,
                           "attribute activation_bits: expected an integer with layout_version 2, found none");
    }
  }
  for (size_t i = 0; i < n->count; ++i) {
    f2i_weights *w = &n->layers[i].operands.weights;
    f2i_message name;
    *w = common;
    F2I_RETURN_IF_ERROR(read_attribute(n, info, f2i_attribute_name(&name, "N", n->count, i), &w->n));
    F2I_RETURN_IF_ERROR(read_attribute(n, info, f2i_attribute_name(&name, "stages", n->count, i), &w->stages));
  }
  return NULL;
}

/* Keeps the addresses of a layer's constant operands; *all_known: there is none to come but a bias. */
static OrtStatus *read_constants(f2i_node *n, size_t layer, const OrtKernelInfo *info, int *all_known) {
  f2i_node_layer *l = &n->layers[layer];
  size_t inputs = 0;
  *all_known = 1;
  F2I_RETURN_IF_ERROR(n->api->KernelInfo_GetInputCount(info, &inputs));
  for (int operand = 0; operand < F2I_OPERANDS; ++operand) {
    const size_t input = f2i_input(layer, (size_t)operand);
    const OrtValue *value = NULL;
    size_t name_size = 1; /* with the final NUL: 1 for an optional input that is left out */
    int is_constant = 0;
    if (input < inputs) {
      F2I_RETURN_IF_ERROR(n->api->KernelInfoGetConstantInput_tensor(info, input, &is_constant, &value));
      if (is_constant) F2I_RETURN_IF_ERROR(f2i_read_operand(n, layer, operand, value, &l->operands));
      else F2I_RETURN_IF_ERROR(n->api->KernelInfo_GetInputName(info, input, NULL, &name_size));
    }
    l->known[operand] = is_constant || name_size <= 1;
    *all_known &= l->known[operand] || operand == F2I_IN_BIAS;
  }
  return NULL;
}

/* With all operands known the layer is checked and its kernel chosen here; else only what is known is checked, and the
 * rest at every call. */
static OrtStatus *make_plan(f2i_node *n, size_t layer, int all_known) {
  const f2i_weights *w = &n->layers[layer].operands.weights;
  f2i_message message;
  f2i_status status;
  if (all_known) {
    status = f2i_plan_init(&n->layers[layer].plan, w, n->family, n->isa, &message);
  } else {
    size_t bytes = 0;
    status = f2i_layout_size(w->layout_version, w->k, w->n, w->stages, &bytes, &message);
    if (status == F2I_OK) status = f2i_check_activation_bits(w->layout_version, w->activation_bits, &message);
  }
  return status == F2I_OK ? NULL : f2i_node_fail(n, layer, ORT_INVALID_GRAPH, message.text);
}

void ORT_API_CALL f2i_node_destroy(void *kernel) {
  f2i_node *n = kernel;
  if (n == NULL) return;
  if (n->memory != NULL) n->api->ReleaseMemoryInfo(n->memory);
  free(n);
}

/* The node's name, of a long one the beginning. */
static OrtStatus *read_name(f2i_node *n, const OrtKernelInfo *info) {
  size_t size = 0;
  char *name = NULL;
  F2I_RETURN_IF_ERROR(n->api->KernelInfo_GetNodeName(info, NULL, &size));
  name = size == 0 ? NULL : malloc(size);
  if (name == NULL) return NULL; /* errors then come without it */
  OrtStatus *status = n->api->KernelInfo_GetNodeName(info, name, &size);
  if (status == NULL) copy_text(name, n->name, sizeof n->name);
  free(name);
  return status;
}

static OrtStatus *fill_node(f2i_node *n, const OrtKernelInfo *info) {
  F2I_RETURN_IF_ERROR(read_name(n, info));
  F2I_RETURN_IF_ERROR(n->api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &n->memory));
  F2I_RETURN_IF_ERROR(read_attributes(n, info));
  F2I_RETURN_IF_ERROR(read_config(n, info));
  read_environment("FAIRY2I_KERNEL", n->family, sizeof n->family);
  read_environment("FAIRY2I_ISA", n->isa, sizeof n->isa);
  for (size_t i = 0; i < n->count; ++i) {
    int all_known = 0;
    F2I_RETURN_IF_ERROR(read_constants(n, i, info, &all_known));
    F2I_RETURN_IF_ERROR(make_plan(n, i, all_known));
  }
  return NULL;
}

OrtStatus *ORT_API_CALL f2i_node_create(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info,
                                        void **kernel) {
  const f2i_operator *own = (const f2i_operator *)(const void *)op;
  *kernel = NULL;
  f2i_node *n = calloc(1, sizeof *n);
  if (n == NULL) return api->CreateStatus(ORT_FAIL, "Fairy2iMatMul: out of memory");
  n->api = api;
  n->is_half = own->is_half;
  n->count = own->layers;
  OrtStatus *status = fill_node(n, info);
  if (status != NULL) f2i_node_destroy(n);
  else *kernel = n;
  return status;
}
