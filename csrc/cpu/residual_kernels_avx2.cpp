// The fused loss's kernels for AVX2.
#define STPRUNE_ISA 1
#define STPRUNE_RESIDUAL_KERNELS residual_kernels_avx2
#include "cpu/residual_kernels.inc"
