/* points.h - how the table of a joint quantizer is made inside the library. */
#ifndef F2I_POINTS_H
#define F2I_POINTS_H

#include "fairy2i.h"

enum { F2I_POINT_GROUP = 4 }; /* points that are compared per sweep over the entries */

/* The point of the codes of all stages, 2 bits each, stage 1 in the highest; scales (re, im) of stage t lie at
 * scales[stride * t], and stages are added in their order. */
void f2i_point_of(int combination, const float *scales, int64_t stride, int64_t stages, float *re, float *im);

/* Scales (re, im) of stage t lie at scales[stride * t]; stages is 1 to 4. Points that are not
 * numbers, because scales are not finite, are left out; there may be none left. */
void f2i_points_fill(f2i_points *points, const float *scales, int64_t stride, int64_t stages);

#endif
