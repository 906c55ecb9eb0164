/* sys/sysctl.h - of Apple's C library, what the operator library uses (see ../../README.md). */
#ifndef BARE_SYS_SYSCTL_H
#define BARE_SYS_SYSCTL_H
#include <stddef.h>
int sysctlbyname(const char *name, void *value, size_t *size, void *new_value, size_t new_size);
#endif
