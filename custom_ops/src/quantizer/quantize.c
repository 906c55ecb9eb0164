/* quantize.c - the quantizer's public functions: argument checks, then the row functions of the best ISA. */
#include "quantizer/quantize.h"

#include <math.h>

#include "base/cpu.h"
#include "base/message.h"
#include "base/sizes.h"
#include "quantizer/points.h"

const f2i_quantizer *f2i_quantizer_of_cpu(void) {
#if defined(F2I_HAVE_QUANTIZE_AVX512)
  if (f2i_cpu_bits() & F2I_CPU_AVX512) return &f2i_quantizer_avx512;
#endif
#if defined(F2I_HAVE_QUANTIZE_AVX2)
  if (f2i_cpu_bits() & F2I_CPU_AVX2) return &f2i_quantizer_avx2;
#endif
  return &f2i_quantizer_baseline;
}

static f2i_status check(const f2i_latent *latent, int64_t begin, int64_t end, f2i_message *message) {
  if (latent == NULL) return f2i_fail(message, F2I_INVALID_ARGUMENT, "latent: expected a pointer, got NULL");
  size_t packed = 0;
  const f2i_status status = f2i_packed_size(latent->k, latent->n, latent->stages, &packed, message);
  if (status != F2I_OK) return status;
  if (latent->dtype != F2I_FLOAT32 && latent->dtype != F2I_FLOAT16 && latent->dtype != F2I_BFLOAT16) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "dtype: expected 0 (float32), 1 (float16) or 2 (bfloat16), got %lld",
                    (long long)latent->dtype);
  }
  if (latent->profile != F2I_PROFILE_BF16 && latent->profile != F2I_PROFILE_FP32) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "profile: expected 0 (bf16-reference) or 1 (fp32), got %lld",
                    (long long)latent->profile);
  }
  /* of the real matrix, or of one part of a complex one, which is a quarter */
  const uint64_t whole = f2i_count(latent->n, latent->k, latent->dtype == F2I_FLOAT32 ? 4 : 2);
  const uint64_t bytes = latent->imag == NULL ? whole : whole / 4;
  if (latent->data == NULL || (uint64_t)latent->bytes != bytes) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "data: expected %llu bytes for K=%lld, N=%lld, got %zu",
                    (unsigned long long)bytes, (long long)latent->k, (long long)latent->n,
                    latent->data == NULL ? (size_t)0 : latent->bytes);
  }
  if (latent->row_divisor != NULL && latent->row_divisor_count != (size_t)latent->n) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "row_divisor: expected %lld values, got %zu", (long long)latent->n,
                    latent->row_divisor_count);
  }
  if (latent->col_divisor != NULL && latent->col_divisor_count != (size_t)latent->k) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "col_divisor: expected %lld values, got %zu", (long long)latent->k,
                    latent->col_divisor_count);
  }
  if (latent->quantizer != F2I_GREEDY && latent->quantizer != F2I_JOINT) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "quantizer: expected 0 (greedy) or 1 (joint), got %lld",
                    (long long)latent->quantizer);
  }
  if (begin < 0 || end < begin || end > latent->n / 2) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "rows: expected a part of 0 to %lld, got %lld to %lld",
                    (long long)(latent->n / 2), (long long)begin, (long long)end);
  }
  return F2I_OK;
}

f2i_status f2i_check_count(const char *what, const void *pointer, size_t count, uint64_t expected,
                           f2i_message *message) {
  if (pointer != NULL && (uint64_t)count == expected) return F2I_OK;
  return f2i_fail(message, F2I_INVALID_ARGUMENT, "%s: expected %llu values, got %zu", what,
                  (unsigned long long)expected, pointer == NULL ? (size_t)0 : count);
}

f2i_status f2i_quantize_squares(const f2i_latent *latent, int64_t begin, int64_t end, double *squares, size_t count,
                                f2i_message *message) {
  f2i_status status = check(latent, begin, end, message);
  if (status == F2I_OK) status = f2i_check_count("squares", squares, count, f2i_count(end - begin, 1, 2), message);
  if (status != F2I_OK) return status;
  f2i_quantizer_of_cpu()->squares(latent, begin, end, squares);
  return f2i_ok(message);
}

f2i_status f2i_quantize_sums(const f2i_latent *latent, const float *scales, size_t scales_count, int64_t begin,
                             int64_t end, double *sums, int64_t *counts, size_t count, f2i_message *message) {
  f2i_status status = check(latent, begin, end, message);
  if (status != F2I_OK) return status;
  if (scales_count % 4 != 0 || scales_count >= 4 * (size_t)latent->stages || (scales_count != 0 && scales == NULL)) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "scales: expected 4 per earlier stage of %lld, got %zu",
                    (long long)latent->stages, scales == NULL ? (size_t)0 : scales_count);
  }
  status = f2i_check_count("sums", sums, count, f2i_count(end - begin, 1, 4), message);
  if (status == F2I_OK) status = f2i_check_count("counts", counts, count, f2i_count(end - begin, 1, 4), message);
  if (status != F2I_OK) return status;
  f2i_quantizer_of_cpu()->sums(latent, scales, (int64_t)(scales_count / 4), begin, end, sums, counts);
  return f2i_ok(message);
}

f2i_status f2i_quantize_codes(const f2i_latent *latent, const float *scales, size_t scales_count, int64_t begin,
                              int64_t end, uint8_t *codes, size_t codes_count, double *errors, size_t errors_count,
                              f2i_message *message) {
  f2i_status status = check(latent, begin, end, message);
  if (status != F2I_OK) return status;
  const int64_t rows = end - begin;
  status = f2i_check_count("scales", scales, scales_count, f2i_count(latent->stages, 1, 4), message);
  if (status == F2I_OK) {
    status = f2i_check_count("codes", codes, codes_count, f2i_count(rows, latent->k, latent->stages), message);
  }
  if (status == F2I_OK && errors != NULL)
    status = f2i_check_count("errors", errors, errors_count, f2i_count(rows, 1, 2), message);
  if (status != F2I_OK) return status;
  f2i_quantizer_of_cpu()->codes(latent, scales, begin, end, codes, errors);
  return f2i_ok(message);
}

f2i_status f2i_quantize_parts(const f2i_latent *latent, int64_t begin, int64_t end, float *parts, size_t count,
                              f2i_message *message) {
  f2i_status status = check(latent, begin, end, message);
  if (status == F2I_OK) {
    status = f2i_check_count("parts", parts, count, f2i_count(end - begin, latent->k, 2), message);
  }
  if (status != F2I_OK) return status;
  f2i_quantizer_of_cpu()->parts(latent, begin, end, parts);
  return f2i_ok(message);
}

f2i_status f2i_quantize_dequantized(const f2i_latent *latent, const float *scales, size_t scales_count, int64_t begin,
                                    int64_t end, int64_t dtype, void *out, size_t out_bytes, f2i_message *message) {
  f2i_status status = check(latent, begin, end, message);
  if (status != F2I_OK) return status;
  status = f2i_check_count("scales", scales, scales_count, f2i_count(latent->stages, 1, 4), message);
  if (status != F2I_OK) return status;
  if (dtype != F2I_FLOAT32 && dtype != F2I_BFLOAT16) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT,
                    "dtype of the result: expected 0 (float32) or 2 (bfloat16), got %lld", (long long)dtype);
  }
  const uint64_t bytes = f2i_count(latent->n, latent->k, dtype == F2I_FLOAT32 ? 4 : 2);
  if (out == NULL || (uint64_t)out_bytes != bytes) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "out: expected %llu bytes for the whole matrix, got %zu",
                    (unsigned long long)bytes, out == NULL ? (size_t)0 : out_bytes);
  }
  f2i_quantizer_of_cpu()->dequantized(latent, scales, begin, end, out, dtype);
  return f2i_ok(message);
}

/* --- plain arrays --- */

static f2i_status check_arrays(const f2i_points *points, const float *re, const float *im, size_t count,
                               f2i_message *message) {
  if (points == NULL || points->stages < 1 || points->stages > 4 || points->count < 1 ||
      points->count > F2I_MAX_POINTS || points->count % F2I_POINT_GROUP != 0) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "points: expected a struct that f2i_points_init has filled");
  }
  if (count != 0 && (re == NULL || im == NULL)) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "re, im: expected pointers to %zu values, got NULL", count);
  }
  return F2I_OK;
}

f2i_status f2i_nearest(const f2i_points *points, const float *re, const float *im, size_t count, uint8_t *codes,
                       float *q_re, float *q_im, f2i_message *message) {
  const f2i_status status = check_arrays(points, re, im, count, message);
  if (status != F2I_OK) return status;
  if ((q_re == NULL) != (q_im == NULL)) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "q_re, q_im: expected both or neither");
  }
  f2i_quantizer_of_cpu()->nearest(points, re, im, (int64_t)count, codes, q_re, q_im);
  return f2i_ok(message);
}

f2i_status f2i_nearest_sums(const f2i_points *points, const float *re, const float *im, const float *weights,
                            size_t count, double *sums, size_t sums_count, f2i_message *message) {
  const f2i_status status = check_arrays(points, re, im, count, message);
  if (status != F2I_OK) return status;
  const size_t expected = (size_t)4 << (2 * points->stages);
  if (sums == NULL || sums_count != expected) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "sums: expected %zu values, got %zu", expected,
                    sums == NULL ? (size_t)0 : sums_count);
  }
  f2i_quantizer_of_cpu()->nearest_sums(points, re, im, weights, (int64_t)count, sums);
  return f2i_ok(message);
}
