// The plan's kernels for AVX2.
#define STPRUNE_ISA 1
#define STPRUNE_PLAN_KERNELS plan_kernels_avx2
#include "cpu/plan_kernels.inc"
