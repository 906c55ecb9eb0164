/* library.h - open a shared library, or say why not. Linux and other systems with dlopen. */
#ifndef LIBRARY_H
#define LIBRARY_H

#include "shared/problem.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The name by which the system's loader knows the operator library once it is loaded: its soname. */
#define OPERATOR_LIBRARY "libfairy2i_ops.so"

/* Open a library. Returns a handle for dlsym and dlclose, or NULL.
 *   what    what a message calls it, such as "the operator library"
 *   path    its path; a name without a slash is left to the system's loader (LD_LIBRARY_PATH, /etc/ld.so.conf)
 *   advice  what to do where there is none */
void *library_open(const char *what, const char *path, const char *advice, problem *out);

/* Open the operator library so that its soname means it for everybody in this process from now on. onnxruntime-genai
 * takes a library by such a name, and by no path outside the model folder. Returns the path of the file that was
 * loaded, which the loader owns, or NULL, also if another library of that name was loaded earlier. */
const char *library_open_by_name(const char *path, problem *out);

/* A function of an open library, or NULL. */
void *library_function(void *handle, const char *name, const char *path, const char *what, problem *out);

/* Open the operator library for as long as the process lives, since it keeps its operators for all sessions, and return
 * its function that registers them (OrtStatus *(OrtSessionOptions *, const OrtApiBase *)), or NULL. */
void *library_open_operators(const char *path, problem *out);

#ifdef __cplusplus
}
#endif
#endif
