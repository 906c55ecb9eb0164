/* folder.h - what the files of an exported folder say about its model: genai_config.json, read and checked. */
#ifndef FOLDER_H
#define FOLDER_H

#include <stddef.h>
#include <stdint.h>

#include "shared/problem.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct model_folder {
  char *model_file;       /* path of the .onnx file */
  int64_t context_length; /* the most tokens the model was built for */
  int64_t *end_tokens;    /* [end_token_count] tokens that end a text */
  size_t end_token_count;
  bool needs_library; /* whether the model has nodes of the operator library; false with other backends */
  char *kernel;       /* the kernel to run unless somebody chooses another, or NULL */
  bool names_threads; /* whether it says how many threads to run with; only onnxruntime-genai heeds that */
} model_folder;

/* Read a folder that fairy2i-export wrote. Returns false, and nothing to close, if it is none or is damaged. */
bool folder_open(const char *path, model_folder *folder, problem *out);
void folder_close(model_folder *folder);

/* The kernel for a session's entry fairy2i.kernel: `asked`, else what the folder says, or NULL for the library's
 * default. Nothing is returned where FAIRY2I_KERNEL chooses, since the library reads that itself and heeds the entry
 * first. */
const char *folder_kernel(const model_folder *folder, const char *asked);

#ifdef __cplusplus
}
#endif
#endif
