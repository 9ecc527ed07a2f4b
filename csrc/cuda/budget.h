// The constant c of clip(c * size, minimum, 1) with a given sum: one pass over the scores with the sample's bracket,
// and the search among what the bracket leaves open. See budget_search.h.
#pragma once

#include "cuda/budget_search.h"

namespace stprune {
namespace {

// Counts what is certain for every constant of the bracket, a warp a block of 4,096, and marks the rest.
template <class T>
struct BudgetSplit {
  static constexpr int THREADS = CHUNK_THREADS;
  static constexpr int WARPS = THREADS / WARP;
  static constexpr int64_t GROUP = WARPS * FINITE_BLOCK;
  static constexpr int CHUNKS = static_cast<int>(GROUP / CHUNK_KEYS);
  struct Shared {
    SharedArray<uint32_t, CHUNKS> open;
    SharedArray<uint32_t, WARP> counts;
    SharedArray<double, WARP> sums;
  };
  const T* scores;  // [n]
  int64_t n;
  Power power;
  double minimum;
  bool sampled;  // else the bracket is everything
  BudgetMemory<T> memory;

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared& shared) const {
    constexpr int ROWS = static_cast<int>(FINITE_BLOCK / WARP), EACH = 4;
    const int64_t blocks = blocks_of(n, CHUNK_KEYS) * (CHUNK_KEYS / FINITE_BLOCK);
    const double low = sampled ? memory.state->low : 0.0, high = sampled ? memory.state->high : LARGEST;
    block.phase([&](int t) {
      if (t < CHUNKS) shared.open[t] = 0u;
    });
    PerThread<double> sum;
    PerThread<uint32_t> known, positive, at_low, at_high, open;
    block.own([&](int t) {
      sum[t] = 0.0;
      known[t] = positive[t] = at_low[t] = at_high[t] = open[t] = 0;
    });
    for (int row = 0; row < ROWS; row += EACH) {
      PerThread<Four<T>> loaded;
      block.own([&](int t) {
        const int64_t first = (block.index() * WARPS + t / WARP) * FINITE_BLOCK + (t & (WARP - 1));
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
          const int64_t index = first + (row + i) * WARP;
          loaded[t].item[i] = static_cast<T>(infinity());
          if (index < n) loaded[t].item[i] = input(scores, index);
        }
      });
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        PerThread<bool> is_open;
        block.own([&](int t) {
          const double size = size_of(loaded[t].item[i], power), least_scaled = size * low, most_scaled = size * high;
          const bool finite = size == size;
          const bool sure_high = least_scaled >= 1.0, sure_low = !sure_high && most_scaled <= minimum;
          const bool sure = least_scaled > minimum && most_scaled < 1.0;
          known[t] += finite;
          positive[t] += size > 0.0;
          at_high[t] += sure_high;
          at_low[t] += sure_low;
          sum[t] += sure ? size : 0.0;
          is_open[t] = finite && !sure_high && !sure_low && !sure;
        });
        const PerThread<uint32_t> ballot = block.ballot(is_open);
        block.own([&](int t) {
          const int64_t place = block.index() * WARPS + t / WARP;
          if ((t & (WARP - 1)) != 0 || place >= blocks) return;
          memory.marks[place * ROWS + row + i] = ballot[t];
          open[t] += static_cast<uint32_t>(popcount(ballot[t]));
        });
      }
    }
    reduce_warp(block, sum, Sum{});
    reduce_warp(block, open, Sum{});
    block.phase([&](int t) {
      if ((t & (WARP - 1)) == 0) shared.open.add(static_cast<int>(t / WARP * FINITE_BLOCK / CHUNK_KEYS), open[t]);
    });
    const double all = sum_neighbours(block, shared.sums, sum);
    const uint32_t all_known = reduce(block, shared.counts, known, Sum{});
    const uint32_t all_positive = reduce(block, shared.counts, positive, Sum{});
    const uint32_t all_low = reduce(block, shared.counts, at_low, Sum{});
    const uint32_t all_high = reduce(block, shared.counts, at_high, Sum{});
    block.own([&](int t) {
      const int64_t chunk = block.index() * CHUNKS + t;
      if (t < CHUNKS && chunk < blocks_of(n, CHUNK_KEYS)) memory.counts[chunk] = pack_counts(shared.open[t], 0);
      if (t != 0) return;
      memory.sums[0][block.index()] = all;
      memory.known[block.index()] = all_known;
      memory.positive[block.index()] = all_positive;
      memory.low[block.index()] = all_low;
      memory.high[block.index()] = all_high;
    });
  }
};

// What is open, one after another; nothing where that is too much to set aside.
template <class T>
struct OpenSink {
  const T* scores;
  T* open;
  const int64_t* total;
  int64_t most;
  bool fits;

  STPRUNE_DEVICE void begin() { fits = *total <= most; }
  STPRUNE_DEVICE void operator()(int64_t place, int64_t index) const {
    if (fits) open[place] = scores[index];
  }
};

// The constant. What the sample's bracket leaves open decides it, or all scores.
template <class T>
struct BudgetSolve {
  static constexpr int THREADS = 1024;
  using Shared = BudgetShared;
  const T* scores;  // [n]
  int64_t n;
  double count, minimum;
  bool sampled;
  Measure<T, THREADS> measure;

  STPRUNE_DEVICE bool go_on() const { return measure.memory.state->stage != Stage::kDone; }

  STPRUNE_DEVICE int64_t num_open() const { return measure.memory.places.certain[blocks_of(n, CHUNK_KEYS)]; }
  STPRUNE_DEVICE static bool of_open(Stage stage) {
    return stage == Stage::kCheckLow || stage == Stage::kCheckHigh || stage == Stage::kOpen;
  }

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared& shared, int round) const {
    if (round == 0) return;  // `settle` begins
    const BudgetState& state = *measure.memory.state;
    const bool start = state.stage == Stage::kStart, open = of_open(state.stage);
    // All finite sizes are those that the zero scale leaves above the bound -1.
    measure.part(block, shared, open ? measure.memory.open : scores, open ? num_open() : n,
                 start ? 0.0 : state.newton.at, start ? -1.0 : minimum);
  }

  STPRUNE_DEVICE void settle(Block<THREADS>& block, Shared& shared, int round) const {
    const BudgetMemory<T>& memory = measure.memory;
    if (round > 0) {
      const int64_t measured = of_open(memory.state->stage) ? num_open() : n;
      const Clipped found = measure.whole(block, shared, blocks_of(measured, measure.GROUP));
      block.own([&](int t) {
        if (t == 0) take_in(*memory.state, found);
      });
      return;
    }
    const int64_t groups = blocks_of(n, BudgetSplit<T>::GROUP);
    const int64_t num_known = total_of(block, shared.counts, memory.known, groups);
    const int64_t num_positive = total_of(block, shared.counts, memory.positive, groups);
    const Clipped certain = measure.whole(block, shared, groups);
    block.own([&](int t) {
      if (t == 0) begin(*memory.state, num_known, num_positive, certain);
    });
  }

  STPRUNE_DEVICE void begin(BudgetState& state, int64_t num_known, int64_t num_positive, const Clipped& certain) const {
    state.certain = certain;
    const double known = static_cast<double>(num_known), positive = static_cast<double>(num_positive);
    double wanted = count - static_cast<double>(n - num_known);
    if (wanted < minimum * known) wanted = ceil(minimum * known);
    wanted = wanted < known ? wanted : known;
    state.wanted = wanted;
    state.totals.kept = n - num_known + static_cast<int64_t>(rint(wanted));
    state.scale = 0.0;
    state.minimum = minimum;
    state.stage = Stage::kDone;
    if (num_positive == 0) {
      state.minimum = num_known > 0 ? wanted / known : 1.0;
      return;
    }
    if (positive + minimum * (known - positive) <= wanted) {
      // Every positive size is certain, and the zeros share what is left.
      double bound = positive < known ? (wanted - positive) / (known - positive) : 1.0;
      // A minimum so small that the comparison rounds it away still bounds them.
      if (bound < minimum) bound = minimum;
      state.minimum = bound < 1.0 ? bound : 1.0;
      state.scale = infinity();
      return;
    }
    if (wanted <= minimum * known) return;
    if (sampled && 0.0 < state.middle && state.middle < LARGEST) {
      go_from(state, state.middle);
    } else {
      state.stage = Stage::kStart;
    }
  }

  // Looks at what is open first, where there is a bracket and it leaves little open.
  STPRUNE_DEVICE void go_from(BudgetState& state, double start) const {
    state.start = start;
    if (sampled && num_open() <= n / CROWDED) {
      state.stage = Stage::kCheckLow;
      state.newton.at = state.low;
    } else {
      search_all(state);
    }
  }

  STPRUNE_DEVICE void search_all(BudgetState& state) const {
    state.stage = Stage::kAll;
    state.newton.begin(state.start, 0.0, LARGEST, state.wanted);
  }

  STPRUNE_DEVICE void take_in(BudgetState& state, const Clipped& found) const {
    const Clipped all = of_open(state.stage) ? state.certain.with(found) : found;
    if (state.stage == Stage::kStart) {
      go_from(state, state.wanted / found.middle);
    } else if (state.stage == Stage::kCheckLow) {
      if (all.total(state.low, minimum) <= state.wanted) {
        state.stage = Stage::kCheckHigh;
        state.newton.at = state.high;
      } else {
        search_all(state);
      }
    } else if (state.stage == Stage::kCheckHigh) {
      if (state.wanted <= all.total(state.high, minimum)) {
        state.stage = Stage::kOpen;
        state.newton.begin(state.start, state.low, state.high, state.wanted);
      } else {
        search_all(state);
      }
    } else if (state.newton.finds(all, minimum)) {
      state.scale = state.newton.at;
      state.stage = Stage::kDone;
    }
  }
};

// The probability of a score under what was found.
template <class T>
STPRUNE_DEVICE float probability_of(T score, Power power, double scale, double bound) {
  const double size = size_of(score, power);
  double p = size > 0.0 ? size * scale : 0.0;
  p = p > bound ? p : bound;
  p = p < 1.0 ? p : 1.0;
  return size == size ? static_cast<float>(p) : 1.0f;
}

template <class T>
struct BudgetWrite {
  static constexpr int THREADS = 256;
  static constexpr int EACH = 4;
  struct Shared {};
  const T* scores;  // [n]
  int64_t n;
  Power power;
  const BudgetState* state;
  float* out;  // [n]

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared&) const {
    const double scale = state->scale, bound = state->minimum;
    block.own([&](int t) {
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        const int64_t index = (block.index() * EACH + i) * THREADS + t;
        if (index < n) out[index] = probability_of(input(scores, index), power, scale, bound);
      }
    });
  }
};

// Finds the constant, in memory.state; waits for nothing.
template <class T>
int find_budget(const T* scores, int64_t n, Power power, double count, double minimum, const BudgetMemory<T>& memory,
                void* stream) {
  const int64_t chunks = blocks_of(n, CHUNK_KEYS);
  const bool sampled = n >= SAMPLED;
  using Bracket = BudgetBracket<T>;
  using Split = BudgetSplit<T>;
  using Solve = BudgetSolve<T>;
  if (sampled) {
    STPRUNE_TRY(launch_rounds(Bracket{scores, n, count, minimum, {power, memory}}, Bracket::BLOCKS, stream));
  }
  STPRUNE_TRY(launch(Split{scores, n, power, minimum, sampled, memory}, blocks_of(n, Split::GROUP), stream));
  if (sampled) {
    STPRUNE_TRY(launch(ScanChunks{memory.counts, chunks, memory.places}, 1, stream));
    const OpenSink<T> sink{scores, memory.open, memory.places.certain + chunks, n / CROWDED, false};
    STPRUNE_TRY(launch(EmitChunks<OpenSink<T>>{memory.marks, nullptr, nullptr, memory.places, sink}, chunks, stream));
  }
  const int64_t groups = blocks_of(n, Measure<T, Solve::THREADS>::GROUP);
  return launch_rounds(Solve{scores, n, count, minimum, sampled, {power, memory}}, groups, stream);
}

}  // namespace
}  // namespace stprune
