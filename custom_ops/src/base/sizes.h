/* sizes.h - every size that follows from attributes of a layer or from a number of rows: all arithmetic on sizes.
 *
 * In 64 bits whatever the CPU, since a layer may need more than 32 bits of workspace although its operands need less.
 * Nothing here overflows: K and N are at most F2I_MAX_FEATURES = 2^24 and stages at most 4 (f2i_packed_size refuses
 * others before they are multiplied), so there are at most 2^18 K-blocks and as many row tiles; other factors are given
 * where they are multiplied. What is computed is held against a limit before it becomes a size_t, and offsets into a
 * buffer whose size was found this way are smaller than it.
 */
#ifndef F2I_SIZES_H
#define F2I_SIZES_H

#include <stddef.h>
#include <stdint.h>

#include "base/layout.h"
#include "fairy2i.h"

enum {
  F2I_ALIGN = 64,          /* of everything in the workspace */
  F2I_ACTIVATION_BITS = 8, /* that activations may be rounded to */
};

/* No buffer is larger: the difference of two pointers into one must be a number. Functions take the limit as an
 * argument so that tests can ask what another CPU would refuse. */
#define F2I_SIZE_LIMIT ((uint64_t)SIZE_MAX / 2)

static inline uint64_t f2i_ceil_div(uint64_t a, uint64_t b) { return (a + b - 1) / b; }
static inline uint64_t f2i_aligned(uint64_t bytes) { return f2i_ceil_div(bytes, F2I_ALIGN) * F2I_ALIGN; }

/* Of a layer with k inputs and n outputs: layers without U store the halves of the columns of W as if they were U and
 * W. */
static inline uint64_t f2i_parts_of(int64_t layout) { return layout == F2I_LAYOUT_CONJUGATE ? 2 : 1; }
static inline uint64_t f2i_columns_of(int64_t layout, int64_t k) {
  return f2i_ceil_div((uint64_t)k / 2, f2i_parts_of(layout));
}
static inline uint64_t f2i_blocks_of(int64_t layout, int64_t k) {
  return f2i_ceil_div(f2i_columns_of(layout, k), F2I_BLOCK_COLS);
}
static inline uint64_t f2i_tiles_of(int64_t n) { return f2i_ceil_div((uint64_t)n / 2, F2I_TILE_ROWS); }

/* Values (or bytes) of a buffer with `each` for every row and column: rows, columns <= 2^24, each <= 2^4. */
static inline uint64_t f2i_count(int64_t rows, int64_t columns, int64_t each) {
  return (uint64_t)rows * (uint64_t)columns * (uint64_t)each;
}

/* Units of `rows` rows of x and all K-blocks: rows <= 2^6. */
static inline uint64_t f2i_unit_bytes(uint64_t rows, uint64_t blocks) {
  return f2i_aligned(rows * blocks * sizeof(float));
}

/* Workspace of a group of rows of x, matmul.c: rows <= 2^6, operand_bytes <= 2^14. */
static inline uint64_t f2i_rows_bytes(uint64_t rows, uint64_t blocks, uint64_t operand_bytes) {
  return f2i_unit_bytes(rows, blocks) + rows * blocks * operand_bytes;
}

/* Rounded activations of `rows` rows of x: rows <= 2^6. */
static inline uint64_t f2i_rounded_bytes(uint64_t rows, int64_t k) {
  return f2i_aligned(rows * (uint64_t)k * sizeof(float));
}

/* Workspace of a panel, panel.c: rows <= 2^6, operand_bytes and state_bytes <= 2^20. */
static inline uint64_t f2i_panel_bytes(uint64_t rows, uint64_t blocks, uint64_t operand_bytes, uint64_t tiles,
                                       uint64_t state_bytes) {
  return blocks * f2i_unit_bytes(rows, 1) + blocks * operand_bytes + tiles * state_bytes;
}

/* f2i_layout_size for a CPU on which no buffer is larger than limit. */
f2i_status f2i_packed_size_within(uint64_t limit, int64_t layout, int64_t k, int64_t n, int64_t stages, size_t *bytes,
                                  f2i_message *message);

/* Whether a layer of this version may round activations to so many bits. */
f2i_status f2i_check_activation_bits(int64_t layout, int64_t bits, f2i_message *message);

/* *bytes = needed; if that is above the limit, a message that names the layer and the rows of x. */
f2i_status f2i_workspace_within(uint64_t limit, uint64_t needed, const f2i_weights *w, int64_t rows, size_t *bytes,
                                f2i_message *message);

/* What the fp16 overload needs for a call: X, Y and a bias as floats, then the workspace. rows >= 0, of any size; n may
 * be the sum of that of F2I_MAX_LAYERS layers. */
f2i_status f2i_widened_within(uint64_t limit, int64_t rows, const f2i_weights *w, size_t workspace_bytes,
                              size_t *floats, size_t *bytes, f2i_message *message);

#endif
