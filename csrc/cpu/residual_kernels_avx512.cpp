// The fused loss's kernels for AVX-512.
#define STPRUNE_ISA 2
#define STPRUNE_RESIDUAL_KERNELS residual_kernels_avx512
#include "cpu/residual_kernels.inc"
