/* fairy2i.h - C API of the Fairy2i operator library.
 *
 * One linear layer y = (x * col_multiplier) A^T * row_multiplier + bias whose matrix A [N, K] is stored as 2-bit codes
 * in packed format v1 (docs/format.md). No function here prints, aborts, allocates or keeps a pointer beyond what is
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
  int64_t layout_version;
  int64_t scale_scope;
  const uint8_t *packed; /* [packed_bytes], any alignment */
  size_t packed_bytes;
  const float *scales; /* [stages][2 (U, W)][2 (re, im)] */
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
  int is_default; /* it is what an unforced call of its family runs */
} f2i_kernel_info;

/* A validated layer and the kernel chosen for it. Make it with f2i_plan_init; the fields are private. */
typedef struct f2i_plan {
  f2i_weights weights;
  const void *kernel;
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

/* Size in bytes of the packed codes of a layer with k inputs and n outputs. */
f2i_status f2i_packed_size(int64_t k, int64_t n, int64_t stages, size_t *bytes, f2i_message *message);

/* Checks sizes, versions and scale values against the format; reads scales, never the packed bytes. Pure. */
f2i_status f2i_validate(const f2i_weights *weights, f2i_message *message);

/* Validates the weights and chooses a kernel. family and isa may be NULL or "": then the environment variables
 * FAIRY2I_KERNEL and FAIRY2I_ISA decide, then the default ("lut", best ISA this CPU has). */
f2i_status f2i_plan_init(f2i_plan *plan, const f2i_weights *weights, const char *family, const char *isa,
                         f2i_message *message);

/* The kernel that a plan runs. */
f2i_status f2i_plan_kernel(const f2i_plan *plan, f2i_kernel_info *info);

/* Bytes of scratch memory that f2i_matmul needs for this many rows (any alignment). */
f2i_status f2i_workspace_size(const f2i_plan *plan, int64_t rows, size_t *bytes, f2i_message *message);

/* y[r][0..n) = layer(x[r][0..k)) for r in [0, rows), rows >= 0. ldx and ldy count floats between rows. bias is [n] or
 * NULL. A row of x with a NaN or an infinity gives a row of NaN. parallel may be NULL (one thread). x and y must not
 * overlap. Results do not depend on the number of threads, and those of "lut" and "dot" not on the ISA. */
f2i_status f2i_matmul(const f2i_plan *plan, int64_t rows, const float *x, int64_t ldx, const float *bias, float *y,
                      int64_t ldy, void *workspace, size_t workspace_bytes, const f2i_parallel *parallel,
                      f2i_message *message);
/* cffi-end */
#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

/* ONNX Runtime entry points (declared here without its header): register Fairy2iMatMul, domain ai.fairy2i.
 * RegisterCustomOps is the name ONNX Runtime looks up; the second one is the same function under a unique name, for
 * programs that link the library statically. */
struct OrtSessionOptions;
struct OrtApiBase;
struct OrtStatus;
F2I_EXPORT struct OrtStatus *Fairy2i_RegisterCustomOps(struct OrtSessionOptions *options, const struct OrtApiBase *api);

#ifdef __cplusplus
}
#endif
#endif
