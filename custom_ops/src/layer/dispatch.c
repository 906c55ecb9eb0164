/* dispatch.c - the table of kernels and the choice among them. */
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "base/message.h"
#include "base/tuning.h"
#include "kernels/dot_operands.h"

/* what rows name, declared */
#define F2I_KERNEL(fields) fields
#define FAMILY(name)
#define ISA(name)
#define NEEDS(bits)
#define OPERAND_BYTES(count)
#define PREPARE(name) f2i_prepare_fn name;
#define WHOLE(form)
#define BUILD(name) f2i_build_fn name;
#define BLOCK(name) f2i_block_fn name;
#define ORDER(name) extern const uint8_t name[F2I_ACC_PER_TILE];
#define PANEL(name) extern const f2i_panel_kernel name;
#define AT_ONCE(count)
#define AUTO_ROWS(count)
#define VARIANT
#include "kernels/kernel_list.h"
#undef F2I_KERNEL
#undef FAMILY
#undef ISA
#undef NEEDS
#undef OPERAND_BYTES
#undef PREPARE
#undef WHOLE
#undef BUILD
#undef BLOCK
#undef ORDER
#undef PANEL
#undef AT_ONCE
#undef AUTO_ROWS
#undef VARIANT

/* the rows as initializers */
#define F2I_KERNEL(fields) {fields},
#define FAMILY(name) .family = name,
#define ISA(name) .isa = name,
#define NEEDS(bits) .needs = bits,
#define OPERAND_BYTES(count) .operand_bytes = count,
#define PREPARE(name) .prepare = name,
#define WHOLE(form) .whole = form,
#define BUILD(name) .build = name,
#define BLOCK(name) .block = name,
#define ORDER(name) .order = name,
#define PANEL(name) .panel = &name,
#define AT_ONCE(count) .at_once = count,
#define AUTO_ROWS(count) .auto_rows = count,
#define VARIANT .is_variant = 1,
static const f2i_kernel kernels[] = {
#include "kernels/kernel_list.h"
};
static const size_t kernels_count = sizeof kernels / sizeof kernels[0];

#define AUTO "auto"

static int can_run(const f2i_kernel *kernel) { return (f2i_cpu_bits() & kernel->needs) == kernel->needs; }

static const f2i_kernel *find(const char *family, const char *isa) {
  for (size_t i = 0; i < kernels_count; ++i) {
    const f2i_kernel *kernel = &kernels[i];
    if (strcmp(kernel->family, family) != 0) continue;
    if (isa == NULL ? can_run(kernel) && !kernel->is_variant : strcmp(kernel->isa, isa) == 0) return kernel;
  }
  return NULL;
}

/* What an unforced call of a family runs. A tuning may come from another machine: what cannot run here is passed over.
 */
static const f2i_kernel *find_default(const char *family, const f2i_tuning *tuning) {
  const char *isa = strcmp(family, "lut") == 0 ? tuning->lut : strcmp(family, "dot") == 0 ? tuning->dot : "";
  const f2i_kernel *tuned = isa[0] == '\0' ? NULL : find(family, isa);
  return tuned != NULL && can_run(tuned) ? tuned : find(family, NULL);
}

/* The names of the families, or of a family's ISAs that run here, separated by blanks. */
static const char *list(const char *family, char *text, size_t size) {
  const char *last = "";
  size_t used = 0;
  text[0] = '\0';
  for (size_t i = 0; i < kernels_count; ++i) {
    const char *name = family == NULL ? kernels[i].family : kernels[i].isa;
    if (family != NULL && (strcmp(kernels[i].family, family) != 0 || !can_run(&kernels[i]))) continue;
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

/* The kernel of a family, with isa if that is not NULL, or an error. */
static f2i_status select_kernel(const char *family, const char *isa, const f2i_tuning *tuning,
                                const f2i_kernel **kernel, f2i_message *message) {
  char names[96];
  if (find(family, "scalar") == NULL) {
    return f2i_fail(message, F2I_UNKNOWN_KERNEL,
                    "unknown kernel \"%.32s\" (FAIRY2I_KERNEL or fairy2i.kernel): expected one of: %s " AUTO, family,
                    list(NULL, names, sizeof names));
  }
  *kernel = isa == NULL ? find_default(family, tuning) : find(family, isa);
  int known = *kernel != NULL; /* the ISA, in any family */
  /* a family need not exist for every ISA: forcing one that can run here then runs the family's best other kernel */
  for (size_t i = 0; i < kernels_count && *kernel == NULL; ++i) {
    if (strcmp(kernels[i].isa, isa) != 0) continue;
    known = 1;
    if (can_run(&kernels[i])) *kernel = find_default(family, tuning);
  }
  if (*kernel == NULL || !can_run(*kernel)) {
    return f2i_fail(message, F2I_UNKNOWN_KERNEL,
                    "ISA \"%.32s\" (FAIRY2I_ISA or fairy2i.isa) is %s: kernel \"%s\" can run here with: %s", isa,
                    !known ? "unknown to this library" : "not available on this CPU", family,
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

/* The kernels named by family and isa (NULL or "" = environment, then default), or an error. "auto" is the default
 * family for few rows of x and, from as many rows on as the tuning or else the kernel says, "dot"; the default for any
 * number where activations are rounded: "dot" then takes twice as long (layer/rounding.h). */
static f2i_status select_kernels(const char *family, const char *isa, const f2i_tuning *tuning, int rounds,
                                 f2i_plan *plan, f2i_message *message) {
  const f2i_kernel *kernel = NULL;
  family = choice(family, "FAIRY2I_KERNEL");
  isa = choice(isa, "FAIRY2I_ISA");
  const int is_auto = family != NULL && strcmp(family, AUTO) == 0;
  if (family == NULL || is_auto) family = kernels[0].family;
  f2i_status status = select_kernel(family, isa, tuning, &kernel, message);
  if (status != F2I_OK) return status;
  plan->kernel = kernel;
  if (!is_auto || rounds) return f2i_ok(message);
  status = select_kernel("dot", isa, tuning, &kernel, message);
  if (status != F2I_OK) return status;
  const uint32_t needs = ((const f2i_kernel *)plan->kernel)->needs; /* of what it was found to be faster than */
  const int64_t rows = tuning->auto_rows >= 0             ? tuning->auto_rows
                       : (kernel->needs & needs) == needs ? kernel->auto_rows
                                                          : 0;
  if (rows > 0) {
    plan->many_kernel = kernel;
    plan->many_rows = rows;
  }
  return f2i_ok(message);
}

size_t f2i_kernel_count(void) { return kernels_count; }

static void describe(const f2i_kernel *kernel, f2i_kernel_info *info) {
  info->family = kernel->family;
  info->isa = kernel->isa;
  info->available = can_run(kernel);
  info->is_default = find_default(kernel->family, f2i_tuning_here()) == kernel;
}

f2i_status f2i_kernel_at(size_t index, f2i_kernel_info *info) {
  if (index >= kernels_count || info == NULL) return F2I_INVALID_ARGUMENT;
  describe(&kernels[index], info);
  return F2I_OK;
}

f2i_status f2i_plan_kernel_for(const f2i_plan *plan, int64_t rows, f2i_kernel_info *info, int64_t *next) {
  if (plan == NULL || plan->kernel == NULL || info == NULL || rows < 0) return F2I_INVALID_ARGUMENT;
  describe(f2i_kernel_for(plan, rows), info);
  if (next != NULL) *next = rows < plan->many_rows ? plan->many_rows : 0;
  return F2I_OK;
}

f2i_status f2i_plan_kernel(const f2i_plan *plan, f2i_kernel_info *info) {
  return f2i_plan_kernel_for(plan, 1, info, NULL);
}

f2i_status f2i_plan_tuning(const f2i_plan *plan, char *text, size_t size) {
  f2i_message found;
  if (plan == NULL || plan->kernel == NULL || text == NULL || size == 0) return F2I_INVALID_ARGUMENT;
  const f2i_kernel *few = plan->kernel, *many = plan->many_kernel;
  if (many == NULL) {
    (void)f2i_fail(&found, F2I_OK, "%s=%s alone=%lld", few->family, few->isa, (long long)plan->alone_bytes);
  } else {
    (void)f2i_fail(&found, F2I_OK, "%s=%s %s=%s auto=%lld alone=%lld", few->family, few->isa, many->family, many->isa,
                   (long long)plan->many_rows, (long long)plan->alone_bytes);
  }
  const size_t length = strlen(found.text) < size - 1 ? strlen(found.text) : size - 1;
  memcpy(text, found.text, length);
  text[length] = '\0';
  return F2I_OK;
}

/* f2i_tuning_read, but ISAs that this library does not have are an error; one that cannot run here is not. */
static f2i_status read_tuning(const char *text, f2i_tuning *settings, f2i_message *message) {
  char names[96];
  const f2i_tuning before = *settings;
  const f2i_status status = f2i_tuning_read(text, settings, message);
  if (status != F2I_OK) return status;
  const char *const families[] = {"lut", "dot"}, *const isas[] = {settings->lut, settings->dot};
  const char *const known[] = {before.lut, before.dot};
  for (size_t i = 0; i < sizeof isas / sizeof isas[0]; ++i) {
    if (strcmp(isas[i], known[i]) == 0 || isas[i][0] == '\0' || find(families[i], isas[i]) != NULL) continue;
    return f2i_fail(message, F2I_UNKNOWN_KERNEL,
                    "tuning (FAIRY2I_TUNING or fairy2i.tuning): unknown ISA \"%.24s\", \"%s\" can run here with: %s",
                    isas[i], families[i], list(families[i], names, sizeof names));
  }
  return F2I_OK;
}

f2i_status f2i_plan_init_tuned(f2i_plan *plan, const f2i_weights *weights, const char *family, const char *isa,
                               const char *tuning, f2i_message *message) {
  if (plan == NULL) return f2i_fail(message, F2I_INVALID_ARGUMENT, "plan: expected a pointer, got NULL");
  memset(plan, 0, sizeof *plan);
  f2i_tuning settings = *f2i_tuning_here();
  if (choice(isa, "FAIRY2I_ISA") != NULL) settings.auto_rows = -1; /* it was found with other kernels */
  f2i_status status = f2i_validate(weights, message);
  if (status == F2I_OK && getenv("FAIRY2I_TUNING") != NULL) {
    status = read_tuning(getenv("FAIRY2I_TUNING"), &settings, message);
  }
  if (status == F2I_OK && tuning != NULL) status = read_tuning(tuning, &settings, message);
  if (status != F2I_OK) return status;
  plan->alone_bytes = settings.alone_bytes;
  status = select_kernels(family, isa, &settings, weights->activation_bits != 0, plan, message);
  if (status != F2I_OK) {
    plan->kernel = NULL;
    return status;
  }
  plan->weights = *weights;
  const f2i_kernel *many = plan->many_kernel;
  if (((const f2i_kernel *)plan->kernel)->prepare != NULL || (many != NULL && many->prepare != NULL)) {
    plan->dot_steps = f2i_dot_steps(weights->scales, (int)weights->stages); /* takes longer than all else here */
  }
  return F2I_OK;
}

f2i_status f2i_plan_init(f2i_plan *plan, const f2i_weights *weights, const char *family, const char *isa,
                         f2i_message *message) {
  return f2i_plan_init_tuned(plan, weights, family, isa, NULL, message);
}

const char *f2i_version(void) { return F2I_VERSION; }
