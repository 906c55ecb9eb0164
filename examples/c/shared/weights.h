/* weights.h - why onnxruntime did not open a model, where its weights are the reason. */
#ifndef WEIGHTS_H
#define WEIGHTS_H

#include "shared/problem.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Say that the file with the weights of `model_file` is missing or ends too early, if that is what onnxruntime means by
 * what it `said`. Returns whether it is; else nothing is written. */
bool weights_explain(const char *model_file, const char *said, problem *out);

#ifdef __cplusplus
}
#endif
#endif
