/* quantize_avx512.c - the quantizer compiled for AVX-512. */
#define F2I_QUANTIZER f2i_quantizer_avx512
#include "quantize_rows.h"
