/* input.h - what all fuzz targets share: numbers out of the bytes of an input, and complaints.
 *
 * Any bytes are an input. Where they end, pseudo-random ones follow that depend on them, so that a short input is a
 * whole layer. Buffers are allocated at their exact size: the address sanitizer then sees a byte too far.
 */
#ifndef F2I_FUZZ_INPUT_H
#define F2I_FUZZ_INPUT_H

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fairy2i.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct input {
  const uint8_t *data;
  size_t size, at;
  uint64_t state; /* SplitMix64 */
} input;

static inline input input_of(const uint8_t *data, size_t size) {
  input in = {data, size, 0, 0xcbf29ce484222325u}; /* FNV-1a */
  for (size_t i = 0; i < size; ++i) in.state = (in.state ^ data[i]) * 0x100000001b3u;
  return in;
}

static inline uint8_t a_byte(input *in) {
  if (in->at < in->size) return in->data[in->at++];
  uint64_t z = in->state += 0x9E3779B97F4A7C15u;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  return (uint8_t)(z >> 56);
}

static inline uint64_t bits_of(input *in, int bytes) {
  uint64_t v = 0;
  for (int i = 0; i < bytes; ++i) v = v << 8 | a_byte(in);
  return v;
}

static inline size_t below(input *in, size_t limit) { return (size_t)(bits_of(in, 2) % limit); }

/* Once in 16 times. */
static inline int rarely(input *in) { return a_byte(in) % 16 == 7; }

/* How the numbers of an array are made. */
typedef enum number_kind { ORDINARY, OF_ONE_SIZE, OF_ANY_SIZE, ANY_BITS, SPECIAL, NUMBER_KINDS } number_kind;

static inline float a_float(input *in, number_kind kind, int exponent) {
  static const float special[16] = {0.0f,     -0.0f,   1.0f,   -1.0f,  INFINITY, -INFINITY, NAN,   FLT_MAX,
                                    -FLT_MAX, FLT_MIN, 1e-45f, 1e-40f, 1e-30f,   3e38f,     1e38f, -1e-32f};
  const float ordinary = (float)((int)bits_of(in, 2) - 32768) / 32768.0f;
  if (kind == ORDINARY) return ordinary;
  if (kind == OF_ONE_SIZE) return ldexpf(ordinary, exponent);
  if (kind == OF_ANY_SIZE) return ldexpf(ordinary, a_byte(in) - 148);
  if (kind == SPECIAL && a_byte(in) % 4 == 0) return special[a_byte(in) % 16];
  if (kind == SPECIAL) return ordinary;
  const uint32_t pattern = (uint32_t)bits_of(in, 4);
  float value;
  memcpy(&value, &pattern, sizeof value);
  return value;
}

/* Never NULL, even for no bytes. */
static inline void *allocated(size_t bytes) {
  void *p = malloc(bytes != 0 ? bytes : 1);
  if (p == NULL) abort();
  return p;
}

static inline float *floats(input *in, size_t count, int finite) {
  float *values = allocated(count * sizeof *values);
  const number_kind kind = a_byte(in) % NUMBER_KINDS;
  const int exponent = a_byte(in) - 148;
  for (size_t i = 0; i < count; ++i) {
    values[i] = a_float(in, kind, exponent);
    if (finite && !isfinite(values[i])) values[i] = 0.5f;
  }
  return values;
}

static inline uint8_t *some_bytes(input *in, size_t count) {
  uint8_t *bytes = allocated(count);
  for (size_t i = 0; i < count; ++i) bytes[i] = a_byte(in);
  return bytes;
}

#define EXPECT(condition, ...)                                                 \
  do {                                                                         \
    if (!(condition)) {                                                        \
      fprintf(stderr, "%s:%d: expected %s: ", __FILE__, __LINE__, #condition); \
      fprintf(stderr, __VA_ARGS__);                                            \
      fprintf(stderr, "\n");                                                   \
      abort();                                                                 \
    }                                                                          \
  } while (0)

/* A failure has one of the statuses and says why, within its buffer. */
static inline void expect_message(f2i_status status, const f2i_message *message) {
  EXPECT(memchr(message->text, '\0', sizeof message->text) != NULL, "status %d", status);
  EXPECT((status == F2I_OK) == (message->text[0] == '\0'), "status %d, message \"%s\"", status, message->text);
}

/* Work items in the opposite order, on this thread. */
static inline void run_backwards(void *context, f2i_task task, size_t count, void *arg) {
  (void)context;
  while (count > 0) task(arg, --count);
}

/* Equal bits, but for those of a NaN. */
static inline int same_floats(const float *a, const float *b, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    if (memcmp(a + i, b + i, sizeof *a) != 0 && !(isnan(a[i]) && isnan(b[i]))) return 0;
  }
  return 1;
}

#endif
