/* kernel_list.h - every kernel: F2I_KERNEL(family, isa, needed CPU features, operand bytes per byte plane,
 * prepare, build, block, order, panel).
 *
 * Best ISA of a family first; the first family is the default, the others run only when asked for. "scalar" is always
 * there. No include guard: included once for the declarations, once for the table.
 */
#if defined(F2I_HAVE_AVX512)
F2I_KERNEL("lut", "avx512", F2I_CPU_AVX512, F2I_PLANE_ENTRIES, NULL, f2i_build_lut__avx512, f2i_block_lut__avx512,
           f2i_order_lut__avx512, &f2i_panel_lut__avx512)
#endif
#if defined(F2I_HAVE_AVX2)
F2I_KERNEL("lut", "avx2", F2I_CPU_AVX2, F2I_PLANE_ENTRIES, NULL, f2i_build_lut__avx2, f2i_block_lut__avx2,
           f2i_order_lut__avx2, NULL)
#endif
#if defined(F2I_HAVE_NEON)
/* "lut" uses no dot products: having the instruction tells cores with a fast two-register TBL from older ones */
F2I_KERNEL("lut", "neon82", F2I_CPU_DOTPROD, F2I_PLANE_ENTRIES, NULL, f2i_build_lut__neon, f2i_block_lut__neon82, NULL,
           NULL)
F2I_KERNEL("lut", "neon", F2I_CPU_NEON, F2I_PLANE_ENTRIES, NULL, f2i_build_lut__neon, f2i_block_lut__neon, NULL, NULL)
#endif
F2I_KERNEL("lut", "scalar", 0, F2I_PLANE_ENTRIES, NULL, f2i_build_lut__scalar, f2i_block_lut__scalar, NULL, NULL)
#if defined(F2I_HAVE_AVX512)
F2I_KERNEL("exact", "avx512", F2I_CPU_AVX512, 4 * F2I_PLANE_ENTRIES, NULL, f2i_build_exact__avx512,
           f2i_block_exact__avx512, NULL, NULL)
#endif
#if defined(F2I_HAVE_AVX2)
F2I_KERNEL("exact", "avx2", F2I_CPU_AVX2, 2 * F2I_PLANE_ENTRIES, NULL, f2i_build_exact__avx2, f2i_block_exact__avx2,
           NULL, NULL)
#endif
#if defined(F2I_HAVE_NEON)
F2I_KERNEL("exact", "neon82", F2I_CPU_DOTPROD, 3 * F2I_PLANE_ENTRIES, NULL, f2i_build_exact__neon,
           f2i_block_exact__neon82, NULL, NULL)
F2I_KERNEL("exact", "neon", F2I_CPU_NEON, 3 * F2I_PLANE_ENTRIES, NULL, f2i_build_exact__neon, f2i_block_exact__neon,
           NULL, NULL)
#endif
F2I_KERNEL("exact", "scalar", 0, 4 * F2I_PLANE_ENTRIES, NULL, f2i_build_exact__scalar, f2i_block_exact__scalar, NULL,
           NULL)
#if defined(F2I_HAVE_AMX)
/* tiles for many rows of x, else the next one */
F2I_KERNEL("dot", "amx", F2I_CPU_AVX512 | F2I_CPU_AVX512_VNNI | F2I_CPU_AMX, F2I_DOT_BYTES, f2i_prepare_dot,
           f2i_build_dot__avx512, f2i_block_dot__avx512, NULL, &f2i_panel_dot__amx)
#endif
#if defined(F2I_HAVE_AVX512)
F2I_KERNEL("dot", "avx512", F2I_CPU_AVX512 | F2I_CPU_AVX512_VNNI, F2I_DOT_BYTES, f2i_prepare_dot, f2i_build_dot__avx512,
           f2i_block_dot__avx512, NULL, &f2i_panel_dot__avx512)
#endif
#if defined(F2I_HAVE_AVX_VNNI)
F2I_KERNEL("dot", "avx_vnni", F2I_CPU_AVX2 | F2I_CPU_AVX_VNNI, F2I_DOT_BYTES, f2i_prepare_dot, f2i_build_dot__avx_vnni,
           f2i_block_dot__avx_vnni, NULL, NULL)
#endif
#if defined(F2I_HAVE_AVX2)
F2I_KERNEL("dot", "avx2", F2I_CPU_AVX2, F2I_DOT_BYTES, f2i_prepare_dot, f2i_build_dot__avx2, f2i_block_dot__avx2, NULL,
           NULL)
#endif
#if defined(F2I_HAVE_I8MM)
F2I_KERNEL("dot", "neon86", F2I_CPU_I8MM, F2I_DOT_MATRIX_BYTES, f2i_prepare_dot, f2i_build_dot__neon86,
           f2i_block_dot__neon86, NULL, NULL)
#endif
#if defined(F2I_HAVE_NEON)
F2I_KERNEL("dot", "neon82", F2I_CPU_DOTPROD, F2I_DOT_BYTES, f2i_prepare_dot, f2i_build_dot__neon82,
           f2i_block_dot__neon82, NULL, NULL)
#endif
F2I_KERNEL("dot", "scalar", 0, F2I_DOT_BYTES, f2i_prepare_dot, f2i_build_dot__scalar, f2i_block_dot__scalar, NULL, NULL)
