// Which instruction set the kernels run on: the widest this machine has. Tests force narrower ones through
// stprune_set_isa; the results are the same bits.
#include <atomic>

#include "cpu/kernels.h"

namespace stprune {
namespace {

// 0 baseline, 1 AVX2, 2 AVX-512.
const Kernels* find(int64_t isa) {
  switch (isa) {
    case 0:
      return &kernels_baseline;
#if defined(STPRUNE_X86)
    case 1:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt")
                 ? &kernels_avx2
                 : nullptr;
    case 2:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                     __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt")
                 ? &kernels_avx512
                 : nullptr;
#endif
    default:
      return nullptr;
  }
}

const Kernels* widest() {
  for (int64_t isa = 2; isa > 0; --isa) {
    if (const Kernels* found = find(isa)) return found;
  }
  return &kernels_baseline;
}

std::atomic<const Kernels*> current{nullptr};

}  // namespace

const Kernels& kernels() {
  const Kernels* found = current.load(std::memory_order_acquire);
  if (found == nullptr) {
    found = widest();
    current.store(found, std::memory_order_release);
  }
  return *found;
}

}  // namespace stprune

// Use set 0 (baseline), 1 (AVX2) or 2 (AVX-512), or the widest for -1. Returns 0, or -1 where this machine lacks the
// set.
extern "C" __attribute__((visibility("default"))) int64_t stprune_set_isa(int64_t isa) {
  const stprune::Kernels* found = isa < 0 ? stprune::widest() : stprune::find(isa);
  if (found == nullptr) return -1;
  stprune::current.store(found, std::memory_order_release);
  return 0;
}

extern "C" __attribute__((visibility("default"))) const char* stprune_isa() { return stprune::kernels().name; }
