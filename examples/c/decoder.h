/* decoder.h - tokens in, the likeliest next token out. The key-value cache is updated in place. */
#ifndef DECODER_H
#define DECODER_H

#include "graph.h"

typedef struct decoder decoder;

/* A decoder with an empty cache for `capacity` tokens. Returns NULL if the graph is of another form or there is no
 * memory. `opened` has to outlive it; `name` is what a message calls the model. */
decoder *decoder_open(const session *opened, const char *name, int64_t capacity, problem *why);
void decoder_close(decoder *made);

/* Number of tokens in the vocabulary. */
int64_t decoder_vocabulary(const decoder *made);

/* Append `count` tokens (at least one, each in the vocabulary) to the cache and find the likeliest one after them; of
 * equally likely ones, the one with the smallest id. Returns false if they do not fit or onnxruntime gives up. */
bool decoder_next(decoder *made, const int64_t *tokens, size_t count, int64_t *next, problem *why);

#endif
