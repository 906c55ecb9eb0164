/* fairy2i.h - C API of the Fairy2i operator library.
 *
 * One linear layer y = (x * col_multiplier) A^T * row_multiplier + bias whose matrix A [N, K] is stored as 2-bit codes
 * in a packed format (docs/format.md). No function here prints, aborts, allocates or keeps a pointer beyond what is
 * said; every failure is a status and a message. All functions are safe to call from several threads at once.
 *
 * The text between the two cffi markers is read by the Python binding as it stands: plain declarations only.
 */
#ifndef FAIRY2I_H
#define FAIRY2I_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define F2I_EXPORT __declspec(dllexport)
#elif defined(__GNUC__)
#define F2I_EXPORT __attribute__((visibility("default")))
#else
#define F2I_EXPORT
#endif

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#pragma GCC visibility push(default)
#endif
/* cffi-begin */
typedef enum f2i_status {
  F2I_OK = 0,
  F2I_INVALID_ARGUMENT = 1, /* sizes, attributes or values contradict the format */
  F2I_UNKNOWN_KERNEL = 2,   /* no kernel of that family or ISA, or this CPU lacks what it needs */
} f2i_status;

/* Why a call failed, one sentence: field, expected, found. Empty after success. */
typedef struct f2i_message {
  char text[320];
} f2i_message;

/* One packed layer. Nothing is copied: all pointers must stay valid while the struct or a plan made of it is in use. */
typedef struct f2i_weights {
  int64_t k; /* real input features, even */
  int64_t n; /* real output features, even */
  int64_t stages;
  int64_t layout_version; /* 1, or 2: layers without U, one stage */
  int64_t scale_scope;
  int64_t activation_bits; /* 0; or 8, layout_version 2 only: halves of rows of x are rounded first, see f2i_matmul */
  const uint8_t *packed;   /* [packed_bytes], any alignment */
  size_t packed_bytes;
  const float *scales; /* [stages][2 (U, W)][2 (re, im)]; version 2: those of W twice */
  size_t scales_count;
  const float *row_multiplier; /* [n], or NULL for none */
  size_t row_multiplier_count;
  const float *col_multiplier; /* [k], or NULL for none */
  size_t col_multiplier_count;
} f2i_weights;

/* A kernel of the library. Families: "lut", int8 tables, no multiplication per weight; "exact", tables of float
 * precision; "dot", int8 dot-product instructions, which multiply: only ever used when asked for. */
typedef struct f2i_kernel_info {
  const char *family;
  const char *isa;
  int available;  /* this CPU can run it */
  int is_default; /* it is what an unforced call of its family runs on this processor */
} f2i_kernel_info;

/* A validated layer and the kernels chosen for it. Make it with f2i_plan_init; the fields are private. */
typedef struct f2i_plan {
  f2i_weights weights;
  const void *kernel;
  const void *many_kernel; /* from many_rows rows of x on, if those are not 0 */
  int64_t many_rows;
  int64_t alone_bytes; /* a call that reads at most so many packed bytes stays on its thread */
  int32_t dot_steps;   /* how finely "dot" rounds the scales */
} f2i_plan;

/* Runs task(arg, i) for all i in [0, count), on any threads, and returns when all are done. */
typedef void (*f2i_task)(void *arg, size_t index);
typedef struct f2i_parallel {
  void (*run)(void *context, f2i_task task, size_t count, void *arg);
  void *context;
} f2i_parallel;

/* Version of the library, "major.minor.patch". */
const char *f2i_version(void);

/* Writes the names of the CPU features found that kernels care about, separated by blanks ("" if none), at most size
 * bytes with the final NUL. */
f2i_status f2i_cpu_features(char *text, size_t size);

/* Number of kernels compiled in, and the one at index (0 <= index < count; others give F2I_INVALID_ARGUMENT). */
size_t f2i_kernel_count(void);
f2i_status f2i_kernel_at(size_t index, f2i_kernel_info *info);

/* Size in bytes of the packed codes of a layer with k inputs and n outputs, of layout version 1 or of any. */
f2i_status f2i_packed_size(int64_t k, int64_t n, int64_t stages, size_t *bytes, f2i_message *message);
f2i_status f2i_layout_size(int64_t layout_version, int64_t k, int64_t n, int64_t stages, size_t *bytes,
                           f2i_message *message);

/* Checks sizes, versions and scale values against the format; reads scales, never the packed bytes. Pure. */
f2i_status f2i_validate(const f2i_weights *weights, f2i_message *message);

/* Validates the weights and chooses a kernel. family and isa may be NULL or "": then the environment variables
 * FAIRY2I_KERNEL and FAIRY2I_ISA decide, then the default ("lut", best ISA this CPU has). The family "auto" is "lut"
 * for few rows and, where that was found to be faster on processors with this ISA, "dot" for many; with activation_bits
 * it is "lut". */
f2i_status f2i_plan_init(f2i_plan *plan, const f2i_weights *weights, const char *family, const char *isa,
                         f2i_message *message);

/* The same with settings for this processor, which results do not depend on: "key=value" separated by blanks,
 *   lut=ISA, dot=ISA  what a family runs where isa and FAIRY2I_ISA name none
 *   auto=ROWS         from so many rows on "auto" takes "dot"; 0: never
 *   alone=BYTES       a call that reads at most so many packed bytes, counted for each row, does not wake other threads
 * What it does not name, or all if tuning is NULL or "", is as the environment variable FAIRY2I_TUNING says, else as
 * the library knows to be good on this processor. f2i_plan_init is this with NULL. */
f2i_status f2i_plan_init_tuned(f2i_plan *plan, const f2i_weights *weights, const char *family, const char *isa,
                               const char *tuning, f2i_message *message);

/* The settings that a plan runs with, as text in that form, at most size bytes with the final NUL; those of kernels
 * that it does not run are left out. */
f2i_status f2i_plan_tuning(const f2i_plan *plan, char *text, size_t size);

/* The kernel that a plan runs for one row. */
f2i_status f2i_plan_kernel(const f2i_plan *plan, f2i_kernel_info *info);

/* The kernel that a plan runs for this many rows, rows >= 0. next may be NULL; else it is set to the number of rows
 * from which the plan runs another one, or to 0 if it does not. */
f2i_status f2i_plan_kernel_for(const f2i_plan *plan, int64_t rows, f2i_kernel_info *info, int64_t *next);

/* Bytes of scratch memory that f2i_matmul needs for this many rows (any alignment). */
f2i_status f2i_workspace_size(const f2i_plan *plan, int64_t rows, size_t *bytes, f2i_message *message);

/* y[r][0..n) = layer(x[r][0..k)) for r in [0, rows), rows >= 0. ldx and ldy count floats between rows. bias is [n] or
 * NULL. A row of x with a NaN or an infinity gives a row of NaN. parallel may be NULL (one thread). x and y must not
 * overlap. Results do not depend on the number of threads, and those of "lut" and "dot" not on the ISA.
 * With activation_bits 8 each half of a row of x, col_multiplier applied, is replaced by q / a before the layer, in
 * float32: a = 127 / max(largest magnitude of the half, 1e-5), q = x a rounded to the nearest whole number, halves to
 * even. "lut" and "dot" add such numbers q exactly, and give the same results. */
f2i_status f2i_matmul(const f2i_plan *plan, int64_t rows, const float *x, int64_t ldx, const float *bias, float *y,
                      int64_t ldy, void *workspace, size_t workspace_bytes, const f2i_parallel *parallel,
                      f2i_message *message);

/* --- Layers that read the same x --- */

enum { F2I_MAX_LAYERS = 3 };

/* One of them: its plan, and what f2i_matmul takes for it. */
typedef struct f2i_output {
  const f2i_plan *plan;
  const float *bias; /* [n], or NULL for none */
  float *y;          /* [rows][n], ldy floats between rows */
  int64_t ldy;
} f2i_output;

/* Bytes of scratch memory that f2i_matmuls needs (any alignment). Of outputs only the plans are read. */
f2i_status f2i_matmuls_workspace_size(const f2i_output *outputs, size_t count, int64_t rows, size_t *bytes,
                                      f2i_message *message);

/* For each of count outputs, 1 to F2I_MAX_LAYERS, what f2i_matmul does, to the bit. All plans have the same K. A single
 * row of x goes through all layers in one call of parallel->run where that is worth it; more rows go through one layer
 * after the other. No y may overlap x or another y. */
f2i_status f2i_matmuls(const f2i_output *outputs, size_t count, int64_t rows, const float *x, int64_t ldx,
                       void *workspace, size_t workspace_bytes, const f2i_parallel *parallel, f2i_message *message);

/* --- From latent weights to packed bytes: the quantizer and the packer of the exporter --- */

enum { F2I_FLOAT32 = 0, F2I_FLOAT16 = 1, F2I_BFLOAT16 = 2 };
enum {
  F2I_PROFILE_BF16 = 0, /* "bf16-reference": every step is rounded to bfloat16, as in the published training code */
  F2I_PROFILE_FP32 = 1,
};

enum {
  F2I_GREEDY = 0, /* the published method: stage after stage, the direction nearest to what earlier stages left */
  F2I_JOINT = 1,  /* the codes of all stages at once: the nearest of the 4^stages points */
};

/* The latent weight of one linear layer, a real matrix [n][k], and how to quantize it. Only read. A complex row is a
 * pair of real rows i and n/2 + i, hence there are n/2 of them; functions below work on complex rows [begin, end), and
 * different parts may be worked on at the same time. */
typedef struct f2i_latent {
  const void *data; /* [n][k], any alignment, host byte order */
  size_t bytes;
  int64_t k;
  int64_t n;
  int64_t dtype; /* F2I_FLOAT32, F2I_FLOAT16 or F2I_BFLOAT16 */
  int64_t stages;
  int64_t profile;          /* F2I_PROFILE_BF16 or F2I_PROFILE_FP32 */
  const float *row_divisor; /* [n]: real rows are divided by it first; or NULL for none */
  size_t row_divisor_count;
  const float *col_divisor; /* [k]: then real columns by this; or NULL for none */
  size_t col_divisor_count;
  int64_t quantizer; /* F2I_GREEDY or F2I_JOINT: how f2i_quantize_codes chooses */
  /* NULL, or the matrix is W conj(x) alone and given as it is: data [n / 2][k / 2] holds the real parts of W and this
   * the imaginary ones, each of `bytes` bytes. It stands for the real matrix [[re, im], [im, -re]], whose U is zero. */
  const void *imag;
} f2i_latent;

/* squares[end - begin][2 (row i, row n/2 + i)]: sum of the squares of a real row, before any division. */
f2i_status f2i_quantize_squares(const f2i_latent *latent, int64_t begin, int64_t end, double *squares, size_t count,
                                f2i_message *message);

/* For the stage after those whose scales [stages so far][2 (U, W)][2 (re, im)] are given: per complex row the sum of
 * the magnitudes on each axis, and how many entries go to it, both [end - begin][2 (U, W)][2 (re, im)]; count is the
 * length of either. A value of the matrix that is not finite makes a sum of its row not finite. */
f2i_status f2i_quantize_sums(const f2i_latent *latent, const float *scales, size_t scales_count, int64_t begin,
                             int64_t end, double *sums, int64_t *counts, size_t count, f2i_message *message);

/* codes[stages][2 (U, W)][end - begin][k / 2] with all scales known, and, unless errors is NULL, per complex row
 * errors[end - begin][2]: the sums of squares of A - Q(A) and of A over both its real rows, in original units. */
f2i_status f2i_quantize_codes(const f2i_latent *latent, const float *scales, size_t scales_count, int64_t begin,
                              int64_t end, uint8_t *codes, size_t codes_count, double *errors, size_t errors_count,
                              f2i_message *message);

/* parts[2 (U, W)][2 (re, im)][end - begin][k / 2]: the complex entries that are to be quantized. */
f2i_status f2i_quantize_parts(const f2i_latent *latent, int64_t begin, int64_t end, float *parts, size_t count,
                              f2i_message *message);

/* --- Joint quantizing of arrays of complex entries --- */

/* The points sum_t s_t i^k_t of given scales, as far as they lie in the first quadrant; the others are reflections.
 * Filled by f2i_points_init, for as many calls as one likes. */
typedef struct f2i_points {
  int64_t stages;
  int64_t count;           /* rounded up with copies of the last point */
  float scales[4][2];      /* [stage][re, im] */
  float re[72], im[72];    /* F2I_MAX_POINTS */
  int32_t combination[72]; /* codes of all stages, 2 bits each, stage 1 in the highest; ascending */
} f2i_points;

enum { F2I_MAX_POINTS = 72 };

/* scales [stages][2 (re, im)], stages 1 to 4, finite. */
f2i_status f2i_points_init(f2i_points *points, const float *scales, size_t scales_count, f2i_message *message);

/* codes [stages][count] of the points nearest to re + i im, and what they stand for; either may be NULL. */
f2i_status f2i_nearest(const f2i_points *points, const float *re, const float *im, size_t count, uint8_t *codes,
                       float *q_re, float *q_im, f2i_message *message);

/* sums[4^stages][4]: of the entries whose magnitudes (|re|, |im|) are nearest to the point of a combination, the sums
 * of weight (NULL: ones), weight * |re|, weight * |im| and weight * (re^2 + im^2). */
f2i_status f2i_nearest_sums(const f2i_points *points, const float *re, const float *im, const float *weights,
                            size_t count, double *sums, size_t sums_count, f2i_message *message);

/* --- Codes in a metric: the search of a calibration (docs/export.md) --- */

/* A real matrix [n2][k] with n2 = 2 n, k = 2 m, whose codes are searched pair by pair of columns (j, j + m). Everything
 * is transposed and in an order of pairs that the caller chooses: columns 2 p and 2 p + 1 of the work are pair p, and
 * the values of a column lie together, first those of the n upper rows, then of the n lower ones. No multiplier is
 * zero. */
typedef struct f2i_search {
  int64_t m;           /* pairs of columns */
  int64_t n;           /* complex rows */
  int64_t stages;      /* 1 to 4 */
  const float *scales; /* [stages][2 (U, W)][2 (re, im)] */
  size_t scales_count;
  const float *rows; /* [2 n]: multipliers of outputs */
  size_t rows_count;
  const float *columns; /* [2 m]: multipliers of inputs */
  size_t columns_count;
  const float *metric; /* [2 m][2 m]: see the functions */
  size_t metric_count;
  uint8_t *codes; /* [stages][2 (U, W)][m][n], written */
  size_t codes_count;
  float *dense; /* [2 m][2 n], written: what the codes stand for, with multipliers */
  size_t dense_count;
} f2i_search;

/* Error feedback through pairs [from, to) and complex rows [begin, end); different rows may be worked on at the same
 * time. metric is upper triangular, R with R^T R = H^-1, and values [2 m][2 n] what the columns should be. With D the
 * error [2] of a pair in a row and B its block of R, the codes are those with the least |D B^-1|^2 over both real rows,
 * and what the later pairs of the part should be changes by -D B^-1 R[pair, later]. The values of the part become
 * D B^-1, by which the caller changes those after it. */
f2i_status f2i_search_feed_back(const f2i_search *search, int64_t from, int64_t to, int64_t begin, int64_t end,
                                float *values, size_t values_count, f2i_message *message);

/* Sweeps of coordinate descent at a temperature that the caller lets fall. */
typedef struct f2i_sweeps {
  int64_t count;
  int64_t stride;     /* of pull, at least 2 m; cache lines of many rows collide where it is a multiple of 512 */
  const float *noise; /* [count][n], or NULL: none */
  size_t noise_count;
  uint32_t seed; /* of the noise */
} f2i_sweeps;

/* Sweeps through complex rows [begin, end) of a matrix that has codes and dense values; different rows may be worked on
 * at the same time. metric is H, and pull [2 n][stride], the columns of a row together, H times what is missing to the
 * matrix aimed at, which is kept up to date. Codes of a pair become those that bring the outputs nearest, everything
 * else as it is. With noise they become those that would if pull had other values: each is moved at random, evenly, by
 * up to the noise of that sweep and row, in units of the root of its column's diagonal entry of H. */
f2i_status f2i_search_anneal(const f2i_search *search, const f2i_sweeps *sweeps, int64_t begin, int64_t end,
                             float *pull, size_t pull_count, f2i_message *message);

/* The dequantized matrix as training computes with it: complex rows [begin, end), that is real rows i and n/2 + i, of
 * out [n][k], F2I_FLOAT32 or F2I_BFLOAT16, straight from the latent weights and all scales. Sums are rounded as the
 * profile says; then they are multiplied by row_divisor and col_divisor, if there are any, and rounded to the type of
 * out. */
f2i_status f2i_quantize_dequantized(const f2i_latent *latent, const float *scales, size_t scales_count, int64_t begin,
                                    int64_t end, int64_t dtype, void *out, size_t out_bytes, f2i_message *message);

/* A number that changes when any of the bytes does, but for a chance of 2^-64: tells whether a weight is still the one
 * that was quantized. Not for untrusted data: whoever wants to can make two contents with the same number. */
f2i_status f2i_fingerprint(const void *data, size_t bytes, uint64_t *fingerprint, f2i_message *message);

/* Writes the row tiles of complex rows [begin, end) into the packed bytes of a whole layer. Rows begin and end at
 * multiples of 32, or end with the matrix. codes [stages][2 (U, W)][end - begin][k / 2], 0 to 3. */
f2i_status f2i_pack(const uint8_t *codes, size_t codes_count, int64_t k, int64_t n, int64_t stages, int64_t begin,
                    int64_t end, uint8_t *packed, size_t packed_bytes, f2i_message *message);

/* The same for a layer without U, layout version 2. codes [end - begin][k / 2] of W. */
f2i_status f2i_pack_conjugate(const uint8_t *codes, size_t codes_count, int64_t k, int64_t n, int64_t begin,
                              int64_t end, uint8_t *packed, size_t packed_bytes, f2i_message *message);
/* cffi-end */
#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

/* ONNX Runtime entry points (declared here without its header): register Fairy2iMatMul, Fairy2iMatMul2
 * and Fairy2iMatMul3, domain ai.fairy2i. RegisterCustomOps is the name ONNX Runtime looks up; the second one is the
 * same function under a unique name, for programs that link the library statically. */
struct OrtSessionOptions;
struct OrtApiBase;
struct OrtStatus;
F2I_EXPORT struct OrtStatus *Fairy2i_RegisterCustomOps(struct OrtSessionOptions *options, const struct OrtApiBase *api);

#ifdef __cplusplus
}
#endif
#endif
