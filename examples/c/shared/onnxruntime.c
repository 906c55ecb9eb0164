#include "shared/onnxruntime.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "shared/library.h"

#define ADVICE                                                              \
  "give its path with --onnxruntime; pip install onnxruntime puts it into " \
  "site-packages/onnxruntime/capi/libonnxruntime.so.VERSION"

const OrtApiBase *onnxruntime_open(const char *path, problem *why) {
  const char *what = "onnxruntime's shared library";
  void *handle = library_open(what, path, ADVICE, why);
  if (!handle) return NULL;
  const OrtApiBase *(*get_api_base)(void) = NULL;
  void *function = library_function(handle, "OrtGetApiBase", path, what, why);
  if (function) {
    memcpy(&get_api_base, &function, sizeof get_api_base); /* ISO C has no other way from one pointer to the other */
    const OrtApiBase *base = get_api_base();
    /* asked before GetApi, which prints lines of its own where a library is too old */
    const char *version = base->GetVersionString();
    int major = 0, minor = 0;
    if (sscanf(version, "%d.%d", &major, &minor) == 2 && (major > 1 || minor >= NEEDED_API)) return base;
    problem_set(why, "%s: expected onnxruntime 1.%d or newer, found %s: pip install --upgrade onnxruntime", path,
                NEEDED_API, version);
  }
  dlclose(handle);
  return NULL;
}
