// The kernels for AVX2.
#define STPRUNE_ISA 1
#define STPRUNE_ISA_NAME "avx2"
#define STPRUNE_KERNELS kernels_avx2
#include "cpu/kernels.inc"
