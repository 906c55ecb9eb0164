// genai.hpp - onnxruntime-genai's objects, destroyed when they go out of scope, and its errors as exceptions.
#pragma once

#include <memory>
#include <stdexcept>
#include <string>

#include "genai_api.h"

// What a user can cause and repair: one line.
struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

namespace genai {

// Open onnxruntime-genai, in a process that has onnxruntime loaded. Throws a Failure if it is missing, another
// version's, or does not take that onnxruntime.
void load(const std::string &path);

// Its functions, once it is loaded.
const GenaiApi &api();

// Destroys with one of them.
template <auto member>
struct Destroy {
  template <typename T>
  void operator()(T *object) const {
    (api().*member)(object);
  }
};

using Result = std::unique_ptr<OgaResult, Destroy<&GenaiApi::OgaDestroyResult>>;
using Config = std::unique_ptr<OgaConfig, Destroy<&GenaiApi::OgaDestroyConfig>>;
using Model = std::unique_ptr<OgaModel, Destroy<&GenaiApi::OgaDestroyModel>>;
using Tokenizer = std::unique_ptr<OgaTokenizer, Destroy<&GenaiApi::OgaDestroyTokenizer>>;
using TokenizerStream = std::unique_ptr<OgaTokenizerStream, Destroy<&GenaiApi::OgaDestroyTokenizerStream>>;
using Sequences = std::unique_ptr<OgaSequences, Destroy<&GenaiApi::OgaDestroySequences>>;
using Params = std::unique_ptr<OgaGeneratorParams, Destroy<&GenaiApi::OgaDestroyGeneratorParams>>;
using Generator = std::unique_ptr<OgaGenerator, Destroy<&GenaiApi::OgaDestroyGenerator>>;
using String = std::unique_ptr<const char, Destroy<&GenaiApi::OgaDestroyString>>;

// Throws a Failure with the message of a call that went wrong. `what` is what the message is about.
inline void check(OgaResult *raw, const std::string &what) {
  const Result result(raw);
  if (!result) return;
  std::string message = api().OgaResultGetError(result.get());
  for (char &c : message) {
    if (c == '\n' || c == '\r') c = ' ';
  }
  throw Failure(what + ": " + message);
}

// What a function makes that returns it through its last argument: make<Model>("DIR", OgaCreateModelFromConfig,
// config).
template <typename Owner, typename Function, typename... Arguments>
Owner make(const std::string &what, Function function, Arguments... arguments) {
  typename Owner::pointer object = nullptr;
  check(function(arguments..., &object), what);
  return Owner(object);
}

}  // namespace genai
