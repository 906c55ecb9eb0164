/* fuzz_layer.c - any attributes, counts and pointers through the functions that the operator calls, in its order: what
 * contradicts the format is refused with a message, what does not is run, and no byte is touched that was not given.
 * Then the layer among others that read the same x, which give what each gives alone.
 */
#include "layer_input.h"

static int64_t an_attribute(input *in, int64_t good) {
  static const int64_t odd[8] = {0, -2, 3, 1 << 24, (1 << 24) + 2, INT64_MIN, INT64_MAX - 1, (int64_t)1 << 32};
  if (!rarely(in)) return good;
  return a_byte(in) % 2 ? odd[a_byte(in) % 8] : (int64_t)bits_of(in, 8);
}

static size_t a_count(input *in, size_t good) {
  if (!rarely(in)) return good;
  return a_byte(in) % 2 ? good + a_byte(in) - 128 : (size_t)bits_of(in, 8);
}

static const char *a_name(input *in) {
  static const char *const names[] = {"lut", "exact", "dot", "", "scalar", "avx2", "neon", "%s%n"};
  return rarely(in) ? NULL : names[a_byte(in) % 8];
}

/* Makes some of it wrong. The buffers stay as long as the good values say, so only what is refused may be wrong. */
static void spoil(input *in, layer_input *l) {
  f2i_weights *w = &l->w;
  w->k = an_attribute(in, w->k);
  w->n = an_attribute(in, w->n);
  w->stages = an_attribute(in, w->stages);
  w->layout_version = an_attribute(in, w->layout_version);
  w->scale_scope = an_attribute(in, w->scale_scope);
  w->activation_bits = an_attribute(in, w->activation_bits);
  w->packed_bytes = a_count(in, w->packed_bytes);
  w->scales_count = a_count(in, w->scales_count);
  w->row_multiplier_count = a_count(in, w->row_multiplier_count);
  w->col_multiplier_count = a_count(in, w->col_multiplier_count);
  if (rarely(in)) w->packed = NULL;
  if (rarely(in)) w->scales = NULL;
  if (rarely(in)) l->scales[below(in, 4)] = a_byte(in) % 2 ? NAN : INFINITY;
}

/* Whether the counts that were given are those of the buffers. */
static int is_as_long(const f2i_weights *w, const f2i_weights *good) {
  return w->k == good->k && w->n == good->n && w->stages == good->stages && w->layout_version == good->layout_version &&
         w->packed_bytes == good->packed_bytes && w->scales_count == good->scales_count;
}

static void run(input *in, const layer_input *l, const f2i_plan *plan) {
  f2i_message message;
  size_t bytes = 0;
  const int64_t rows = l->rows;
  f2i_status status = f2i_workspace_size(plan, rarely(in) ? -1 : rows, &bytes, &message);
  expect_message(status, &message);
  if (status != F2I_OK) return;
  void *workspace = allocated(bytes);
  float *y = allocated((size_t)(rows * l->ldy) * sizeof(float));
  for (int64_t i = 0; i < rows * l->ldy; ++i) y[i] = 7.0f;
  const size_t given = rarely(in) ? bytes / 2 : bytes;
  const int64_t ldx = rarely(in) ? l->w.k - 1 : l->ldx;
  const f2i_parallel backwards = {run_backwards, NULL};
  status = f2i_matmul(plan, rows, l->x, ldx, l->bias, y, l->ldy, workspace, given, a_byte(in) & 1 ? &backwards : NULL,
                      &message);
  expect_message(status, &message);
  EXPECT((status == F2I_OK) == (rows == 0 || (given == bytes && ldx == l->ldx)), "%s", message.text);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = status == F2I_OK ? l->w.n : 0; i < l->ldy; ++i) {
      EXPECT(y[row * l->ldy + i] == 7.0f, "written beyond row %lld", (long long)row);
    }
  }
  free(y);
  free(workspace);
}

enum { MOST = F2I_MAX_LAYERS + 1 }; /* layers that are given to f2i_matmuls: one too many, rarely */

/* `rows` of y of a layer, and nothing beyond them. */
static float *filled_output(const f2i_output *o, int64_t rows) {
  float *y = allocated((size_t)(rows * o->ldy) * sizeof(float));
  for (int64_t i = 0; i < rows * o->ldy; ++i) y[i] = 7.0f;
  return y;
}

/* y of f2i_matmuls against that of f2i_matmul; also the places between rows, which neither may touch. */
static void compare(const f2i_output *o, int64_t rows, const layer_input *l) {
  f2i_message message;
  size_t bytes = 0;
  f2i_status status = f2i_workspace_size(o->plan, rows, &bytes, &message);
  EXPECT(status == F2I_OK, "%s", message.text);
  void *workspace = allocated(bytes);
  float *expected = filled_output(o, rows);
  status = f2i_matmul(o->plan, rows, l->x, l->ldx, o->bias, expected, o->ldy, workspace, bytes, NULL, &message);
  EXPECT(status == F2I_OK, "%s", message.text);
  EXPECT(same_floats(o->y, expected, (size_t)(rows * o->ldy)), "several layers differ from one, N=%lld",
         (long long)o->plan->weights.n);
  free(expected);
  free(workspace);
}

/* A planned layer and others that read the same x, some of them not as they should be. */
static void run_several(input *in, const layer_input *l, const f2i_plan *plan) {
  static const f2i_plan no_plan;
  const size_t count = rarely(in) ? below(in, 2) * MOST : 1 + below(in, F2I_MAX_LAYERS);
  const int64_t rows = l->rows, ldx = rarely(in) ? l->w.k - 1 : l->ldx;
  const f2i_parallel backwards = {run_backwards, NULL};
  layer_input layers[MOST];
  f2i_plan plans[MOST];
  f2i_output outputs[MOST];
  f2i_message message;
  size_t bytes = 0;
  int good = count >= 1 && count <= F2I_MAX_LAYERS;
  for (size_t i = 0; i < count; ++i) {
    const int64_t k = i > 0 && rarely(in) ? l->w.k + 2 : l->w.k;
    layers[i] = good_layer_of(in, 0, k);
    const f2i_status status = f2i_plan_init(&plans[i], &layers[i].w, a_name(in), a_name(in), &message);
    if (i == 0 || status != F2I_OK) plans[i] = *plan;
    else if (rarely(in)) plans[i] = no_plan;
    good &= plans[i].kernel != NULL && plans[i].weights.k == l->w.k;
    outputs[i] = (f2i_output){.plan = &plans[i], .ldy = plans[i].weights.n + (a_byte(in) & 1)};
    if (plans[i].weights.n == layers[i].w.n) outputs[i].bias = layers[i].bias;
    outputs[i].y = filled_output(&outputs[i], rows);
  }
  f2i_status status = f2i_matmuls_workspace_size(outputs, count, rows, &bytes, &message);
  expect_message(status, &message);
  EXPECT((status == F2I_OK) == good, "%s", message.text);
  const size_t given = rarely(in) ? bytes / 2 : bytes;
  void *workspace = allocated(given);
  memset(workspace, 0xFF, given);
  status = f2i_matmuls(outputs, count, rows, l->x, ldx, workspace, given, a_byte(in) & 1 ? &backwards : NULL, &message);
  expect_message(status, &message);
  EXPECT((status == F2I_OK) == (good && (rows == 0 || (given == bytes && ldx == l->ldx))), "%s", message.text);
  for (size_t i = 0; i < count; ++i) {
    if (status == F2I_OK) compare(&outputs[i], rows, l);
    for (int64_t at = 0; status != F2I_OK && at < rows * outputs[i].ldy; ++at) {
      EXPECT(outputs[i].y[at] == 7.0f, "written in spite of: %s", message.text);
    }
    free(outputs[i].y);
    free_layer(&layers[i]);
  }
  free(workspace);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  input in = input_of(data, size);
  layer_input l = good_layer(&in);
  const f2i_weights good = l.w;
  f2i_message message, of_plan;
  f2i_plan plan;
  if (a_byte(&in) % 2) spoil(&in, &l);
  const f2i_status status = f2i_validate(&l.w, &message);
  expect_message(status, &message);
  if (status == F2I_OK) EXPECT(is_as_long(&l.w, &good), "accepted K=%lld N=%lld", (long long)l.w.k, (long long)l.w.n);
  const char *family = a_name(&in), *isa = a_name(&in);
  const f2i_status planned = f2i_plan_init(&plan, &l.w, family, isa, &of_plan);
  expect_message(planned, &of_plan);
  if (status != F2I_OK) EXPECT(planned == status && strcmp(of_plan.text, message.text) == 0, "%s", of_plan.text);
  if (planned == F2I_OK) {
    run(&in, &l, &plan);
    run_several(&in, &l, &plan);
  } else {
    EXPECT(plan.kernel == NULL, "a kernel in spite of: %s", of_plan.text);
  }
  free_layer(&l);
  return 0;
}
