/* half.h - IEEE 754 binary16 <-> float, round to nearest even, for the fp16 overload of the operator. */
#ifndef F2I_HALF_H
#define F2I_HALF_H

#include <stdint.h>
#include <string.h>

static inline float f2i_half_to_float(uint16_t half) {
  const uint32_t sign = (uint32_t)(half & 0x8000u) << 16, magnitude = half & 0x7FFFu;
  uint32_t bits;
  float value;
  if (magnitude >= 0x7C00u) {
    bits = 0x7F800000u | (magnitude & 0x3FFu) << 13; /* infinity, NaN */
  } else if (magnitude >= 0x400u) {
    bits = (magnitude << 13) + (112u << 23);
  } else {
    const float tiny = (float)magnitude * 0x1p-24f;
    memcpy(&bits, &tiny, sizeof bits);
  }
  bits |= sign;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static inline uint16_t f2i_float_to_half(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
  uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return sign | 0x7E00u;  /* NaN */
  if (magnitude >= 0x477FF000u) return sign | 0x7C00u; /* rounds to 65536 or more */
  if (magnitude < 0x38800000u) {                       /* below 2^-14: subnormal half, unit 2^-24 */
    float rest;
    memcpy(&rest, &magnitude, sizeof rest);
    rest += 0.5f; /* unit of the last place of 0.5 is 2^-24: the addition rounds */
    memcpy(&magnitude, &rest, sizeof magnitude);
    return sign | (uint16_t)(magnitude - 0x3F000000u);
  }
  magnitude += 0xFFFu + (magnitude >> 13 & 1u);
  return sign | (uint16_t)((magnitude - (112u << 23)) >> 13);
}

#endif
