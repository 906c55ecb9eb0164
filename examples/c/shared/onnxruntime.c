#include "shared/onnxruntime.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "shared/library.h"

#define ADVICE                                                              \
  "give its path with --onnxruntime; pip install onnxruntime puts it into " \
  "site-packages/onnxruntime/capi/libonnxruntime.so.VERSION"

static bool is_new_enough(const char *version) {
  const int oldest[] = {OLDEST_ONNXRUNTIME_MAJOR, OLDEST_ONNXRUNTIME_MINOR, OLDEST_ONNXRUNTIME_PATCH};
  int found[3] = {0};
  if (sscanf(version, "%d.%d.%d", &found[0], &found[1], &found[2]) < 2) return false;
  for (int i = 0; i < 3; i++) {
    if (found[i] != oldest[i]) return found[i] > oldest[i];
  }
  return true;
}

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
    if (is_new_enough(version)) return base;
    problem_set(why, "%s: expected onnxruntime %d.%d.%d or newer, found %s: pip install --upgrade onnxruntime", path,
                OLDEST_ONNXRUNTIME_MAJOR, OLDEST_ONNXRUNTIME_MINOR, OLDEST_ONNXRUNTIME_PATCH, version);
  }
  dlclose(handle);
  return NULL;
}
