// inclusion_budget: probabilities clip(c * max(score, 0)^alpha, minimum, 1) that add up to a count.
#include "cuda/budget.h"
#include "cuda/launchers.h"

namespace stprune {
namespace {

template <class T>
int inclusion_budget(const T* scores, int64_t n, Power power, double count, double minimum, void* scratch, float* out,
                     void* stream) {
  if (n == 0) return 0;
  Scratch parts{static_cast<char*>(scratch)};
  const BudgetMemory<T> memory = budget_memory<T>(n, parts);
  STPRUNE_TRY(find_budget(scores, n, power, count, minimum, memory, stream));
  using Write = BudgetWrite<T>;
  return launch(Write{scores, n, power, memory.state, out}, blocks_of(n, Write::THREADS * Write::EACH), stream);
}

}  // namespace
}  // namespace stprune

using namespace stprune;

extern "C" {

int64_t stprune_cuda_budget_scratch(int wide, int64_t n) {
  Scratch scratch{nullptr};
  if (wide) {
    budget_memory<double>(n, scratch);
  } else {
    budget_memory<float>(n, scratch);
  }
  return scratch.used;
}

int stprune_cuda_budget(int wide, const void* scores, int64_t n, double alpha, double count, double minimum,
                        void* scratch, float* out, void* stream) {
  const Power power = alpha == 0.5 ? Power::kRoot : alpha == 1.0 ? Power::kOne : Power::kZero;
  return wide ? inclusion_budget(static_cast<const double*>(scores), n, power, count, minimum, scratch, out, stream)
              : inclusion_budget(static_cast<const float*>(scores), n, power, count, minimum, scratch, out, stream);
}
}
