// The kernels of window_stats for AVX2.
#define STPRUNE_ISA 1
#define STPRUNE_WINDOW_KERNELS window_kernels_avx2
#include "cpu/window_stats.inc"
