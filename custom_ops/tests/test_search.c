/* test_search.c - calibration's search without Python: what it refuses, with a message and nothing written; equal bits
 * for every ISA and however rows and pairs are split; codes of 0 to 3 for any values.
 *
 * Every buffer ends at an inaccessible page. That the codes are the right ones is tested in test_search.py.
 */
#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#include <math.h>
#include <string.h>

#include "base/cpu.h"
#include "harness.h"
#include "quantizer/quantize.h"

enum { SCALES, ROWS, COLUMNS, METRIC, CODES, DENSE, VALUES, BUFFERS };

typedef struct work {
  f2i_search search;
  buffer buffers[BUFFERS];
  size_t bytes[BUFFERS];
} work;

typedef f2i_status (*function)(const f2i_search *, int64_t, int64_t, int64_t, int64_t, float *, size_t, f2i_message *);
static const function functions[2] = {f2i_search_feed_back, f2i_search_descend};
static const char *const names[2] = {"feed back", "descend"};

static float between(float low, float high) {
  return low + (high - low) * (float)(random_bits() >> 8) / (float)(1 << 24);
}

static work make(int64_t m, int64_t n, int64_t stages) {
  work w = {.search = {.m = m, .n = n, .stages = stages}};
  f2i_search *s = &w.search;
  s->scales_count = 4 * (size_t)stages;
  s->rows_count = 2 * (size_t)n;
  s->columns_count = 2 * (size_t)m;
  s->metric_count = s->columns_count * s->columns_count;
  s->codes_count = 2 * (size_t)(stages * m * n);
  s->dense_count = 4 * (size_t)(m * n);
  const size_t counts[BUFFERS] = {s->scales_count, s->rows_count,  s->columns_count, s->metric_count,
                                  s->codes_count,  s->dense_count, s->dense_count};
  for (int i = 0; i < BUFFERS; ++i) {
    w.bytes[i] = counts[i] * (i == CODES ? 1 : sizeof(float));
    w.buffers[i] = guarded(w.bytes[i]);
    float *value = w.buffers[i].data;
    for (size_t j = 0; i != CODES && j < counts[i]; ++j) {
      value[j] = i == DENSE || i == VALUES ? between(-2, 2) : i == METRIC ? between(-0.1f, 0.1f) : between(0.3f, 1.5f);
    }
  }
  float *metric = w.buffers[METRIC].data;
  for (size_t i = 0; i < s->columns_count; ++i) {
    metric[i * s->columns_count + i] = between(0.7f, 1.5f);
    for (size_t j = 0; j < i; ++j) metric[i * s->columns_count + j] = metric[j * s->columns_count + i];
  }
  for (size_t i = 0; i < counts[CODES]; ++i) ((uint8_t *)w.buffers[CODES].data)[i] = random_bits() & 3;
  s->scales = w.buffers[SCALES].data;
  s->rows = w.buffers[ROWS].data;
  s->columns = w.buffers[COLUMNS].data;
  s->metric = metric;
  s->codes = w.buffers[CODES].data;
  s->dense = w.buffers[DENSE].data;
  return w;
}

static work copy(const work *of) {
  work w = make(of->search.m, of->search.n, of->search.stages);
  for (int i = 0; i < BUFFERS; ++i) memcpy(w.buffers[i].data, of->buffers[i].data, of->bytes[i]);
  return w;
}

static void drop(const work *w) {
  for (int i = 0; i < BUFFERS; ++i) release(&w->buffers[i]);
}

static int same(const work *a, const work *b) {
  int equal = 1;
  for (int i = CODES; i < BUFFERS; ++i) equal &= memcmp(a->buffers[i].data, b->buffers[i].data, a->bytes[i]) == 0;
  return equal;
}

/* --- arguments --- */

static work good, before;

static void refuse(const f2i_search *search, int64_t from, int64_t to, int64_t begin, int64_t end, float *values,
                   size_t count, const char *word) {
  for (int which = 0; which < 2; ++which) {
    f2i_message text;
    memset(&text, 'x', sizeof text);
    check(functions[which](search, from, to, begin, end, values, count, &text) == F2I_INVALID_ARGUMENT, names[which],
          word);
    check(memchr(text.text, 0, sizeof text.text) != NULL && strstr(text.text, word) != NULL, word, "wrong message");
    check(functions[which](search, from, to, begin, end, values, count, NULL) == F2I_INVALID_ARGUMENT, names[which],
          "without a message");
    check(same(&good, &before), names[which], "has written");
  }
}

static void refuse_search(f2i_search search, const char *word) {
  refuse(&search, 0, search.m, 0, search.n, good.buffers[VALUES].data, good.search.dense_count, word);
}

static void test_arguments(void) {
  good = make(3, 5, 2), before = copy(&good);
  const f2i_search s = good.search;
  const size_t count = s.dense_count;
  float *values = good.buffers[VALUES].data;
  f2i_search bad;
  refuse(NULL, 0, 3, 0, 5, values, count, "search: expected a pointer");
  static const int64_t numbers[] = {-1, 0, 5, 6, 1000, INT64_MIN, INT64_MAX, INT64_MAX / 2};
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; ++i) {
    bad = s, bad.stages = numbers[i], refuse_search(bad, "stages: expected 1 to 4");
    bad = s, bad.m = numbers[i], refuse_search(bad, "");
    if (numbers[i] != 5) bad = s, bad.n = numbers[i], refuse_search(bad, "");
  }
  bad = s, bad.m = 0, refuse_search(bad, "m, n: expected 1 to");
  bad = s, bad.n = -5, refuse_search(bad, "m, n: expected 1 to");
  bad = s, bad.stages = 3, refuse_search(bad, "scales: expected 12 values, got 8");
  for (int less = 0; less < 2; ++less) {
    const size_t one = less ? (size_t)-1 : 1;
    bad = s, bad.scales_count += one, refuse_search(bad, "scales: expected 8 values");
    bad = s, bad.rows_count += one, refuse_search(bad, "rows: expected 10 values");
    bad = s, bad.columns_count += one, refuse_search(bad, "columns: expected 6 values");
    bad = s, bad.metric_count += one, refuse_search(bad, "metric: expected 36 values");
    bad = s, bad.codes_count += one, refuse_search(bad, "codes: expected 60 values");
    bad = s, bad.dense_count += one, refuse_search(bad, "dense: expected 60 values");
    refuse(&s, 0, 3, 0, 5, values, count + one, "values: expected 60 values");
  }
  bad = s, bad.scales = NULL, refuse_search(bad, "scales: expected 8 values, got 0");
  bad = s, bad.rows = NULL, refuse_search(bad, "rows: expected 10 values, got 0");
  bad = s, bad.columns = NULL, refuse_search(bad, "columns: expected 6 values, got 0");
  bad = s, bad.metric = NULL, refuse_search(bad, "metric: expected 36 values, got 0");
  bad = s, bad.codes = NULL, refuse_search(bad, "codes: expected 60 values, got 0");
  bad = s, bad.dense = NULL, refuse_search(bad, "dense: expected 60 values, got 0");
  refuse(&s, 0, 3, 0, 5, NULL, count, "values: expected 60 values, got 0");
  static const int64_t parts[][4] = {{-1, 3, 0, 5}, {0, 4, 0, 5},         {2, 1, 0, 5},         {0, 3, -1, 5},
                                     {0, 3, 0, 6},  {0, 3, 4, 3},         {INT64_MIN, 3, 0, 5}, {0, INT64_MAX, 0, 5},
                                     {4, 4, 0, 5},  {0, 3, 0, INT64_MAX}, {0, 3, INT64_MIN, 5}};
  for (size_t i = 0; i < sizeof parts / sizeof *parts; ++i) {
    const int64_t *p = parts[i];
    refuse(&s, p[0], p[1], p[2], p[3], values, count, "part: expected pairs of 0 to 3 and rows of 0 to 5");
  }
  static const int64_t nothing[][4] = {{0, 0, 0, 5}, {3, 3, 5, 5}, {0, 3, 2, 2}, {1, 1, 0, 0}};
  for (int which = 0; which < 2; ++which) {
    f2i_message text;
    for (size_t i = 0; i < sizeof nothing / sizeof *nothing; ++i) {
      const int64_t *p = nothing[i];
      check(functions[which](&s, p[0], p[1], p[2], p[3], values, count, &text) == F2I_OK && text.text[0] == 0,
            names[which], "a part of nothing");
      check(same(&good, &before), names[which], "has written for a part of nothing");
    }
  }
  for (int which = 0; which < 2; ++which) {
    check(functions[which](&s, 0, 3, 0, 5, values, count, NULL) == F2I_OK, names[which], "without a message");
    check(!same(&good, &before), names[which], "has not written");
  }
  drop(&good);
  drop(&before);
}

/* --- equal bits --- */

/* The points of all codes, from what fairy2i.h says of codes: (-1)^(code / 2) i^(code % 2), times the stage's scale. */
static f2i_codebook points(const f2i_search *s) {
  f2i_codebook book = {0};
  book.count = 1;
  for (int64_t t = 0; t < s->stages; ++t) book.count *= 4;
  for (int matrix = 0; matrix < 2; ++matrix) {
    for (int k = 0; k < book.count; ++k) {
      int step = book.count;
      for (int64_t t = 0; t < s->stages; ++t) {
        step /= 4;
        const int code = k / step % 4;
        float *axis = code % 2 ? book.im[matrix] : book.re[matrix];
        axis[k] += (code / 2 ? -1.0f : 1.0f) * s->scales[4 * t + 2 * matrix + code % 2];
      }
    }
  }
  return book;
}

/* Rows in two parts, pairs in blocks of `block` between which the caller does what the headers say. */
static void in_parts(const f2i_quantizer *quantizer, int which, work *w, int64_t block, int64_t middle) {
  const f2i_search *s = &w->search;
  const f2i_codebook book = points(s);
  const int64_t k = 2 * s->m, column = 2 * s->n;
  float *values = w->buffers[VALUES].data;
  for (int64_t from = 0; from < s->m; from += block) {
    const int64_t to = from + block < s->m ? from + block : s->m;
    for (int part = 0; part < 2; ++part) {
      (which ? quantizer->descend : quantizer->feed_back)(s, &book, from, to, part ? 0 : middle, part ? middle : s->n,
                                                          values);
    }
    for (int64_t done = 2 * from; done < 2 * to; ++done) {
      for (int64_t later = 2 * to; later < k; ++later) {
        const float factor = s->metric[done * k + later];
        for (int64_t i = 0; i < column; ++i) values[later * column + i] -= factor * values[done * column + i];
      }
    }
  }
}

static void test_isa(const f2i_quantizer *quantizer, const char *isa) {
  static const int64_t shapes[][2] = {{1, 1}, {2, 31}, {7, 32}, {5, 33}, {9, 70}};
  for (size_t shape = 0; shape < sizeof shapes / sizeof *shapes; ++shape) {
    for (int64_t stages = 1; stages <= 4; ++stages) {
      for (int which = 0; which < 2; ++which) {
        work whole = make(shapes[shape][0], shapes[shape][1], stages), parts = copy(&whole), public = copy(&whole);
        const f2i_search *s = &whole.search;
        in_parts(&f2i_quantizer_baseline, which, &whole, s->m, 0);
        for (int64_t block = 1; block <= s->m; block += 3) {
          work part = copy(&parts);
          in_parts(quantizer, which, &part, block, random_bits() % (uint32_t)(s->n + 1));
          check(same(&whole, &part), names[which], isa);
          drop(&part);
        }
        functions[which](&public.search, 0, s->m, 0, s->n, public.buffers[VALUES].data, s->dense_count, NULL);
        check(same(&whole, &public), names[which], "the public function");
        drop(&whole);
        drop(&parts);
        drop(&public);
      }
    }
  }
}

/* --- values that no sane caller has --- */

static void test_any_values(void) {
  static const float odd[] = {0, -0.0f, NAN, INFINITY, -INFINITY, 3e38f, -3e38f, 1e-45f, -1};
  for (int64_t stages = 1; stages <= 4; ++stages) {
    for (int round = 0; round < 2 * 7 * (int)(sizeof odd / sizeof *odd); ++round) {
      const int which = round % 2, where = round / 2 % 7;
      const float value = odd[round / 14];
      work w = make(3, 34, stages);
      if (where == CODES) { /* not codes at all */
        for (size_t i = 0; i < w.bytes[CODES]; ++i) ((uint8_t *)w.buffers[CODES].data)[i] = (uint8_t)random_bits();
      } else { /* everywhere, or here and there */
        const uint32_t every = random_bits() % 3 + 1;
        for (size_t i = 0; i < w.bytes[where] / sizeof(float); i += every) ((float *)w.buffers[where].data)[i] = value;
      }
      check(functions[which](&w.search, 0, 3, 0, 34, w.buffers[VALUES].data, w.search.dense_count, NULL) == F2I_OK,
            names[which], "any values");
      int codes = 1;
      for (size_t i = 0; i < w.bytes[CODES]; ++i) codes &= ((uint8_t *)w.buffers[CODES].data)[i] < 4;
      check(codes, names[which], "codes of any values");
      drop(&w);
    }
  }
}

int main(void) {
  test_arguments();
  test_isa(&f2i_quantizer_baseline, "baseline");
#if defined(F2I_HAVE_QUANTIZE_AVX2)
  if (f2i_cpu_bits() & F2I_CPU_AVX2) test_isa(&f2i_quantizer_avx2, "avx2");
#endif
#if defined(F2I_HAVE_QUANTIZE_AVX512)
  if (f2i_cpu_bits() & F2I_CPU_AVX512) test_isa(&f2i_quantizer_avx512, "avx512");
#endif
  test_any_values();
  printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
