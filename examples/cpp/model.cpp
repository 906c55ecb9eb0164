#include "model.hpp"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "json.hpp"
#include "shared/folder.h"
#include "shared/library.h"
#include "shared/onnxruntime.h"
#include "shared/weights.h"

namespace {

namespace fs = std::filesystem;

struct Folder : model_folder {
  explicit Folder(const std::string &path) : model_folder() {
    problem why;
    if (!folder_open(path.c_str(), this, &why)) throw Failure(why.text);
  }
  ~Folder() { folder_close(this); }
  Folder(const Folder &) = delete;
  Folder &operator=(const Folder &) = delete;
};

std::string contents(const fs::path &path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// onnxruntime-genai looks for a library's name in the model folder and in the working directory first.
void check_no_other_library(const std::string &folder, const std::string &library) {
  for (const fs::path &place : {fs::path(folder), fs::current_path()}) {
    const fs::path other = place / OPERATOR_LIBRARY;
    std::error_code ignored;
    if (!fs::is_regular_file(other, ignored) || !fs::is_regular_file(library, ignored)) continue;
    if (!fs::equivalent(other, library, ignored) && contents(other) != contents(library)) {
      throw Failure(other.string() + " is another library than " + library +
                    ", and onnxruntime-genai would run it: remove it, or work in another directory");
    }
  }
}

// What is laid over genai_config.json, in memory.
std::string overlay(const Options &options, const Folder &folder) {
  const json::Object root(cJSON_CreateObject());
  cJSON *decoder = cJSON_AddObjectToObject(cJSON_AddObjectToObject(root.get(), "model"), "decoder");
  cJSON *session = cJSON_AddObjectToObject(decoder, "session_options");
  cJSON_AddNumberToObject(session, "log_severity_level", 4);  // fatal only: errors are told once
  if (options.threads || !folder.names_threads) {             // 0: onnxruntime takes one per physical core
    cJSON_AddNumberToObject(session, "intra_op_num_threads", static_cast<double>(options.threads.value_or(0)));
  }
  if (folder.needs_library) {
    cJSON_AddStringToObject(session, "custom_ops_library", OPERATOR_LIBRARY);
    const char *chosen = std::getenv("FAIRY2I_KERNEL");  // else the folder's entry would come before it
    const char *kernel = options.kernel                         ? options.kernel->c_str()
                         : chosen != nullptr && *chosen != '\0' ? chosen
                                                                : nullptr;
    if (kernel != nullptr) cJSON_AddStringToObject(session, "fairy2i.kernel", kernel);
  } else if (options.kernel) {
    throw Failure("--kernel: " + options.folder +
                  " was exported for hosts without the operator library, and has no kernel to "
                  "choose; leave it out");
  }
  const json::Text text(cJSON_PrintUnformatted(root.get()));
  if (!text) throw Failure("not enough memory for a configuration");
  return text.get();
}

}  // namespace

OpenModel open_model(const Options &options) {
  const Folder folder(options.folder);
  problem why;
  setenv("ORT_DISABLE_TELEMETRY", "1", 0);  // unless somebody asks for it, nothing is reported to anyone
  // Loaded by path here, they are found by name when onnxruntime-genai asks for them; so they stay loaded.
  if (onnxruntime_open(options.onnxruntime.c_str(), &why) == nullptr) throw Failure(why.text);
  setenv("ORT_LIB_PATH", options.onnxruntime.c_str(), 1);  // where onnxruntime-genai looks first
  genai::load(options.genai);
  if (folder.needs_library) {
    const char *library = library_open_by_name(options.library.c_str(), &why);
    if (library == nullptr) throw Failure(why.text);
    check_no_other_library(options.folder, library);
  }
  const auto config = genai::make<genai::Config>(options.folder, genai::api().OgaCreateConfig, options.folder.c_str());
  genai::check(genai::api().OgaConfigOverlay(config.get(), overlay(options, folder).c_str()), options.folder);
  try {
    return {genai::make<genai::Model>(options.folder, genai::api().OgaCreateModelFromConfig, config.get()),
            folder.context_length};
  } catch (const Failure &failure) {
    if (weights_explain(folder.model_file, failure.what(), &why)) throw Failure(why.text);
    throw;
  }
}
