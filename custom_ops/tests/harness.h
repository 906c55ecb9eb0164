/* harness.h - what the C tests share: counting checks, buffers that end at an inaccessible page, random bits. */
#ifndef F2I_TESTS_HARNESS_H
#define F2I_TESTS_HARNESS_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static int passed, failed;

static void check(int ok, const char *what, const char *detail) {
  if (ok) {
    ++passed;
  } else {
    ++failed;
    printf("FAILED: %s: %s\n", what, detail);
  }
}

/* --- buffers --- */

typedef struct buffer {
  void *data; /* ends where the inaccessible page begins */
  void *map;
  size_t mapped;
} buffer;

static inline buffer guarded(size_t bytes) {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE), inside = (bytes + page - 1) / page * page;
  buffer b = {NULL, NULL, inside + page};
  b.map = mmap(NULL, b.mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (b.map == MAP_FAILED || mprotect((char *)b.map + inside, page, PROT_NONE) != 0) {
    perror("mmap");
    exit(2);
  }
  b.data = (char *)b.map + inside - bytes;
  return b;
}

static inline void release(const buffer *b) { munmap(b->map, b->mapped); }

static uint64_t state = 1;

static inline uint32_t random_bits(void) { /* SplitMix64 */
  uint64_t z = state += 0x9E3779B97F4A7C15u;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  return (uint32_t)(z >> 32);
}

#endif
