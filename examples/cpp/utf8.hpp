// utf8.hpp - what may be given to a tokenizer.
#pragma once

#include <string>

// Throws a Failure unless a text is valid UTF-8 (RFC 3629) without zero bytes, at which C strings end. `what` is what
// the message is about.
void check_text(const std::string &what, const std::string &text);
