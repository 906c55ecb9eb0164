#include "utf8.hpp"

#include <cstddef>

#include "genai.hpp"

namespace {

// Bytes of the character that begins at `at`, or 0 if none does.
std::size_t character(const std::string &text, std::size_t at) {
  const auto byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const unsigned first = byte(at);
  if (first < 0x80) return first == 0 ? 0 : 1;
  const std::size_t length = first >= 0xC2 && first < 0xE0   ? 2
                             : first >= 0xE0 && first < 0xF0 ? 3
                             : first >= 0xF0 && first < 0xF5 ? 4
                                                             : 0;
  for (std::size_t i = 1; i < length; i++) {
    if ((byte(at + i) & 0xC0) != 0x80) return 0;
  }
  const unsigned second = byte(at + 1);  // no longer form than needed, no surrogates, nothing beyond U+10FFFF
  if ((first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F) || (first == 0xF0 && second < 0x90) ||
      (first == 0xF4 && second > 0x8F)) {
    return 0;
  }
  return length;
}

}  // namespace

void check_text(const std::string &what, const std::string &text) {
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t length = character(text, at);
    if (length == 0) {
      throw Failure(what + ": expected a text in UTF-8, found " + (text[at] == 0 ? "a zero byte" : "other bytes") +
                    " at byte " + std::to_string(at) + "; convert it to UTF-8");
    }
    at += length;
  }
}
