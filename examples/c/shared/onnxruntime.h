/* onnxruntime.h - open onnxruntime's shared library when the program starts. */
#ifndef SHARED_ONNXRUNTIME_H
#define SHARED_ONNXRUNTIME_H

#include "onnxruntime_c_api.h"
#include "shared/problem.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The oldest C API, and so the oldest onnxruntime 1.N, that will do: from 1.24 on a kernel reads its session's entries.
 */
#define NEEDED_API 24

/* Open it for as long as the process lives, and look at its version. Returns NULL if it is missing, none, or too old.
 * `path` is a path, or a name that is left to the system's loader. */
const OrtApiBase *onnxruntime_open(const char *path, problem *why);

#ifdef __cplusplus
}
#endif
#endif
