#include "options.hpp"

#include <getopt.h>

#include <cerrno>
#include <cmath>
#include <cstdlib>

#include "genai.hpp"
#include "shared/library.h"
#include "shared/python_values.h"

#define TEXT_OF(value) TEXT_OF_(value)
#define TEXT_OF_(value) #value

const char *const kHelp =
    "fairy2i_chat DIR [options]\n"
    "Talk with a model in a folder written by fairy2i-export, or let it continue a text if it has no chat template.\n"
    "  --prompt TEXT        answer this and end; without it, a question a line is read until an empty one\n"
    "  --library PATH       the operator library (default: $FAIRY2I_LIBRARY, else " OPERATOR_LIBRARY
    " of the system's loader)\n"
    "  --onnxruntime PATH   onnxruntime's shared library (default: " DEFAULT_ONNXRUNTIME
    ")\n"
    "  --genai PATH         onnxruntime-genai's shared library (default: " DEFAULT_GENAI
    ")\n"
    "  --max-new-tokens N   the most tokens of an answer, 1 or more (default: 256)\n"
    "  --context N          room for the conversation, allocated at once: 1 to what the model was built for (default: that,\n"
    "                       2048 at most)\n"
    "  --threads N          threads to run with, 1 to 1024 (default: one per physical core)\n"
    "  --kernel NAME        lut, exact, dot or auto (default: $FAIRY2I_KERNEL, else what DIR says, else lut)\n"
    "  --greedy             always the likeliest token\n"
    "  --temperature T      draw tokens, the likely ones more often the lower it is; 0.000001 to 1000000\n"
    "  --top-k K            ... among the K most likely ones, 1 to 16777216\n"
    "  --top-p P            ... among the most likely ones of this total probability, 0.000001 to 1\n"
    "  --seed N             ... in a repeatable way, 0 to 2147483647\n"
    "What is not given is as DIR recommends. Where it recommends nothing, answers in a conversation are drawn at a temperature "
    "of\n" TEXT_OF(CHAT_TEMPERATURE) " with a total probability of " TEXT_OF(CHAT_TOP_P) " and a repetition penalty of " TEXT_OF(
        CHAT_REPETITION_PENALTY) ", as by fairy2i chat; a --prompt for a model without a\n"
    "chat template is continued by the likeliest tokens.\n";

namespace {

double number(const std::string &name, const char *text, double least, double most, const char *expected) {
  char *end = nullptr;
  errno = 0;
  const double value = std::strtod(text, &end);
  if (end == text || *end != '\0' || errno != 0 || !(value >= least && value <= most)) {
    throw Failure("--" + name + ": expected " + expected + ", got '" + text + "'");
  }
  return value;
}

std::int64_t integer(const std::string &name, const char *text, std::int64_t least, std::int64_t most) {
  const std::string expected = "an integer from " + std::to_string(least) + " to " + std::to_string(most);
  const double value = number(name, text, static_cast<double>(least), static_cast<double>(most), expected.c_str());
  if (value != std::floor(value)) throw Failure("--" + name + ": expected " + expected + ", got '" + text + "'");
  return static_cast<std::int64_t>(value);
}

constexpr std::int64_t kMostTokens = 1 << 24, kMostThreads = 1024;

const option kKnown[] = {{"prompt", required_argument, nullptr, 'i'},
                         {"library", required_argument, nullptr, 'l'},
                         {"onnxruntime", required_argument, nullptr, 'o'},
                         {"genai", required_argument, nullptr, 'G'},
                         {"max-new-tokens", required_argument, nullptr, 'm'},
                         {"context", required_argument, nullptr, 'c'},
                         {"threads", required_argument, nullptr, 't'},
                         {"kernel", required_argument, nullptr, 'k'},
                         {"greedy", no_argument, nullptr, 'g'},
                         {"temperature", required_argument, nullptr, 'T'},
                         {"top-k", required_argument, nullptr, 'K'},
                         {"top-p", required_argument, nullptr, 'P'},
                         {"seed", required_argument, nullptr, 's'},
                         {"help", no_argument, nullptr, 'h'},
                         {nullptr, 0, nullptr, 0}};

void read_option(Options &options, int option, const char *value) {
  switch (option) {
    case 'i':
      options.prompt = value;
      break;
    case 'l':
      options.library = value;
      break;
    case 'o':
      options.onnxruntime = value;
      break;
    case 'G':
      options.genai = value;
      break;
    case 'k':
      options.kernel = value;
      break;
    case 'm':
      options.max_new_tokens = integer("max-new-tokens", value, 1, kMostTokens);
      break;
    case 'c':
      options.context = integer("context", value, 1, kMostTokens);
      break;
    case 't':
      options.threads = integer("threads", value, 1, kMostThreads);
      break;
    case 'g':
      options.greedy = true;
      break;
    case 'T':
      options.temperature =
          number("temperature", value, 1e-6, 1e6, "a number from 0.000001 to 1000000; --greedy draws nothing");
      break;
    case 'K':
      options.top_k = integer("top-k", value, 1, kMostTokens);
      break;
    case 'P':
      options.top_p = number("top-p", value, 1e-6, 1, "a number from 0.000001 to 1");
      break;
    case 's':
      options.seed = integer("seed", value, 0, INT32_MAX);
      break;
    default:
      options.help = true;
  }
}

}  // namespace

Options read_options(int argc, char **argv) {
  Options options;
  const char *library = std::getenv("FAIRY2I_LIBRARY");
  options.library = library != nullptr && *library != '\0' ? library : OPERATOR_LIBRARY;
  options.onnxruntime = DEFAULT_ONNXRUNTIME;
  options.genai = DEFAULT_GENAI;
  opterr = 0;  // the message is ours
  for (int found; (found = getopt_long(argc, argv, ":", kKnown, nullptr)) != -1;) {
    if (found == ':' || found == '?') {
      throw Failure(std::string(argv[optind - 1]) +
                    (found == ':' ? ": expected a value behind it" : ": there is no such option") + "; see --help");
    }
    read_option(options, found, optarg);
  }
  if (options.help) return options;
  if (optind == argc) throw Failure("expected a model folder; see --help");
  options.folder = argv[optind];
  if (optind + 1 < argc) {
    throw Failure(std::string("expected one model folder, found also '") + argv[optind + 1] +
                  "'; a text goes behind --prompt");
  }
  if (options.greedy && (options.temperature || options.top_k || options.top_p || options.seed)) {
    throw Failure("--greedy draws nothing: leave it out, or --temperature, --top-k, --top-p and --seed");
  }
  return options;
}
