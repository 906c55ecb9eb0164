/* math.h - of the C library of a phone, what the operator library uses (see ../README.md). */
#ifndef BARE_MATH_H
#define BARE_MATH_H
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define isfinite(x) __builtin_isfinite(x)
float fabsf(float x);
float fmaxf(float x, float y);
float rintf(float x);
float sqrtf(float x);
double fabs(double x);
#endif
