// The kernels for AVX-512 (F, BW, DQ, VL).
#define STPRUNE_ISA 2
#define STPRUNE_ISA_NAME "avx512"
#define STPRUNE_KERNELS kernels_avx512
#include "cpu/kernels.inc"
