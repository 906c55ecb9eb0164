// chat.hpp - a conversation, or, for a model without a chat template, texts that are continued.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "model.hpp"

struct OutputFailure : Failure {
  using Failure::Failure;
};

// Throws an OutputFailure that says why what was written could not be.
void flush_output();

class Chat {
 public:
  Chat(OpenModel opened, const Options &options);

  // Why there is no conversation; empty if there is one.
  const std::string &template_problem() const { return template_problem_; }

  // Write the answer to a question, or a text's continuation, to standard output as it comes. What fails is no turn.
  void answer(const std::string &text);

 private:
  using Messages = std::vector<std::pair<std::string, std::string>>;  // role, content

  std::string render(const Messages &messages) const;
  void prepare(const OgaSequences &tokens);
  void new_generator();

  OpenModel opened_;
  Options options_;
  std::int64_t capacity_;
  genai::Tokenizer tokenizer_;
  genai::Generator generator_;
  std::string template_problem_;
  Messages messages_;
};
