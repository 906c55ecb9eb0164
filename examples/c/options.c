#include "options.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shared/library.h"

#ifndef DEFAULT_ONNXRUNTIME
#define DEFAULT_ONNXRUNTIME "libonnxruntime.so.1"
#endif

enum { MOST_THREADS = 1024, MOST_TOKENS = 1 << 24, WORD_BYTES = 32 };

const char OPTIONS_HELP[] =
    "fairy2i_tokens DIR [TOKEN ...] [options]\n"
    "Continue token ids with the likeliest ones, one a line. DIR is a folder written by fairy2i-export. Without "
    "TOKENs, those of\n"
    "standard input are taken, separated by white space or commas.\n"
    "  --library PATH       the operator library (default: $FAIRY2I_LIBRARY, else " OPERATOR_LIBRARY
    " of the system's loader)\n"
    "  --onnxruntime PATH   onnxruntime's shared library (default: " DEFAULT_ONNXRUNTIME
    ")\n"
    "  --max-new-tokens N   stop after that many (default: 128)\n"
    "  --context N          room for the prompt and what follows (default: what the model was built for)\n"
    "  --threads N          threads to run with (default: one per physical core)\n"
    "  --kernel NAME        lut, exact or dot (default: $FAIRY2I_KERNEL, else what DIR says, else lut)\n";

static bool read_number(const char *name, const char *text, int64_t least, int64_t most, int64_t *out, problem *why) {
  char *end = NULL;
  errno = 0;
  long long value = strtoll(text, &end, 10);
  if (end == text || *end || errno || isspace((unsigned char)*text) || value < least || value > most) {
    return problem_set(why, "%s: expected an integer from %lld to %lld, got '%s'", name, (long long)least,
                       (long long)most, text);
  }
  *out = value;
  return true;
}

static bool add_token(options *out, const char *text, problem *why) {
  int64_t token = 0;
  if (!read_number("token", text, 0, INT32_MAX, &token, why)) return false;
  if (out->count == MOST_TOKENS)
    return problem_set(why, "more than %d tokens: no model has such a context", MOST_TOKENS);
  if ((out->count & (out->count - 1)) == 0) { /* full: 0, 1, 2, 4 ... */
    int64_t *larger = realloc(out->tokens, (out->count ? 2 * out->count : 1) * sizeof *larger);
    if (!larger) return problem_set(why, "no memory for the tokens");
    out->tokens = larger;
  }
  out->tokens[out->count++] = token;
  return true;
}

static bool read_input(options *out, problem *why) {
  char word[WORD_BYTES];
  size_t length = 0;
  for (int c = 0; c != EOF;) {
    c = getchar();
    if (c == 0) return problem_set(why, "standard input: expected token ids, found a zero byte");
    if (c != EOF && c != ',' && !isspace(c)) {
      if (length + 1 == sizeof word)
        return problem_set(why, "standard input: expected token ids, found '%.*s...'", (int)length, word);
      word[length++] = (char)c;
    } else if (length) {
      word[length] = '\0';
      length = 0;
      if (!add_token(out, word, why)) return false;
    }
  }
  if (ferror(stdin)) return problem_set(why, "standard input cannot be read: %s", strerror(errno));
  return out->count ||
         problem_set(why, "expected at least one token id, as an argument or on standard input; see --help");
}

/* An option with its value. Returns false without a problem if it is none that we know. */
static bool read_option(options *out, const char *name, const char *value, problem *why) {
  int64_t number = 0;
  if (strcmp(name, "--library") == 0) {
    out->session.library = value;
  } else if (strcmp(name, "--onnxruntime") == 0) {
    out->session.onnxruntime = value;
  } else if (strcmp(name, "--kernel") == 0) {
    out->session.kernel = value;
  } else if (strcmp(name, "--max-new-tokens") == 0) {
    return read_number(name, value, 0, MOST_TOKENS, &out->max_new_tokens, why);
  } else if (strcmp(name, "--context") == 0) {
    return read_number(name, value, 1, MOST_TOKENS, &out->context, why);
  } else if (strcmp(name, "--threads") == 0) {
    if (!read_number(name, value, 1, MOST_THREADS, &number, why)) return false;
    out->session.threads = (int)number;
  } else {
    return problem_set(why, "there is no option %s; see --help", name);
  }
  return true;
}

static bool read_arguments(int argc, char **argv, options *out, problem *why) {
  for (int i = 1; i < argc; i++) {
    if (argv[i][0] == '-' && argv[i][1] == '-') {
      if (i + 1 == argc) return problem_set(why, "%s: expected a value behind it; see --help", argv[i]);
      if (!read_option(out, argv[i], argv[i + 1], why)) return false;
      i++;
    } else if (!out->folder) {
      out->folder = argv[i];
    } else if (!add_token(out, argv[i], why)) {
      return false;
    }
  }
  if (!out->folder) return problem_set(why, "expected a model folder; see --help");
  return out->count || read_input(out, why);
}

command options_read(int argc, char **argv, options *out, problem *why) {
  const char *library = getenv("FAIRY2I_LIBRARY");
  memset(out, 0, sizeof *out);
  out->session.library = library && *library ? library : OPERATOR_LIBRARY;
  out->session.onnxruntime = DEFAULT_ONNXRUNTIME;
  out->max_new_tokens = 128;
  for (int i = 1; i < argc; i++) {
    if (strcmp(argv[i], "--help") == 0) return COMMAND_HELP;
  }
  if (read_arguments(argc, argv, out, why)) return COMMAND_RUN;
  options_close(out);
  return COMMAND_WRONG;
}

void options_close(options *read) {
  free(read->tokens);
  read->tokens = NULL;
}
