/* search.h - what calibration's search shares between its arguments (search.c) and its loops (loops/search.h). */
#ifndef F2I_SEARCH_H
#define F2I_SEARCH_H

#include <stdint.h>

/* All points of U (0) and of W (1); the codes of point k are its pairs of bits, stage 1 in the highest. */
typedef struct f2i_codebook {
  int count; /* 4^stages */
  float re[2][256], im[2][256];
} f2i_codebook;

#endif
