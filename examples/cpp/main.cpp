// fairy2i_chat: talk with an exported model in onnxruntime-genai, whose are tokenizer, sampling and key-value cache.
#include <cstring>
#include <iostream>
#include <new>

#include "chat.hpp"
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
    // onnxruntime's own std::bad_alloc comes as the text of an error
    const bool memory = std::strstr(failure.what(), "bad_alloc") != nullptr;
    std::cerr << "fairy2i_chat: " << (memory ? "not enough memory: " : "") << failure.what() << '\n';
    return memory ? 1 : 2;
  } catch (const std::bad_alloc &) {
    std::cerr << "fairy2i_chat: not enough memory\n";
    return 1;
  }
  return 0;
}
