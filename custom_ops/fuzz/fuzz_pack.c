/* fuzz_pack.c - codes to packed bytes in parts, and back by the formula of docs/format.md; what contradicts is refused.
 */
#include "input.h"

/* The code of row r and column j: docs/format.md, "Order of the bytes" and "Two sign bits per code". */
static uint8_t code_at(const uint8_t *packed, int stages, size_t n, int plane, size_t r, size_t j) {
  /* planes in the order U0, W0, U1, W1 ...; where they are: byte plane and nibble */
  static const uint8_t places[4][8][2] = {{{0, 0}, {0, 1}},
                                          {{0, 0}, {1, 0}, {0, 1}, {1, 1}},
                                          {{0, 0}, {1, 0}, {0, 1}, {1, 1}, {2, 0}, {2, 1}},
                                          {{0, 0}, {1, 0}, {0, 1}, {1, 1}, {2, 0}, {3, 0}, {2, 1}, {3, 1}}};
  const uint8_t *place = places[stages - 1][plane];
  const size_t tiles = (n + 31) / 32;
  const size_t at = ((j / 32 * tiles + r / 32) * (size_t)stages + place[0]) * 512 + j % 32 / 4 * 64 + r % 32 / 16 * 32 +
                    j % 4 / 2 * 16 + r % 16;
  const uint8_t gray = packed[at] >> (4 * place[1] + 2 * (j % 2)) & 3;
  return gray ^ gray >> 1;
}

static void check_all(const uint8_t *codes, const uint8_t *packed, int stages, size_t n, size_t m) {
  for (int plane = 0; plane < 2 * stages; ++plane) {
    for (size_t r = 0; r < n; ++r) {
      for (size_t j = 0; j < m; ++j) {
        const uint8_t expected = codes[((size_t)plane * n + r) * m + j],
                      found = code_at(packed, stages, n, plane, r, j);
        EXPECT(found == expected, "plane %d, row %zu, column %zu: %d, not %d", plane, r, j, found, expected);
      }
    }
  }
}

/* The same codes of W alone, packed in two parts. */
static void check_conjugate(input *in, const uint8_t *codes, size_t n, size_t m) {
  const size_t half = (m + 1) / 2, middle = 32 * below(in, n / 32 + 1);
  const int64_t k = 2 * (int64_t)m, rows = 2 * (int64_t)n;
  size_t bytes = 0;
  f2i_message message;
  if (f2i_layout_size(2, k, rows, 1, &bytes, &message) != F2I_OK) abort();
  uint8_t *packed = allocated(bytes);
  memset(packed, 0xA5, bytes);
  f2i_status status = f2i_pack_conjugate(codes, middle * m, k, rows, 0, (int64_t)middle, packed, bytes, &message);
  EXPECT(status == F2I_OK, "%s", message.text);
  uint8_t *rest = allocated((n - middle) * m);
  memcpy(rest, codes + middle * m, (n - middle) * m);
  status = f2i_pack_conjugate(rest, (n - middle) * m, k, rows, (int64_t)middle, (int64_t)n, packed, bytes, &message);
  EXPECT(status == F2I_OK, "%s", message.text);
  for (size_t r = 0; r < n; ++r) {
    for (size_t j = 0; j < m; ++j) {
      const uint8_t found = code_at(packed, 1, n, j >= half, r, j % half);
      EXPECT(found == codes[r * m + j], "row %zu, column %zu: %d, not %d", r, j, found, codes[r * m + j]);
    }
  }
  free(rest);
  /* any arguments, with as many codes as they say; refused are more than k can have in the same K-blocks */
  const size_t count = (size_t)bits_of(in, 8), most = n * ((m + 63) / 64 * 64);
  const int64_t any_k = (int64_t)bits_of(in, 8), begin = (int64_t)bits_of(in, 8);
  rest = allocated(count <= most ? count : 0);
  memset(rest, 0, count <= most ? count : 0);
  status = f2i_pack_conjugate(rest, count, any_k, rows, begin, (int64_t)n, packed, bytes, &message);
  expect_message(status, &message);
  EXPECT(status != F2I_OK || count <= most, "%zu codes", count);
  free(rest);
  free(packed);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  input in = input_of(data, size);
  const size_t n = 1 + below(&in, 100), m = 1 + below(&in, 100);
  const int stages = 1 + a_byte(&in) % 4;
  size_t bytes = 0;
  f2i_message message;
  if (f2i_packed_size(2 * (int64_t)m, 2 * (int64_t)n, stages, &bytes, &message) != F2I_OK) abort();
  uint8_t *codes = some_bytes(&in, 2 * (size_t)stages * n * m), *packed = allocated(bytes);
  for (size_t i = 0; i < 2 * (size_t)stages * n * m; ++i) codes[i] &= 3;
  memset(packed, 0xA5, bytes);
  for (size_t begin = 0, end; begin < n; begin = end) {
    end = begin + 32 * (1 + below(&in, 3));
    if (end > n) end = n;
    const size_t count = 2 * (size_t)stages * (end - begin) * m;
    uint8_t *part = allocated(count);
    for (size_t plane = 0; plane < 2 * (size_t)stages; ++plane) {
      memcpy(part + plane * (end - begin) * m, codes + (plane * n + begin) * m, (end - begin) * m);
    }
    f2i_status status = f2i_pack(part, count, 2 * (int64_t)m, 2 * (int64_t)n, stages, (int64_t)begin, (int64_t)end,
                                 packed, bytes, &message);
    expect_message(status, &message);
    EXPECT(status == F2I_OK, "%s", message.text);
    if (a_byte(&in) % 4 == 0) { /* something wrong: a count, a row, an attribute, or a code */
      const uint8_t wrong = a_byte(&in) % 7;
      const int64_t odd = (int64_t)bits_of(&in, 8);
      const size_t at = below(&in, count);
      if (wrong == 6) part[at] |= 4;
      status = f2i_pack(part, wrong == 0 ? (size_t)odd : count, wrong == 1 ? odd : 2 * (int64_t)m,
                        wrong == 2 ? odd : 2 * (int64_t)n, wrong == 3 ? odd : stages, wrong == 4 ? odd : (int64_t)begin,
                        wrong == 5 ? odd : (int64_t)end, packed, bytes, &message);
      expect_message(status, &message);
      if (wrong == 6) { /* only that no byte goes astray: the row tiles are packed again */
        part[at] &= 3;
        status = f2i_pack(part, count, 2 * (int64_t)m, 2 * (int64_t)n, stages, (int64_t)begin, (int64_t)end, packed,
                          bytes, &message);
        EXPECT(status == F2I_OK, "%s", message.text);
      }
    }
    free(part);
  }
  check_all(codes, packed, stages, n, m);
  check_conjugate(&in, codes, n, m);
  free(codes);
  free(packed);
  return 0;
}
