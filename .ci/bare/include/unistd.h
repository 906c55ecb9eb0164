/* unistd.h - of the C library of a phone, what the operator library uses (see ../README.md). */
#ifndef BARE_UNISTD_H
#define BARE_UNISTD_H
#if defined(__APPLE__)
#define _SC_NPROCESSORS_ONLN 58
#else
#define _SC_NPROCESSORS_ONLN 0x0061 /* bionic's; glibc has 84 */
#endif
long sysconf(int name);
#endif
