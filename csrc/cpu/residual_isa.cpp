// The fused loss's kernels follow the instruction set of the others (isa.cpp), forced or found.
#include "cpu/kernels.h"
#include "cpu/residual_kernels.h"

namespace stprune {

const ResidualKernels& residual_kernels() {
#if defined(STPRUNE_X86)
  const Kernels* current = &kernels();
  if (current == &kernels_avx512) return residual_kernels_avx512;
  if (current == &kernels_avx2) return residual_kernels_avx2;
#endif
  return residual_kernels_baseline;
}

}  // namespace stprune
