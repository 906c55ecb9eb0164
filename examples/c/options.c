#include "options.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
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
    "  --max-new-tokens N   stop after that many, 0 or more (default: 128)\n"
    "  --context N          room for the prompt and what follows, 1 to what the model was built for (default)\n"
    "  --threads N          threads to run with, 1 to 1024 (default: one per physical core)\n"
    "  --kernel NAME        lut, exact, dot or auto (default: $FAIRY2I_KERNEL, else what DIR says, else lut)\n";

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
    if (!larger) return problem_set(why, "not enough memory for the tokens");
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

static bool read_option(options *out, int option, const char *value, problem *why) {
  int64_t threads = 0;
  switch (option) {
    case 'l':
      out->session.library = value;
      return true;
    case 'o':
      out->session.onnxruntime = value;
      return true;
    case 'k':
      out->session.kernel = value;
      return true;
    case 'm':
      return read_number("--max-new-tokens", value, 0, MOST_TOKENS, &out->max_new_tokens, why);
    case 'c':
      return read_number("--context", value, 1, MOST_TOKENS, &out->context, why);
    default:
      if (!read_number("--threads", value, 1, MOST_THREADS, &threads, why)) return false;
      out->session.threads = (int)threads;
      return true;
  }
}

static bool read_operands(int argc, char **argv, options *out, problem *why) {
  if (optind == argc) return problem_set(why, "expected a model folder; see --help");
  out->folder = argv[optind];
  for (int i = optind + 1; i < argc; i++) {
    if (!add_token(out, argv[i], why)) return false;
  }
  return out->count || read_input(out, why);
}

static const struct option known[] = {
    {"library", required_argument, NULL, 'l'}, {"onnxruntime", required_argument, NULL, 'o'},
    {"kernel", required_argument, NULL, 'k'},  {"max-new-tokens", required_argument, NULL, 'm'},
    {"context", required_argument, NULL, 'c'}, {"threads", required_argument, NULL, 't'},
    {"help", no_argument, NULL, 'h'},          {NULL, 0, NULL, 0}};

command options_read(int argc, char **argv, options *out, problem *why) {
  const char *library = getenv("FAIRY2I_LIBRARY");
  memset(out, 0, sizeof *out);
  out->session.library = library && *library ? library : OPERATOR_LIBRARY;
  out->session.onnxruntime = DEFAULT_ONNXRUNTIME;
  out->max_new_tokens = 128;
  bool good = true;
  opterr = 0; /* the message is ours */
  for (int option; good && (option = getopt_long(argc, argv, ":", known, NULL)) != -1;) {
    if (option == 'h') return COMMAND_HELP;
    if (option == ':' || option == '?') {
      good = problem_set(why, "%s: %s; see --help", argv[optind - 1],
                         option == ':' ? "expected a value behind it" : "there is no such option");
    } else {
      good = read_option(out, option, optarg, why);
    }
  }
  if (good && read_operands(argc, argv, out, why)) return COMMAND_RUN;
  options_close(out);
  return COMMAND_WRONG;
}

void options_close(options *read) {
  free(read->tokens);
  read->tokens = NULL;
}
