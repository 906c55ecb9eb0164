#include "sampling.hpp"

#include <fstream>
#include <iterator>

#include "json.hpp"
#include "shared/python_values.h"

namespace {

// A file of the folder, or null if it is not there or is no JSON: onnxruntime-genai has read what it needs of it.
json::Object read(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  return json::Object(cJSON_ParseWithLength(text.data(), text.size()));
}

const cJSON *member(const cJSON *object, const char *name) { return cJSON_GetObjectItemCaseSensitive(object, name); }

struct Search {
  explicit Search(OgaGeneratorParams &changed) : params(changed) {}
  void number(const char *name, double value) const {
    genai::check(genai::api().OgaGeneratorParamsSetSearchNumber(&params, name, value), name);
  }
  void draw(bool draws) const {
    genai::check(genai::api().OgaGeneratorParamsSetSearchBool(&params, "do_sample", draws), "do_sample");
  }
  OgaGeneratorParams &params;
};

// As `fairy2i chat` does: what generation_config.json says of a penalty, or that nothing be drawn, holds beside its
// values.
void converse(const Search &search, const std::string &folder) {
  const json::Object config = read(folder + "/genai_config.json");
  if (cJSON_IsTrue(member(member(config.get(), "search"), "do_sample"))) return;  // with values of its own
  const json::Object source = read(folder + "/generation_config.json");
  search.draw(!cJSON_IsFalse(member(source.get(), "do_sample")));
  search.number("temperature", CHAT_TEMPERATURE);
  search.number("top_k", 0);  // all
  search.number("top_p", CHAT_TOP_P);
  if (!cJSON_IsNumber(member(source.get(), "repetition_penalty")))
    search.number("repetition_penalty", CHAT_REPETITION_PENALTY);
}

}  // namespace

void set_sampling(OgaGeneratorParams &params, const Options &options, bool conversation) {
  const Search search(params);
  if (options.greedy) {
    search.draw(false);
    return;
  }
  if (conversation) converse(search, options.folder);
  if (options.temperature || options.top_k || options.top_p || options.seed) search.draw(true);
  if (options.temperature) search.number("temperature", *options.temperature);
  if (options.top_k) search.number("top_k", static_cast<double>(*options.top_k));
  if (options.top_p) search.number("top_p", *options.top_p);
  if (options.seed) search.number("random_seed", static_cast<double>(*options.seed));
}
