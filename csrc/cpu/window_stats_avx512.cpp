// The kernels of window_stats for AVX-512.
#define STPRUNE_ISA 2
#define STPRUNE_WINDOW_KERNELS window_kernels_avx512
#include "cpu/window_stats.inc"
