#include "shared/weights.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

bool weights_explain(const char *model_file, const char *said, problem *out) {
  const char *slash = strrchr(model_file, '/');
  char path[PATH_MAX + 8], name[NAME_MAX + 8];
  struct stat found;
  int length = snprintf(path, sizeof path, "%s.data", model_file);
  snprintf(name, sizeof name, "%s.data", slash ? slash + 1 : model_file);
  if (length < 0 || (size_t)length >= sizeof path) return false;
  if (stat(path, &found) != 0) {
    if (errno != ENOENT || !strstr(said, name)) return false;
    problem_set(out,
                "%s is missing: it holds the weights of the model and has to lie beside it under this name; copy the "
                "whole folder, or export the model again",
                path);
    return true;
  }
  /* of a part of the file that a tensor should be: "... given file_length: N are out of bounds or ..." */
  if (!strstr(said, "file_length") && !strstr(said, "out of bounds")) return false;
  problem_set(out,
              "%s ends too early, after %lld bytes: expected all weights of the model; was it copied or downloaded "
              "completely? Copy it again, or export the model again",
              path, (long long)found.st_size);
  return true;
}
