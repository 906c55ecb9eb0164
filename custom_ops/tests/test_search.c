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

enum { SCALES, ROWS, COLUMNS, METRIC, CODES, DENSE, VALUES, NOISE, BUFFERS };
enum { FEED_BACK, ANNEAL, FUNCTIONS };
enum { SWEEPS = 3, PADDING = 5 };

typedef struct work {
  f2i_search search;
  f2i_sweeps sweeps;
  size_t values_count; /* of feedback's values, or of pull, which is longer */
  buffer buffers[BUFFERS];
  size_t bytes[BUFFERS];
} work;

static const char *const names[FUNCTIONS] = {"feed back", "anneal"};

static float between(float low, float high) {
  return low + (high - low) * (float)(random_bits() >> 8) / (float)(1 << 24);
}

static work make(int which, int64_t m, int64_t n, int64_t stages) {
  work w = {.search = {.m = m, .n = n, .stages = stages}, .sweeps = {.count = SWEEPS, .seed = 7}};
  f2i_search *s = &w.search;
  s->scales_count = 4 * (size_t)stages;
  s->rows_count = 2 * (size_t)n;
  s->columns_count = 2 * (size_t)m;
  s->metric_count = s->columns_count * s->columns_count;
  s->codes_count = 2 * (size_t)(stages * m * n);
  s->dense_count = 4 * (size_t)(m * n);
  w.sweeps.stride = 2 * m + PADDING;
  w.sweeps.noise_count = SWEEPS * (size_t)n;
  w.values_count = which == ANNEAL ? 2 * (size_t)(n * w.sweeps.stride) : s->dense_count;
  const size_t counts[BUFFERS] = {s->scales_count, s->rows_count,  s->columns_count, s->metric_count,
                                  s->codes_count,  s->dense_count, w.values_count,   w.sweeps.noise_count};
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
  w.sweeps.noise = w.buffers[NOISE].data;
  return w;
}

static work copy(int which, const work *of) {
  work w = make(which, of->search.m, of->search.n, of->search.stages);
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

/* A part of the work, by the public functions; pairs count for feedback only. */
static f2i_status run(int which, const work *w, int64_t from, int64_t to, int64_t begin, int64_t end,
                      f2i_message *message) {
  float *values = w->buffers[VALUES].data;
  return which == ANNEAL ? f2i_search_anneal(&w->search, &w->sweeps, begin, end, values, w->values_count, message)
                         : f2i_search_feed_back(&w->search, from, to, begin, end, values, w->values_count, message);
}

/* --- arguments --- */

static work good, before;

static void refused(int which, f2i_status status, const f2i_message *text, const char *word) {
  check(status == F2I_INVALID_ARGUMENT, names[which], word);
  check(text == NULL || (memchr(text->text, 0, sizeof text->text) != NULL && strstr(text->text, word) != NULL), word,
        "wrong message");
  check(same(&good, &before), names[which], "has written");
}

static void refuse(int which, work bad, const char *word) {
  f2i_message text;
  memset(&text, 'x', sizeof text);
  refused(which, run(which, &bad, 0, bad.search.m, 0, bad.search.n, &text), &text, word);
  refused(which, run(which, &bad, 0, bad.search.m, 0, bad.search.n, NULL), NULL, word);
}

static void refuse_part(int which, const int64_t *p, const char *word) {
  f2i_message text;
  refused(which, run(which, &good, p[0], p[1], p[2], p[3], &text), &text, word);
}

static void test_what_both_refuse(int which) {
  const work w = good;
  work bad;
  f2i_message text;
  static const int64_t numbers[] = {-1, 0, 5, 6, 1000, INT64_MIN, INT64_MAX, INT64_MAX / 2};
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; ++i) {
    bad = w, bad.search.stages = numbers[i], refuse(which, bad, "stages: expected 1 to 4");
    bad = w, bad.search.m = numbers[i], refuse(which, bad, "");
    if (numbers[i] != 5) bad = w, bad.search.n = numbers[i], refuse(which, bad, "");
  }
  bad = w, bad.search.m = 0, refuse(which, bad, "m, n: expected 1 to");
  bad = w, bad.search.n = -5, refuse(which, bad, "m, n: expected 1 to");
  bad = w, bad.search.stages = 3, refuse(which, bad, "scales: expected 12 values, got 8");
  for (int less = 0; less < 2; ++less) {
    const size_t one = less ? (size_t)-1 : 1;
    bad = w, bad.search.scales_count += one, refuse(which, bad, "scales: expected 8 values");
    bad = w, bad.search.rows_count += one, refuse(which, bad, "rows: expected 10 values");
    bad = w, bad.search.columns_count += one, refuse(which, bad, "columns: expected 6 values");
    bad = w, bad.search.metric_count += one, refuse(which, bad, "metric: expected 36 values");
    bad = w, bad.search.codes_count += one, refuse(which, bad, "codes: expected 60 values");
    bad = w, bad.search.dense_count += one, refuse(which, bad, "dense: expected 60 values");
    bad = w, bad.values_count += one;
    refuse(which, bad, which == ANNEAL ? "pull: expected 110 values" : "values: expected 60 values");
  }
  bad = w, bad.search.scales = NULL, refuse(which, bad, "scales: expected 8 values, got 0");
  bad = w, bad.search.rows = NULL, refuse(which, bad, "rows: expected 10 values, got 0");
  bad = w, bad.search.columns = NULL, refuse(which, bad, "columns: expected 6 values, got 0");
  bad = w, bad.search.metric = NULL, refuse(which, bad, "metric: expected 36 values, got 0");
  bad = w, bad.search.codes = NULL, refuse(which, bad, "codes: expected 60 values, got 0");
  bad = w, bad.search.dense = NULL, refuse(which, bad, "dense: expected 60 values, got 0");
  bad = w, bad.buffers[VALUES].data = NULL;
  refuse(which, bad, which == ANNEAL ? "pull: expected 110 values, got 0" : "values: expected 60 values, got 0");
  static const int64_t rows[][4] = {
      {0, 3, -1, 5}, {0, 3, 0, 6}, {0, 3, 4, 3}, {0, 3, 0, INT64_MAX}, {0, 3, INT64_MIN, 5}};
  for (size_t i = 0; i < sizeof rows / sizeof *rows; ++i) refuse_part(which, rows[i], "part: expected rows of 0 to 5");
  static const int64_t nothing[][4] = {{0, 0, 0, 0}, {3, 3, 5, 5}, {0, 3, 2, 2}, {1, 1, 0, 0}};
  for (size_t i = 0; i < sizeof nothing / sizeof *nothing; ++i) {
    const int64_t *p = nothing[i];
    check(run(which, &good, p[0], p[1], p[2], p[3], &text) == F2I_OK && text.text[0] == 0, names[which],
          "a part of nothing");
    check(same(&good, &before), names[which], "has written for a part of nothing");
  }
}

static void test_arguments(void) {
  for (int which = 0; which < FUNCTIONS; ++which) {
    good = make(which, 3, 5, 2), before = copy(which, &good);
    const work w = good;
    work bad;
    float *values = good.buffers[VALUES].data;
    f2i_message text;
    test_what_both_refuse(which);
    if (which == ANNEAL) {
      refused(which, f2i_search_anneal(NULL, &w.sweeps, 0, 5, values, w.values_count, &text), &text,
              "search: expected");
      refused(which, f2i_search_anneal(&w.search, NULL, 0, 5, values, w.values_count, &text), &text,
              "sweeps: expected");
      bad = w, bad.sweeps.count = -1, refuse(which, bad, "sweeps: expected 0 to");
      bad = w, bad.sweeps.count = INT64_MAX, refuse(which, bad, "sweeps: expected 0 to");
      bad = w, bad.sweeps.count = SWEEPS + 1, refuse(which, bad, "noise: expected 20 values, got 15");
      bad = w, bad.sweeps.noise = NULL, refuse(which, bad, "noise: expected 15 values, got 0");
      bad = w, bad.sweeps.stride = 5, refuse(which, bad, "stride: expected 6 to");
      bad = w, bad.sweeps.stride = INT64_MAX, refuse(which, bad, "stride: expected 6 to");
      bad = w, bad.sweeps.stride += 1, refuse(which, bad, "pull: expected 120 values, got 110");
      bad = w, bad.sweeps.count = 0, bad.sweeps.noise_count = 0;
      check(run(which, &bad, 0, 3, 0, 5, &text) == F2I_OK && same(&good, &before), names[which], "no sweeps");
    } else {
      refused(which, f2i_search_feed_back(NULL, 0, 3, 0, 5, values, w.values_count, &text), &text, "search: expected");
      static const int64_t pairs[][4] = {{-1, 3, 0, 5},        {0, 4, 0, 5},         {2, 1, 0, 5},
                                         {INT64_MIN, 3, 0, 5}, {0, INT64_MAX, 0, 5}, {4, 4, 0, 5}};
      for (size_t i = 0; i < sizeof pairs / sizeof *pairs; ++i) {
        refuse_part(which, pairs[i], "part: expected pairs of 0 to 3");
      }
      static const int64_t no_pairs[4] = {2, 2, 0, 5};
      check(run(which, &good, no_pairs[0], no_pairs[1], 0, 5, &text) == F2I_OK && same(&good, &before), names[which],
            "no pairs");
    }
    check(run(which, &good, 0, 3, 0, 5, NULL) == F2I_OK, names[which], "without a message");
    check(!same(&good, &before), names[which], "has not written");
    drop(&good);
    drop(&before);
  }
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

/* Rows in two parts; in feedback pairs in blocks of `block` between which the caller does what the header says. */
static void in_parts(const f2i_quantizer *quantizer, int which, work *w, int64_t block, int64_t middle) {
  const f2i_search *s = &w->search;
  const f2i_codebook book = points(s);
  const int64_t k = 2 * s->m, column = 2 * s->n;
  float *values = w->buffers[VALUES].data;
  if (which == ANNEAL) {
    quantizer->anneal(s, &book, middle, s->n, &w->sweeps, values);
    quantizer->anneal(s, &book, 0, middle, &w->sweeps, values);
    return;
  }
  for (int64_t from = 0; from < s->m; from += block) {
    const int64_t to = from + block < s->m ? from + block : s->m;
    quantizer->feed_back(s, &book, from, to, middle, s->n, values);
    quantizer->feed_back(s, &book, from, to, 0, middle, values);
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
      for (int which = 0; which < FUNCTIONS; ++which) {
        work whole = make(which, shapes[shape][0], shapes[shape][1], stages);
        const work parts = copy(which, &whole), public = copy(which, &whole);
        const f2i_search *s = &whole.search;
        in_parts(&f2i_quantizer_baseline, which, &whole, s->m, 0);
        for (int64_t block = 1; block <= s->m; block += 3) {
          work part = copy(which, &parts);
          in_parts(quantizer, which, &part, block, random_bits() % (uint32_t)(s->n + 1));
          check(same(&whole, &part), names[which], isa);
          drop(&part);
        }
        run(which, &public, 0, s->m, 0, s->n, NULL);
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
    for (int round = 0; round < FUNCTIONS * BUFFERS * (int)(sizeof odd / sizeof *odd); ++round) {
      const int which = round % FUNCTIONS, where = round / FUNCTIONS % BUFFERS;
      const float value = odd[round / (FUNCTIONS * BUFFERS)];
      work w = make(which, 3, 34, stages);
      if (where == CODES) { /* not codes at all */
        for (size_t i = 0; i < w.bytes[CODES]; ++i) ((uint8_t *)w.buffers[CODES].data)[i] = (uint8_t)random_bits();
      } else { /* everywhere, or here and there */
        const uint32_t every = random_bits() % 3 + 1;
        for (size_t i = 0; i < w.bytes[where] / sizeof(float); i += every) ((float *)w.buffers[where].data)[i] = value;
      }
      check(run(which, &w, 0, 3, 0, 34, NULL) == F2I_OK, names[which], "any values");
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
