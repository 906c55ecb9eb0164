/* cpu.h - CPU features that kernels ask for. */
#ifndef F2I_CPU_H
#define F2I_CPU_H

#include <stddef.h>
#include <stdint.h>

enum {
  F2I_CPU_AVX2 = 1u << 0,
  F2I_CPU_AVX512 = 1u << 1, /* F, BW, VL and DQ: what every CPU with BW has */
  F2I_CPU_AVX512_VNNI = 1u << 2,
  F2I_CPU_AVX_VNNI = 1u << 3,
  F2I_CPU_NEON = 1u << 4, /* every 64-bit ARM */
  F2I_CPU_DOTPROD = 1u << 5,
  F2I_CPU_I8MM = 1u << 6,
  F2I_CPU_AMX = 1u << 7, /* tiles and int8 products; needs f2i_cpu_allow */
  F2I_CPU_AVX512_VBMI = 1u << 8,
};

/* Features of this CPU that the operating system lets programs use. Computed once. */
uint32_t f2i_cpu_bits(void);

/* Who made this processor, as CPUID says ("GenuineIntel", "AuthenticAMD"), and its family and model numbers, extended
 * ones added; "" and zeros where there is no CPUID. */
typedef struct f2i_cpu_model {
  char vendor[13];
  int family, model;
} f2i_cpu_model;

f2i_cpu_model f2i_cpu_identify(void);

/* Processors of the machine, at least 1; found once. */
size_t f2i_cpu_count(void);

/* Asks the operating system for what programs must ask for before they use these features. Returns 0 if it refuses.
 * Asked for only when such a kernel is chosen, because the answer concerns the whole process: signal stacks must be
 * larger. */
int f2i_cpu_allow(uint32_t bits);

#endif
