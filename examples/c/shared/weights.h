/* weights.h - the file with the weights of a model, and whether it is why onnxruntime does not open it. */
#ifndef WEIGHTS_H
#define WEIGHTS_H

#include "shared/problem.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Whether that file, if it is there, can be one: onnxruntime waits for ever to read from a pipe. */
bool weights_check(const char *model_file, problem *out);

/* Say that the file with the weights of `model_file` is missing or ends too early, if that is what onnxruntime means by
 * what it `said`. Returns whether it is; else nothing is written. */
bool weights_explain(const char *model_file, const char *said, problem *out);

#ifdef __cplusplus
}
#endif
#endif
