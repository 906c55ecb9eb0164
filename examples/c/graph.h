/* graph.h - the form of an exported decoder, read from its session. */
#ifndef GRAPH_H
#define GRAPH_H

#include "session.h"

#define GRAPH_LOGITS_TO_KEEP "num_logits_to_keep"

typedef struct graph {
  int64_t layers, kv_heads, head_size;
  ONNXTensorElementDataType cache_type; /* float, float16 or int8 */
  int64_t vocabulary;                   /* logits of each token, float */
  bool selects; /* has the input num_logits_to_keep, of how many last tokens logits are wanted; it may stay away */
} graph;

/* Read it. Returns false if the graph does not have exactly the inputs input_ids, attention_mask, past_key_values.I.key
 * and .value and the outputs logits, present.I.key and .value. `name` is what a message calls the model. */
bool graph_read(const session *opened, const char *name, graph *out, problem *why);

/* Bytes of an element, 0 for a type that no cache has. */
size_t graph_element_bytes(ONNXTensorElementDataType type);

#endif
