// The kernels of window_stats for any machine of this architecture.
#define STPRUNE_ISA 0
#define STPRUNE_WINDOW_KERNELS window_kernels_baseline
#include "cpu/window_stats.inc"
