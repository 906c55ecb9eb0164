/* stdlib.h - of the C library of a phone, what the operator library uses (see ../README.md). */
#ifndef BARE_STDLIB_H
#define BARE_STDLIB_H
#include <stddef.h>
void *malloc(size_t size);
void *calloc(size_t count, size_t size);
void free(void *memory);
char *getenv(const char *name);
long strtol(const char *text, char **end, int base);
#endif
