/* pack.c - the packer: codes to the bytes of packed format v1 (docs/format.md). */
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

/* One row, byte plane and K-block: count columns of two planes to F2I_BYTE_COLS bytes; padding becomes zero bits. */
static void pack_row(const uint8_t *low, const uint8_t *high, int count, uint8_t *out) {
  uint8_t codes[2][F2I_BLOCK_COLS];
  if (count < F2I_BLOCK_COLS) {
    memset(codes, 0, sizeof codes);
    memcpy(codes[0], low, (size_t)count);
    memcpy(codes[1], high, (size_t)count);
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

f2i_status f2i_pack(const uint8_t *codes, size_t codes_count, int64_t k, int64_t n, int64_t stages, int64_t begin,
                    int64_t end, uint8_t *packed, size_t packed_bytes, f2i_message *message) {
  size_t expected = 0;
  const f2i_status status = f2i_packed_size(k, n, stages, &expected, message);
  if (status != F2I_OK) return status;
  n /= 2;
  const int64_t m = k / 2;
  if (begin < 0 || end < begin || end > n || begin % F2I_TILE_ROWS != 0 || (end % F2I_TILE_ROWS != 0 && end != n)) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT,
                    "rows: expected whole tiles of %d within 0 to %lld, got %lld to %lld", F2I_TILE_ROWS, (long long)n,
                    (long long)begin, (long long)end);
  }
  const uint64_t values = f2i_count(end - begin, k, stages);
  if (codes == NULL || codes_count != values) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "codes: expected %llu values, got %zu", (unsigned long long)values,
                    codes == NULL ? (size_t)0 : codes_count);
  }
  if (packed == NULL || packed_bytes != expected) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "packed: expected %zu bytes, got %zu", expected,
                    packed == NULL ? (size_t)0 : packed_bytes);
  }
  uint8_t seen = 0;
  for (size_t i = 0; i < codes_count; ++i) seen |= codes[i];
  if (seen > 3) return f2i_fail(message, F2I_INVALID_ARGUMENT, "codes must be 0 to 3 (k stands for i^k)");

  const size_t plane = (size_t)((end - begin) * m);
  const int64_t tiles = (n + F2I_TILE_ROWS - 1) / F2I_TILE_ROWS, blocks = (m + F2I_BLOCK_COLS - 1) / F2I_BLOCK_COLS;
  uint8_t rows[F2I_TILE_ROWS][F2I_BYTE_COLS];
  for (int64_t first = begin; first < end; first += F2I_TILE_ROWS) {
    const int count = (int)(end - first < F2I_TILE_ROWS ? end - first : F2I_TILE_ROWS);
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t column = block * F2I_BLOCK_COLS;
      const int columns = (int)(m - column < F2I_BLOCK_COLS ? m - column : F2I_BLOCK_COLS);
      uint8_t *out = packed + (size_t)((block * tiles + first / F2I_TILE_ROWS) * stages) * F2I_TILE_PLANE;
      for (int64_t p = 0; p < stages; ++p, out += F2I_TILE_PLANE) {
        const uint8_t (*places)[2] = byte_planes[stages - 1][p];
        const uint8_t *from = codes + (size_t)((first - begin) * m + column);
        if (count < F2I_TILE_ROWS) memset(rows, 0, sizeof rows);
        for (int row = 0; row < count; ++row) {
          const size_t offset = (size_t)row * (size_t)m;
          pack_row(from + (size_t)(2 * places[0][0] + places[0][1]) * plane + offset,
                   from + (size_t)(2 * places[1][0] + places[1][1]) * plane + offset, columns, rows[row]);
        }
        store_tile(rows, out);
      }
    }
  }
  return f2i_ok(message);
}
