// The plan's kernels for AVX-512.
#define STPRUNE_ISA 2
#define STPRUNE_PLAN_KERNELS plan_kernels_avx512
#include "cpu/plan_kernels.inc"
