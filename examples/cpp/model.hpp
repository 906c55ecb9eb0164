// model.hpp - an exported folder in onnxruntime-genai: nothing is copied into it, no path is written into it.
#pragma once

#include <cstdint>

#include "genai.hpp"
#include "options.hpp"

struct OpenModel {
  genai::Model model;
  std::int64_t context_length;  // the most tokens it was built for
};

// Open the folder of the options. Throws a Failure if a library or the folder is missing, or not what it should be.
OpenModel open_model(const Options &options);
