#include "shared/library.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define OPERATORS_ADVICE                                                                 \
  "give its path with --library or FAIRY2I_LIBRARY; python -c 'import fairy2i_runtime; " \
  "print(fairy2i_runtime.library_path())' prints it where the Python package is installed"

static const struct {
  uint16_t machine; /* e_machine of the ELF header */
  const char *name;
} machines[] = {{3, "x86"}, {40, "arm"}, {62, "x86_64"}, {183, "aarch64"}, {243, "riscv"}};

#if defined(__x86_64__)
static const uint16_t own_machine = 62;
#elif defined(__aarch64__)
static const uint16_t own_machine = 183;
#else
static const uint16_t own_machine = 0; /* not known: the loader's own words have to do */
#endif

static const char *machine_name(uint16_t machine) {
  for (size_t i = 0; i < sizeof machines / sizeof *machines; i++) {
    if (machines[i].machine == machine) return machines[i].name;
  }
  return "another processor";
}

/* The processor a library is built for, 0 if that cannot be read. */
static uint16_t machine_of(const char *path) {
  uint8_t header[20];
  FILE *file = fopen(path, "rb");
  if (!file) return 0;
  size_t read = fread(header, 1, sizeof header, file);
  fclose(file);
  if (read != sizeof header || memcmp(header,
                                      "\x7f"
                                      "ELF",
                                      4) != 0)
    return 0;
  return header[5] == 2 ? (uint16_t)(header[18] << 8 | header[19]) : (uint16_t)(header[19] << 8 | header[18]);
}

void *library_open(const char *what, const char *path, const char *advice, problem *out) {
  void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (handle) return handle;
  const char *reason = dlerror();
  if (strchr(path, '/')) {
    FILE *file = fopen(path, "rb");
    if (!file) {
      problem_set(out, "%s: expected %s, found: %s; %s", path, what, strerror(errno), advice);
      return NULL;
    }
    fclose(file);
    uint16_t machine = machine_of(path);
    if (machine && own_machine && machine != own_machine) {
      problem_set(out, "%s: expected %s for %s, found one that is built for %s; take the one for this machine", path,
                  what, machine_name(own_machine), machine_name(machine));
      return NULL;
    }
  }
  problem_set(out, "%s: expected %s, which does not load: %s; %s", path, what, reason ? reason : "no reason given",
              advice);
  return NULL;
}

void *library_function(void *handle, const char *name, const char *path, const char *what, problem *out) {
  void *function = dlsym(handle, name);
  if (!function) {
    problem_set(out, "%s: expected %s, found a library without %s; give the path of the right one", path, what, name);
  }
  return function;
}

static const char OPERATORS[] = "the operator library", REGISTER[] = "Fairy2i_RegisterCustomOps";

/* The operator library, and the function that registers its operators. */
static void *open_operators(const char *path, void **function, problem *out) {
  void *handle = library_open(OPERATORS, path, OPERATORS_ADVICE, out);
  if (!handle) return NULL;
  *function = library_function(handle, REGISTER, path, OPERATORS, out);
  if (*function) return handle;
  dlclose(handle);
  return NULL;
}

void *library_open_operators(const char *path, problem *out) {
  void *function = NULL;
  return open_operators(path, &function, out) ? function : NULL;
}

const char *library_open_by_name(const char *path, problem *out) {
  void *function = NULL, *handle = open_operators(path, &function, out);
  Dl_info found;
  if (!handle) return NULL;
  void *named = dlopen(OPERATOR_LIBRARY, RTLD_NOW | RTLD_NOLOAD);
  if (named) dlclose(named); /* which counts its users */
  if (named == handle && dladdr(function, &found)) return found.dli_fname;
  problem_set(out,
              "%s: expected that the system knows it as %s once it is loaded, found %s; take a library built with this "
              "project's CMakeLists.txt",
              path, OPERATOR_LIBRARY, named ? "another library" : "nothing");
  dlclose(handle);
  return NULL;
}
