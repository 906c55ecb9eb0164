/* dispatch.c - the table of kernels and the choice among them. */
#include <stdlib.h>
#include <string.h>

#include "cpu.h"
#include "kernels.h"
#include "message.h"

const uint8_t f2i_byte_planes[F2I_MAX_STAGES][F2I_MAX_STAGES][2][2] = F2I_BYTE_PLANES;

const f2i_kernel f2i_kernels[] = {
#define F2I_KERNEL(family, isa, needs, operand_bytes, prepare, build, block, order, panel) \
  {family, isa, needs, operand_bytes, prepare, build, block, order, panel},
#include "kernel_list.h"
#undef F2I_KERNEL
};
const size_t f2i_kernels_count = sizeof f2i_kernels / sizeof f2i_kernels[0];

static int can_run(const f2i_kernel *kernel) { return (f2i_cpu_bits() & kernel->needs) == kernel->needs; }

static const f2i_kernel *find(const char *family, const char *isa) {
  for (size_t i = 0; i < f2i_kernels_count; ++i) {
    const f2i_kernel *kernel = &f2i_kernels[i];
    if (strcmp(kernel->family, family) == 0 && (isa == NULL ? can_run(kernel) : strcmp(kernel->isa, isa) == 0)) {
      return kernel;
    }
  }
  return NULL;
}

/* The names of the families, or of a family's ISAs that run here, separated by blanks. */
static const char *list(const char *family, char *text, size_t size) {
  const char *last = "";
  size_t used = 0;
  text[0] = '\0';
  for (size_t i = 0; i < f2i_kernels_count; ++i) {
    const char *name = family == NULL ? f2i_kernels[i].family : f2i_kernels[i].isa;
    if (family != NULL && (strcmp(f2i_kernels[i].family, family) != 0 || !can_run(&f2i_kernels[i]))) continue;
    if (strcmp(name, last) == 0 || used + strlen(name) + 2 > size) continue;
    if (used > 0) text[used++] = ' ';
    memcpy(text + used, name, strlen(name) + 1);
    used += strlen(name);
    last = name;
  }
  return text;
}

/* The caller's choice, else the environment's, else NULL. */
static const char *choice(const char *given, const char *variable) {
  if (given != NULL && given[0] != '\0') return given;
  const char *value = getenv(variable);
  return value != NULL && value[0] != '\0' ? value : NULL;
}

f2i_status f2i_select_kernel(const char *family, const char *isa, const f2i_kernel **kernel, f2i_message *message) {
  char names[96];
  family = choice(family, "FAIRY2I_KERNEL");
  isa = choice(isa, "FAIRY2I_ISA");
  if (family == NULL) family = f2i_kernels[0].family;
  if (find(family, "scalar") == NULL) {
    return f2i_fail(message, F2I_UNKNOWN_KERNEL,
                    "unknown kernel \"%.32s\" (FAIRY2I_KERNEL or fairy2i.kernel): expected one of: %s", family,
                    list(NULL, names, sizeof names));
  }
  *kernel = find(family, isa);
  if (*kernel == NULL) {
    /* a family need not exist for every ISA: forcing a known ISA then runs the best other kernel of the family */
    for (size_t i = 0; i < f2i_kernels_count && *kernel == NULL; ++i) {
      if (strcmp(f2i_kernels[i].isa, isa) == 0 && can_run(&f2i_kernels[i])) *kernel = find(family, NULL);
    }
  }
  if (*kernel == NULL || !can_run(*kernel)) {
    return f2i_fail(message, F2I_UNKNOWN_KERNEL,
                    "ISA \"%.32s\" (FAIRY2I_ISA or fairy2i.isa) is %s: kernel \"%s\" can run here with: %s", isa,
                    *kernel == NULL ? "unknown to this library" : "not available on this CPU", family,
                    list(family, names, sizeof names));
  }
  /* where the operating system refuses, the next one of the family, at last "scalar", which needs nothing */
  while (!f2i_cpu_allow((*kernel)->needs)) {
    if (isa != NULL && strcmp((*kernel)->isa, isa) == 0) {
      return f2i_fail(message, F2I_UNKNOWN_KERNEL,
                      "ISA \"%.32s\" (FAIRY2I_ISA or fairy2i.isa): the operating system refuses its registers", isa);
    }
    do ++*kernel;
    while (strcmp((*kernel)->family, family) != 0 || !can_run(*kernel));
  }
  return f2i_ok(message);
}

size_t f2i_kernel_count(void) { return f2i_kernels_count; }

static void describe(const f2i_kernel *kernel, f2i_kernel_info *info) {
  info->family = kernel->family;
  info->isa = kernel->isa;
  info->available = can_run(kernel);
  info->is_default = find(kernel->family, NULL) == kernel;
}

f2i_status f2i_kernel_at(size_t index, f2i_kernel_info *info) {
  if (index >= f2i_kernels_count || info == NULL) return F2I_INVALID_ARGUMENT;
  describe(&f2i_kernels[index], info);
  return F2I_OK;
}

f2i_status f2i_plan_kernel(const f2i_plan *plan, f2i_kernel_info *info) {
  if (plan == NULL || plan->kernel == NULL || info == NULL) return F2I_INVALID_ARGUMENT;
  describe(plan->kernel, info);
  return F2I_OK;
}

f2i_status f2i_plan_init(f2i_plan *plan, const f2i_weights *weights, const char *family, const char *isa,
                         f2i_message *message) {
  if (plan == NULL) return f2i_fail(message, F2I_INVALID_ARGUMENT, "plan: expected a pointer, got NULL");
  plan->kernel = NULL;
  f2i_status status = f2i_validate(weights, message);
  if (status != F2I_OK) return status;
  const f2i_kernel *kernel = NULL;
  status = f2i_select_kernel(family, isa, &kernel, message);
  if (status != F2I_OK) return status;
  plan->weights = *weights;
  plan->kernel = kernel;
  return F2I_OK;
}

const char *f2i_version(void) { return F2I_VERSION; }
