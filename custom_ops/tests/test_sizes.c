/* test_sizes.c - sizes as a CPU with 32-bit pointers must compute them: none may wrap around, all that is too large is
 * refused. The functions get that CPU's limit as an argument; built for a 32-bit CPU, the test asks the public ones,
 * too.
 */
#include <stdint.h>
#include <string.h>

#include "base/sizes.h"
#include "fairy2i.h"
#include "harness.h"
#include "layer/call.h"

#define LIMIT_32 ((uint64_t)UINT32_MAX / 2)

static const float scales[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

/* A plan never reads packed bytes: any address will do. */
static f2i_plan plan_of(int64_t k, int64_t n, int64_t stages, const char *family, const char *isa) {
  const f2i_weights w = {
      .k = k,
      .n = n,
      .stages = stages,
      .layout_version = F2I_LAYOUT_VERSION,
      .scale_scope = F2I_SCALE_SCOPE_MATRIX,
      .packed = (const uint8_t *)scales,
      .packed_bytes = (size_t)(f2i_blocks_of(F2I_LAYOUT_VERSION, k) * f2i_tiles_of(n) * (uint64_t)stages * 512),
      .scales = scales,
      .scales_count = (size_t)stages * 4};
  f2i_message message;
  f2i_plan plan = {0};
  check(f2i_plan_init(&plan, &w, family, isa, &message) == F2I_OK, "plan", message.text);
  return plan;
}

static void expect_text(const f2i_message *message, const char *part) {
  check(strstr(message->text, part) != NULL, part, message->text);
}

static void test_packed(void) {
  f2i_message message;
  size_t bytes = 7;
  /* 2^17 x 2^17 at 1 stage is exactly 2^31 bytes, one more than the limit; at 2 stages 2^32 would wrap to 0 */
  check(f2i_packed_size_within(LIMIT_32, F2I_LAYOUT_VERSION, 1 << 17, 1 << 17, 1, &bytes, &message) ==
            F2I_INVALID_ARGUMENT,
        "2^31", "");
  check(f2i_packed_size_within(LIMIT_32, F2I_LAYOUT_VERSION, 1 << 17, 1 << 17, 2, &bytes, &message) ==
            F2I_INVALID_ARGUMENT,
        "2^32", "");
  expect_text(&message, "K=131072, N=131072, stages=2 need more memory than this CPU addresses: 4294967296 bytes");
  check(bytes == 7, "packed size", "written although refused");
  check(f2i_packed_size_within(LIMIT_32, F2I_LAYOUT_VERSION, 1 << 17, (1 << 17) - 64, 1, &bytes, &message) == F2I_OK,
        "below", message.text);
  check(bytes == ((size_t)1 << 31) - ((size_t)1 << 20), "packed size", "of a layer just below the limit");
}

/* The largest layer in one direction: 2^18 K-blocks of 4 stages, whose packed bytes are only 2^29. */
static void test_workspace(void) {
  f2i_message message;
  const f2i_plan plan = plan_of(1 << 24, 2, 4, "exact", "scalar");
  size_t bytes = 7;
  /* 2^18 blocks * 2^14 bytes = 2^32, the product that wrapped to 0 */
  check(f2i_workspace_size_within(LIMIT_32, &plan, 1, &bytes, &message) == F2I_INVALID_ARGUMENT, "one row", "");
  expect_text(&message,
              "workspace: expected at most 2147483647 bytes on this CPU, K=16777216, N=2, stages=4 and 1 rows");
  expect_text(&message, "need 4296015936");
  check(f2i_workspace_size_within(LIMIT_32, &plan, 40, &bytes, &message) == F2I_INVALID_ARGUMENT, "40 rows", "");
  expect_text(&message, "need 137472507968"); /* of the first 32 rows */
  check(bytes == 7, "workspace", "written although refused");
  check(f2i_workspace_size_within(LIMIT_32, &plan, 0, &bytes, &message) == F2I_OK && bytes == F2I_ALIGN, "no rows", "");
#if SIZE_MAX > UINT32_MAX
  check(f2i_workspace_size(&plan, 1, &bytes, &message) == F2I_OK && bytes == 4296015936u, "64 bits", "");
  /* just below the limit: the sum that is compared is the exact one */
  check(f2i_workspace_size_within(4296015936u, &plan, 1, &bytes, &message) == F2I_OK, "equal", message.text);
  check(f2i_workspace_size_within(4296015935u, &plan, 1, &bytes, &message) == F2I_INVALID_ARGUMENT, "one less", "");
#else
  check(f2i_workspace_size(&plan, 1, &bytes, &message) == F2I_INVALID_ARGUMENT, "32 bits", "");
#endif
}

/* Every kernel, at its largest operands and for rows that its panel form takes, where it has one. */
static void test_workspace_of_every_kernel(void) {
  for (size_t i = 0; i < f2i_kernel_count(); ++i) {
    f2i_kernel_info info;
    f2i_message message;
    if (f2i_kernel_at(i, &info) != F2I_OK || !info.available) continue;
    const f2i_plan long_rows = plan_of(1 << 24, 2, 4, info.family, info.isa);
    const f2i_plan many_rows = plan_of(2, 1 << 24, 4, info.family, info.isa);
    for (int64_t rows = 1; rows <= 64; ++rows) {
      size_t bytes = 0;
      const uint64_t least = (uint64_t)(rows < 32 ? rows : 32) << 18; /* a byte for every block and row, at least */
#if SIZE_MAX > UINT32_MAX
      check(f2i_workspace_size(&long_rows, rows, &bytes, &message) == F2I_OK && bytes > least, info.isa, "long rows");
      check(bytes < (size_t)1 << 40, info.isa, "long rows: too much");
#endif
      if (f2i_workspace_size_within(LIMIT_32, &long_rows, rows, &bytes, &message) == F2I_OK) {
        check(bytes > least && bytes <= LIMIT_32, info.isa, "wrapped around");
      } else {
        expect_text(&message, "workspace: expected at most 2147483647 bytes");
      }
      const f2i_status status = f2i_workspace_size_within(LIMIT_32, &many_rows, rows, &bytes, &message);
      check(status == F2I_OK || strstr(message.text, "N=16777216") != NULL, info.isa, message.text);
    }
  }
}

static void test_widened(void) {
  f2i_message message;
  const f2i_weights w = {.k = 1 << 15, .n = 1 << 15, .stages = 2};
  size_t floats = 7, bytes = 7;
  /* 2^14 rows of 2^16 floats: 2^32 bytes */
  check(f2i_widened_within(LIMIT_32, 1 << 14, &w, 64, &floats, &bytes, &message) == F2I_INVALID_ARGUMENT, "2^32", "");
  expect_text(&message, "K=32768, N=32768, stages=2 and 16384 rows of X need 4295098432");
  check(f2i_widened_within(LIMIT_32, INT64_MAX, &w, 64, &floats, &bytes, &message) == F2I_INVALID_ARGUMENT, "2^63", "");
  check(floats == 7 && bytes == 7, "widened", "written although refused");
  check(f2i_widened_within(LIMIT_32, 3, &w, 64, &floats, &bytes, &message) == F2I_OK, "3 rows", message.text);
  check(floats == 3 * (1 << 16) + (1 << 15) && bytes == 4 * floats + 64, "widened", "size");
}

/* Work items of the tallest layer: products of strips and tiles reach 2^32. */
static void test_strips(void) {
  const f2i_call c = {.tiles = 1 << 18};
  const size_t strips = 1 << 15;
  size_t last = 0;
  for (size_t strip = 1; strip <= strips; ++strip) {
    const size_t begin = f2i_strip_begin(&c, strips, strip);
    if (begin != last + 8) check(0, "strips", "wrapped around");
    last = begin;
  }
  check(last == c.tiles, "strips", "do not reach the last tile");
}

static void test_counts(void) {
  /* codes of 2^16 rows, 2^16 inputs and 1 stage: 2^32 */
  check(f2i_count(1 << 16, 1 << 16, 1) == (uint64_t)1 << 32, "count", "2^32");
  check(f2i_count(1 << 23, 1 << 24, 4) == (uint64_t)1 << 49, "count", "2^49");
#if SIZE_MAX == UINT32_MAX
  f2i_message message;
  uint8_t byte = 0;
  /* 2^30 packed bytes, and codes whose number wrapped to the 0 that are given */
  check(f2i_pack(&byte, 0, 1 << 16, 1 << 17, 1, 0, 1 << 16, &byte, (size_t)1 << 30, &message) == F2I_INVALID_ARGUMENT,
        "pack", "accepts no codes");
  expect_text(&message, "codes: expected 4294967296 values, got 0");
#endif
}

/* Layers without U: half the columns, rounded up, in bytes of one plane. */
static void test_conjugate(void) {
  static const struct {
    int64_t k, n;
    size_t bytes;
  } known[] = {{2, 2, 512}, {128, 64, 512}, {130, 64, 1024}, {10920, 4096, 86 * 64 * 512}, {168, 128, 2 * 2 * 512}};
  size_t bytes = 0;
  f2i_message message;
  for (size_t i = 0; i < sizeof known / sizeof known[0]; ++i) {
    check(f2i_layout_size(2, known[i].k, known[i].n, 1, &bytes, &message) == F2I_OK && bytes == known[i].bytes,
          "layout 2", message.text);
  }
  check(f2i_layout_size(2, 128, 64, 2, &bytes, &message) == F2I_INVALID_ARGUMENT, "two stages without U", message.text);
  check(f2i_layout_size(3, 128, 64, 1, &bytes, &message) == F2I_INVALID_ARGUMENT, "layout 3", message.text);
  check(f2i_layout_size(1, 128, 64, 1, &bytes, &message) == F2I_OK && bytes == 2 * 512, "layout 1", message.text);
  check(f2i_packed_size_within(LIMIT_32, 2, 1 << 17, 1 << 17, 1, &bytes, &message) == F2I_OK && bytes == 1u << 30,
        "2^30", message.text);
}

int main(void) {
  test_conjugate();
  test_packed();
  test_workspace();
  test_workspace_of_every_kernel();
  test_widened();
  test_strips();
  test_counts();
  printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
