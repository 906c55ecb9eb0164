/* quantize_baseline.c - the quantizer compiled for the baseline CPU. */
#define F2I_QUANTIZER f2i_quantizer_baseline
#include "quantizer/loops/rows.h"
