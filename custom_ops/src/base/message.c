/* message.c - error texts. */
#include "base/message.h"

#include <stdarg.h>
#include <stdio.h>

/* Bytes of the character that begins here, 0 if it is none in UTF-8 (cut off, for instance) or one that is not shown.
 */
static size_t character(const unsigned char *text) {
  static const unsigned least[] = {0, 0, 0x80, 0x800, 0x10000};
  size_t length = text[0] < 0x80                      ? 1
                  : text[0] >= 0xf0 && text[0] < 0xf8 ? 4
                  : text[0] >= 0xe0                   ? 3
                  : text[0] >= 0xc0                   ? 2
                                                      : 0;
  unsigned code = length == 1 ? text[0] : text[0] & (0x7fu >> length);
  if (length == 0 || text[0] >= 0xf8) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((text[i] & 0xc0) != 0x80) return 0; /* also at the final NUL */
    code = code << 6 | (text[i] & 0x3fu);
  }
  if (code < least[length] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) return 0;
  return code < 0x20 || (code >= 0x7f && code < 0xa0) ? 0 : length;
}

/* Names of nodes are somebody else's, and are cut to fit: what is no character becomes a question mark. */
static void clean(char *text) {
  while (*text != '\0') {
    size_t length = character((const unsigned char *)text);
    if (length == 0) *text = '?';
    text += length == 0 ? 1 : length;
  }
}

f2i_status f2i_fail(f2i_message *message, f2i_status status, const char *format, ...) {
  if (message != NULL) {
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(message->text, sizeof message->text, format, arguments);
    va_end(arguments);
    clean(message->text);
  }
  return status;
}

f2i_status f2i_ok(f2i_message *message) {
  if (message != NULL) message->text[0] = '\0';
  return F2I_OK;
}
