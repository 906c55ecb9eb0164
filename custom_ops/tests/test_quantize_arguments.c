/* test_quantize_arguments.c - the quantizer's public functions, of the shared library as programs get it: what they
 * refuse, with a message and nothing written; that parts of nothing are fine; the fingerprint; scales of any values.
 *
 * Every buffer ends at an inaccessible page. That all ISAs give equal bits is tested in test_quantize.c.
 */
#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "fairy2i.h"
#include "harness.h"

enum { N = 6, K = 10, STAGES = 3, ROWS = N / 2, ENTRIES = 7 };
enum { SCALES = 4 * STAGES, PARTS = 2 * ROWS * K, CODES = STAGES * ROWS * K, SUMS = 4 << (2 * STAGES) };

static const float scales[16] = {1.0f, 0.9f, 1.1f, 0.8f, 0.5f, 0.4f,  0.6f, 0.55f,
                                 0.2f, 0.3f, 0.1f, 0.2f, 0.1f, 0.05f, 0.1f, 0.07f};
static const float values[N * K] = {0.5f, -1.0f, 0.25f, 2.0f, -0.75f};
static const float divisors[K] = {1, 2, 1, 2, 1, 2, 1, 2, 1, 2};

static f2i_latent good(void) {
  f2i_latent latent = {0};
  latent.data = values;
  latent.bytes = sizeof values;
  latent.k = K;
  latent.n = N;
  latent.stages = STAGES;
  latent.dtype = F2I_FLOAT32;
  return latent;
}

/* --- one buffer that results go to, and whether anything has been written to it --- */

static buffer out;
static size_t out_bytes;

static void *fresh(size_t bytes) {
  if (out.map != NULL) release(&out);
  out = guarded(bytes);
  out_bytes = bytes;
  return memset(out.data, 0xA5, bytes);
}

static int untouched(void) {
  const uint8_t *byte = out.data;
  for (size_t i = 0; i < out_bytes; ++i) {
    if (byte[i] != 0xA5) return 0;
  }
  return 1;
}

/* The call fails, writes nothing, and says so; the message names `word`. Without a message it fails just so. */
#define REFUSED(bytes, word, call)                                                                                    \
  do {                                                                                                                \
    f2i_message text, *message = &text;                                                                               \
    void *result = fresh(bytes);                                                                                      \
    memset(&text, 'x', sizeof text);                                                                                  \
    check((call) == F2I_INVALID_ARGUMENT, #call, "expected F2I_INVALID_ARGUMENT");                                    \
    check(memchr(text.text, 0, sizeof text.text) != NULL && strstr(text.text, word) != NULL, #call, "wrong message"); \
    check(untouched(), #call, "has written");                                                                         \
    message = NULL;                                                                                                   \
    check((call) == F2I_INVALID_ARGUMENT && untouched(), #call, "without a message");                                 \
    (void)result;                                                                                                     \
  } while (0)

#define ACCEPTED(bytes, call)                                       \
  do {                                                              \
    f2i_message text, *message = &text;                             \
    void *result = fresh(bytes);                                    \
    memset(&text, 'x', sizeof text);                                \
    check((call) == F2I_OK && text.text[0] == 0, #call, text.text); \
    (void)result;                                                   \
  } while (0)

/* --- the latent weight, which several functions take --- */

enum { DENSE = N * K * 4 };

static void refuse_latent(f2i_latent latent, const char *word) {
  REFUSED(DENSE, word, f2i_quantize_dequantized(&latent, scales, SCALES, 0, ROWS, F2I_FLOAT32, result, DENSE, message));
  REFUSED(PARTS * 4, word, f2i_quantize_parts(&latent, 0, ROWS, result, PARTS, message));
  REFUSED(CODES, word, f2i_quantize_codes(&latent, scales, SCALES, 0, ROWS, result, CODES, NULL, 0, message));
  REFUSED(ROWS * 16, word, f2i_quantize_squares(&latent, 0, ROWS, result, ROWS * 2, message));
}

static void test_latent(void) {
  static const int64_t bad[] = {-1, 3, 1000, INT64_MIN, INT64_MAX};
  f2i_latent latent;
  for (size_t i = 0; i < sizeof bad / sizeof *bad; ++i) {
    latent = good(), latent.dtype = bad[i], refuse_latent(latent, "dtype");
    latent = good(), latent.profile = bad[i], refuse_latent(latent, "profile");
    latent = good(), latent.quantizer = bad[i], refuse_latent(latent, "quantizer");
    latent = good(), latent.k = bad[i], refuse_latent(latent, "");
    latent = good(), latent.n = bad[i], refuse_latent(latent, "");
    if (bad[i] != 3) latent = good(), latent.stages = bad[i], refuse_latent(latent, "stages");
  }
  latent = good(), latent.data = NULL, refuse_latent(latent, "data: expected 240 bytes");
  latent = good(), latent.bytes -= 1, refuse_latent(latent, "got 239");
  latent = good(), latent.bytes += 1, refuse_latent(latent, "got 241");
  latent = good(), latent.dtype = F2I_BFLOAT16, refuse_latent(latent, "expected 120 bytes");
  latent = good(), latent.imag = values, refuse_latent(latent, "expected 60 bytes for K=10, N=6, got 240");
  latent = good(), latent.row_divisor = divisors, latent.row_divisor_count = N + 1,
  refuse_latent(latent, "row_divisor");
  latent = good(), latent.col_divisor = divisors, latent.col_divisor_count = K - 1,
  refuse_latent(latent, "col_divisor");
  REFUSED(DENSE, "latent",
          f2i_quantize_dequantized(NULL, scales, SCALES, 0, ROWS, F2I_FLOAT32, result, DENSE, message));
  REFUSED(PARTS * 4, "latent", f2i_quantize_parts(NULL, 0, ROWS, result, PARTS, message));
}

/* --- parts of the rows, sizes of results --- */

static void test_parts(void) {
  const f2i_latent latent = good();
  REFUSED(PARTS * 4, "rows", f2i_quantize_parts(&latent, -1, ROWS, result, PARTS, message));
  REFUSED(PARTS * 4, "rows", f2i_quantize_parts(&latent, 2, 1, result, PARTS, message));
  REFUSED(PARTS * 4, "rows", f2i_quantize_parts(&latent, 0, ROWS + 1, result, PARTS, message));
  REFUSED(PARTS * 4, "parts", f2i_quantize_parts(&latent, 0, ROWS, result, PARTS - 1, message));
  REFUSED(PARTS * 4, "parts", f2i_quantize_parts(&latent, 0, ROWS, result, PARTS + 1, message));
  REFUSED(PARTS * 4, "parts: expected 60 values, got 0", f2i_quantize_parts(&latent, 0, ROWS, NULL, PARTS, message));
  ACCEPTED(PARTS * 4, f2i_quantize_parts(&latent, 0, ROWS, result, PARTS, message));
  const float *parts = out.data; /* [U re, U im, W re, W im]: of the first entry 0.5 (a11 + a22), ... */
  check(parts[0] == 0.25f && parts[2 * PARTS / 4] == 0.25f && !untouched(), "parts", "values");
  ACCEPTED(1, f2i_quantize_parts(&latent, 1, 1, result, 0, message)); /* no rows */
  check(untouched(), "parts", "no rows");
}

static void test_dequantized(void) {
  const f2i_latent a = good();
  const int64_t f32 = F2I_FLOAT32, bf16 = F2I_BFLOAT16;
  REFUSED(DENSE, "rows", f2i_quantize_dequantized(&a, scales, SCALES, -1, ROWS, f32, result, DENSE, message));
  REFUSED(DENSE, "rows", f2i_quantize_dequantized(&a, scales, SCALES, 0, ROWS + 1, f32, result, DENSE, message));
  REFUSED(DENSE, "rows", f2i_quantize_dequantized(&a, scales, SCALES, 2, 1, f32, result, DENSE, message));
  REFUSED(DENSE, "scales", f2i_quantize_dequantized(&a, scales, SCALES - 4, 0, ROWS, f32, result, DENSE, message));
  REFUSED(DENSE, "scales", f2i_quantize_dequantized(&a, scales, SCALES + 4, 0, ROWS, f32, result, DENSE, message));
  REFUSED(DENSE, "scales", f2i_quantize_dequantized(&a, NULL, SCALES, 0, ROWS, f32, result, DENSE, message));
  REFUSED(DENSE, "dtype", f2i_quantize_dequantized(&a, scales, SCALES, 0, ROWS, F2I_FLOAT16, result, DENSE, message));
  REFUSED(DENSE, "dtype", f2i_quantize_dequantized(&a, scales, SCALES, 0, ROWS, 3, result, DENSE, message));
  REFUSED(DENSE, "out", f2i_quantize_dequantized(&a, scales, SCALES, 0, ROWS, f32, NULL, DENSE, message));
  REFUSED(DENSE, "out", f2i_quantize_dequantized(&a, scales, SCALES, 0, ROWS, f32, result, DENSE - 4, message));
  REFUSED(DENSE, "out", f2i_quantize_dequantized(&a, scales, SCALES, 0, ROWS, bf16, result, DENSE, message));
  /* a part of the rows still goes to its place in a whole matrix */
  REFUSED(DENSE, "out", f2i_quantize_dequantized(&a, scales, SCALES, 0, 1, f32, result, DENSE / ROWS, message));
  ACCEPTED(DENSE, f2i_quantize_dequantized(&a, scales, SCALES, 1, 1, f32, result, DENSE, message));
  check(untouched(), "dequantized", "no rows");
  ACCEPTED(DENSE / 2, f2i_quantize_dequantized(&a, scales, SCALES, 0, ROWS, bf16, result, DENSE / 2, message));
  check(!untouched(), "dequantized", "to bfloat16");
}

/* --- the joint quantizer on arrays --- */

static void test_points(void) {
  REFUSED(sizeof(f2i_points), "scales", f2i_points_init(result, NULL, 2, message));
  REFUSED(1, "scales", f2i_points_init(NULL, scales, 2, message));
  static const size_t bad[] = {0, 1, 3, 7, 9, 10, SIZE_MAX, SIZE_MAX - 1};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; ++i) {
    REFUSED(sizeof(f2i_points), "2 per stage", f2i_points_init(result, scales, bad[i], message));
  }
  for (int i = 0; i < 8; ++i) {
    static const float not_finite[] = {NAN, INFINITY, -INFINITY};
    for (int j = 0; j < 3; ++j) {
      float with[8];
      memcpy(with, scales, sizeof with);
      with[i] = not_finite[j];
      REFUSED(sizeof(f2i_points), "finite", f2i_points_init(result, with, 8, message));
    }
  }
  static const int64_t most[] = {4, 8, 20, 72}; /* 2, 6, 20, 72, rounded up to whole groups */
  static const float odd[][8] = {{0},
                                 {1, 1, 1, 1, 1, 1, 1, 1},
                                 {-1, 1, 0.5f, -0.5f, -0.25f, 0.25f, 0.125f, 0.1f},
                                 {3e38f, 3e38f, 3e38f, 3e38f, 3e38f, 3e38f, 3e38f, 3e38f}};
  for (int64_t stages = 1; stages <= 4; ++stages) {
    ACCEPTED(sizeof(f2i_points), f2i_points_init(result, scales, 2 * (size_t)stages, message));
    const f2i_points *points = out.data;
    check(points->stages == stages && points->count == most[stages - 1], "points", "number");
    for (int i = 0; i < 4; ++i) {
      ACCEPTED(sizeof(f2i_points), f2i_points_init(result, odd[i], 2 * (size_t)stages, message));
      points = out.data;
      check(points->count >= 4 && points->count <= most[stages - 1] && points->count % 4 == 0, "points", "odd scales");
    }
  }
}

/* Scales that are not finite, such as diverged training has, stay within all buffers. */
static void test_scales_that_are_not_finite(void) {
  float bad[16];
  for (int kind = 0; kind < 3; ++kind) {
    for (int i = 0; i < 16; ++i) bad[i] = kind == 0 ? NAN : kind == 1 ? INFINITY : i % 3 ? scales[i] : NAN;
    f2i_latent latent = good();
    latent.stages = 4;
    latent.quantizer = F2I_JOINT;
    ACCEPTED(DENSE, f2i_quantize_dequantized(&latent, bad, 16, 0, ROWS, F2I_FLOAT32, result, DENSE, message));
    ACCEPTED(4 * ROWS * K, f2i_quantize_codes(&latent, bad, 16, 0, ROWS, result, 4 * ROWS * K, NULL, 0, message));
    const uint8_t *codes = out.data;
    for (int i = 0; i < 4 * ROWS * K; ++i) check(codes[i] < 4, "codes", "of scales that are not finite");
  }
}

static void test_nearest(void) {
  const buffer re = guarded(ENTRIES * sizeof(float)), im = guarded(ENTRIES * sizeof(float));
  memcpy(re.data, values, ENTRIES * sizeof(float));
  memcpy(im.data, values + 1, ENTRIES * sizeof(float));
  const float *x = re.data, *y = im.data;
  f2i_points p;
  f2i_message message_of_init;
  check(f2i_points_init(&p, scales, 2 * STAGES, &message_of_init) == F2I_OK, "points", message_of_init.text);
  const size_t codes = STAGES * ENTRIES, sums = SUMS * sizeof(double);
  REFUSED(codes, "points", f2i_nearest(NULL, x, y, ENTRIES, result, NULL, NULL, message));
  REFUSED(codes, "re, im", f2i_nearest(&p, NULL, y, ENTRIES, result, NULL, NULL, message));
  REFUSED(codes, "re, im", f2i_nearest(&p, x, NULL, ENTRIES, result, NULL, NULL, message));
  REFUSED(64, "both or neither", f2i_nearest(&p, x, y, ENTRIES, NULL, result, NULL, message));
  REFUSED(64, "both or neither", f2i_nearest(&p, x, y, ENTRIES, NULL, NULL, result, message));
  REFUSED(sums, "points", f2i_nearest_sums(NULL, x, y, NULL, ENTRIES, result, SUMS, message));
  REFUSED(sums, "re, im", f2i_nearest_sums(&p, NULL, y, NULL, ENTRIES, result, SUMS, message));
  REFUSED(sums, "sums", f2i_nearest_sums(&p, x, y, NULL, ENTRIES, NULL, SUMS, message));
  REFUSED(sums, "sums: expected 256", f2i_nearest_sums(&p, x, y, NULL, ENTRIES, result, SUMS - 1, message));
  REFUSED(sums, "sums: expected 256", f2i_nearest_sums(&p, x, y, NULL, ENTRIES, result, SUMS * 4, message));
  static const int64_t bad[][2] = {{0, 20}, {5, 20}, {3, 0}, {3, 19}, {3, 76}, {-1, 20}, {3, -4}, {3, INT64_MAX}};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; ++i) { /* such as one that nothing has filled */
    f2i_points unfilled = p;
    unfilled.stages = bad[i][0];
    unfilled.count = bad[i][1];
    REFUSED(codes, "f2i_points_init", f2i_nearest(&unfilled, x, y, ENTRIES, result, NULL, NULL, message));
    REFUSED(sums, "f2i_points_init", f2i_nearest_sums(&unfilled, x, y, NULL, ENTRIES, result, SUMS, message));
  }
  ACCEPTED(codes, f2i_nearest(&p, x, y, ENTRIES, result, NULL, NULL, message));
  const uint8_t *found = out.data;
  float best = INFINITY, of_found = 0; /* the third entry, (0.25, 2), by trying all points there are */
  for (int combination = 0; combination < 1 << (2 * STAGES); ++combination) {
    float point[2] = {0, 0};
    int is_found = 1;
    for (int t = 0; t < STAGES; ++t) {
      const int code = combination >> 2 * (STAGES - 1 - t) & 3;
      point[code % 2] += code / 2 ? -scales[2 * t + code % 2] : scales[2 * t + code % 2];
      is_found &= found[t * ENTRIES + 2] == code;
    }
    const float distance = (x[2] - point[0]) * (x[2] - point[0]) + (y[2] - point[1]) * (y[2] - point[1]);
    best = distance < best ? distance : best;
    if (is_found) of_found = distance;
  }
  check(of_found == best, "nearest", "another point is nearer");
  ACCEPTED(sums, f2i_nearest_sums(&p, x, y, NULL, ENTRIES, result, SUMS, message));
  double entries = 0;
  for (int i = 0; i < SUMS; i += 4) entries += ((const double *)out.data)[i];
  check(entries == ENTRIES, "nearest sums", "every entry counts once");
  ACCEPTED(1, f2i_nearest(&p, NULL, NULL, 0, NULL, NULL, NULL, message)); /* no entries */
  ACCEPTED(sums, f2i_nearest_sums(&p, NULL, NULL, NULL, 0, result, SUMS, message));
  release(&re);
  release(&im);
}

/* --- the fingerprint --- */

static uint64_t fingerprint(const void *data, size_t bytes) {
  uint64_t found = 0;
  f2i_message message;
  check(f2i_fingerprint(data, bytes, &found, &message) == F2I_OK, "fingerprint", message.text);
  return found;
}

static void test_fingerprint(void) {
  REFUSED(8, "pointers", f2i_fingerprint(NULL, 1, result, message));
  REFUSED(8, "pointers", f2i_fingerprint(values, 4, NULL, message));
  ACCEPTED(8, f2i_fingerprint(NULL, 0, result, message)); /* nothing has one, too */
  static uint64_t of_zeros[200];
  for (size_t bytes = 1; bytes < 200; ++bytes) {
    const buffer data = guarded(bytes), moved = guarded(bytes + 3);
    uint8_t *byte = data.data;
    of_zeros[bytes] = fingerprint(data.data, bytes);
    for (size_t other = 1; other < bytes; ++other) {
      if (of_zeros[other] == of_zeros[bytes]) check(0, "fingerprint", "the same for two lengths");
    }
    for (size_t i = 0; i < bytes; ++i) byte[i] = (uint8_t)random_bits();
    const uint64_t whole = fingerprint(byte, bytes);
    for (size_t shift = 0; shift < 4; ++shift) {
      memcpy((char *)moved.data + shift, byte, bytes);
      check(fingerprint((char *)moved.data + shift, bytes) == whole, "fingerprint", "depends on the address");
    }
    int same = 0;
    for (size_t bit = 0; bit < 8 * bytes; ++bit) {
      byte[bit / 8] ^= (uint8_t)(1u << bit % 8);
      same += fingerprint(byte, bytes) == whole;
      byte[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    check(same == 0, "fingerprint", "a bit has changed and it has not");
    release(&data);
    release(&moved);
  }
  /* all signs at once, the same change in every word, words that change places */
  float a[256], negated[256], swapped[256];
  for (int i = 0; i < 256; ++i) a[i] = (float)i + 1, negated[i] = -a[i], swapped[i ^ 16] = a[i];
  check(fingerprint(a, sizeof a) != fingerprint(negated, sizeof a), "fingerprint", "signs");
  check(fingerprint(a, sizeof a) != fingerprint(swapped, sizeof a), "fingerprint", "order");
}

int main(void) {
  test_latent();
  test_parts();
  test_dequantized();
  test_points();
  test_scales_that_are_not_finite();
  test_nearest();
  test_fingerprint();
  printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
