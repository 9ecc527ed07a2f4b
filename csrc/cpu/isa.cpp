// Which instruction set the kernels run on: the widest this machine has. Tests force narrower ones through
// stprune_set_isa; the results are the same bits.
#include <atomic>

#include "cpu/kernels.h"
#include "cpu/plan_kernels.h"
#include "cpu/residual_kernels.h"
#include "cpu/window_stats.h"

namespace stprune {

namespace baseline {
extern const Kernels kernel_table;
}
namespace avx2 {
extern const Kernels kernel_table;
}
namespace avx512 {
extern const Kernels kernel_table;
}

namespace {

// Null where this machine lacks the set.
const Kernels* find(int64_t isa) {
  if (isa == 0) return &baseline::kernel_table;
#if defined(STPRUNE_X86)
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
                        __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
  if (isa == 1 && has_avx2) return &avx2::kernel_table;
  if (isa == 2 && has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return &avx512::kernel_table;
  }
#endif
  return nullptr;
}

const Kernels* widest() {
  int64_t isa = 2;
  while (find(isa) == nullptr) --isa;
  return find(isa);
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

const PlanKernels& plan_kernels() { return *kernels().plan; }
const ResidualKernels& residual_kernels() { return *kernels().residual; }
const WindowKernels& window_kernels() { return *kernels().window; }

}  // namespace stprune

// Use set 0 (baseline), 1 (AVX2) or 2 (AVX-512), or the widest for -1. Returns 0, or -1 where this machine lacks the
// set.
extern "C" __attribute__((visibility("default"))) int64_t stprune_set_isa(int64_t isa) {
  const stprune::Kernels* found = isa < 0 ? stprune::widest() : stprune::find(isa);
  if (found == nullptr) return -1;
  stprune::current.store(found, std::memory_order_release);
  return 0;
}

extern "C" __attribute__((visibility("default"))) const char* stprune_isa() {
  constexpr const char* NAMES[] = {"baseline", "avx2", "avx512"};
  return NAMES[stprune::kernels().isa];
}
