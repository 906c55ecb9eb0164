#include "decoder.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
  PREFILL_CHUNK = 128
}; /* tokens per run: enough to amortize the weights, few enough to bound the memory of activations and logits */

struct decoder {
  const session *opened;
  graph form;
  int64_t capacity, length; /* tokens that fit into the cache, and that are in it */
  OrtMemoryInfo *memory;
  OrtIoBinding *binding;
  OrtValue **caches; /* [2 * layers], each [1, kv_heads, capacity, head_size], past and present at once */
  void **buffers;    /* [2 * layers] what the caches are made of */
  int64_t *mask;     /* [capacity] ones: all that is in the cache counts */
  int64_t wanted;    /* tokens at the end of a run whose logits are wanted: one */
  float *logits;     /* [rows, vocabulary] */
  size_t rows;       /* tokens whose logits fit */
};

static OrtValue *tensor(const decoder *made, void *data, const int64_t *shape, size_t rank,
                        ONNXTensorElementDataType type, size_t element_bytes, problem *why) {
  size_t bytes = element_bytes;
  for (size_t axis = 0; axis < rank; axis++) bytes *= (size_t)shape[axis];
  const OrtApi *api = made->opened->api;
  OrtValue *value = NULL;
  session_good(api, api->CreateTensorWithDataAsOrtValue(made->memory, data, bytes, shape, rank, type, &value), "tensor",
               why);
  return value;
}

/* Bind one buffer as the past and as the present of a layer: onnxruntime writes the new tokens' rows into it and copies
 * nothing. The attention mask alone says how much of it counts. */
static bool bind_cache(decoder *made, int64_t layer, const char *part, size_t index, problem *why) {
  const OrtApi *api = made->opened->api;
  const graph *form = &made->form;
  const int64_t shape[] = {1, form->kv_heads, made->capacity, form->head_size};
  size_t element_bytes = graph_element_bytes(form->cache_type);
  size_t elements = (size_t)form->kv_heads * (size_t)form->head_size;
  if (elements > SIZE_MAX / element_bytes / (size_t)made->capacity)
    return problem_set(why, "a cache of that size cannot be");
  /* zero pages of the operating system: memory is taken as the text grows */
  made->buffers[index] = calloc((size_t)made->capacity * elements, element_bytes);
  if (!made->buffers[index]) {
    return problem_set(why, "not enough memory for a context of %lld tokens; choose a smaller --context",
                       (long long)made->capacity);
  }
  made->caches[index] = tensor(made, made->buffers[index], shape, 4, form->cache_type, element_bytes, why);
  if (!made->caches[index]) return false;
  char past[64], present[64];
  snprintf(past, sizeof past, "past_key_values.%lld.%s", (long long)layer, part);
  snprintf(present, sizeof present, "present.%lld.%s", (long long)layer, part);
  return session_good(api, api->BindInput(made->binding, past, made->caches[index]), past, why) &&
         session_good(api, api->BindOutput(made->binding, present, made->caches[index]), present, why);
}

/* Bind the number of tokens whose logits are wanted, once for all runs. */
static bool bind_wanted(decoder *made, problem *why) {
  const int64_t shape[] = {1};
  const OrtApi *api = made->opened->api;
  OrtValue *wanted =
      tensor(made, &made->wanted, shape, 1, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, sizeof made->wanted, why);
  if (!wanted) return false;
  bool good = session_good(api, api->BindInput(made->binding, GRAPH_LOGITS_TO_KEEP, wanted), GRAPH_LOGITS_TO_KEEP, why);
  api->ReleaseValue(wanted); /* the binding holds it */
  return good;
}

static bool make_cache(decoder *made, problem *why) {
  const OrtApi *api = made->opened->api;
  size_t count = 2 * (size_t)made->form.layers;
  made->caches = calloc(count, sizeof *made->caches);
  made->buffers = calloc(count, sizeof *made->buffers);
  made->mask = calloc((size_t)made->capacity, sizeof *made->mask);
  if (!made->caches || !made->buffers || !made->mask) return problem_set(why, "not enough memory for the cache");
  for (int64_t i = 0; i < made->capacity; i++) made->mask[i] = 1;
  if (!session_good(api, api->CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &made->memory), "memory",
                    why) ||
      !session_good(api, api->CreateIoBinding(made->opened->model, &made->binding), "binding", why)) {
    return false;
  }
  for (int64_t layer = 0; layer < made->form.layers; layer++) {
    if (!bind_cache(made, layer, "key", 2 * (size_t)layer, why)) return false;
    if (!bind_cache(made, layer, "value", 2 * (size_t)layer + 1, why)) return false;
  }
  return !made->form.selects || bind_wanted(made, why);
}

decoder *decoder_open(const session *opened, const char *name, int64_t capacity, problem *why) {
  decoder *made = calloc(1, sizeof *made);
  if (!made) {
    problem_set(why, "not enough memory");
    return NULL;
  }
  made->opened = opened;
  made->capacity = capacity;
  made->wanted = 1;
  if (!graph_read(opened, name, &made->form, why) || !make_cache(made, why)) {
    decoder_close(made);
    return NULL;
  }
  return made;
}

void decoder_close(decoder *made) {
  if (!made) return;
  const OrtApi *api = made->opened->api;
  if (made->binding) api->ReleaseIoBinding(made->binding);
  for (int64_t i = 0; i < 2 * made->form.layers; i++) {
    if (made->caches && made->caches[i]) api->ReleaseValue(made->caches[i]);
    if (made->buffers) free(made->buffers[i]);
  }
  if (made->memory) api->ReleaseMemoryInfo(made->memory);
  free(made->caches);
  free(made->buffers);
  free(made->mask);
  free(made->logits);
  free(made);
}

int64_t decoder_vocabulary(const decoder *made) { return made->form.vocabulary; }

static bool bind_and_run(decoder *made, OrtValue *ids, OrtValue *mask, OrtValue *logits, problem *why) {
  const OrtApi *api = made->opened->api;
  return session_good(api, api->BindInput(made->binding, "input_ids", ids), "input_ids", why) &&
         session_good(api, api->BindInput(made->binding, "attention_mask", mask), "attention_mask", why) &&
         session_good(api, api->BindOutput(made->binding, "logits", logits), "logits", why) &&
         session_good(api, api->RunWithBinding(made->opened->model, NULL, made->binding),
                      "onnxruntime gave up running the model (if memory is short, a smaller --context needs less)",
                      why);
}

/* Rows of logits that a run of `count` tokens gives: models of earlier versions compute those of all tokens. */
static size_t rows_of(const decoder *made, size_t count) { return made->form.selects ? (size_t)made->wanted : count; }

/* Run the graph once for at most PREFILL_CHUNK tokens that fit. */
static bool run(decoder *made, const int64_t *tokens, size_t count, problem *why) {
  const graph *form = &made->form;
  size_t rows = rows_of(made, count);
  if (rows > made->rows) {
    float *larger = realloc(made->logits, rows * (size_t)form->vocabulary * sizeof *larger);
    if (!larger) return problem_set(why, "not enough memory for the logits of %zu tokens", rows);
    made->logits = larger;
    made->rows = rows;
  }
  const int64_t ids_shape[] = {1, (int64_t)count};
  const int64_t mask_shape[] = {1, made->length + (int64_t)count};
  const int64_t logits_shape[] = {1, (int64_t)rows, form->vocabulary};
  const ONNXTensorElementDataType integer = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
                                  number = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  OrtValue *ids = tensor(made, (void *)tokens, ids_shape, 2, integer, sizeof *tokens, why); /* it is only read */
  OrtValue *mask = ids ? tensor(made, made->mask, mask_shape, 2, integer, sizeof *made->mask, why) : NULL;
  OrtValue *logits = mask ? tensor(made, made->logits, logits_shape, 3, number, sizeof(float), why) : NULL;
  bool good = logits && bind_and_run(made, ids, mask, logits, why);
  const OrtApi *api = made->opened->api;
  if (logits) api->ReleaseValue(logits);
  if (mask) api->ReleaseValue(mask);
  if (ids) api->ReleaseValue(ids);
  if (good) made->length += (int64_t)count;
  return good;
}

/* The largest logit of a row, the first of equal ones. */
static bool likeliest(const decoder *made, size_t row, int64_t *next, problem *why) {
  const float *logits = made->logits + row * (size_t)made->form.vocabulary;
  int64_t best = 0;
  for (int64_t id = 0; id < made->form.vocabulary; id++) {
    if (isnan(logits[id])) return problem_set(why, "the model computed NaN: its weights are damaged; export it again");
    if (logits[id] > logits[best]) best = id;
  }
  *next = best;
  return true;
}

bool decoder_next(decoder *made, const int64_t *tokens, size_t count, int64_t *next, problem *why) {
  if (count > (size_t)(made->capacity - made->length)) {
    return problem_set(
        why,
        "%lld tokens do not fit into the context of %lld; give fewer, or a larger --context if the model "
        "was made for one",
        (long long)made->length + (long long)count, (long long)made->capacity);
  }
  size_t last = 0;
  for (size_t start = 0; start < count; start += last) {
    last = count - start < PREFILL_CHUNK ? count - start : PREFILL_CHUNK;
    if (!run(made, tokens + start, last, why)) return false;
  }
  return likeliest(made, rows_of(made, last) - 1, next, why);
}
