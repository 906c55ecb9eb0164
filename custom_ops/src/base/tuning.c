/* tuning.c - settings by processor: a table of those that were measured, and the text form that `fairy2i tune` finds
 * better ones for (docs/runtime.md).
 */
#include "base/tuning.h"

#include <stdatomic.h>
#include <string.h>

#include "base/cpu.h"
#include "base/message.h"

enum { ALONE_BYTES = 48 << 10 }; /* what a thread reads before another one has woken */

/* Processors with settings of their own; the first that fits counts. Where the figures are from: docs/benchmarks.md. */
static const struct {
  const char *vendor;
  int family, first_model, last_model; /* as CPUID says, extended numbers added */
  f2i_tuning tuning;
} processors[] = {
    /* Zen 4, with Zen 3 between its models: "dot" is the faster one for a single row, too */
    {"AuthenticAMD", 25, 0x10, 0x1F, {.auto_rows = 1, .alone_bytes = ALONE_BYTES}},
    {"AuthenticAMD", 25, 0x60, 0x7F, {.auto_rows = 1, .alone_bytes = ALONE_BYTES}},
    {"AuthenticAMD", 25, 0xA0, 0xAF, {.auto_rows = 1, .alone_bytes = ALONE_BYTES}},
    /* Zen 5: additions at four a cycle, ternary operations at two; prefetching into the second-level cache does not
     * overlap with computing there. VPERMB 1.6 and dot products 1.9 a cycle: "dot" for a single row, too, by counts */
    {"AuthenticAMD", 26, 0, 255, {.lut = "avx512_plain", .auto_rows = 1, .alone_bytes = ALONE_BYTES}},
};
static const f2i_tuning others = {.auto_rows = -1, .alone_bytes = ALONE_BYTES};

static const f2i_tuning *find_tuning(void) {
  const f2i_cpu_model cpu = f2i_cpu_identify();
  for (size_t i = 0; i < sizeof processors / sizeof processors[0]; ++i) {
    if (strcmp(cpu.vendor, processors[i].vendor) != 0 || cpu.family != processors[i].family) continue;
    if (cpu.model < processors[i].first_model || cpu.model > processors[i].last_model) continue;
    return &processors[i].tuning;
  }
  return &others;
}

const f2i_tuning *f2i_tuning_here(void) {
  static _Atomic(const f2i_tuning *) known;
  const f2i_tuning *found = atomic_load_explicit(&known, memory_order_relaxed);
  if (found == NULL) {
    found = find_tuning();
    atomic_store_explicit(&known, found, memory_order_relaxed);
  }
  return found;
}

/* Digits only, at most 10^12. */
static int read_number(const char *text, size_t length, int64_t *number) {
  int64_t value = 0;
  if (length == 0 || length > 12) return 0;
  for (size_t i = 0; i < length; ++i) {
    if (text[i] < '0' || text[i] > '9') return 0;
    value = 10 * value + (text[i] - '0');
  }
  *number = value;
  return 1;
}

static int read_name(const char *text, size_t length, char *name, size_t size) {
  if (length >= size) return 0;
  memcpy(name, text, length);
  name[length] = '\0';
  return 1;
}

static int starts_with(const char *text, size_t length, const char *key) {
  for (; *key != '\0'; ++text, ++key, --length) {
    if (length == 0 || *text != *key) return 0;
  }
  return 1;
}

/* One "key=value"; 0 if it is none. */
static int read_setting(const char *text, size_t length, f2i_tuning *tuning) {
  if (starts_with(text, length, "lut=")) return read_name(text + 4, length - 4, tuning->lut, sizeof tuning->lut);
  if (starts_with(text, length, "dot=")) return read_name(text + 4, length - 4, tuning->dot, sizeof tuning->dot);
  if (starts_with(text, length, "auto=")) return read_number(text + 5, length - 5, &tuning->auto_rows);
  if (starts_with(text, length, "alone=")) return read_number(text + 6, length - 6, &tuning->alone_bytes);
  return 0;
}

f2i_status f2i_tuning_read(const char *text, f2i_tuning *tuning, f2i_message *message) {
  for (size_t length; *text != '\0'; text += length) {
    for (length = 0; text[length] != '\0' && text[length] != ' ';) ++length;
    if (length > 0 && !read_setting(text, length, tuning)) {
      return f2i_fail(message, F2I_INVALID_ARGUMENT,
                      "tuning (FAIRY2I_TUNING or fairy2i.tuning): expected lut=ISA, dot=ISA, auto=ROWS or alone=BYTES, "
                      "separated by blanks, found \"%.*s\"",
                      length < 64 ? (int)length : 64, text);
    }
    length += text[length] == ' ';
  }
  return f2i_ok(message);
}
