/* onnxruntime.h - open onnxruntime's shared library when the program starts. */
#ifndef SHARED_ONNXRUNTIME_H
#define SHARED_ONNXRUNTIME_H

#include "onnxruntime_c_api.h"
#include "shared/problem.h"
#include "shared/python_values.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The C API of the oldest onnxruntime that will do: 1.N has API N. */
#define NEEDED_API OLDEST_ONNXRUNTIME_MINOR

/* Open it for as long as the process lives, and look at its version. Returns NULL if it is missing, none, or too old.
 * `path` is a path, or a name that is left to the system's loader. */
const OrtApiBase *onnxruntime_open(const char *path, problem *why);

#ifdef __cplusplus
}
#endif
#endif
