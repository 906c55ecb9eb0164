/* seeds.c - the main function of a fuzz target without libFuzzer: runs its seeds, or inputs that were found.
 *
 *   TARGET COUNT            runs COUNT seeds, always the same ones
 *   TARGET COUNT FOLDER     writes them into a folder that exists instead, for libFuzzer to start from
 *   TARGET FILE...          runs files
 */
#include <ctype.h>

#include "input.h"

enum { LONGEST = 4096 };

/* Seed number i: random bytes, of every length on a scale, as any bytes are an input. */
static size_t seed(size_t i, uint8_t *bytes) {
  uint8_t number[8];
  for (int b = 0; b < 8; ++b) number[b] = (uint8_t)(i >> (8 * b));
  input in = input_of(number, sizeof number);
  in.at = in.size;
  const size_t length = below(&in, (size_t)2 << (i % 12)) + 1;
  for (size_t at = 0; at < length; ++at) bytes[at] = a_byte(&in);
  return length;
}

static int run_file(const char *path) {
  static uint8_t bytes[1 << 20];
  FILE *file = fopen(path, "rb");
  if (file == NULL) {
    perror(path);
    return 2;
  }
  const size_t size = fread(bytes, 1, sizeof bytes, file);
  (void)fclose(file);
  uint8_t *exact = allocated(size);
  memcpy(exact, bytes, size);
  (void)LLVMFuzzerTestOneInput(exact, size);
  free(exact);
  return 0;
}

static int write_file(const char *folder, size_t i, const uint8_t *bytes, size_t size) {
  char path[1024];
  if (snprintf(path, sizeof path, "%s/seed-%05zu", folder, i) >= (int)sizeof path) return 2;
  FILE *file = fopen(path, "wb");
  const int written = file != NULL && fwrite(bytes, 1, size, file) == size;
  if (file == NULL || fclose(file) != 0 || !written) {
    perror(path);
    return 2;
  }
  return 0;
}

int main(int argc, char **argv) {
  if (argc < 2) {
    fprintf(stderr, "usage: %s COUNT [FOLDER] | FILE...\n", argv[0]);
    return 2;
  }
  if (!isdigit((unsigned char)argv[1][0])) {
    for (int i = 1; i < argc; ++i) {
      if (run_file(argv[i]) != 0) return 2;
    }
    printf("%d files\n", argc - 1);
    return 0;
  }
  const size_t count = (size_t)strtoull(argv[1], NULL, 10);
  uint8_t bytes[LONGEST];
  for (size_t i = 0; i < count; ++i) {
    const size_t size = seed(i, bytes);
    if (argc > 2 && write_file(argv[2], i, bytes, size) != 0) return 2;
    if (argc == 2) (void)LLVMFuzzerTestOneInput(bytes, size);
  }
  printf("%zu seeds\n", count);
  return 0;
}
