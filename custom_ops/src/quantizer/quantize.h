/* quantize.h - what the row functions of the quantizer look like to quantize.c; one set per ISA, equal to the bit. */
#ifndef F2I_QUANTIZE_H
#define F2I_QUANTIZE_H

#include "fairy2i.h"
#include "quantizer/search.h"

/* Arguments are checked already; begin and end count complex rows. */
typedef struct f2i_quantizer {
  void (*squares)(const f2i_latent *latent, int64_t begin, int64_t end, double *squares);
  void (*sums)(const f2i_latent *latent, const float *scales, int64_t stage, int64_t begin, int64_t end, double *sums,
               int64_t *counts);
  void (*codes)(const f2i_latent *latent, const float *scales, int64_t begin, int64_t end, uint8_t *codes,
                double *errors);
  void (*parts)(const f2i_latent *latent, int64_t begin, int64_t end, float *parts);
  void (*nearest)(const f2i_points *points, const float *re, const float *im, int64_t count, uint8_t *codes,
                  float *q_re, float *q_im);
  void (*nearest_sums)(const f2i_points *points, const float *re, const float *im, const float *weights, int64_t count,
                       double *sums);
  void (*dequantized)(const f2i_latent *latent, const float *scales, int64_t begin, int64_t end, void *out,
                      int64_t dtype);
  void (*feed_back)(const f2i_search *search, const f2i_codebook *book, int64_t from, int64_t to, int64_t begin,
                    int64_t end, float *values);
  void (*anneal)(const f2i_search *search, const f2i_codebook *book, int64_t begin, int64_t end,
                 const f2i_sweeps *sweeps, float *pull);
} f2i_quantizer;

const f2i_quantizer *f2i_quantizer_of_cpu(void);

/* Refuses an array that is not there or has another length, naming it. */
f2i_status f2i_check_count(const char *what, const void *pointer, size_t count, uint64_t expected,
                           f2i_message *message);

extern const f2i_quantizer f2i_quantizer_baseline, f2i_quantizer_avx2, f2i_quantizer_avx512;

#endif
