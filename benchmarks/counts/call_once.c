/* call_once.c - one call of f2i_matmul, for counting its instructions.
 *
 *   call_once LIBRARY FAMILY ISA N K M     exits with 3 if the library runs another kernel than the one that was named
 *
 * All weights are code 0 and all activations 1: what is counted does not depend on values.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fairy2i.h"

#define LOAD(name) __typeof__(&name) name##_ = (__typeof__(&name))dlsym(library, #name)

int main(int argc, char **argv) {
  if (argc != 7) return 2;
  void *library = dlopen(argv[1], RTLD_NOW);
  if (library == NULL) {
    fprintf(stderr, "%s\n", dlerror());
    return 2;
  }
  LOAD(f2i_packed_size);
  LOAD(f2i_plan_init);
  LOAD(f2i_plan_kernel);
  LOAD(f2i_workspace_size);
  LOAD(f2i_matmul);
  const int64_t n = atoll(argv[4]), k = atoll(argv[5]), rows = atoll(argv[6]);
  const float scales[2][2][2] = {{{1.0f, 0.9f}, {0.8f, 1.1f}}, {{0.4f, 0.3f}, {0.35f, 0.45f}}};
  f2i_message message;
  f2i_weights w = {.k = k, .n = n, .stages = 2, .layout_version = 1, .scales = scales[0][0], .scales_count = 8};
  f2i_plan plan;
  f2i_kernel_info kernel;
  size_t workspace_bytes = 0;
  int failed = f2i_packed_size_(k, n, w.stages, &w.packed_bytes, &message) != F2I_OK;
  uint8_t *packed = calloc(w.packed_bytes, 1);
  w.packed = packed;
  failed = failed || packed == NULL || f2i_plan_init_(&plan, &w, argv[2], argv[3], &message) != F2I_OK ||
           f2i_plan_kernel_(&plan, &kernel) != F2I_OK ||
           f2i_workspace_size_(&plan, rows, &workspace_bytes, &message) != F2I_OK;
  if (failed) {
    fprintf(stderr, "%s\n", message.text);
    return 3;
  }
  if (strcmp(kernel.family, argv[2]) != 0 || strcmp(kernel.isa, argv[3]) != 0) {
    fprintf(stderr, "expected kernel %s %s, got %s %s\n", argv[2], argv[3], kernel.family, kernel.isa);
    return 3;
  }
  float *x = malloc((size_t)(rows * k) * sizeof *x), *y = malloc((size_t)(rows * n) * sizeof *y);
  /* aligned, so that the count does not depend on where the allocator puts things */
  void *workspace = aligned_alloc(4096, (workspace_bytes + 4095) / 4096 * 4096);
  if (x == NULL || y == NULL || workspace == NULL) return 2;
  for (int64_t i = 0; i < rows * k; ++i) x[i] = 1.0f;
  if (f2i_matmul_(&plan, rows, x, k, NULL, y, n, workspace, workspace_bytes, NULL, &message) != F2I_OK) {
    fprintf(stderr, "%s\n", message.text);
    return 2;
  }
  return 0;
}
