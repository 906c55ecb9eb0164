// fairy2i_chat: talk with an exported model in onnxruntime-genai, whose are tokenizer, sampling and key-value cache.
#include <iostream>
#include <new>
#include <string>

#include "chat.hpp"
#include "shared/problem.h"
#include "utf8.hpp"

namespace {

void converse(Chat &chat) {
  if (!chat.template_problem().empty()) {
    std::cerr << "This model continues what you write, every line anew: " << chat.template_problem() << '\n';
  }
  std::string line;
  while (std::cin) {
    std::cout << "> ";
    flush_output();
    if (!std::getline(std::cin, line) || line.empty()) break;
    try {
      check_text("the line", line);
      chat.answer(line);
      std::cout << '\n';
    } catch (const OutputFailure &) {  // nobody would read further answers
      throw;
    } catch (const Failure &failure) {  // the conversation is longer than the context, for instance
      std::cerr << "fairy2i_chat: " << failure.what() << '\n';
    }
  }
  if (!std::cin) std::cout << '\n';  // Ctrl-D leaves the cursor behind the prompt
}

struct Shutdown {  // behind everything that is made of it
  ~Shutdown() {
    if (genai::api().OgaShutdown != nullptr) genai::api().OgaShutdown();
  }
};

void run(const Options &options) {
  const Shutdown last;
  Chat chat(open_model(options), options);
  if (options.prompt) {
    check_text("--prompt", *options.prompt);
    chat.answer(*options.prompt);
    std::cout << '\n';
  } else {
    converse(chat);
  }
  flush_output();
}

}  // namespace

int main(int argc, char **argv) {
  try {
    const Options options = read_options(argc, argv);
    if (options.help) {
      std::cout << kHelp;
      flush_output();
      return 0;
    }
    run(options);
  } catch (const Failure &failure) {
    const std::string text = failure.what();
    const bool memory = problem_is_memory(text.c_str());  // onnxruntime's own std::bad_alloc comes as a text
    const bool prefix = memory && text.find("not enough") == std::string::npos;
    std::cerr << "fairy2i_chat: " << (prefix ? "not enough memory: " : "") << text << '\n';
    return memory ? 1 : 2;
  } catch (const std::bad_alloc &) {
    std::cerr << "fairy2i_chat: not enough memory\n";
    return 1;
  }
  return 0;
}
