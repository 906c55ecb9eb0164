/* operands.c - see node.h. */
#include "base/message.h"
#include "ort/node.h"

static const char *const names[F2I_OPERANDS] = {"packed", "scales", "bias", "row_multiplier", "col_multiplier"};

OrtStatus *f2i_node_fail(const f2i_node *n, size_t layer, OrtErrorCode code, const char *what) {
  f2i_message text, of_layer = {""};
  if (n->count > 1 && layer < n->count) (void)f2i_fail(&of_layer, F2I_OK, ", layer %zu", layer);
  (void)f2i_fail(&text, F2I_OK, "%s node '%.80s'%s: %.220s", f2i_operator_name(n->count), n->name, of_layer.text, what);
  return n->api->CreateStatus(code, text.text);
}

/* Address, element count and type of a tensor; a NULL value (absent optional input) leaves *data NULL. */
static OrtStatus *read_tensor(const f2i_node *n, const OrtValue *value, const void **data, size_t *count,
                              ONNXTensorElementDataType *type) {
  OrtTensorTypeAndShapeInfo *info = NULL;
  void *address = NULL;
  *data = NULL;
  *count = 0;
  if (value == NULL) return NULL;
  F2I_RETURN_IF_ERROR(n->api->GetTensorTypeAndShape(value, &info));
  OrtStatus *status = n->api->GetTensorElementType(info, type);
  if (status == NULL) status = n->api->GetTensorShapeElementCount(info, count);
  n->api->ReleaseTensorTypeAndShapeInfo(info);
  if (status == NULL) status = n->api->GetTensorMutableData((OrtValue *)value, &address);
  *data = address;
  return status;
}

static OrtStatus *check_type(const f2i_node *n, size_t layer, const char *name, ONNXTensorElementDataType found,
                             ONNXTensorElementDataType expected) {
  f2i_message text;
  if (found == expected) return NULL;
  (void)f2i_fail(&text, F2I_OK, "%s: expected element type %d, found %d", name, (int)expected, (int)found);
  return f2i_node_fail(n, layer, ORT_INVALID_ARGUMENT, text.text);
}

static ONNXTensorElementDataType type_of_x(const f2i_node *n) {
  return n->is_half ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}

OrtStatus *f2i_read_x(const f2i_node *n, const OrtValue *value, f2i_x *x) {
  const int64_t k = n->layers[0].operands.weights.k;
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  OrtTensorTypeAndShapeInfo *info = NULL; /* made once for all that is asked: it takes a good part of a small call */
  void *address = NULL;
  f2i_message text;
  if (value == NULL) return f2i_node_fail(n, F2I_WHOLE_NODE, ORT_INVALID_ARGUMENT, "X: expected a tensor, found none");
  F2I_RETURN_IF_ERROR(n->api->GetTensorTypeAndShape(value, &info));
  OrtStatus *status = n->api->GetTensorElementType(info, &type);
  if (status == NULL) status = n->api->GetDimensionsCount(info, &x->rank);
  const int known = status == NULL && x->rank >= 1 && x->rank <= F2I_MAX_RANK;
  if (known) status = n->api->GetDimensions(info, x->dims, x->rank);
  n->api->ReleaseTensorTypeAndShapeInfo(info);
  if (status == NULL) status = check_type(n, F2I_WHOLE_NODE, "X", type, type_of_x(n));
  if (status != NULL) return status;
  if (!known || x->dims[x->rank - 1] != k) {
    (void)f2i_fail(&text, F2I_OK, "X: expected shape [..., K=%lld], got rank %zu with last dimension %lld",
                   (long long)k, x->rank, known ? (long long)x->dims[x->rank - 1] : 0LL);
    return f2i_node_fail(n, F2I_WHOLE_NODE, ORT_INVALID_ARGUMENT, text.text);
  }
  F2I_RETURN_IF_ERROR(n->api->GetTensorMutableData((OrtValue *)value, &address));
  x->data = address;
  return NULL;
}

/* An optional input that is there but empty is refused: its address may be NULL like that of an absent one, and nobody
 * means to leave it out that way. */
static OrtStatus *check_count(const f2i_node *n, size_t layer, int operand, size_t count) {
  const f2i_weights *w = &n->layers[layer].operands.weights;
  const long long expected = operand == F2I_IN_COL_MULTIPLIER ? w->k : w->n;
  f2i_message text;
  if (operand >= F2I_IN_BIAS && count == 0) {
    (void)f2i_fail(&text, F2I_OK, "%s: expected %lld values, got an empty tensor; to have none, give an empty name",
                   names[operand], expected);
  } else if (operand == F2I_IN_BIAS && count != (size_t)expected) {
    (void)f2i_fail(&text, F2I_OK, "bias: expected %lld values, got %zu", expected, count);
  } else {
    return NULL; /* lengths of the others are checked with the format */
  }
  return f2i_node_fail(n, layer, ORT_INVALID_ARGUMENT, text.text);
}

OrtStatus *f2i_read_operand(const f2i_node *n, size_t layer, int operand, const OrtValue *value, f2i_operands *to) {
  const ONNXTensorElementDataType expected = operand == F2I_IN_PACKED ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8
                                             : operand == F2I_IN_BIAS ? type_of_x(n)
                                                                      : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  ONNXTensorElementDataType type = expected;
  f2i_weights *w = &to->weights;
  const void *data = NULL;
  size_t count = 0;
  F2I_RETURN_IF_ERROR(read_tensor(n, value, &data, &count, &type));
  F2I_RETURN_IF_ERROR(check_type(n, layer, names[operand], type, expected));
  if (value != NULL) F2I_RETURN_IF_ERROR(check_count(n, layer, operand, count));
  switch (operand) {
    case F2I_IN_PACKED:
      w->packed = data;
      w->packed_bytes = count;
      break;
    case F2I_IN_SCALES:
      w->scales = data;
      w->scales_count = count;
      break;
    case F2I_IN_BIAS:
      to->bias = data;
      break;
    case F2I_IN_ROW_MULTIPLIER:
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
