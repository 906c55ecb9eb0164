#include "shared/problem.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

bool problem_is_memory(const char *text) {
  static const char *const words[] = {"not enough memory", "bad_alloc", "ould not allocate"};
  for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
    if (strstr(text, words[i])) return true;
  }
  return false;
}

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
