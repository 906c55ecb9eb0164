/* cpu.c - run-time CPU feature detection. A new feature is one bit in cpu.h and one row in each table here. */
#include "base/cpu.h"

#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#include <stdatomic.h>
#if !defined(_WIN32)
#include <unistd.h>
#endif

#if defined(__x86_64__) && defined(__GNUC__) && defined(__linux__) && !defined(__ANDROID__)
#define ASKS_FOR_AMX /* only where we know how to ask for it */
#include <sys/syscall.h>
#endif

#include "fairy2i.h"

#if defined(ASKS_FOR_AMX)
/* Leaf 7, EDX: AMX-TILE, AMX-INT8; and the operating system keeps the tiles (XCR0 bits 17 and 18). */
static int has_amx(void) {
  unsigned eax, ebx, ecx, edx, low, high;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx >> 27 & 1)) return 0; /* XGETBV */
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || !(edx >> 24 & 1) || !(edx >> 25 & 1)) return 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low >> 17 & 3) == 3;
}
#endif

size_t f2i_cpu_count(void) {
#if defined(_WIN32)
  return 8;
#else
  static atomic_long known; /* the answer is read from files: too slow for every call */
  long count = atomic_load_explicit(&known, memory_order_relaxed);
  if (count == 0) {
    count = sysconf(_SC_NPROCESSORS_ONLN);
    if (count < 1) count = 1;
    atomic_store_explicit(&known, count, memory_order_relaxed);
  }
  return (size_t)count;
#endif
}

int f2i_cpu_allow(uint32_t bits) {
#if defined(ASKS_FOR_AMX)
  enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 }; /* ARCH_REQ_XCOMP_PERM of the kernel's asm/prctl.h */
  if (bits & F2I_CPU_AMX) return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#endif
  (void)bits;
  return 1;
}

typedef struct feature {
  uint32_t bit;
  const char *name;
} feature;

static const feature features[] = {
    {F2I_CPU_AVX2, "avx2"},         {F2I_CPU_AVX512, "avx512"}, {F2I_CPU_AVX512_VNNI, "avx512_vnni"},
    {F2I_CPU_AVX_VNNI, "avx_vnni"}, {F2I_CPU_NEON, "neon"},     {F2I_CPU_DOTPROD, "dotprod"},
    {F2I_CPU_I8MM, "i8mm"},         {F2I_CPU_AMX, "amx_int8"},  {F2I_CPU_AVX512_VBMI, "avx512_vbmi"},
};

#if defined(__aarch64__) && defined(__APPLE__)
static int has(const char *name) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, NULL, 0) == 0 && value != 0;
}
#endif

static uint32_t find_bits(void) {
  uint32_t bits = 0;
#if defined(__x86_64__) && defined(__GNUC__)
  /* includes the check that the operating system saves the wide registers */
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2")) bits |= F2I_CPU_AVX2;
  /* no name for it in older compilers' __builtin_cpu_supports: leaf 7, sub-leaf 1, EAX bit 4 */
  unsigned eax, ebx, ecx, edx;
  if (bits & F2I_CPU_AVX2 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && eax >> 4 & 1) bits |= F2I_CPU_AVX_VNNI;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq")) {
    bits |= F2I_CPU_AVX512;
    if (__builtin_cpu_supports("avx512vnni")) bits |= F2I_CPU_AVX512_VNNI;
    if (__builtin_cpu_supports("avx512vbmi")) bits |= F2I_CPU_AVX512_VBMI;
#if defined(ASKS_FOR_AMX)
    if (has_amx()) bits |= F2I_CPU_AMX;
#endif
  }
#elif defined(__aarch64__)
  bits |= F2I_CPU_NEON;
#if defined(__linux__) /* and Android */
  /* of the kernel's asm/hwcap.h, which names them only in newer releases */
  enum { HWCAP_DOTPROD = 1 << 20, HWCAP2_INT8_MATMUL = 1 << 13 };
  if (getauxval(AT_HWCAP) & HWCAP_DOTPROD) bits |= F2I_CPU_DOTPROD;
  if (getauxval(AT_HWCAP2) & HWCAP2_INT8_MATMUL) bits |= F2I_CPU_I8MM;
#elif defined(__APPLE__)
  if (has("hw.optional.arm.FEAT_DotProd")) bits |= F2I_CPU_DOTPROD;
  if (has("hw.optional.arm.FEAT_I8MM")) bits |= F2I_CPU_I8MM;
#endif
#endif
  return bits;
}

uint32_t f2i_cpu_bits(void) {
  enum { FOUND = 1u << 31 }; /* no feature has it */
  static atomic_uint known;  /* in a virtual machine asking takes microseconds, and a plan asks for every kernel */
  uint32_t bits = atomic_load_explicit(&known, memory_order_relaxed);
  if (bits == 0) {
    bits = find_bits() | FOUND;
    atomic_store_explicit(&known, bits, memory_order_relaxed);
  }
  return bits & ~(uint32_t)FOUND;
}

f2i_cpu_model f2i_cpu_identify(void) {
  f2i_cpu_model found = {"", 0, 0};
#if defined(__x86_64__) && defined(__GNUC__)
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid(0, &eax, &ebx, &ecx, &edx)) return found;
  const unsigned name[3] = {ebx, edx, ecx};
  memcpy(found.vendor, name, sizeof name);
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return found;
  found.family = (int)(eax >> 8 & 15) + ((eax >> 8 & 15) == 15 ? (int)(eax >> 20 & 255) : 0);
  found.model = (int)((eax >> 4 & 15) | (eax >> 16 & 15) << 4);
#endif
  return found;
}

f2i_status f2i_cpu_features(char *text, size_t size) {
  const uint32_t bits = f2i_cpu_bits();
  size_t used = 0;
  if (text == NULL || size == 0) return F2I_INVALID_ARGUMENT;
  text[0] = '\0';
  for (size_t i = 0; i < sizeof features / sizeof features[0]; ++i) {
    const size_t length = strlen(features[i].name);
    if (!(bits & features[i].bit) || used + length + 2 > size) continue;
    if (used > 0) text[used++] = ' ';
    memcpy(text + used, features[i].name, length + 1);
    used += length;
  }
  return F2I_OK;
}
