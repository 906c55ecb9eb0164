/* stdio.h - of the C library of a phone, what the operator library uses (see ../README.md). */
#ifndef BARE_STDIO_H
#define BARE_STDIO_H
#include <stdarg.h>
#include <stddef.h>
int vsnprintf(char *text, size_t size, const char *format, va_list arguments) __attribute__((format(printf, 3, 0)));
#endif
