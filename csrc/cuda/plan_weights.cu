// calibrate: weights of kept samples that add up to the size of each stratum (eq. 10).
#include "cuda/launchers.h"
#include "cuda/strata.h"

using namespace stprune;

extern "C" {

int64_t stprune_cuda_calibrate_scratch(int64_t n, int64_t num_strata) {
  Scratch scratch{nullptr};
  strata_memory(n, num_strata, scratch);
  return scratch.used;
}

int stprune_cuda_calibrate(float* weights, const int64_t* indices, int64_t kept, int label_bytes, const void* labels,
                           int64_t n, const int64_t* sizes, int64_t num_strata, void* scratch, void* stream) {
  Scratch parts{static_cast<char*>(scratch)};
  const StrataMemory memory = strata_memory(n, num_strata, parts);
  return calibrate(weights, indices, {kept, nullptr}, {label_bytes, labels, n, sizes, num_strata}, memory, stream);
}
}
