#include "chat.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iostream>

#include "json.hpp"
#include "sampling.hpp"

namespace {

constexpr std::int64_t kUsualContext = 2048;  // onnxruntime-genai allocates the cache for all of it at once

std::int64_t chosen_context(const OpenModel &opened, const Options &options) {
  if (!options.context) return std::min(kUsualContext, opened.context_length);
  if (*options.context <= opened.context_length) return *options.context;
  throw Failure("--context: expected 1 to " + std::to_string(opened.context_length) +
                " (what the model was built for), got " + std::to_string(*options.context));
}

}  // namespace

void flush_output() {
  errno = 0;
  if (!std::cout.flush()) {
    throw OutputFailure(std::string("standard output cannot be written: ") +
                        (errno != 0 ? std::strerror(errno) : "it is closed"));
  }
}

Chat::Chat(OpenModel opened, const Options &options)
    : opened_(std::move(opened)),
      options_(options),
      capacity_(chosen_context(opened_, options)),
      tokenizer_(genai::make<genai::Tokenizer>(options.folder, genai::api().OgaCreateTokenizer, opened_.model.get())) {
  try {
    render({{"user", "Hello"}});
  } catch (const Failure &failure) {
    template_problem_ = failure.what();
  }
  // a template writes the tokens at the beginning of a text itself; elsewhere the tokenizer has to add them
  const char *name = "add_special_tokens", *value = template_problem_.empty() ? "false" : "true";
  genai::check(genai::api().OgaUpdateTokenizerOptions(tokenizer_.get(), &name, &value, 1), options.folder);
}

std::string Chat::render(const Messages &messages) const {
  const json::Object list(cJSON_CreateArray());
  for (const auto &[role, content] : messages) {
    cJSON *message = cJSON_CreateObject();
    cJSON_AddItemToArray(list.get(), message);
    cJSON_AddStringToObject(message, "role", role.c_str());
    cJSON_AddStringToObject(message, "content", content.c_str());
  }
  const json::Text json(cJSON_PrintUnformatted(list.get()));
  if (!json) throw Failure("not enough memory for the conversation");
  const char *no_template = nullptr, *no_tools = nullptr;
  return genai::make<genai::String>("chat template", genai::api().OgaTokenizerApplyChatTemplate, tokenizer_.get(),
                                    no_template, json.get(), no_tools, true)
      .get();
}

void Chat::new_generator() {
  const auto params =
      genai::make<genai::Params>("search options", genai::api().OgaCreateGeneratorParams, opened_.model.get());
  genai::check(
      genai::api().OgaGeneratorParamsSetSearchNumber(params.get(), "max_length", static_cast<double>(capacity_)),
      "max_length");
  set_sampling(*params, options_, template_problem_.empty() || !options_.prompt);
  generator_.reset();  // before there is another: each has a cache
  generator_ =
      genai::make<genai::Generator>("generator", genai::api().OgaCreateGenerator, opened_.model.get(), params.get());
}

// Have the generator read the tokens. What its cache has of them already, from earlier turns, is kept.
void Chat::prepare(const OgaSequences &tokens) {
  const int32_t *wanted = genai::api().OgaSequencesGetSequenceData(&tokens, 0);
  const std::size_t count = genai::api().OgaSequencesGetSequenceCount(&tokens, 0);
  if (count == 0) throw Failure("expected a text, found an empty one");
  if (count >= static_cast<std::size_t>(capacity_)) {
    throw Failure(std::to_string(count) + " tokens leave no room for another in the context of " +
                  std::to_string(capacity_) + "; begin anew, or give a larger --context if the model was made for one");
  }
  std::size_t same = 0;
  if (generator_) {
    const int32_t *read = genai::api().OgaGenerator_GetSequenceData(generator_.get(), 0);
    const std::size_t most = std::min(genai::api().OgaGenerator_GetSequenceCount(generator_.get(), 0), count - 1);
    while (same < most && read[same] == wanted[same]) same++;
  }
  if (same == 0) {
    new_generator();
  } else {
    genai::check(genai::api().OgaGenerator_RewindTo(generator_.get(), same), "earlier turns");
  }
  genai::check(genai::api().OgaGenerator_AppendTokens(generator_.get(), wanted + same, count - same),
               "reading the text");
}

void Chat::answer(const std::string &text) {
  Messages asked = messages_;
  asked.emplace_back("user", text);
  const auto tokens = genai::make<genai::Sequences>("tokens", genai::api().OgaCreateSequences);
  const std::string all = template_problem_.empty() ? render(asked) : text;
  genai::check(genai::api().OgaTokenizerEncode(tokenizer_.get(), all.c_str(), tokens.get()), "tokenizer");
  std::string answer;
  try {
    prepare(*tokens);
    const auto stream =
        genai::make<genai::TokenizerStream>("tokenizer", genai::api().OgaCreateTokenizerStream, tokenizer_.get());
    for (std::int64_t i = 0; i < options_.max_new_tokens && !genai::api().OgaGenerator_IsDone(generator_.get()); i++) {
      genai::check(genai::api().OgaGenerator_GenerateNextToken(generator_.get()), "generating");
      const int32_t *next = nullptr;
      std::size_t count = 0;
      const char *piece = nullptr;
      genai::check(genai::api().OgaGenerator_GetNextTokens(generator_.get(), &next, &count), "generating");
      genai::check(genai::api().OgaTokenizerStreamDecode(stream.get(), next[0], &piece), "tokenizer");
      std::cout << piece;
      flush_output();
      answer += piece;
    }
  } catch (const Failure &) {
    generator_.reset();  // in what state its cache is, nobody knows
    throw;
  }
  if (!template_problem_.empty()) return;
  asked.emplace_back("assistant", answer);
  messages_ = std::move(asked);
}
