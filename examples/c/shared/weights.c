#include "shared/weights.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

enum { PATH_BYTES = PATH_MAX + 8 };

static bool data_path(const char *model_file, char path[PATH_BYTES]) {
  int length = snprintf(path, PATH_BYTES, "%s.data", model_file);
  return length > 0 && length < PATH_BYTES;
}

bool weights_check(const char *model_file, problem *out) {
  char path[PATH_BYTES];
  struct stat found;
  if (!data_path(model_file, path) || stat(path, &found) != 0 || S_ISREG(found.st_mode)) return true;
  return problem_set(
      out,
      "%s: expected the weights of the model in a regular file, found %s; copy the whole folder again, or "
      "export the model again",
      path, S_ISDIR(found.st_mode) ? "a folder" : "a pipe, a device or the like");
}

/* Where the part of the file ends that could not be read, by "... offset: N size to read: N given file_length: N ...";
 * 0 if it is not said. */
static long long expected_bytes(const char *said) {
  long long offset = 0, size = 0;
  const char *from = strstr(said, "offset: ");
  if (!from || sscanf(from, "offset: %lld size to read: %lld", &offset, &size) != 2) return 0;
  return offset < 0 || size <= 0 || offset > LLONG_MAX - size ? 0 : offset + size;
}

bool weights_explain(const char *model_file, const char *said, problem *out) {
  const char *slash = strrchr(model_file, '/');
  char path[PATH_BYTES], name[NAME_MAX + 8], expected[32] = "all weights";
  struct stat found;
  if (!data_path(model_file, path)) return false;
  snprintf(name, sizeof name, "%s.data", slash ? slash + 1 : model_file);
  if (stat(path, &found) != 0) {
    if (errno != ENOENT || !strstr(said, name)) return false;
    problem_set(out,
                "%s is missing: it holds the weights of the model and has to lie beside it under this name; copy the "
                "whole folder, or export the model again",
                path);
    return true;
  }
  if (!strstr(said, "file_length") && !strstr(said, "out of bounds")) return false;
  long long bytes = expected_bytes(said);
  if (bytes > found.st_size) snprintf(expected, sizeof expected, "%lld or more", bytes);
  problem_set(
      out,
      "%s ends too early, after %lld bytes: expected %s; was it copied or downloaded completely? Copy it again, or "
      "export the model again",
      path, (long long)found.st_size, expected);
  return true;
}
