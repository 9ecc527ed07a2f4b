// finite_stats: sum, number, least and largest of the finite entries.
#include "cuda/finite_stats.h"
#include "cuda/launchers.h"

using namespace stprune;

extern "C" {

int64_t stprune_cuda_finite_stats_scratch(int64_t n) {
  Scratch scratch{nullptr};
  finite_memory(n, scratch);
  return scratch.used;
}

int stprune_cuda_finite_stats(int wide, const void* values, int64_t n, void* scratch, double* out, void* stream) {
  Scratch parts{static_cast<char*>(scratch)};
  const FiniteMemory memory = finite_memory(n, parts);
  return wide ? finite_stats(static_cast<const double*>(values), {n, nullptr}, memory, out, stream)
              : finite_stats(static_cast<const float*>(values), {n, nullptr}, memory, out, stream);
}
}
