/* kernel_list.h - every kernel, one row each; f2i_kernel says what the fields are, those left out are NULL or 0.
 *
 * Best ISA of a family first; the first family is the default, the others run only when asked for. AUTO_ROWS: where
 * a kernel was found to be faster than "lut" on the same processors (docs/benchmarks.md, docs/arm.md). VARIANT: another
 * way to the same sums, for processors that base/tuning.c or `fairy2i tune` say it is faster on. AT_ONCE: how many rows
 * of x go through the weights for hardly more than one. "scalar" is always there. F2I_HAVE_ and the name of the file
 * with a row's `block` says that the compiler knows its flags (CMakeLists.txt), and so those of the files with the rest
 * of the row. No include guard: layer/dispatch.c includes this twice, for declarations of all that rows name and for
 * the table.
 */
/* clang-format off */
#if defined(F2I_HAVE_LUT_AVX512)
F2I_KERNEL(FAMILY("lut") ISA("avx512") NEEDS(F2I_CPU_AVX512) OPERAND_BYTES(F2I_PLANE_ENTRIES)
           WHOLE(F2I_WHOLE_PAIRS) BUILD(f2i_build_lut__avx512) BLOCK(f2i_block_lut__avx512)
           ORDER(f2i_order_lut__avx512) PANEL(f2i_panel_lut__avx512))
/* prefetches into the first-level cache */
F2I_KERNEL(FAMILY("lut") ISA("avx512_near") VARIANT NEEDS(F2I_CPU_AVX512) OPERAND_BYTES(F2I_PLANE_ENTRIES)
           WHOLE(F2I_WHOLE_PAIRS) BUILD(f2i_build_lut__avx512) BLOCK(f2i_block_lut__avx512_near)
           ORDER(f2i_order_lut__avx512) PANEL(f2i_panel_lut__avx512))
#endif
#if defined(F2I_HAVE_LUT_AVX512_PLAIN) && defined(F2I_HAVE_LUT_AVX512)
/* so does this, with plain additions instead of carry-save ones */
F2I_KERNEL(FAMILY("lut") ISA("avx512_plain") VARIANT NEEDS(F2I_CPU_AVX512) OPERAND_BYTES(F2I_PLANE_ENTRIES)
           WHOLE(F2I_WHOLE_PAIRS) BUILD(f2i_build_lut__avx512) BLOCK(f2i_block_lut__avx512_plain)
           ORDER(f2i_order_lut__avx512) PANEL(f2i_panel_lut__avx512))
#endif
#if defined(F2I_HAVE_LUT_AVX2)
F2I_KERNEL(FAMILY("lut") ISA("avx2") NEEDS(F2I_CPU_AVX2) OPERAND_BYTES(F2I_PLANE_ENTRIES)
           WHOLE(F2I_WHOLE_PAIRS) BUILD(f2i_build_lut__avx2) BLOCK(f2i_block_lut__avx2)
           ORDER(f2i_order_lut__avx2) PANEL(f2i_panel_lut__avx2))
F2I_KERNEL(FAMILY("lut") ISA("avx2_near") VARIANT NEEDS(F2I_CPU_AVX2) OPERAND_BYTES(F2I_PLANE_ENTRIES)
           WHOLE(F2I_WHOLE_PAIRS) BUILD(f2i_build_lut__avx2) BLOCK(f2i_block_lut__avx2_near)
           ORDER(f2i_order_lut__avx2) PANEL(f2i_panel_lut__avx2))
#endif
#if defined(F2I_HAVE_LOOKUP_NEON82)
/* "lut" uses no dot products: having the instruction tells cores with a fast two-register TBL from older ones */
F2I_KERNEL(FAMILY("lut") ISA("neon82") NEEDS(F2I_CPU_DOTPROD) OPERAND_BYTES(F2I_PLANE_ENTRIES)
           WHOLE(F2I_WHOLE_PAIRS) BUILD(f2i_build_lut__neon) BLOCK(f2i_block_lut__neon82))
#endif
#if defined(F2I_HAVE_LUT_NEON)
F2I_KERNEL(FAMILY("lut") ISA("neon") NEEDS(F2I_CPU_NEON) OPERAND_BYTES(F2I_PLANE_ENTRIES)
           WHOLE(F2I_WHOLE_PAIRS) BUILD(f2i_build_lut__neon) BLOCK(f2i_block_lut__neon) PANEL(f2i_panel_lut__neon))
#endif
F2I_KERNEL(FAMILY("lut") ISA("scalar") OPERAND_BYTES(F2I_PLANE_ENTRIES)
           WHOLE(F2I_WHOLE_PAIRS) BUILD(f2i_build_lut__scalar) BLOCK(f2i_block_lut__scalar))
#if defined(F2I_HAVE_EXACT_AVX512)
F2I_KERNEL(FAMILY("exact") ISA("avx512") NEEDS(F2I_CPU_AVX512) OPERAND_BYTES(4 * F2I_PLANE_ENTRIES)
           BUILD(f2i_build_exact__avx512) BLOCK(f2i_block_exact__avx512))
#endif
#if defined(F2I_HAVE_EXACT_AVX2)
F2I_KERNEL(FAMILY("exact") ISA("avx2") NEEDS(F2I_CPU_AVX2) OPERAND_BYTES(2 * F2I_PLANE_ENTRIES)
           BUILD(f2i_build_exact__avx2) BLOCK(f2i_block_exact__avx2))
#endif
#if defined(F2I_HAVE_LOOKUP_NEON82)
F2I_KERNEL(FAMILY("exact") ISA("neon82") NEEDS(F2I_CPU_DOTPROD) OPERAND_BYTES(3 * F2I_PLANE_ENTRIES)
           BUILD(f2i_build_exact__neon) BLOCK(f2i_block_exact__neon82))
#endif
#if defined(F2I_HAVE_EXACT_NEON)
F2I_KERNEL(FAMILY("exact") ISA("neon") NEEDS(F2I_CPU_NEON) OPERAND_BYTES(3 * F2I_PLANE_ENTRIES)
           BUILD(f2i_build_exact__neon) BLOCK(f2i_block_exact__neon))
#endif
F2I_KERNEL(FAMILY("exact") ISA("scalar") OPERAND_BYTES(4 * F2I_PLANE_ENTRIES)
           BUILD(f2i_build_exact__scalar) BLOCK(f2i_block_exact__scalar))
#if defined(F2I_HAVE_DOT_AMX) && defined(F2I_HAVE_DOT_AVX512_VBMI) && defined(F2I_HAVE_DOT_AVX512)
/* tiles for many rows of x, else the next one */
F2I_KERNEL(FAMILY("dot") ISA("amx") NEEDS(F2I_CPU_AVX512 | F2I_CPU_AVX512_VBMI | F2I_CPU_AVX512_VNNI | F2I_CPU_AMX)
           OPERAND_BYTES(F2I_DOT_BYTES) PREPARE(f2i_prepare_dot) WHOLE(F2I_WHOLE_SUMS) BUILD(f2i_build_dot__avx512)
           BLOCK(f2i_block_dot__avx512_vbmi) AT_ONCE(4) PANEL(f2i_panel_dot__amx) AUTO_ROWS(2))
#endif
#if defined(F2I_HAVE_DOT_AVX512_VBMI) && defined(F2I_HAVE_DOT_AVX512)
/* few rows of x without storing weights, more as the next one */
F2I_KERNEL(FAMILY("dot") ISA("avx512_vbmi") NEEDS(F2I_CPU_AVX512 | F2I_CPU_AVX512_VBMI | F2I_CPU_AVX512_VNNI)
           OPERAND_BYTES(F2I_DOT_BYTES) PREPARE(f2i_prepare_dot) WHOLE(F2I_WHOLE_SUMS) BUILD(f2i_build_dot__avx512)
           BLOCK(f2i_block_dot__avx512_vbmi) AT_ONCE(4) PANEL(f2i_panel_dot__avx512_vbmi) AUTO_ROWS(2))
#endif
#if defined(F2I_HAVE_DOT_AVX512)
F2I_KERNEL(FAMILY("dot") ISA("avx512") NEEDS(F2I_CPU_AVX512 | F2I_CPU_AVX512_VNNI) OPERAND_BYTES(F2I_DOT_BYTES)
           PREPARE(f2i_prepare_dot) WHOLE(F2I_WHOLE_SUMS) BUILD(f2i_build_dot__avx512) BLOCK(f2i_block_dot__avx512)
           PANEL(f2i_panel_dot__avx512) AUTO_ROWS(4))
#endif
#if defined(F2I_HAVE_DOT_AVXVNNI)
F2I_KERNEL(FAMILY("dot") ISA("avx_vnni") NEEDS(F2I_CPU_AVX2 | F2I_CPU_AVX_VNNI) OPERAND_BYTES(F2I_DOT_BYTES)
           PREPARE(f2i_prepare_dot) WHOLE(F2I_WHOLE_SUMS) BUILD(f2i_build_dot__avx_vnni) BLOCK(f2i_block_dot__avx_vnni)
           ORDER(f2i_order_dot__avx_vnni) PANEL(f2i_panel_dot__avx_vnni) AUTO_ROWS(16))
#endif
#if defined(F2I_HAVE_DOT_AVX2)
F2I_KERNEL(FAMILY("dot") ISA("avx2") NEEDS(F2I_CPU_AVX2) OPERAND_BYTES(F2I_DOT_BYTES)
           PREPARE(f2i_prepare_dot) WHOLE(F2I_WHOLE_SUMS) BUILD(f2i_build_dot__avx2) BLOCK(f2i_block_dot__avx2)
           ORDER(f2i_order_dot__avx2) PANEL(f2i_panel_dot__avx2) AUTO_ROWS(32))
#endif
#if defined(F2I_HAVE_DOT_NEON86)
F2I_KERNEL(FAMILY("dot") ISA("neon86") NEEDS(F2I_CPU_DOTPROD | F2I_CPU_I8MM) OPERAND_BYTES(F2I_DOT_BYTES)
           PREPARE(f2i_prepare_dot) WHOLE(F2I_WHOLE_SUMS) BUILD(f2i_build_dot__neon86) BLOCK(f2i_block_dot__neon86)
           PANEL(f2i_panel_dot__neon86) AUTO_ROWS(4))
#endif
#if defined(F2I_HAVE_DOT_NEON82)
F2I_KERNEL(FAMILY("dot") ISA("neon82") NEEDS(F2I_CPU_DOTPROD) OPERAND_BYTES(F2I_DOT_BYTES)
           PREPARE(f2i_prepare_dot) WHOLE(F2I_WHOLE_SUMS) BUILD(f2i_build_dot__neon82) BLOCK(f2i_block_dot__neon82)
           PANEL(f2i_panel_dot__neon82) AUTO_ROWS(5))
#endif
F2I_KERNEL(FAMILY("dot") ISA("scalar") OPERAND_BYTES(F2I_DOT_BYTES)
           PREPARE(f2i_prepare_dot) WHOLE(F2I_WHOLE_SUMS) BUILD(f2i_build_dot__scalar) BLOCK(f2i_block_dot__scalar))
