// The kernels for any machine of this architecture.
#define STPRUNE_ISA 0
#define STPRUNE_ISA_NAME "baseline"
#define STPRUNE_KERNELS kernels_baseline
#include "cpu/kernels.inc"
