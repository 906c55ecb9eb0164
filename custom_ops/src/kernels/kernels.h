/* kernels.h - what a kernel is.
 *
 * The layer is evaluated K-block by K-block. For each row of x, `build` turns the 32 complex activations of a block
 * into operands (look-up tables); `block` then walks the packed bytes of some row tiles of that block once and adds to
 * the accumulators of all rows of x. To add an ISA: one new file with these two functions, rows in kernel_list.h. A
 * file declares what it defines with the function types below; layer/dispatch.c declares what rows name with the same
 * types.
 */
#ifndef F2I_KERNELS_H
#define F2I_KERNELS_H

#include "base/layout.h"
#include "fairy2i.h"

enum {
  F2I_BLOCK_CELLS = F2I_BLOCK_COLS / F2I_CELL_COLS,
  /* a block's packed bytes of one row tile and one byte plane: [cell][row half][byte column][row] */
  F2I_PLANE_BYTES = F2I_BLOCK_CELLS * F2I_CELL_BYTES,
  /* table entries of one byte plane of a block: [cell][low re, low im, high re, high im][byte column][16] */
  F2I_CELL_ENTRIES = 4 * 2 * 16,
  F2I_PLANE_ENTRIES = F2I_BLOCK_CELLS * F2I_CELL_ENTRIES,
  F2I_DOT_BYTES = 128,                     /* operands of a "dot" kernel for one K-block, dot_operands.h */
  F2I_SHARED_BYTES = 128 * F2I_MAX_STAGES, /* what a kernel derives from the scales of a layer */
  F2I_ACC_PER_TILE = 2 * F2I_TILE_ROWS,    /* float accumulators of a row tile: [re, im][row] */
  F2I_PANEL_MOST = 64,                     /* rows of x that a panel kernel takes together, at most */
};

/* What a kernel makes of activations that are whole numbers of at most 127, of a layer of one stage whose scales are 0
 * or 1: sums of whole numbers, exactly. It is asked to by `scales` NULL (build) and `whole` (prepare). */
typedef enum f2i_whole {
  F2I_WHOLE_NOT = 0, /* it has no such form */
  F2I_WHOLE_SUMS,    /* outputs are the sums that they always are */
  F2I_WHOLE_PAIRS,   /* outputs are those of whole_pairs.h, and take both parts of a step at once */
} f2i_whole;

/* A K-block whose activations (dot) or table entries (lut) are all smaller counts as zero. The layer sees to it that
 * the largest of a row is 2^-62 at least (layer/range.h), so what is dropped is less than 2^-37 of that. */
#define F2I_NEGLIGIBLE 1e-30f

/* The two planes that share a byte: {stage, matrix} of the low and of the high nibble. */
extern const uint8_t f2i_byte_planes[F2I_MAX_STAGES][F2I_MAX_STAGES][2][2];

/* Operands of one K-block for one row of x.
 *   re, im    the block's activations, [F2I_BLOCK_COLS] each, zero beyond the matrix, column multiplier applied
 *   scales    [stages][2][2]; their sums over the stages do not overflow. NULL: see f2i_whole; with F2I_WHOLE_PAIRS re
 *             then are numbers for the low nibbles and im others for the high ones
 *   operands  out: operand_bytes(stages) bytes, 64-byte aligned
 *   returns   the value of one unit of a sum; NaN if an activation is not finite */
typedef float f2i_build_fn(const float *re, const float *im, const float *scales, int stages, void *operands);

/* One K-block: some consecutive row tiles for some rows of x. */
typedef struct f2i_block {
  const uint8_t *packed; /* [tiles][byte plane][F2I_PLANE_BYTES], any alignment */
  const uint8_t *ahead;  /* as many bytes that are needed next, to prefetch; may be any address */
  const void *shared;    /* what prepare made of the scales */
  size_t tiles;
  int stages;
  size_t rows;             /* of x, at least 1 */
  const uint8_t *operands; /* of row r at operands + r * operand_stride, what build made */
  size_t operand_stride;   /* bytes */
  const float *units;      /* of row r at units[r * unit_stride] */
  size_t unit_stride;
  float *acc; /* of row r at acc + r * acc_stride: [tiles][F2I_ACC_PER_TILE], in the kernel's order, added to */
  size_t acc_stride;
} f2i_block;

typedef void f2i_block_fn(const f2i_block *block);

/* Fills F2I_SHARED_BYTES bytes that all blocks of a call read, from the scales and f2i_plan's dot_steps; NULL if a
 * kernel needs none. */
typedef void f2i_prepare_fn(const float *scales, int stages, int whole, int steps, void *shared);

/* Many rows of x together, driven by panel.c: vectors can hold one value of each row, or weights are unpacked once for
 * all of them. The sums are those of `block` to the bit; where they are kept is the kernel's own business. */
typedef struct f2i_panel {
  const uint8_t *packed; /* one K-block: [tiles][byte plane][F2I_PLANE_BYTES], any alignment */
  const uint8_t *ahead;  /* as many bytes that are needed next, to prefetch; may be any address */
  const void *shared;    /* what prepare made of the scales */
  size_t tiles;
  int stages;
  size_t rows;          /* of x, at most those of the kernel */
  const void *operands; /* of the block, what build made; 64-byte aligned */
  const float *units;   /* of the block, [rows of the kernel] */
  void *state;          /* [tiles][state_bytes], 64-byte aligned; before the first block zero, as row_bytes says */
} f2i_panel;

typedef struct f2i_panel_kernel {
  size_t rows, least;   /* rows of x: at most, and so many that it is faster than `block` and `fewer` */
  size_t strip_most;    /* row tiles that go through a block before the next one, at most ... */
  size_t strip_least;   /* ... and so many that operands are worth loading */
  size_t operand_bytes; /* of one K-block of all rows of x, for each byte plane, plus ... */
  size_t extra_bytes;   /* ... once for each K-block */
  size_t state_bytes;   /* of one row tile ... */
  size_t row_bytes;     /* ... that has to be zero at first: so much of it for each row of x; or 0: all of it */
  /* re, im   activations of a block, [rows of the kernel][F2I_BLOCK_COLS], zero beyond the matrix and beyond `rows`
   * rows     of x; operands of further ones are the kernel's own business
   * units    out: [rows], as f2i_build_fn returns them */
  void (*build)(const float *re, const float *im, size_t rows, const float *scales, int stages, void *operands,
                float *units);
  void (*block)(const f2i_panel *panel);
  /* The finished sums of one row tile. out: [rows of x][F2I_ACC_PER_TILE] */
  void (*read)(const void *state, size_t rows, float *out);
  const struct f2i_panel_kernel *fewer; /* the form to take for less rows than `least`, or NULL */
} f2i_panel_kernel;

typedef struct f2i_kernel {
  const char *family;
  const char *isa;
  uint32_t needs;       /* CPU feature bits, cpu.h */
  size_t operand_bytes; /* of one K-block and byte plane of one row of x */
  f2i_prepare_fn *prepare;
  f2i_build_fn *build;
  f2i_block_fn *block;
  f2i_whole whole;
  const uint8_t *order; /* [F2I_ACC_PER_TILE]: place of an output among the accumulators of a tile; NULL: in order */
  const f2i_panel_kernel *panel; /* for the most rows; NULL: `block` does any number of rows */
  size_t at_once;                /* rows of x that `block` takes for hardly more than one, built quickly; 0 is 1 */
  int64_t auto_rows; /* of x: with so many or more "auto" takes this kernel instead of the default family's; 0: never */
  int is_variant;    /* runs only where it is named: by the caller, the environment, or a tuning */
} f2i_kernel;

/* The kernel that a plan runs for this many rows of x. */
static inline const f2i_kernel *f2i_kernel_for(const f2i_plan *plan, int64_t rows) {
  return (const f2i_kernel *)(plan->many_rows > 0 && rows >= plan->many_rows ? plan->many_kernel : plan->kernel);
}

#endif
