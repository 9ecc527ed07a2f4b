// plan_budget: the kept samples of the budget rule and their weights (eq. 7 and 10). Probabilities are never stored:
// they are made of the scores where a sum of them and where the draw asks for them.
//
// Launches of a plan: 5 for the constant (2 below 2^17 scores), 2 that draw, with strata 2 that calibrate the weights,
// 2 for the mean weight; its order is one more (shuffle). The host waits once for the number of samples, where it has
// to allocate their memory, and once for the mean.
#include "cuda/budget.h"
#include "cuda/launchers.h"
#include "cuda/strata.h"
#include "cuda/systematic.h"

namespace stprune {
namespace {

template <class T>
struct OfScores {
  const T* scores;  // [n]
  Power power;
  const BudgetState* state;
  double scale, bound;

  STPRUNE_DEVICE void begin() {
    scale = state->scale;
    bound = state->minimum;
  }
  STPRUNE_DEVICE float operator()(int64_t index) const {
    return probability_of(input(scores, index), power, scale, bound);
  }
};

// Kept samples and their weights; nothing where there is no room for all.
struct PlanSink {
  const int64_t* kept;
  int64_t room;
  int64_t* indices;
  float* weights;
  bool fits;

  STPRUNE_DEVICE void begin() { fits = *kept <= room; }
  template <class Source>
  STPRUNE_DEVICE void operator()(int64_t place, int64_t index, const Source& from) const {
    if (!fits) return;
    indices[place] = index;
    weights[place] = 1.0f / from(index);
  }
};

template <class T>
struct PlanMemory {
  BudgetMemory<T> budget;
  SystematicMemory draw;
  FiniteMemory finite;
  StrataMemory strata;
};

template <class T>
PlanMemory<T> plan_memory(int64_t n, int64_t num_strata, Scratch& scratch) {
  return {budget_memory<T>(n, scratch), systematic_memory(n, scratch), finite_memory(n, scratch),
          strata_memory(n, num_strata, scratch)};
}

template <class T>
int begin(const T* scores, int64_t n, Power power, double count, double minimum, void* scratch, int64_t* kept,
          void* stream) {
  Scratch parts{static_cast<char*>(scratch)};
  const BudgetMemory<T> memory = budget_memory<T>(n, parts);
  STPRUNE_TRY(find_budget(scores, n, power, count, minimum, memory, stream));
  return kept == nullptr ? 0 : read_back(kept, &memory.state->totals.kept, 1, stream);
}

template <class T>
int finish(const T* scores, int64_t n, Power power, int64_t seed, int64_t epoch, const Strata& strata, void* scratch,
           int64_t room, int64_t* indices, float* weights, double* totals, void* stream) {
  Scratch parts{static_cast<char*>(scratch)};
  const PlanMemory<T> memory = plan_memory<T>(n, strata.num, parts);
  PlanTotals* const found = &memory.budget.state->totals;
  const OfScores<T> source{scores, power, memory.budget.state, 0.0, 0.0};
  const PlanSink sink{&found->kept, room, indices, weights, false};
  STPRUNE_TRY(draw_systematic(source, n, {n, &found->kept}, n * ONE, philox_key(seed), static_cast<uint32_t>(epoch),
                              memory.draw, sink, stream));
  const Size kept{room, &found->kept};
  if (strata.num > 0) STPRUNE_TRY(calibrate(weights, indices, kept, strata, memory.strata, stream));
  STPRUNE_TRY(finite_stats(weights, kept, memory.finite, found->stats, stream));
  PlanTotals on_host;
  STPRUNE_TRY(read_back(&on_host, found, 1, stream));
  totals[0] = static_cast<double>(on_host.kept);
  totals[1] = mean_of(on_host.stats);
  return 0;
}

Power power_of(double alpha) { return alpha == 0.5 ? Power::kRoot : alpha == 1.0 ? Power::kOne : Power::kZero; }

}  // namespace
}  // namespace stprune

using namespace stprune;

extern "C" {

int64_t stprune_cuda_plan_budget_scratch(int wide, int64_t n, int64_t num_strata) {
  Scratch scratch{nullptr};
  if (wide) {
    plan_memory<double>(n, num_strata, scratch);
  } else {
    plan_memory<float>(n, num_strata, scratch);
  }
  return scratch.used;
}

int stprune_cuda_plan_budget_begin(int wide, const void* scores, int64_t n, double alpha, double count, double minimum,
                                   void* scratch, int64_t* kept, void* stream) {
  const Power power = power_of(alpha);
  return wide ? begin(static_cast<const double*>(scores), n, power, count, minimum, scratch, kept, stream)
              : begin(static_cast<const float*>(scores), n, power, count, minimum, scratch, kept, stream);
}

int stprune_cuda_plan_budget_finish(int wide, const void* scores, int64_t n, double alpha, int64_t seed, int64_t epoch,
                                    int label_bytes, const void* labels, const int64_t* sizes, int64_t num_strata,
                                    void* scratch, int64_t room, int64_t* indices, float* weights, double* totals,
                                    void* stream) {
  const Power power = power_of(alpha);
  const Strata strata{label_bytes, labels, n, sizes, num_strata};
  return wide ? finish(static_cast<const double*>(scores), n, power, seed, epoch, strata, scratch, room, indices,
                       weights, totals, stream)
              : finish(static_cast<const float*>(scores), n, power, seed, epoch, strata, scratch, room, indices,
                       weights, totals, stream);
}
}
