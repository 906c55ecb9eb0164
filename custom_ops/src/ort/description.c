/* description.c - see node.h. */
#include "base/message.h"
#include "ort/node.h"

static const f2i_operator *operator_of(const OrtCustomOp *op) { return (const f2i_operator *)(const void *)op; }

const char *f2i_operator_name(size_t layers) {
  static const char *const names[F2I_MAX_LAYERS] = {"Fairy2iMatMul", "Fairy2iMatMul2", "Fairy2iMatMul3"};
  return names[layers - 1];
}

const char *f2i_attribute_name(f2i_message *text, const char *name, size_t layers, size_t layer) {
  if (layers == 1) (void)f2i_fail(text, F2I_OK, "%s", name);
  else (void)f2i_fail(text, F2I_OK, "%s_%zu", name, layer);
  return text->text;
}

static const char *ORT_API_CALL op_name(const OrtCustomOp *op) { return f2i_operator_name(operator_of(op)->layers); }

static const char *ORT_API_CALL provider(const OrtCustomOp *op) {
  (void)op;
  return NULL; /* CPU */
}

static ONNXTensorElementDataType activation_type(const OrtCustomOp *op) {
  return operator_of(op)->is_half ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}

/* The operand of a layer that an input after X is. */
static size_t operand_of(size_t index) { return (index - f2i_input(0, 0)) % F2I_OPERANDS; }

static ONNXTensorElementDataType ORT_API_CALL input_type(const OrtCustomOp *op, size_t index) {
  if (index == F2I_IN_X || operand_of(index) == F2I_IN_BIAS) return activation_type(op);
  return operand_of(index) == F2I_IN_PACKED ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}

static ONNXTensorElementDataType ORT_API_CALL output_type(const OrtCustomOp *op, size_t index) {
  (void)index;
  return activation_type(op);
}

static size_t ORT_API_CALL input_count(const OrtCustomOp *op) { return f2i_input(operator_of(op)->layers, 0); }

static size_t ORT_API_CALL output_count(const OrtCustomOp *op) { return operator_of(op)->layers; }

static OrtCustomOpInputOutputCharacteristic ORT_API_CALL input_kind(const OrtCustomOp *op, size_t index) {
  (void)op;
  return index != F2I_IN_X && operand_of(index) >= F2I_IN_BIAS ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
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

/* The shape of each output, that of X with another last dimension; y: to be filled, once for each. */
static OrtStatus *infer_dims(const OrtApi *api, OrtShapeInferContext *context, size_t layers,
                             OrtTensorTypeAndShapeInfo *x, OrtTensorTypeAndShapeInfo *y) {
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  size_t rank = 0, read = 0;
  int64_t dims[16];
  const char *symbols[16] = {0};
  F2I_RETURN_IF_ERROR(api->GetTensorElementType(x, &type));
  F2I_RETURN_IF_ERROR(api->GetDimensionsCount(x, &rank));
  if (rank < 1 || rank > 16) return NULL; /* unknown here; checked when run */
  F2I_RETURN_IF_ERROR(api->GetDimensions(x, dims, rank));
  F2I_RETURN_IF_ERROR(api->GetSymbolicDimensions(x, symbols, rank));
  symbols[rank - 1] = "";
  for (size_t i = 0; i < layers; ++i) {
    const OrtOpAttr *attribute = NULL;
    f2i_message name;
    F2I_RETURN_IF_ERROR(
        api->ShapeInferContext_GetAttribute(context, f2i_attribute_name(&name, "N", layers, i), &attribute));
    F2I_RETURN_IF_ERROR(api->ReadOpAttr(attribute, ORT_OP_ATTR_INT, &dims[rank - 1], sizeof dims[0], &read));
    F2I_RETURN_IF_ERROR(api->SetDimensions(y, dims, rank));
    F2I_RETURN_IF_ERROR(api->SetSymbolicDimensions(y, symbols, rank));
    F2I_RETURN_IF_ERROR(api->SetTensorElementType(y, type)); /* one function serves both overloads */
    F2I_RETURN_IF_ERROR(api->ShapeInferContext_SetOutputTypeShape(context, i, y));
  }
  return NULL;
}

static OrtStatus *ORT_API_CALL infer_shape(const OrtCustomOp *op, OrtShapeInferContext *context) {
  const OrtApi *api = f2i_api_base()->GetApi(F2I_MIN_API);
  OrtTensorTypeAndShapeInfo *x = NULL, *y = NULL;
  F2I_RETURN_IF_ERROR(api->ShapeInferContext_GetInputTypeShape(context, F2I_IN_X, &x)); /* owned by the context */
  F2I_RETURN_IF_ERROR(api->CreateTensorTypeAndShapeInfo(&y));
  OrtStatus *status = infer_dims(api, context, operator_of(op)->layers, x, y);
  api->ReleaseTensorTypeAndShapeInfo(y);
  return status;
}

#define OPERATOR(count, half, infer_shape_fn)        \
  {                                                  \
      .op = {.version = F2I_MIN_API,                 \
             .GetName = op_name,                     \
             .GetExecutionProviderType = provider,   \
             .GetInputType = input_type,             \
             .GetInputTypeCount = input_count,       \
             .GetOutputType = output_type,           \
             .GetOutputTypeCount = output_count,     \
             .KernelDestroy = f2i_node_destroy,      \
             .GetInputCharacteristic = input_kind,   \
             .GetOutputCharacteristic = output_kind, \
             .GetInputMemoryType = memory_type,      \
             .GetVariadicInputMinArity = one,        \
             .GetVariadicInputHomogeneity = one,     \
             .GetVariadicOutputMinArity = one,       \
             .GetVariadicOutputHomogeneity = one,    \
             .CreateKernelV2 = f2i_node_create,      \
             .KernelComputeV2 = f2i_node_compute,    \
             .InferOutputShapeFn = infer_shape_fn,   \
             .GetStartVersion = one,                 \
             .GetEndVersion = one},                  \
      .layers = (count),                             \
      .is_half = (half),                             \
  }
#define OPERATORS(infer_shape_fn)                                                                     \
  {                                                                                                   \
      OPERATOR(1, 0, infer_shape_fn), OPERATOR(1, 1, infer_shape_fn), OPERATOR(2, 0, infer_shape_fn), \
      OPERATOR(2, 1, infer_shape_fn), OPERATOR(3, 0, infer_shape_fn), OPERATOR(3, 1, infer_shape_fn), \
  }

/* Before ONNX Runtime 1.24, having a shape function ends the process as soon as a node has an absent input with an
 * empty name: the context that it would be given is made from the types of all inputs, and the absent one has none
 * (microsoft/onnxruntime pull request 26199). There the shape of Y stays unknown until the node runs. */
const f2i_operator f2i_operators[F2I_OPERATORS] = OPERATORS(infer_shape);
const f2i_operator f2i_operators_without_shapes[F2I_OPERATORS] = OPERATORS(NULL);
