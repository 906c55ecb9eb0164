/* flags: -mavx512f -mavx512bw -mavx512vl -mavx512dq */
/* flags of gcc: -O2 -ftree-vectorize -fvect-cost-model=dynamic -fpeel-loops */
/* quantize_avx512.c - the quantizer compiled for AVX-512. */
#define F2I_QUANTIZER f2i_quantizer_avx512
#include "quantizer/loops/rows.h"
