// options.hpp - the command line.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

struct Options {
  std::string folder;
  std::string library;             // path of the operator library
  std::string onnxruntime, genai;  // paths or names of their shared libraries
  std::optional<std::string> prompt, kernel;
  std::int64_t max_new_tokens = 256;
  std::optional<std::int64_t> context, threads, top_k, seed;
  std::optional<double> temperature, top_p;
  bool greedy = false;  // else the four above, or what sampling.hpp says
  bool help = false;
};

extern const char *const kHelp;

// Throws a Failure that says what is wrong.
Options read_options(int argc, char **argv);
