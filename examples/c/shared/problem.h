/* problem.h - why something failed: one line for the person who runs the program. */
#ifndef PROBLEM_H
#define PROBLEM_H

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct problem {
  char text[1024]; /* what was expected, what was found, where, what to do; cut off at the end if it is longer */
} problem;

/* Whether a message, ours, onnxruntime's or onnxruntime-genai's, says that memory did not suffice. */
bool problem_is_memory(const char *text);

#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
/* Write the line, as printf does; line breaks become spaces. Returns false, for: return problem_set(...). */
bool problem_set(problem *out, const char *format, ...);

#ifdef __cplusplus
}
#endif
#endif
