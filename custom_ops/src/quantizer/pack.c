/* pack.c - the packer: codes to the bytes of the packed format (docs/format.md). */
#include <string.h>

#include "base/layout.h"
#include "base/message.h"
#include "base/sizes.h"
#include "fairy2i.h"

enum {
  F2I_BYTE_COLS = F2I_BLOCK_COLS / 2, /* bytes of one row, one byte plane and one K-block */
  F2I_TILE_PLANE = F2I_TILE_ROWS * F2I_BYTE_COLS,
};

static const uint8_t byte_planes[F2I_MAX_STAGES][F2I_MAX_STAGES][2][2] = F2I_BYTE_PLANES;

/* The code of one column as its two sign bits. */
static uint8_t gray(uint8_t code) { return code ^ code >> 1; }

/* One row, byte plane and K-block: some columns of two planes to F2I_BYTE_COLS bytes; padding becomes zero bits. */
static void pack_row(const uint8_t *low, const uint8_t *high, const int columns[2], uint8_t *out) {
  uint8_t codes[2][F2I_BLOCK_COLS];
  if (columns[0] < F2I_BLOCK_COLS || columns[1] < F2I_BLOCK_COLS) {
    memset(codes, 0, sizeof codes);
    memcpy(codes[0], low, (size_t)columns[0]);
    memcpy(codes[1], high, (size_t)columns[1]);
    low = codes[0];
    high = codes[1];
  }
  for (int i = 0; i < F2I_BYTE_COLS; ++i) {
    out[i] =
        (uint8_t)(gray(low[2 * i]) | gray(low[2 * i + 1]) << 2 | gray(high[2 * i]) << 4 | gray(high[2 * i + 1]) << 6);
  }
}

/* One row tile, byte plane and K-block: [row][byte column] to [cell][row half][byte column of the cell][row]. */
static void store_tile(uint8_t rows[F2I_TILE_ROWS][F2I_BYTE_COLS], uint8_t *out) {
  enum { PER_CELL = F2I_CELL_COLS / 2 };
  for (int column = 0; column < F2I_BYTE_COLS; ++column) {
    for (int half = 0; half < F2I_TILE_ROWS / F2I_HALF_ROWS; ++half) {
      uint8_t *run = out + column / PER_CELL * F2I_CELL_BYTES + (half * PER_CELL + column % PER_CELL) * F2I_HALF_ROWS;
      for (int row = 0; row < F2I_HALF_ROWS; ++row) run[row] = rows[half * F2I_HALF_ROWS + row][column];
    }
  }
}

/* Codes of some rows of a layer, and what stands at the places of U and W. */
typedef struct source {
  const uint8_t *codes;
  int64_t layout, k, n, stages, begin, end; /* n: complex rows */
} source;

static f2i_status check(const source *s, size_t codes_count, const uint8_t *packed, size_t packed_bytes,
                        f2i_message *message) {
  size_t expected = 0;
  const f2i_status status = f2i_layout_size(s->layout, s->k, s->n, s->stages, &expected, message);
  if (status != F2I_OK) return status;
  const int64_t n = s->n / 2, begin = s->begin, end = s->end;
  if (begin < 0 || end < begin || end > n || begin % F2I_TILE_ROWS != 0 || (end % F2I_TILE_ROWS != 0 && end != n)) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT,
                    "rows: expected whole tiles of %d within 0 to %lld, got %lld to %lld", F2I_TILE_ROWS, (long long)n,
                    (long long)begin, (long long)end);
  }
  const uint64_t values = f2i_count(end - begin, s->k, s->stages) / f2i_parts_of(s->layout);
  if (s->codes == NULL || codes_count != values) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "codes: expected %llu values, got %zu", (unsigned long long)values,
                    s->codes == NULL ? (size_t)0 : codes_count);
  }
  if (packed == NULL || packed_bytes != expected) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "packed: expected %zu bytes, got %zu", expected,
                    packed == NULL ? (size_t)0 : packed_bytes);
  }
  uint8_t seen = 0;
  for (size_t i = 0; i < codes_count; ++i) seen |= s->codes[i];
  if (seen > 3) return f2i_fail(message, F2I_INVALID_ARGUMENT, "codes must be 0 to 3 (k stands for i^k)");
  return F2I_OK;
}

/* One row tile of a byte plane and K-block, `count` rows from `first` on. */
static void pack_tile(const source *s, int64_t first, int count, int64_t block, int64_t p,
                      uint8_t rows[F2I_TILE_ROWS][F2I_BYTE_COLS]) {
  const int64_t m = s->k / 2, half = (int64_t)f2i_columns_of(s->layout, s->k), column = block * F2I_BLOCK_COLS;
  const size_t plane = (size_t)((s->end - s->begin) * m);
  const uint8_t (*places)[2] = byte_planes[s->stages - 1][p];
  int columns[2]; /* of the low and of the high nibble */
  for (int nibble = 0; nibble < 2; ++nibble) {
    const int64_t end = s->layout == F2I_LAYOUT_CONJUGATE && nibble == 1 ? m - half : half;
    columns[nibble] = (int)(end - column < 0 ? 0 : end - column < F2I_BLOCK_COLS ? end - column : F2I_BLOCK_COLS);
  }
  if (count < F2I_TILE_ROWS) memset(rows, 0, F2I_TILE_ROWS * F2I_BYTE_COLS);
  for (int row = 0; row < count; ++row) {
    const uint8_t *from = s->codes + (size_t)(first - s->begin + row) * (size_t)m + column;
    const uint8_t *low = from, *high = columns[1] > 0 ? from + half : from;
    if (s->layout != F2I_LAYOUT_CONJUGATE) {
      low = from + (size_t)(2 * places[0][0] + places[0][1]) * plane;
      high = from + (size_t)(2 * places[1][0] + places[1][1]) * plane;
    }
    pack_row(low, high, columns, rows[row]);
  }
}

static void pack_rows(const source *s, uint8_t *packed) {
  const int64_t n = s->n / 2, tiles = (n + F2I_TILE_ROWS - 1) / F2I_TILE_ROWS;
  const int64_t blocks = (int64_t)f2i_blocks_of(s->layout, s->k);
  uint8_t rows[F2I_TILE_ROWS][F2I_BYTE_COLS];
  for (int64_t first = s->begin; first < s->end; first += F2I_TILE_ROWS) {
    const int count = (int)(s->end - first < F2I_TILE_ROWS ? s->end - first : F2I_TILE_ROWS);
    for (int64_t block = 0; block < blocks; ++block) {
      uint8_t *out = packed + (size_t)((block * tiles + first / F2I_TILE_ROWS) * s->stages) * F2I_TILE_PLANE;
      for (int64_t p = 0; p < s->stages; ++p, out += F2I_TILE_PLANE) {
        pack_tile(s, first, count, block, p, rows);
        store_tile(rows, out);
      }
    }
  }
}

static f2i_status pack(const source *s, size_t codes_count, uint8_t *packed, size_t packed_bytes,
                       f2i_message *message) {
  const f2i_status status = check(s, codes_count, packed, packed_bytes, message);
  if (status != F2I_OK) return status;
  pack_rows(s, packed);
  return f2i_ok(message);
}

f2i_status f2i_pack(const uint8_t *codes, size_t codes_count, int64_t k, int64_t n, int64_t stages, int64_t begin,
                    int64_t end, uint8_t *packed, size_t packed_bytes, f2i_message *message) {
  const source s = {codes, F2I_LAYOUT_VERSION, k, n, stages, begin, end};
  return pack(&s, codes_count, packed, packed_bytes, message);
}

f2i_status f2i_pack_conjugate(const uint8_t *codes, size_t codes_count, int64_t k, int64_t n, int64_t begin,
                              int64_t end, uint8_t *packed, size_t packed_bytes, f2i_message *message) {
  const source s = {codes, F2I_LAYOUT_CONJUGATE, k, n, 1, begin, end};
  return pack(&s, codes_count, packed, packed_bytes, message);
}
