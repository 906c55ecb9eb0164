#include "shared/folder.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "shared/third_party/cjson/cJSON.h"
#include "shared/weights.h"

#define CONFIG_FILE "genai_config.json"
#define LIBRARY_ENTRY "custom_ops_library"
#define KERNEL_ENTRY "fairy2i.kernel"

static const int64_t MAX_CONTEXT = 1 << 24;    /* no model comes near it: a larger number is damage */
static const long MAX_CONFIG_BYTES = 16 << 20; /* nor any configuration */

static char *joined(const char *folder, const char *name) {
  size_t size = strlen(folder) + strlen(name) + 2;
  char *path = malloc(size);
  if (path) snprintf(path, size, "%s/%s", folder, name);
  return path;
}

static bool is_file(const char *path) {
  struct stat found;
  return stat(path, &found) == 0 && S_ISREG(found.st_mode);
}

static bool is_folder(const char *path) {
  struct stat found;
  return stat(path, &found) == 0 && S_ISDIR(found.st_mode);
}

/* A whole file as a string, or NULL. */
static char *read_text(const char *path, problem *out) {
  FILE *file = fopen(path, "rb");
  if (!file) {
    problem_set(out, "%s cannot be read: %s", path, strerror(errno));
    return NULL;
  }
  char *text = NULL;
  long size = -1;
  if (fseek(file, 0, SEEK_END) == 0) size = ftell(file);
  if (size >= 0 && size <= MAX_CONFIG_BYTES && fseek(file, 0, SEEK_SET) == 0) text = malloc((size_t)size + 1);
  if (text && fread(text, 1, (size_t)size, file) == (size_t)size) {
    text[size] = '\0';
  } else {
    problem_set(out, "%s cannot be read as a text of at most %ld bytes; export the model again", path,
                MAX_CONFIG_BYTES);
    free(text);
    text = NULL;
  }
  fclose(file);
  return text;
}

static const cJSON *member(const cJSON *object, const char *name) {
  return cJSON_GetObjectItemCaseSensitive(object, name);
}

/* Entries of that name anywhere. Of an entry that stands twice in one object cJSON keeps both, as onnxruntime-genai
 * reads both. */
static int count_entries(const cJSON *item, const char *name) {
  int count = 0;
  for (; item; item = item->next) {
    count += item->string && strcmp(item->string, name) == 0;
    count += count_entries(item->child, name);
  }
  return count;
}

static bool whole_number(const cJSON *item, double least, double most) {
  return cJSON_IsNumber(item) && item->valuedouble >= least && item->valuedouble <= most &&
         item->valuedouble == (double)(int64_t)item->valuedouble;
}

static bool read_end_tokens(const char *path, const cJSON *value, model_folder *folder, problem *out) {
  if (!value || cJSON_IsNull(value)) return true;
  size_t count = cJSON_IsArray(value) ? (size_t)cJSON_GetArraySize(value) : 1;
  folder->end_tokens = calloc(count + 1, sizeof *folder->end_tokens);
  if (!folder->end_tokens) return problem_set(out, "not enough memory for the end tokens of %s", path);
  for (const cJSON *item = cJSON_IsArray(value) ? value->child : value; item;
       item = cJSON_IsArray(value) ? item->next : NULL) {
    if (!whole_number(item, 0, INT32_MAX)) {
      return problem_set(out, "%s: model.eos_token_id: expected a token id or a list of them; export the model again",
                         path);
    }
    folder->end_tokens[folder->end_token_count++] = (int64_t)item->valuedouble;
  }
  return true;
}

static bool read_config(const char *path, const char *config_path, const cJSON *root, model_folder *folder,
                        problem *out) {
  const cJSON *model = member(root, "model");
  const cJSON *decoder = member(model, "decoder");
  if (!cJSON_IsObject(decoder)) {
    return problem_set(out, "%s: expected an object model with an object decoder in it; export the model again",
                       config_path);
  }
  const cJSON *filename = member(decoder, "filename");
  const char *name = filename ? cJSON_GetStringValue(filename) : "model.onnx";
  if (!name || !*name || strchr(name, '/') || strcmp(name, "..") == 0) {
    return problem_set(out, "%s: model.decoder.filename: expected the name of a file in the folder", config_path);
  }
  folder->model_file = joined(path, name);
  if (!folder->model_file) return problem_set(out, "not enough memory for a path");
  if (!is_file(folder->model_file)) {
    return problem_set(out, "%s is missing: the folder is not a complete export; export the model again",
                       folder->model_file);
  }
  if (!weights_check(folder->model_file, out)) return false;
  const cJSON *context = member(model, "context_length");
  if (!whole_number(context, 1, (double)MAX_CONTEXT)) {
    return problem_set(out, "%s: model.context_length: expected 1 to %lld; export the model again", config_path,
                       (long long)MAX_CONTEXT);
  }
  folder->context_length = (int64_t)context->valuedouble;
  const cJSON *session = member(decoder, "session_options");
  folder->needs_library = member(session, LIBRARY_ENTRY) != NULL;
  folder->names_threads = member(session, "intra_op_num_threads") != NULL;
  int named = count_entries(root, LIBRARY_ENTRY);
  if (named != (int)folder->needs_library) {
    return problem_set(out,
                       "%s: expected " LIBRARY_ENTRY
                       " once, in model.decoder.session_options, or nowhere; found it %d times. "
                       "Loading a library is executing it: remove the others, or export the model again",
                       config_path, named);
  }
  const cJSON *kernel = member(session, KERNEL_ENTRY);
  if (kernel && folder->needs_library) {
    const char *text = cJSON_GetStringValue(kernel);
    folder->kernel = text ? strdup(text) : NULL;
    if (!folder->kernel) {
      return problem_set(out, "%s: model.decoder.session_options." KERNEL_ENTRY ": expected a name", config_path);
    }
  }
  return read_end_tokens(config_path, member(model, "eos_token_id"), folder, out);
}

bool folder_open(const char *path, model_folder *folder, problem *out) {
  memset(folder, 0, sizeof *folder);
  if (is_file(path)) return problem_set(out, "%s is a file: expected the folder with " CONFIG_FILE, path);
  if (!is_folder(path)) {
    return problem_set(out, "model folder %s does not exist; fairy2i-export SOURCE -o %s makes one", path, path);
  }
  char *config_path = joined(path, CONFIG_FILE), *text = NULL;
  if (!config_path) return problem_set(out, "not enough memory for a path");
  bool good = false;
  if (!is_file(config_path)) {
    problem_set(out, "%s is not a model folder: it has no " CONFIG_FILE "; wrong folder, or to be exported first?",
                path);
  } else if ((text = read_text(config_path, out)) != NULL) {
    cJSON *root = cJSON_Parse(text);
    good = root ? read_config(path, config_path, root, folder, out)
                : problem_set(out, "%s is not valid JSON; export the model again", config_path);
    cJSON_Delete(root);
  }
  free(text);
  free(config_path);
  if (!good) folder_close(folder);
  return good;
}

void folder_close(model_folder *folder) {
  free(folder->model_file);
  free(folder->end_tokens);
  free(folder->kernel);
  memset(folder, 0, sizeof *folder);
}

const char *folder_kernel(const model_folder *folder, const char *asked) {
  if (asked) return asked;
  const char *chosen = getenv("FAIRY2I_KERNEL");
  return chosen && *chosen ? NULL : folder->kernel;
}
