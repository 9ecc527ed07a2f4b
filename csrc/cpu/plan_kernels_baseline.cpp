// The plan's kernels for what the compiler targets by default.
#define STPRUNE_ISA 0
#define STPRUNE_PLAN_KERNELS plan_kernels_baseline
#include "cpu/plan_kernels.inc"
