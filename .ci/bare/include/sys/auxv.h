/* sys/auxv.h - of the C library of a phone, what the operator library uses (see ../../README.md). */
#ifndef BARE_SYS_AUXV_H
#define BARE_SYS_AUXV_H
#define AT_HWCAP 16
#define AT_HWCAP2 26
unsigned long getauxval(unsigned long type);
#endif
