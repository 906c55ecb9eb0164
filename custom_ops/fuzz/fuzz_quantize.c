/* fuzz_quantize.c - matrices of any numbers through the quantizer and the search: codes are codes, a matrix in parts
 * gives what it gives at once, and no byte is touched that was not given.
 */
#include "input.h"

typedef struct latent_input {
  f2i_latent latent;
  void *data;
  float *rows, *columns, *scales;
} latent_input;

static latent_input a_latent(input *in) {
  latent_input l = {.latent = {.n = 2 + 2 * (int64_t)below(in, 12), .k = 2 + 2 * (int64_t)below(in, 50)}};
  const size_t count = (size_t)(l.latent.n * l.latent.k);
  l.latent.dtype = a_byte(in) % 3;
  l.latent.stages = 1 + a_byte(in) % 4;
  l.latent.profile = a_byte(in) % 2;
  l.latent.quantizer = a_byte(in) % 2;
  const int is_complex = a_byte(in) % 4 == 0; /* its parts are a quarter each: the second lies behind the first */
  l.latent.bytes = (is_complex ? count / 4 : count) * (l.latent.dtype == F2I_FLOAT32 ? 4 : 2);
  const uint8_t given = a_byte(in);
  l.rows = given & 1 ? floats(in, (size_t)l.latent.n, 0) : NULL;
  l.columns = given & 2 ? floats(in, (size_t)l.latent.k, 0) : NULL;
  l.scales = floats(in, 4 * (size_t)l.latent.stages, given & 4);
  l.data = l.latent.dtype == F2I_FLOAT32 ? (void *)floats(in, count, 0) : some_bytes(in, 2 * count);
  l.latent.data = l.data;
  if (is_complex) l.latent.imag = (const char *)l.data + 3 * l.latent.bytes; /* up to the last byte */
  l.latent.row_divisor = l.rows;
  l.latent.col_divisor = l.columns;
  l.latent.row_divisor_count = l.rows == NULL ? 0 : (size_t)l.latent.n;
  l.latent.col_divisor_count = l.columns == NULL ? 0 : (size_t)l.latent.k;
  return l;
}

static void expect_ok(f2i_status status, const f2i_message *message) {
  expect_message(status, message);
  EXPECT(status == F2I_OK, "%s", message->text);
}

/* Codes at once, and in two parts. */
static void test_codes(input *in, const latent_input *l) {
  const f2i_latent *a = &l->latent;
  const size_t n = (size_t)a->n / 2, m = (size_t)a->k / 2, planes = 2 * (size_t)a->stages;
  const size_t scales = 4 * (size_t)a->stages, middle = below(in, n + 1);
  f2i_message message;
  uint8_t *codes = allocated(planes * n * m), *part = allocated(planes * n * m);
  double *errors = allocated(2 * n * sizeof *errors);
  expect_ok(f2i_quantize_codes(a, l->scales, scales, 0, (int64_t)n, codes, planes * n * m, errors, 2 * n, &message),
            &message);
  for (size_t i = 0; i < planes * n * m; ++i) EXPECT(codes[i] <= 3, "code %d", codes[i]);
  const size_t bounds[3] = {0, middle, n};
  for (int p = 0; p < 2; ++p) {
    const size_t begin = bounds[p], rows = bounds[p + 1] - begin;
    expect_ok(f2i_quantize_codes(a, l->scales, scales, (int64_t)begin, (int64_t)(begin + rows), part, planes * rows * m,
                                 NULL, 0, &message),
              &message);
    for (size_t plane = 0; plane < planes; ++plane) {
      EXPECT(memcmp(part + plane * rows * m, codes + (plane * n + begin) * m, rows * m) == 0, "rows %zu to %zu", begin,
             begin + rows);
    }
  }
  free(codes);
  free(part);
  free(errors);
}

static void test_others(input *in, const latent_input *l) {
  const f2i_latent *a = &l->latent;
  const size_t n = (size_t)a->n / 2, m = (size_t)a->k / 2, known = below(in, (size_t)a->stages);
  f2i_message message;
  double *sums = allocated(4 * n * sizeof *sums);
  int64_t *counts = allocated(4 * n * sizeof *counts);
  float *parts = allocated(4 * n * m * sizeof *parts), *dense = allocated(4 * n * m * sizeof *dense);
  uint16_t *half = allocated(4 * n * m * sizeof *half);
  const size_t scales = 4 * (size_t)a->stages;
  expect_ok(f2i_quantize_squares(a, 0, (int64_t)n, sums, 2 * n, &message), &message);
  expect_ok(f2i_quantize_sums(a, l->scales, 4 * known, 0, (int64_t)n, sums, counts, 4 * n, &message), &message);
  for (size_t r = 0; r < 2 * n; ++r) {
    EXPECT(counts[2 * r] >= 0 && counts[2 * r + 1] >= 0 && counts[2 * r] + counts[2 * r + 1] == (int64_t)m,
           "%lld + %lld of %zu", (long long)counts[2 * r], (long long)counts[2 * r + 1], m);
  }
  expect_ok(f2i_quantize_parts(a, 0, (int64_t)n, parts, 4 * n * m, &message), &message);
  expect_ok(f2i_quantize_dequantized(a, l->scales, scales, 0, (int64_t)n, F2I_FLOAT32, dense, 16 * n * m, &message),
            &message);
  expect_ok(f2i_quantize_dequantized(a, l->scales, scales, 0, (int64_t)n, F2I_BFLOAT16, half, 8 * n * m, &message),
            &message);
  free(sums);
  free(counts);
  free(parts);
  free(dense);
  free(half);
}

static void test_points(input *in, const latent_input *l) {
  const int64_t stages = l->latent.stages;
  const size_t count = below(in, 60);
  f2i_points points;
  f2i_message message;
  const f2i_status status = f2i_points_init(&points, l->scales, 2 * (size_t)stages, &message);
  expect_message(status, &message);
  if (status != F2I_OK) return;
  float *re = floats(in, count, 0), *im = floats(in, count, 0), *weights = floats(in, count, 0);
  uint8_t *codes = allocated((size_t)stages * count);
  double *sums = allocated(((size_t)4 << (2 * stages)) * sizeof *sums);
  const f2i_status nearest = f2i_nearest(&points, re, im, count, codes, NULL, NULL, &message);
  expect_message(nearest, &message);
  for (size_t i = 0; nearest == F2I_OK && i < (size_t)stages * count; ++i) EXPECT(codes[i] <= 3, "code %d", codes[i]);
  expect_message(f2i_nearest_sums(&points, re, im, a_byte(in) & 1 ? weights : NULL, count, sums,
                                  (size_t)4 << (2 * stages), &message),
                 &message);
  free(re);
  free(im);
  free(weights);
  free(codes);
  free(sums);
}

static void test_search(input *in, const latent_input *l) {
  f2i_search s = {.m = 1 + (int64_t)below(in, 12), .n = 1 + (int64_t)below(in, 20), .stages = l->latent.stages};
  const size_t m = (size_t)s.m, n = (size_t)s.n, codes = 2 * (size_t)s.stages * m * n;
  float *rows = floats(in, 2 * n, 0), *columns = floats(in, 2 * m, 0), *metric = floats(in, 4 * m * m, 0);
  float *values = floats(in, 4 * m * n, 0), *dense = floats(in, 4 * m * n, 0);
  uint8_t *out = some_bytes(in, codes);
  f2i_message message;
  for (size_t i = 0; i < codes; ++i) out[i] &= 3;
  s.scales = l->scales, s.scales_count = 4 * (size_t)s.stages;
  s.rows = rows, s.rows_count = 2 * n;
  s.columns = columns, s.columns_count = 2 * m;
  s.metric = metric, s.metric_count = 4 * m * m;
  s.codes = out, s.codes_count = codes;
  s.dense = dense, s.dense_count = 4 * m * n;
  const size_t from = below(in, m + 1), to = from + below(in, m - from + 1);
  const size_t begin = below(in, n + 1), end = begin + below(in, n - begin + 1);
  if (a_byte(in) & 1) {
    expect_ok(
        f2i_search_feed_back(&s, (int64_t)from, (int64_t)to, (int64_t)begin, (int64_t)end, values, 4 * m * n, &message),
        &message);
  } else {
    f2i_sweeps sweeps = {.count = (int64_t)below(in, 4), .stride = 2 * s.m + (int64_t)below(in, 3), .seed = a_byte(in)};
    const size_t count = (size_t)sweeps.count * n, pull_count = 2 * n * (size_t)sweeps.stride;
    float *noise = a_byte(in) & 1 ? floats(in, count, 0) : NULL, *pull = floats(in, pull_count, 0);
    sweeps.noise = noise, sweeps.noise_count = noise == NULL ? 0 : count;
    expect_ok(f2i_search_anneal(&s, &sweeps, (int64_t)begin, (int64_t)end, pull, pull_count, &message), &message);
    free(noise);
    free(pull);
  }
  for (size_t i = 0; i < codes; ++i) EXPECT(out[i] <= 3, "code %d", out[i]);
  free(rows);
  free(columns);
  free(metric);
  free(values);
  free(dense);
  free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  input in = input_of(data, size);
  latent_input l = a_latent(&in);
  test_codes(&in, &l);
  test_others(&in, &l);
  test_points(&in, &l);
  test_search(&in, &l);
  free(l.data);
  free(l.rows);
  free(l.columns);
  free(l.scales);
  return 0;
}
