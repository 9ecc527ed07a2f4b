// The fused loss's kernels for the baseline.
#define STPRUNE_ISA 0
#define STPRUNE_RESIDUAL_KERNELS residual_kernels_baseline
#include "cpu/residual_kernels.inc"
