/* test_quantize.c - the quantizer of every ISA against the baseline one, to the bit, and the packer, without Python.
 * What the public functions refuse: test_quantize_arguments.c.
 *
 * Every buffer ends at an inaccessible page, so a byte too far is a crash; weights lie unaligned for it. What codes and
 * scales have to be is tested from Python (tests/compiler/codes/test_quantizer.py) against an independent derivation.
 */
#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "harness.h"
#include "quantizer/points.h"
#include "quantizer/quantize.h"

/* a value of magnitude 2^-8 to 2^8, now and then zero, negative zero, or equal to its neighbour: borders and ties */
static uint32_t random_float_bits(uint32_t before) {
  const uint32_t bits = random_bits();
  if (bits % 16 == 0) return bits & 0x80000000u;
  if (bits % 16 == 1) return before ^ (bits & 0x80000000u);
  return (bits & 0x807FFFFFu) | (119u + (bits >> 8) % 16) << 23;
}

static void fill(f2i_latent *latent, char *data) {
  uint32_t bits = 0;
  for (int64_t i = 0; i < latent->n * latent->k; ++i) {
    bits = random_float_bits(bits);
    const uint16_t high = (uint16_t)(bits >> 16), half = (uint16_t)((bits >> 16 & 0x8000u) | (bits >> 13 & 0x3FFFu));
    if (latent->dtype == F2I_FLOAT32) memcpy(data + 4 * i, &bits, 4);
    if (latent->dtype == F2I_BFLOAT16) memcpy(data + 2 * i, &high, 2);
    if (latent->dtype == F2I_FLOAT16) memcpy(data + 2 * i, &half, 2);
  }
}

typedef struct results {
  buffer squares, sums, counts, codes, errors, dense, dense16;
  size_t squares_bytes, sums_bytes, codes_bytes, errors_bytes, dense_bytes;
} results;

static results run(const f2i_quantizer *quantizer, const f2i_latent *latent, const float *scales) {
  const size_t rows = (size_t)latent->n / 2;
  results r;
  r.squares_bytes = rows * 2 * sizeof(double);
  r.sums_bytes = rows * 4 * sizeof(double);
  r.codes_bytes = (size_t)latent->stages * rows * (size_t)latent->k;
  r.errors_bytes = rows * 2 * sizeof(double);
  r.dense_bytes = (size_t)(latent->n * latent->k) * sizeof(float);
  r.squares = guarded(r.squares_bytes);
  r.sums = guarded(r.sums_bytes);
  r.counts = guarded(r.sums_bytes);
  r.codes = guarded(r.codes_bytes);
  r.errors = guarded(r.errors_bytes);
  r.dense = guarded(r.dense_bytes);
  r.dense16 = guarded(r.dense_bytes / 2);
  quantizer->squares(latent, 0, (int64_t)rows, r.squares.data);
  quantizer->sums(latent, scales, latent->stages - 1, 0, (int64_t)rows, r.sums.data, r.counts.data);
  quantizer->codes(latent, scales, 0, (int64_t)rows, r.codes.data, r.errors.data);
  quantizer->dequantized(latent, scales, 0, (int64_t)rows, r.dense.data, F2I_FLOAT32);
  quantizer->dequantized(latent, scales, 0, (int64_t)rows, r.dense16.data, F2I_BFLOAT16);
  return r;
}

static void release_results(results r) {
  release(&r.squares);
  release(&r.sums);
  release(&r.counts);
  release(&r.codes);
  release(&r.errors);
  release(&r.dense);
  release(&r.dense16);
}

/* Sums as the profile rounds them, written apart from the library's. */
static float nearest_bfloat(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint32_t below = bits & 0xFFFF0000u, rest = bits & 0xFFFFu;
  bits = rest > 0x8000u || (rest == 0x8000u && (bits & 0x10000u)) ? below + 0x10000u : below;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static float rounded_sum(const f2i_latent *latent, float a, float b) {
  return latent->profile == F2I_PROFILE_BF16 ? nearest_bfloat(a + b) : a + b;
}

/* re (part 0) or im (part 1) of an entry of U (matrix 0) or W: the scaled codes of all stages */
static float entry_of(const f2i_latent *latent, const float *scales, const uint8_t *codes, int matrix, int part,
                      int64_t row, int64_t column) {
  const int64_t plane = latent->n / 2 * latent->k / 2;
  float sum = 0;
  for (int64_t t = 0; t < latent->stages; ++t) {
    const int code = codes[(2 * t + matrix) * plane + row * latent->k / 2 + column];
    const float scale = scales[4 * t + 2 * matrix + part];
    sum = rounded_sum(latent, sum, code % 2 != part ? 0.0f : code / 2 ? -scale : scale);
  }
  return sum;
}

/* The dequantized matrix against one that is put together from the codes: Re(W + U), Im(W - U); Im(W + U), Re(U - W).
 */
static void compare_dense(const results *r, const char *isa, const f2i_latent *latent, const float *scales) {
  const int64_t n = latent->n / 2, m = latent->k / 2;
  int same = 1, same16 = 1;
  for (int64_t i = 0; i < latent->n * latent->k; ++i) {
    const int64_t row = i / latent->k, column = i % latent->k;
    const int lower = row >= n, right = column >= m, part = lower != right;
    const float u = entry_of(latent, scales, r->codes.data, 0, part, row % n, column % m);
    const float w = entry_of(latent, scales, r->codes.data, 1, part, row % n, column % m);
    float expected = lower && right ? rounded_sum(latent, u, -w) : rounded_sum(latent, w, right ? -u : u);
    if (latent->row_divisor != NULL) expected *= latent->row_divisor[row];
    if (latent->col_divisor != NULL) expected *= latent->col_divisor[column];
    same &= memcmp((const float *)r->dense.data + i, &expected, sizeof expected) == 0;
    const float half = nearest_bfloat(expected);
    uint32_t bits;
    memcpy(&bits, &half, sizeof bits);
    const uint16_t high = (uint16_t)(bits >> 16);
    same16 &= memcmp((const uint16_t *)r->dense16.data + i, &high, sizeof high) == 0;
  }
  check(same, "dequantized and codes", isa);
  check(same16, "dequantized to bfloat16 and codes", isa);
}

/* The same from and to memory at odd addresses, a complex row at a time, last one first: nothing else is written. */
static void compare_unaligned(const f2i_quantizer *quantizer, const char *isa, const f2i_latent *latent,
                              const float *scales, const results *expected) {
  const int64_t rows = latent->n / 2;
  const buffer data = guarded(latent->bytes + 1), out = guarded(expected->dense_bytes + 1);
  const buffer out16 = guarded(expected->dense_bytes / 2 + 1), codes = guarded(expected->codes_bytes);
  f2i_latent moved = *latent;
  moved.data = memcpy(data.data, latent->data, latent->bytes);
  quantizer->codes(&moved, scales, 0, rows, codes.data, NULL);
  check(memcmp(codes.data, expected->codes.data, expected->codes_bytes) == 0, "codes of unaligned weights", isa);
  memset(out.data, 0xA5, expected->dense_bytes + 1);
  for (int64_t row = rows - 1; row >= 0; --row) {
    const int64_t first[2] = {row * latent->k, (rows + row) * latent->k};
    const size_t bytes = (size_t)latent->k * sizeof(float);
    quantizer->dequantized(&moved, scales, row, row + 1, out.data, F2I_FLOAT32);
    quantizer->dequantized(&moved, scales, row, row + 1, out16.data, F2I_BFLOAT16);
    int same = ((const uint8_t *)out.data)[expected->dense_bytes] == 0xA5;
    for (int half = 0; half < 2; ++half) {
      const char *all = expected->dense.data;
      same &= memcmp((const char *)out.data + 4 * first[half], all + 4 * first[half], bytes) == 0;
    }
    same &=
        row == 0 || (((const uint8_t *)out.data)[0] == 0xA5 && ((const uint8_t *)out.data)[4 * first[1] - 1] == 0xA5);
    if (!same) check(0, "dequantized row", isa);
  }
  check(memcmp(out.data, expected->dense.data, expected->dense_bytes) == 0, "dequantized, unaligned", isa);
  check(memcmp(out16.data, expected->dense16.data, expected->dense_bytes / 2) == 0, "bfloat16, unaligned", isa);
  release(&data);
  release(&out);
  release(&out16);
  release(&codes);
}

static void compare(const f2i_quantizer *quantizer, const char *isa, const f2i_latent *latent, const float *scales) {
  const results a = run(&f2i_quantizer_baseline, latent, scales), b = run(quantizer, latent, scales);
  check(memcmp(a.squares.data, b.squares.data, a.squares_bytes) == 0, "squares", isa);
  check(memcmp(a.sums.data, b.sums.data, a.sums_bytes) == 0, "sums", isa);
  check(memcmp(a.counts.data, b.counts.data, a.sums_bytes) == 0, "counts", isa);
  check(memcmp(a.codes.data, b.codes.data, a.codes_bytes) == 0, "codes", isa);
  check(memcmp(a.errors.data, b.errors.data, a.errors_bytes) == 0, "errors", isa);
  check(memcmp(a.dense.data, b.dense.data, a.dense_bytes) == 0, "dequantized", isa);
  check(memcmp(a.dense16.data, b.dense16.data, a.dense_bytes / 2) == 0, "dequantized to bfloat16", isa);
  compare_dense(&b, isa, latent, scales);
  compare_unaligned(quantizer, isa, latent, scales, &a);

  /* rows one by one and packed in guarded memory: the same codes */
  const int64_t rows = latent->n / 2, m = latent->k / 2;
  uint8_t *one = malloc((size_t)(latent->stages * latent->k));
  int same = one != NULL;
  for (int64_t row = 0; row < rows && same; ++row) {
    quantizer->codes(latent, scales, row, row + 1, one, NULL);
    for (int64_t plane = 0; plane < 2 * latent->stages; ++plane) {
      same &= memcmp(one + plane * m, (uint8_t *)a.codes.data + (plane * rows + row) * m, (size_t)m) == 0;
    }
  }
  check(same, "rows one by one", isa);
  free(one);
  size_t bytes = 0;
  f2i_message message;
  check(f2i_packed_size(latent->k, latent->n, latent->stages, &bytes, &message) == F2I_OK, "size", isa);
  const buffer packed = guarded(bytes);
  check(f2i_pack(b.codes.data, b.codes_bytes, latent->k, latent->n, latent->stages, 0, rows, packed.data, bytes,
                 &message) == F2I_OK,
        message.text, isa);
  ((uint8_t *)b.codes.data)[b.codes_bytes - 1] = 4;
  check(f2i_pack(b.codes.data, b.codes_bytes, latent->k, latent->n, latent->stages, 0, rows, packed.data, bytes,
                 &message) == F2I_INVALID_ARGUMENT,
        "a code of 4", isa);
  release(&packed);
  release_results(a);
  release_results(b);
}

/* The joint quantizer's functions on the entries of a matrix, of every length up to some, against the baseline's. */
static void compare_nearest(const f2i_quantizer *quantizer, const char *isa, const f2i_latent *latent,
                            const float *scales) {
  const f2i_quantizer *both[2] = {&f2i_quantizer_baseline, quantizer};
  const int64_t entries = latent->n / 2 * latent->k / 2;
  const size_t parts_bytes = (size_t)(4 * entries) * sizeof(float);
  const buffer a = guarded(parts_bytes), b = guarded(parts_bytes);
  f2i_quantizer_baseline.parts(latent, 0, latent->n / 2, a.data);
  quantizer->parts(latent, 0, latent->n / 2, b.data);
  check(memcmp(a.data, b.data, parts_bytes) == 0, "parts", isa);
  f2i_points points;
  f2i_points_fill(&points, scales, 4, latent->stages);
  check(points.count <= F2I_MAX_POINTS && points.count % F2I_POINT_GROUP == 0, "points", isa);
  const int64_t count = entries < 600 ? entries : 600;
  const float *re = (const float *)a.data + entries - count, *im = re + entries;
  const size_t sums_bytes = ((size_t)4 << (2 * latent->stages)) * sizeof(double);
  buffer codes[2], q_re[2], q_im[2], sums[2], weighted[2];
  for (int i = 0; i < 2; ++i) {
    codes[i] = guarded((size_t)(latent->stages * count));
    q_re[i] = guarded((size_t)count * sizeof(float));
    q_im[i] = guarded((size_t)count * sizeof(float));
    sums[i] = guarded(sums_bytes);
    weighted[i] = guarded(sums_bytes);
    both[i]->nearest(&points, re, im, count, codes[i].data, q_re[i].data, q_im[i].data);
    both[i]->nearest_sums(&points, re, im, NULL, count, sums[i].data);
    both[i]->nearest_sums(&points, re, im, (const float *)q_re[0].data, count, weighted[i].data);
  }
  check(memcmp(codes[0].data, codes[1].data, (size_t)(latent->stages * count)) == 0, "nearest", isa);
  check(memcmp(q_re[0].data, q_re[1].data, (size_t)count * sizeof(float)) == 0, "nearest re", isa);
  check(memcmp(q_im[0].data, q_im[1].data, (size_t)count * sizeof(float)) == 0, "nearest im", isa);
  check(memcmp(sums[0].data, sums[1].data, sums_bytes) == 0, "nearest sums", isa);
  check(memcmp(weighted[0].data, weighted[1].data, sums_bytes) == 0, "weighted sums", isa);
  for (int i = 0; i < 2; ++i) {
    release(&codes[i]);
    release(&q_re[i]);
    release(&q_im[i]);
    release(&sums[i]);
    release(&weighted[i]);
  }
  release(&a);
  release(&b);
}

static void test_isa(const f2i_quantizer *quantizer, const char *isa) {
  static const int64_t shapes[][2] = {{2, 2}, {4, 34}, {66, 30}, {64, 64}, {6, 1026}, {34, 2080}};
  static const float scales[16] = {1.5f, 1.25f, 1.0f, 2.0f, 0.75f, 0.5f,  0.625f, 0.875f,
                                   0.3f, 0.4f,  0.5f, 0.2f, 0.1f,  0.15f, 0.05f,  1e-6f};
  for (size_t shape = 0; shape < sizeof shapes / sizeof *shapes; ++shape) {
    for (int variant = 0; variant < 48; ++variant) { /* dtype x profile x stages x divisor */
      f2i_latent latent = {0};
      latent.n = shapes[shape][0];
      latent.k = shapes[shape][1];
      latent.dtype = variant % 3;
      latent.profile = variant / 3 % 2;
      latent.stages = 1 + variant / 6 % 4;
      latent.bytes = (size_t)(latent.n * latent.k) * (latent.dtype == F2I_FLOAT32 ? 4 : 2);
      const buffer data = guarded(latent.bytes), divisor = guarded((size_t)latent.n * sizeof(float));
      fill(&latent, data.data);
      latent.data = data.data;
      for (int64_t i = 0; i < latent.n; ++i) ((float *)divisor.data)[i] = 0.5f + (float)(random_bits() % 1000) / 700;
      if (variant / 24) {
        latent.row_divisor = divisor.data;
        latent.row_divisor_count = (size_t)latent.n;
      }
      const buffer columns = guarded((size_t)latent.k * sizeof(float));
      for (int64_t i = 0; i < latent.k; ++i) ((float *)columns.data)[i] = 0.5f + (float)(random_bits() % 1000) / 700;
      compare(quantizer, isa, &latent, scales);
      latent.quantizer = F2I_JOINT;
      if (variant / 24) {
        latent.col_divisor = columns.data;
        latent.col_divisor_count = (size_t)latent.k;
      }
      compare(quantizer, isa, &latent, scales);
      compare_nearest(quantizer, isa, &latent, scales);
      release(&columns);
      release(&data);
      release(&divisor);
    }
  }
}

int main(void) {
  test_isa(&f2i_quantizer_baseline, "baseline");
#if defined(F2I_HAVE_QUANTIZE_AVX2)
  if (f2i_cpu_bits() & F2I_CPU_AVX2) test_isa(&f2i_quantizer_avx2, "avx2");
#endif
#if defined(F2I_HAVE_QUANTIZE_AVX512)
  if (f2i_cpu_bits() & F2I_CPU_AVX512) test_isa(&f2i_quantizer_avx512, "avx512");
#endif
  printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
