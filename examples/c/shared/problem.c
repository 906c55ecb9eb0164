#include "shared/problem.h"

#include <stdarg.h>
#include <stdio.h>

bool problem_set(problem *out, const char *format, ...) {
  va_list values;
  va_start(values, format);
  vsnprintf(out->text, sizeof out->text, format, values);
  va_end(values);
  for (char *c = out->text; *c; c++) {
    if (*c == '\n' || *c == '\r') *c = ' '; /* onnxruntime's messages have several lines */
  }
  return false;
}
