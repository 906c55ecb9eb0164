/* flags: -mavx2 */
/* flags of gcc: -O2 -ftree-vectorize -fvect-cost-model=dynamic -fpeel-loops */
/* quantize_avx2.c - the quantizer compiled for AVX2. */
#define F2I_QUANTIZER f2i_quantizer_avx2
#include "quantizer/loops/rows.h"
