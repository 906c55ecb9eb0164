/* fairy2i_tokens: run an exported model with nothing but onnxruntime's C API and the operator library. Token ids in,
 * token ids out; a tokenizer is the caller's affair. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "decoder.h"
#include "options.h"

static bool is_end(const model_folder *folder, int64_t token) {
  for (size_t i = 0; i < folder->end_token_count; i++) {
    if (folder->end_tokens[i] == token) return true;
  }
  return false;
}

static bool check_prompt(const options *given, int64_t vocabulary, int64_t capacity, problem *why) {
  for (size_t i = 0; i < given->count; i++) {
    if (given->tokens[i] >= vocabulary) {
      return problem_set(why, "token %lld is not in the model's vocabulary of %lld", (long long)given->tokens[i],
                         (long long)vocabulary);
    }
  }
  if (given->count < (size_t)capacity) return true;
  return problem_set(
      why,
      "%zu tokens leave no room for another in the context of %lld; give fewer, or a larger --context if "
      "the model was made for one",
      given->count, (long long)capacity);
}

/* Prefill, then a token at a time until an end token comes, enough were printed, or the context is full. */
static bool generate(decoder *model, const options *given, const model_folder *folder, int64_t capacity, problem *why) {
  int64_t next = 0, printed = 0, length = (int64_t)given->count;
  const char *reason = "length";
  if (given->max_new_tokens > 0 && !decoder_next(model, given->tokens, given->count, &next, why)) return false;
  while (printed < given->max_new_tokens) {
    if (is_end(folder, next)) {
      reason = "end token";
      break;
    }
    if (printf("%lld\n", (long long)next) < 0 || fflush(stdout) != 0)
      return problem_set(why, "standard output cannot be written: %s", strerror(errno));
    if (++printed == given->max_new_tokens) break;
    if (length == capacity) {
      reason = "context is full";
      break;
    }
    const int64_t token = next;
    if (!decoder_next(model, &token, 1, &next, why)) return false;
    length++;
  }
  fprintf(stderr, "%lld tokens behind %zu; stopped: %s\n", (long long)printed, given->count, reason);
  return true;
}

static bool run(const options *given, const model_folder *folder, problem *why) {
  int64_t capacity = given->context ? given->context : folder->context_length;
  if (capacity > folder->context_length) {
    return problem_set(why, "--context: expected 1 to %lld (what the model was built for), got %lld",
                       (long long)folder->context_length, (long long)capacity);
  }
  session opened;
  if (!session_open(&given->session, folder, &opened, why)) return false;
  decoder *model = decoder_open(&opened, folder->model_file, capacity, why);
  bool good = model && check_prompt(given, decoder_vocabulary(model), capacity, why) &&
              generate(model, given, folder, capacity, why);
  decoder_close(model);
  session_close(&opened);
  return good;
}

int main(int argc, char **argv) {
  problem why = {""};
  options given;
  model_folder folder;
  switch (options_read(argc, argv, &given, &why)) {
    case COMMAND_HELP:
      if (fputs(OPTIONS_HELP, stdout) >= 0 && fflush(stdout) == 0) return 0;
      problem_set(&why, "standard output cannot be written: %s", strerror(errno));
      break;
    case COMMAND_WRONG:
      break;
    case COMMAND_RUN:
      if (folder_open(given.folder, &folder, &why)) {
        bool good = run(&given, &folder, &why);
        folder_close(&folder);
        options_close(&given);
        if (good) return 0;
      } else {
        options_close(&given);
      }
  }
  bool memory = problem_is_memory(why.text);
  fprintf(stderr, "fairy2i_tokens: %s%s\n", memory && !strstr(why.text, "not enough") ? "not enough memory: " : "",
          why.text);
  return memory ? 1 : 2;
}
