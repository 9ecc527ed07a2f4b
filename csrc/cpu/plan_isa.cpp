// The plan's kernels follow the instruction set of the others (isa.cpp), forced or found.
#include "cpu/kernels.h"
#include "cpu/plan_kernels.h"

namespace stprune {

const PlanKernels& plan_kernels() {
#if defined(STPRUNE_X86)
  const Kernels* current = &kernels();
  if (current == &kernels_avx512) return plan_kernels_avx512;
  if (current == &kernels_avx2) return plan_kernels_avx2;
#endif
  return plan_kernels_baseline;
}

}  // namespace stprune
