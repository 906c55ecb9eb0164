#include "graph.h"

#include <stdio.h>
#include <string.h>

enum { MAX_RANK = 8, NAME_BYTES = 64 };

typedef struct port {
  char name[NAME_BYTES];
  ONNXTensorElementDataType type;
  int64_t shape[MAX_RANK]; /* -1: chosen at every run */
  size_t rank;
} port;

size_t graph_element_bytes(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
      return 4;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
      return 2;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8:
      return 1;
    default:
      return 0;
  }
}

static bool read_shape(const OrtApi *api, const OrtTypeInfo *info, port *out, problem *why) {
  const OrtTensorTypeAndShapeInfo *tensor = NULL;
  if (!session_good(api, api->CastTypeInfoToTensorInfo(info, &tensor), out->name, why)) return false;
  if (!tensor) return problem_set(why, "%s is no tensor", out->name);
  if (!session_good(api, api->GetTensorElementType(tensor, &out->type), out->name, why) ||
      !session_good(api, api->GetDimensionsCount(tensor, &out->rank), out->name, why)) {
    return false;
  }
  if (out->rank > MAX_RANK) return problem_set(why, "%s has %zu dimensions", out->name, out->rank);
  return session_good(api, api->GetDimensions(tensor, out->shape, out->rank), out->name, why);
}

/* Input or output number `index`. A name that is too long for ours is cut off, and then it is none of ours. */
static bool read_port(const session *opened, bool input, size_t index, port *out, problem *why) {
  const OrtApi *api = opened->api;
  OrtAllocator *allocator = NULL;
  char *name = NULL;
  OrtTypeInfo *info = NULL;
  if (!session_good(api, api->GetAllocatorWithDefaultOptions(&allocator), "onnxruntime", why)) return false;
  OrtStatus *status = input ? api->SessionGetInputName(opened->model, index, allocator, &name)
                            : api->SessionGetOutputName(opened->model, index, allocator, &name);
  if (!session_good(api, status, "the graph's names", why)) return false;
  snprintf(out->name, sizeof out->name, "%s", name);
  status = api->AllocatorFree(allocator, name);
  if (!session_good(api, status, "the graph's names", why)) return false;
  status = input ? api->SessionGetInputTypeInfo(opened->model, index, &info)
                 : api->SessionGetOutputTypeInfo(opened->model, index, &info);
  bool good = session_good(api, status, out->name, why) && read_shape(api, info, out, why);
  if (info) api->ReleaseTypeInfo(info);
  return good;
}

/* Whether a name is PREFIX.LAYER.key or .value with a layer below `layers`. */
static bool is_layer_port(const char *name, const char *prefix, int64_t layers) {
  long long layer = -1;
  char part[8] = "", again[NAME_BYTES];
  size_t length = strlen(prefix);
  if (strncmp(name, prefix, length) != 0 || sscanf(name + length, ".%lld.%7s", &layer, part) != 2) return false;
  if (layer < 0 || layer >= layers || (strcmp(part, "key") != 0 && strcmp(part, "value") != 0)) return false;
  snprintf(again, sizeof again, "%s.%lld.%s", prefix, layer, part); /* no leading zeros, no further letters */
  return strcmp(name, again) == 0;
}

static bool read_past(const port *past, const char *name, graph *out, problem *why) {
  if (graph_element_bytes(past->type) == 0 || past->rank != 4 || past->shape[1] < 1 || past->shape[3] < 1) {
    return problem_set(why, "%s: %s: expected float, float16 or int8 [batch, kv_heads, past, head] with fixed heads",
                       name, past->name);
  }
  if (out->kv_heads &&
      (out->kv_heads != past->shape[1] || out->head_size != past->shape[3] || out->cache_type != past->type)) {
    return problem_set(why, "%s: %s: expected the shape and type of the other layers' caches", name, past->name);
  }
  out->kv_heads = past->shape[1];
  out->head_size = past->shape[3];
  out->cache_type = past->type;
  return true;
}

static bool read_inputs(const session *opened, const char *name, size_t count, graph *out, problem *why) {
  for (size_t i = 0; i < count; i++) {
    port found;
    if (!read_port(opened, true, i, &found, why)) return false;
    if (strcmp(found.name, "input_ids") == 0 || strcmp(found.name, "attention_mask") == 0) {
      if (found.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 || found.rank != 2) {
        return problem_set(why, "%s: %s: expected int64 [batch, length]", name, found.name);
      }
    } else if (!is_layer_port(found.name, "past_key_values", out->layers)) {
      return problem_set(why, "%s: not a decoder of fairy2i-export: unexpected input %s", name, found.name);
    } else if (!read_past(&found, name, out, why)) {
      return false;
    }
  }
  return true;
}

static bool read_outputs(const session *opened, const char *name, size_t count, graph *out, problem *why) {
  for (size_t i = 0; i < count; i++) {
    port found;
    if (!read_port(opened, false, i, &found, why)) return false;
    if (strcmp(found.name, "logits") == 0) {
      if (found.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT || found.rank != 3 || found.shape[2] < 1 ||
          found.shape[2] > INT32_MAX) {
        return problem_set(why, "%s: logits: expected float [batch, length, vocabulary]", name);
      }
      out->vocabulary = found.shape[2];
    } else if (!is_layer_port(found.name, "present", out->layers)) {
      return problem_set(why, "%s: not a decoder of fairy2i-export: unexpected output %s", name, found.name);
    }
  }
  return true;
}

/* Inputs with a value of their own are counted apart from the others. */
static bool read_selects(const session *opened, const char *name, graph *out, problem *why) {
  const OrtApi *api = opened->api;
  OrtAllocator *allocator = NULL;
  size_t count = 0;
  if (!session_good(api, api->GetAllocatorWithDefaultOptions(&allocator), "onnxruntime", why) ||
      !session_good(api, api->SessionGetOverridableInitializerCount(opened->model, &count), name, why)) {
    return false;
  }
  for (size_t i = 0; i < count; i++) {
    char *found = NULL;
    OrtStatus *status = api->SessionGetOverridableInitializerName(opened->model, i, allocator, &found);
    if (!session_good(api, status, name, why)) return false;
    out->selects = out->selects || strcmp(found, GRAPH_LOGITS_TO_KEEP) == 0;
    if (!session_good(api, api->AllocatorFree(allocator, found), name, why)) return false;
  }
  return true;
}

bool graph_read(const session *opened, const char *name, graph *out, problem *why) {
  const OrtApi *api = opened->api;
  size_t inputs = 0, outputs = 0;
  memset(out, 0, sizeof *out);
  if (!session_good(api, api->SessionGetInputCount(opened->model, &inputs), name, why) ||
      !session_good(api, api->SessionGetOutputCount(opened->model, &outputs), name, why)) {
    return false;
  }
  /* names are unique in a graph: if all are expected ones, and there are as many, then none is missing */
  if (inputs < 4 || inputs % 2 || outputs != inputs - 1) {
    return problem_set(why, "%s: not a decoder of fairy2i-export: %zu inputs and %zu outputs", name, inputs, outputs);
  }
  out->layers = (int64_t)(inputs - 2) / 2;
  return read_inputs(opened, name, inputs, out, why) && read_outputs(opened, name, outputs, out, why) &&
         read_selects(opened, name, out, why);
}
