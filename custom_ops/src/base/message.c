/* message.c - error texts. */
#include "base/message.h"

#include <stdarg.h>
#include <stdio.h>

f2i_status f2i_fail(f2i_message *message, f2i_status status, const char *format, ...) {
  if (message != NULL) {
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(message->text, sizeof message->text, format, arguments);
    va_end(arguments);
  }
  return status;
}

f2i_status f2i_ok(f2i_message *message) {
  if (message != NULL) message->text[0] = '\0';
  return F2I_OK;
}
