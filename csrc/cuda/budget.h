// The constant c of clip(c * size, minimum, 1) with a given sum, found on the device: the steps of
// stprune/reference/budget.py in their order, so that c has the same bits. One block runs Newton's method, as every
// step needs the one before; it looks at a sample, then at the few sizes which the sample's bracket leaves open.
#pragma once

#include "cuda/finite_stats.h"

#if !defined(__CUDACC__)
#include <cmath>
#endif

namespace stprune {
namespace {

constexpr int64_t SAMPLED = 1 << 17;
constexpr int64_t BUDGET_SAMPLE = 1 << 16;
constexpr uint32_t STREAM_SAMPLE = 15;
constexpr int64_t CROWDED = 4;
constexpr double TOLERANCE = 0x1p-44;
constexpr int MAX_STEPS = 200;
constexpr double LARGEST = 0x1.fffffffffffffp+1023;
constexpr int SOLVE_THREADS = 1024;

// size = max(score, 0)^alpha for alpha 0, 0.5 and 1.
enum class Power : int { kZero, kRoot, kOne };

// Not a number where the score is not finite.
template <class T>
STPRUNE_DEVICE double size_of(T score, Power power) {
  if (!(score - score == T(0))) return double_of(0x7FF8000000000000ull);
  if (power == Power::kZero) return 1.0;
  const double size = score > T(0) ? static_cast<double>(score) : 0.0;
  // Rounded to the scores' type, as on the host.
  return power == Power::kRoot ? static_cast<double>(static_cast<T>(sqrt(size))) : size;
}

// How sizes fall at a constant: how many are clipped at the minimum, how many at 1, and the sum of the others.
struct Clipped {
  int64_t low, high;
  double middle;
};

STPRUNE_DEVICE double total_of(const Clipped& found, double scale, double minimum) {
  return minimum * static_cast<double>(found.low) + (scale * found.middle + static_cast<double>(found.high));
}

struct BudgetState {
  double low, middle, high;  // the bracket, from the sample
  double scale, minimum;     // what was found
};

template <class T>
struct BudgetMemory {
  BudgetState* state;
  T* sample;                                // [BUDGET_SAMPLE]
  double* sums[2];                          // [blocks] each: a level of the tree of sums and the next
  uint32_t *known, *positive, *low, *high;  // [blocks]
  uint32_t* marks;                          // [chunks * 256] what the bracket leaves open
  uint32_t* counts;                         // [chunks]
  ChunkPlaces places;
  T* aside;  // [n / CROWDED]
};

template <class T>
BudgetMemory<T> budget_memory(int64_t n, Scratch& scratch) {
  const int64_t chunks = blocks_of(n, CHUNK_KEYS), blocks = chunks * (CHUNK_KEYS / FINITE_BLOCK);
  BudgetMemory<T> memory;
  memory.state = scratch.take<BudgetState>(1);
  memory.sample = scratch.take<T>(BUDGET_SAMPLE);
  memory.sums[0] = scratch.take<double>(blocks);
  memory.sums[1] = scratch.take<double>(blocks);
  memory.known = scratch.take<uint32_t>(blocks);
  memory.positive = scratch.take<uint32_t>(blocks);
  memory.low = scratch.take<uint32_t>(blocks);
  memory.high = scratch.take<uint32_t>(blocks);
  memory.marks = scratch.take<uint32_t>(chunks * CHUNK_THREADS);
  memory.counts = scratch.take<uint32_t>(chunks);
  memory.places = {scratch.take<int64_t>(chunks + 1), scratch.take<int64_t>(chunks + 1)};
  memory.aside = scratch.take<T>(n / CROWDED);
  return memory;
}

// One block measures and solves.
template <class T>
struct Solver {
  struct Shared {
    SharedArray<int64_t, WARP> counts;
  };
  using OneBlock = Block<SOLVE_THREADS>;

  OneBlock& block;
  Shared& shared;
  BudgetMemory<T> memory;
  Power power;
  double minimum;

  STPRUNE_DEVICE int64_t count(PerThread<int64_t> value) { return reduce(block, shared.counts, value, Sum{}); }
  STPRUNE_DEVICE int64_t count(const uint32_t* values, int64_t blocks) {
    PerThread<int64_t> sum;
    block.own([&](int t) {
      sum[t] = 0;
      for (int64_t i = t; i < blocks; i += SOLVE_THREADS) sum[t] += values[i];
    });
    return count(sum);
  }

  STPRUNE_DEVICE Clipped clipped(const T* scores, int64_t n, double scale, double bound) {
    constexpr int WARPS = SOLVE_THREADS / WARP, EACH = 8;
    const int64_t blocks = blocks_of(n, FINITE_BLOCK);
    PerThread<int64_t> low, high;
    block.own([&](int t) { low[t] = high[t] = 0; });
    for (int64_t first_block = 0; first_block < blocks; first_block += WARPS) {
      PerThread<double> sum;
      block.own([&](int t) {
        const int64_t first = (first_block + t / WARP) * FINITE_BLOCK + (t & (WARP - 1));
        sum[t] = 0.0;
        for (int row = 0; row < FINITE_BLOCK / WARP; row += EACH) {
          T loaded[EACH];
#pragma unroll
          for (int i = 0; i < EACH; ++i) {
            const int64_t index = first + (row + i) * WARP;
            loaded[i] = static_cast<T>(infinity());  // counts nowhere
            if (index < n) loaded[i] = scores[index];
          }
#pragma unroll
          for (int i = 0; i < EACH; ++i) {
            const double size = size_of(loaded[i], power), scaled = size * scale;
            const bool is_high = scaled >= 1.0;
            high[t] += is_high;
            low[t] += !is_high && scaled <= bound;
            sum[t] += scaled > bound && scaled < 1.0 ? size : 0.0;
          }
        }
      });
      sum_warp(block, sum);
      block.own([&](int t) {
        const int64_t place = first_block + t / WARP;
        if ((t & (WARP - 1)) == 0 && place < blocks) memory.sums[0][place] = sum[t];
      });
    }
    block.sync();
    Clipped all;
    all.low = count(low);
    all.high = count(high);
    all.middle = tree_sum(block, memory.sums, blocks);
    return all;
  }

  // c in [low, high] with measure(c)'s total as wanted: Newton's method in a shrinking bracket, halved in the order of
  // the doubles at every fourth step after the eighth.
  template <class Measure>
  STPRUNE_DEVICE double solve(const Measure& measure, double wanted, double start, double low = 0.0,
                              double high = LARGEST) {
    double scale = start > low ? start : low;
    scale = scale < high ? scale : high;
    for (int step = 0; step < MAX_STEPS; ++step) {
      const Clipped found = measure(scale);
      const double total = total_of(found, scale, minimum), missing = total - wanted;
      if ((missing < 0.0 ? -missing : missing) <= TOLERANCE * wanted) return scale;
      if (total < wanted) {
        low = scale;
      } else {
        high = scale;
      }
      double better = double_of(0x7FF8000000000000ull);
      if (found.middle > 0.0) {
        better = (wanted - static_cast<double>(found.high) - minimum * static_cast<double>(found.low)) / found.middle;
      }
      if (better == scale) return scale;
      if (!(low < better && better < high) || (step >= 8 && step % 4 == 0)) {
        // Both are below 2^63 as bits; their sum may not be.
        better = double_of((bits_of(low) + bits_of(high)) / 2);
        if (!(low < better && better < high)) return scale;
      }
      scale = better;
    }
    return scale;
  }
};

// The bracket of c, from a sample of the scores.
template <class T>
struct BudgetBracket {
  static constexpr int THREADS = SOLVE_THREADS;
  using Shared = typename Solver<T>::Shared;
  const T* scores;  // [n]
  int64_t n;
  Power power;
  double count, minimum;
  BudgetMemory<T> memory;

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared& shared) const {
    Solver<T> solver{block, shared, memory, power, minimum};
    PerThread<int64_t> is_known, is_positive;
    block.phase([&](int t) {
      is_known[t] = is_positive[t] = 0;
      for (int64_t i = t; i < BUDGET_SAMPLE; i += THREADS) {
        const uint64_t word = philox_word_at(PhiloxKey{0, 0}, 0, STREAM_SAMPLE, i);
        const T score = scores[static_cast<int64_t>((word * static_cast<uint64_t>(n >> 8)) >> 24)];
        const double size = size_of(score, power);
        memory.sample[i] = score;
        is_known[t] += size == size;
        is_positive[t] += size > 0.0;
      }
    });
    const double known = static_cast<double>(solver.count(is_known));
    const double positive = static_cast<double>(solver.count(is_positive));
    const double size = static_cast<double>(BUDGET_SAMPLE), share = size / static_cast<double>(n);
    const double target = count * share - (size - known);
    double ratio = count / static_cast<double>(n);
    ratio = ratio > 0.0 ? ratio : 0.0;
    ratio = ratio < 1.0 ? ratio : 1.0;
    // Three standard deviations of the most unequal probabilities with this mean.
    const double width = 3.0 * sqrt(ratio * (1.0 - ratio) * size) + 1.0;
    const auto scale_of = [&](double wanted, double start) {
      if (wanted <= minimum * known) return 0.0;
      if (wanted >= positive + minimum * (known - positive)) return LARGEST;
      const auto measure = [&](double scale) { return solver.clipped(memory.sample, BUDGET_SAMPLE, scale, minimum); };
      return solver.solve(measure, wanted, start);
    };
    const double middle = scale_of(target, 1.0);
    const double low = scale_of(target - width, middle), high = scale_of(target + width, middle);
    block.own([&](int t) {
      if (t == 0) *memory.state = {low, middle, high, 0.0, 0.0};
    });
  }
};

// Too few scores for a sample: the bracket is everything.
struct BudgetWhole {
  static constexpr int THREADS = WARP;
  struct Shared {};
  BudgetState* state;

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared&) const {
    block.own([&](int t) {
      if (t == 0) *state = {0.0, 0.0, LARGEST, 0.0, 0.0};
    });
  }
};

// Counts what is certain for every constant of the bracket, a warp a block of 4,096, and marks the rest.
template <class T>
struct BudgetSplit {
  static constexpr int THREADS = CHUNK_THREADS;
  static constexpr int WARPS = THREADS / WARP;
  static constexpr int CHUNKS = static_cast<int>(WARPS * FINITE_BLOCK / CHUNK_KEYS);
  struct Shared {
    SharedArray<uint32_t, CHUNKS> open;
  };
  const T* scores;  // [n]
  int64_t n;
  Power power;
  double minimum;
  BudgetMemory<T> memory;

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared& shared) const {
    constexpr int ROWS = static_cast<int>(FINITE_BLOCK / WARP), EACH = 4;
    const int64_t blocks = blocks_of(n, CHUNK_KEYS) * (CHUNK_KEYS / FINITE_BLOCK);
    const double low = memory.state->low, high = memory.state->high;
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
          if (index < n) loaded[t].item[i] = scores[index];
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
    sum_warp(block, sum);
    sum_warp(block, known);
    sum_warp(block, positive);
    sum_warp(block, at_low);
    sum_warp(block, at_high);
    block.phase([&](int t) {
      const int64_t place = block.index() * WARPS + t / WARP;
      if ((t & (WARP - 1)) != 0 || place >= blocks) return;
      memory.sums[0][place] = sum[t];
      memory.known[place] = known[t];
      memory.positive[place] = positive[t];
      memory.low[place] = at_low[t];
      memory.high[place] = at_high[t];
      shared.open.add(static_cast<int>(t / WARP * FINITE_BLOCK / CHUNK_KEYS), open[t]);
    });
    block.own([&](int t) {
      const int64_t chunk = block.index() * CHUNKS + t;
      if (t < CHUNKS && chunk < blocks_of(n, CHUNK_KEYS)) memory.counts[chunk] = pack_counts(shared.open[t], 0);
    });
  }
};

// What is open, one after another; nothing where that is too much to set aside.
template <class T>
struct AsideSink {
  const T* scores;
  T* aside;
  const int64_t* total;
  int64_t most;
  bool fits;

  STPRUNE_DEVICE void begin() { fits = *total <= most; }
  STPRUNE_DEVICE void operator()(int64_t place, int64_t index) const {
    if (fits) aside[place] = scores[index];
  }
};

template <class T>
struct BudgetSolve {
  static constexpr int THREADS = SOLVE_THREADS;
  using Shared = typename Solver<T>::Shared;
  const T* scores;  // [n]
  int64_t n;
  Power power;
  double count, minimum;
  bool sampled;
  BudgetMemory<T> memory;

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared& shared) const {
    Solver<T> solver{block, shared, memory, power, minimum};
    double scale = 0.0, bound = minimum;
    find(solver, scale, bound);
    block.own([&](int t) {
      if (t != 0) return;
      memory.state->scale = scale;
      memory.state->minimum = bound;
    });
  }

  STPRUNE_DEVICE void find(Solver<T>& solver, double& scale, double& bound) const {
    const int64_t chunks = blocks_of(n, CHUNK_KEYS), blocks = blocks_of(n, FINITE_BLOCK);
    const int64_t num_known = solver.count(memory.known, blocks), num_positive = solver.count(memory.positive, blocks);
    Clipped base;
    base.low = solver.count(memory.low, blocks);
    base.high = solver.count(memory.high, blocks);
    base.middle = tree_sum(solver.block, memory.sums, blocks);
    const double known = static_cast<double>(num_known), positive = static_cast<double>(num_positive);
    double wanted = count - static_cast<double>(n - num_known);
    if (wanted < minimum * known) wanted = ceil(minimum * known);
    wanted = wanted < known ? wanted : known;
    if (num_positive == 0) {
      bound = num_known > 0 ? wanted / known : 1.0;
      return;
    }
    if (positive + minimum * (known - positive) <= wanted) {
      // Every positive size is certain, and the zeros share what is left.
      scale = infinity();
      bound = positive < known ? (wanted - positive) / (known - positive) : 1.0;
      // A minimum so small that the comparison rounds it away still bounds them.
      if (bound < minimum) bound = minimum;
      bound = bound < 1.0 ? bound : 1.0;
      return;
    }
    if (wanted <= minimum * known) return;
    const double low = memory.state->low, middle = memory.state->middle, high = memory.state->high;
    // All finite sizes: those that the zero scale leaves above the bound -1.
    const double start =
        0.0 < middle && middle < LARGEST ? middle : wanted / solver.clipped(scores, n, 0.0, -1.0).middle;
    const int64_t open = memory.places.certain[chunks];
    if (sampled && open <= n / CROWDED) {
      const auto measure = [&](double at) {
        const Clipped found = solver.clipped(memory.aside, open, at, minimum);
        return Clipped{base.low + found.low, base.high + found.high, base.middle + found.middle};
      };
      if (total_of(measure(low), low, minimum) <= wanted && wanted <= total_of(measure(high), high, minimum)) {
        scale = solver.solve(measure, wanted, start, low, high);
        return;
      }
    }
    const auto everything = [&](double at) { return solver.clipped(scores, n, at, minimum); };
    scale = solver.solve(everything, wanted, start);
  }
};

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
        if (index >= n) continue;
        const double size = size_of(scores[index], power);
        double p = size > 0.0 ? size * scale : 0.0;
        p = p > bound ? p : bound;
        p = p < 1.0 ? p : 1.0;
        out[index] = size == size ? static_cast<float>(p) : 1.0f;
      }
    });
  }
};

}  // namespace
}  // namespace stprune
