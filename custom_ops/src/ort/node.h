/* node.h - Fairy2iMatMul, Fairy2iMatMul2 and Fairy2iMatMul3 as ONNX Runtime custom operators: what the files of this
 * folder share. They are the only ones that know ONNX Runtime.
 *
 * Written for API version 18 (ONNX Runtime 1.18) whatever the version of the header, so that the library loads in every
 * later release (docs/runtime.md says which were tried). Weights that are initializers stay where ONNX Runtime mapped
 * them: only their addresses are kept.
 *
 *   register.c     what the host calls: makes the domain
 *   description.c  the operators: inputs, outputs, shapes
 *   creation.c     a node: attributes, constant operands, plans
 *   execution.c    a call of it
 *   operands.c     tensors in, or why not
 */
#ifndef F2I_NODE_H
#define F2I_NODE_H

#include <stddef.h>
#include <stdint.h>

#include "base/tuning.h"
#include "fairy2i.h"
#include "onnxruntime_c_api.h"

#define F2I_MIN_API 18

/* Operands of a layer, in the order of the node's inputs: X, then those of one layer after those of the other. */
enum { F2I_IN_PACKED, F2I_IN_SCALES, F2I_IN_BIAS, F2I_IN_ROW_MULTIPLIER, F2I_IN_COL_MULTIPLIER, F2I_OPERANDS };

enum { F2I_IN_X = 0 };
static inline size_t f2i_input(size_t layer, size_t operand) { return 1 + layer * F2I_OPERANDS + operand; }

/* A layer's operands, where they are known. */
typedef struct f2i_operands {
  f2i_weights weights;
  const void *bias; /* [n], of the type of X; or NULL */
} f2i_operands;

typedef struct f2i_node_layer {
  f2i_operands operands;   /* attributes; addresses of the operands that are constant */
  int known[F2I_OPERANDS]; /* whether an operand is constant, or absent: nothing has to be read in a call */
  f2i_plan plan;           /* made once if all operands but the bias are known; else plan.kernel is NULL */
} f2i_node_layer;

/* One node. Immutable after creation: Run may be called from several threads at once. */
typedef struct f2i_node {
  const OrtApi *api;
  OrtMemoryInfo *memory; /* CPU arena, for scratch */
  char name[96];
  char family[F2I_NAME_SIZE], isa[F2I_NAME_SIZE]; /* forced kernel, or "" */
  char tuning[128];                               /* settings for this processor, or "" */
  int is_half;                                    /* X, bias and Y are float16 */
  size_t count;                                   /* of layers */
  f2i_node_layer layers[F2I_MAX_LAYERS];
} f2i_node;

#define F2I_RETURN_IF_ERROR(call)        \
  do {                                   \
    OrtStatus *status_ = (call);         \
    if (status_ != NULL) return status_; \
  } while (0)

/* description.c: one operator for one type of X. ONNX Runtime gets a pointer to the first member, and hands it back. */
typedef struct f2i_operator {
  OrtCustomOp op;
  size_t layers;
  int is_half;
} f2i_operator;
enum { F2I_OPERATORS = 2 * F2I_MAX_LAYERS };
extern const f2i_operator f2i_operators[F2I_OPERATORS], f2i_operators_without_shapes[F2I_OPERATORS];
const char *f2i_operator_name(size_t layers);

/* An attribute of layer number `layer` of `layers`: "N", or "N_0" and so on if there are several. Returns the text. */
const char *f2i_attribute_name(f2i_message *text, const char *name, size_t layers, size_t layer);

/* register.c: the runtime's entry point, of which a process has one; whether it is release 1.minor or later. */
const OrtApiBase *f2i_api_base(void);
int f2i_is_release(const OrtApiBase *base, long minor);

/* X of a call. */
enum { F2I_MAX_RANK = 16 };
typedef struct f2i_x {
  const void *data;
  size_t rank;
  int64_t dims[F2I_MAX_RANK];
} f2i_x;

/* creation.c and execution.c: what ONNX Runtime calls. */
OrtStatus *ORT_API_CALL f2i_node_create(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info,
                                        void **kernel);
void ORT_API_CALL f2i_node_destroy(void *kernel);
OrtStatus *ORT_API_CALL f2i_node_compute(void *kernel, OrtKernelContext *context);

/* operands.c */

enum { F2I_WHOLE_NODE = F2I_MAX_LAYERS }; /* in place of the number of a layer */

/* A status that names the operator and the node, and the layer if there are several. */
OrtStatus *f2i_node_fail(const f2i_node *n, size_t layer, OrtErrorCode code, const char *what);

/* Address and shape of X: [..., K]. */
OrtStatus *f2i_read_x(const f2i_node *n, const OrtValue *value, f2i_x *x);

/* Puts an operand of a layer into *to, after looking at its type, and at the length of a bias. */
OrtStatus *f2i_read_operand(const f2i_node *n, size_t layer, int operand, const OrtValue *value, f2i_operands *to);

#endif
