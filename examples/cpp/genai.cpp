#include "genai.hpp"

#include <cstdlib>
#include <cstring>
#include <exception>
#include <iostream>

#include "shared/library.h"

namespace {

GenaiApi functions;
std::string loading;

// onnxruntime-genai looks for onnxruntime as it is loaded, and there is nobody to catch what it throws then.
[[noreturn]] void say_why_not() {
  std::string reason = "it gives no reason";
  try {
    if (const auto thrown = std::current_exception()) std::rethrow_exception(thrown);
  } catch (const std::exception &error) {
    reason = error.what();
  } catch (...) {
  }
  std::cerr << "fairy2i_chat: " << loading << " does not take the onnxruntime it is given: " << reason
            << "; pip install --upgrade onnxruntime onnxruntime-genai\n";
  std::_Exit(2);
}

}  // namespace

void genai::load(const std::string &path) {
  const char *what = "onnxruntime-genai's shared library";
  problem why;
  loading = path;
  const auto former = std::set_terminate(say_why_not);
  void *handle = library_open(what, path.c_str(),
                              "give its path with --genai; pip install onnxruntime-genai puts it into "
                              "site-packages/onnxruntime_genai/libonnxruntime-genai.so",
                              &why);  // stays loaded until the program ends
  std::set_terminate(former);
  if (handle == nullptr) throw Failure(why.text);
  const auto find = [&](auto &function, const char *name) {
    void *found = library_function(handle, name, path.c_str(), what, &why);
    if (found == nullptr) throw Failure(why.text);
    std::memcpy(&function, &found, sizeof function);
  };
#define GENAI_FIND(result, name, arguments) find(functions.name, #name);
  GENAI_FUNCTIONS(GENAI_FIND)
#undef GENAI_FIND
}

const GenaiApi &genai::api() { return functions; }
