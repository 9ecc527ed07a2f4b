// How the constant c of clip(c * size, minimum, 1) with a given sum is searched for on the device, and its bracket from
// a sample: the steps of stprune/reference/budget.py in their order, so that c has the same bits. Newton's method looks
// at a sample, then at the few sizes which the sample's bracket leaves open, or at all of them where these are too many
// or the sample misled. Every step needs the one before, so the steps are rounds (block.h) in which all blocks add up
// their share.
#pragma once

#include "cuda/finite_stats.h"

namespace stprune {
namespace {

constexpr int64_t SAMPLED = 1 << 17;
constexpr int64_t BUDGET_SAMPLE = 1 << 16;
constexpr uint32_t STREAM_SAMPLE = 15;
constexpr int64_t CROWDED = 4;
constexpr double TOLERANCE = 0x1p-44;
constexpr int MAX_STEPS = 200;
constexpr double LARGEST = 0x1.fffffffffffffp+1023;

// size = max(score, 0)^alpha for alpha 0, 0.5 and 1.
enum class Power : int { kZero, kRoot, kOne };

// Not a number where the score is not finite.
template <class T>
STPRUNE_DEVICE double size_of(T score, Power power) {
  if (!(score - score == T(0))) return double_of(0x7FF8000000000000ull);
  if (power == Power::kZero) return 1.0;
  const T size = score > T(0) ? score : T(0);
  // Rounded to the scores' type, as on the host.
  return static_cast<double>(power == Power::kRoot ? square_root(size) : size);
}

// How sizes fall at a constant: how many are clipped at the minimum, how many at 1, and the sum of the others.
struct Clipped {
  int64_t low, high;
  double middle;

  STPRUNE_DEVICE Clipped with(const Clipped& other) const {
    return {low + other.low, high + other.high, middle + other.middle};
  }
  STPRUNE_DEVICE double total(double scale, double minimum) const {
    return minimum * static_cast<double>(low) + (scale * middle + static_cast<double>(high));
  }
};

// c in [low, high] with a total as wanted: Newton's method in a shrinking bracket, halved in the order of the doubles
// at every fourth step after the eighth.
struct Newton {
  double low, high, wanted, at;
  int step;

  STPRUNE_DEVICE void begin(double start, double from, double to, double sum) {
    low = from;
    high = to;
    wanted = sum;
    at = start > low ? start : low;
    at = at < high ? at : high;
    step = 0;
  }

  // Takes in how sizes fall at `at`, and moves it; true when it is the answer.
  STPRUNE_DEVICE bool finds(const Clipped& found, double minimum) {
    const double total = found.total(at, minimum), missing = total - wanted;
    if ((missing < 0.0 ? -missing : missing) <= TOLERANCE * wanted) return true;
    if (total < wanted) {
      low = at;
    } else {
      high = at;
    }
    double better = double_of(0x7FF8000000000000ull);
    if (found.middle > 0.0) {
      better = (wanted - static_cast<double>(found.high) - minimum * static_cast<double>(found.low)) / found.middle;
    }
    if (better == at) return true;
    if (!(low < better && better < high) || (step >= 8 && step % 4 == 0)) {
      // Both are below 2^63 as bits; their sum may not be.
      better = double_of((bits_of(low) + bits_of(high)) / 2);
      if (!(low < better && better < high)) return true;
    }
    at = better;
    return ++step == MAX_STEPS;
  }
};

// What the next round measures, and for what.
enum class Stage : int {
  kMiddle,     // the sample: a constant for the sum asked for,
  kLow,        // for less,
  kHigh,       // and for more
  kStart,      // all scores: the sum of the finite sizes
  kCheckLow,   // what is open: does the bracket hold the constant?
  kCheckHigh,  // the same
  kOpen,       // what is open: the constant
  kAll,        // all scores: the constant
  kDone
};

struct PlanTotals {
  int64_t kept;     // what the probabilities add up to
  double stats[4];  // of the kept samples' weights, where a plan is made: see finite_stats
};

struct BudgetState {
  double low, middle, high;  // the bracket, from the sample
  double scale, minimum;     // what was found
  PlanTotals totals;
  // Under way:
  Stage stage;
  Newton newton;
  double known, positive;  // of the sample
  double start, wanted;
  Clipped certain;  // what the bracket does not leave open
};

template <class T>
struct BudgetMemory {
  BudgetState* state;
  T* sample;                                // [BUDGET_SAMPLE]
  double* sums[2];                          // [blocks] each: a level of the tree of sums and the next
  uint32_t *low, *high, *known, *positive;  // [blocks]
  uint32_t* marks;                          // [chunks * 256] what the bracket leaves open
  uint32_t* counts;                         // [chunks]
  ChunkPlaces places;
  T* open;  // [n / CROWDED]
};

template <class T>
BudgetMemory<T> budget_memory(int64_t n, Scratch& scratch) {
  const int64_t chunks = blocks_of(n, CHUNK_KEYS), blocks = most(BUDGET_SAMPLE / FINITE_BLOCK, chunks);
  BudgetMemory<T> memory;
  memory.state = scratch.take<BudgetState>(1);
  memory.sample = scratch.take<T>(BUDGET_SAMPLE);
  memory.sums[0] = scratch.take<double>(blocks);
  memory.sums[1] = scratch.take<double>(blocks);
  memory.low = scratch.take<uint32_t>(blocks);
  memory.high = scratch.take<uint32_t>(blocks);
  memory.known = scratch.take<uint32_t>(blocks);
  memory.positive = scratch.take<uint32_t>(blocks);
  memory.marks = scratch.take<uint32_t>(chunks * CHUNK_THREADS);
  memory.counts = scratch.take<uint32_t>(chunks);
  memory.places = {scratch.take<int64_t>(chunks + 1), scratch.take<int64_t>(chunks + 1)};
  memory.open = scratch.take<T>(n / CROWDED);
  return memory;
}

template <int THREADS>
STPRUNE_DEVICE int64_t total_of(Block<THREADS>& block, SharedArray<int64_t, WARP>& warps, const uint32_t* values,
                                int64_t size) {
  PerThread<int64_t> sum;
  block.own([&](int t) {
    sum[t] = 0;
    for (int64_t i = t; i < size; i += THREADS) sum[t] += values[i];
  });
  return reduce(block, warps, sum, Sum{});
}

struct BudgetShared {
  SharedArray<int64_t, WARP> counts;
  SharedArray<double, WARP> sums;
};

// One step of a search: how sizes fall at a constant. A warp has 4,096 of them, a block as many as its warps.
template <class T, int COUNT>
struct Measure {
  static constexpr int64_t GROUP = COUNT / WARP * FINITE_BLOCK;
  Power power;
  BudgetMemory<T> memory;

  STPRUNE_DEVICE void part(Block<COUNT>& block, BudgetShared& shared, const T* values, int64_t n, double scale,
                           double bound) const {
    for (int64_t group = block.index(); group * GROUP < n; group += block.count()) {
      PerThread<int64_t> low, high;
      PerThread<double> sum;
      block.own([&](int t) {
        low[t] = high[t] = 0;
        sum[t] = 0.0;
        for_lane(values, n, group * (COUNT / WARP) + t / WARP, t & (WARP - 1), [&](T value) {
          const double size = size_of(value, power), scaled = size * scale;
          const bool is_high = scaled >= 1.0;
          high[t] += is_high;
          low[t] += !is_high && scaled <= bound;
          sum[t] += scaled > bound && scaled < 1.0 ? size : 0.0;
        });
      });
      reduce_warp(block, sum, Sum{});
      write(block, group, reduce(block, shared.counts, low, Sum{}), reduce(block, shared.counts, high, Sum{}),
            sum_neighbours(block, shared.sums, sum));
    }
  }

  STPRUNE_DEVICE void write(Block<COUNT>& block, int64_t group, int64_t low, int64_t high, double sum) const {
    block.own([&](int t) {
      if (t != 0) return;
      memory.low[group] = static_cast<uint32_t>(low);
      memory.high[group] = static_cast<uint32_t>(high);
      memory.sums[0][group] = sum;
    });
  }

  // All groups together, by one block.
  STPRUNE_DEVICE Clipped whole(Block<COUNT>& block, BudgetShared& shared, int64_t groups) const {
    Clipped found;
    found.low = total_of(block, shared.counts, memory.low, groups);
    found.high = total_of(block, shared.counts, memory.high, groups);
    found.middle = tree_sum(block, memory.sums, groups);
    return found;
  }
};

// The bracket of c, from a sample of the scores. One warp a block: the sample has 16 blocks of 4,096, and on as many
// processors a step takes as long as that of one.
template <class T>
struct BudgetBracket {
  static constexpr int THREADS = WARP;
  static constexpr int64_t BLOCKS = BUDGET_SAMPLE / FINITE_BLOCK;
  using Shared = BudgetShared;
  const T* scores;  // [n]
  int64_t n;
  double count, minimum;
  Measure<T, THREADS> measure;

  STPRUNE_DEVICE bool go_on() const { return measure.memory.state->stage != Stage::kDone; }

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared& shared, int round) const {
    const BudgetMemory<T>& memory = measure.memory;
    if (round > 0) {
      measure.part(block, shared, memory.sample, BUDGET_SAMPLE, memory.state->newton.at, minimum);
      return;
    }
    for (int64_t group = block.index(); group < BLOCKS; group += block.count()) {
      PerThread<int64_t> known, positive;
      block.own([&](int t) {
        known[t] = positive[t] = 0;
#pragma unroll 8
        for (int64_t i = group * FINITE_BLOCK + t; i < (group + 1) * FINITE_BLOCK; i += WARP) {
          const uint64_t word = philox_word_at(PhiloxKey{0, 0}, 0, STREAM_SAMPLE, i);
          const T score = input(scores, static_cast<int64_t>((word * static_cast<uint64_t>(n >> 8)) >> 24));
          const double size = size_of(score, measure.power);
          memory.sample[i] = score;
          known[t] += size == size;
          positive[t] += size > 0.0;
        }
      });
      measure.write(block, group, reduce(block, shared.counts, known, Sum{}),
                    reduce(block, shared.counts, positive, Sum{}), 0.0);
    }
  }

  STPRUNE_DEVICE void settle(Block<THREADS>& block, Shared& shared, int round) const {
    const Clipped found = measure.whole(block, shared, BLOCKS);
    BudgetState state{};
    if (round == 0) {
      state.known = static_cast<double>(found.low);
      state.positive = static_cast<double>(found.high);
      state.stage = Stage::kMiddle;
      search(state);
    } else {
      state = *measure.memory.state;
      if (state.newton.finds(found, minimum)) {
        accept(state, state.newton.at);
        search(state);
      }
    }
    block.sync();
    block.own([&](int t) {
      if (t == 0) *measure.memory.state = state;
    });
  }

  // The constant of the stage is known.
  STPRUNE_DEVICE void accept(BudgetState& state, double scale) const {
    if (state.stage == Stage::kMiddle) {
      state.middle = scale;
      state.stage = Stage::kLow;
    } else if (state.stage == Stage::kLow) {
      state.low = scale;
      state.stage = Stage::kHigh;
    } else {
      state.high = scale;
      state.stage = Stage::kDone;
    }
  }

  // Begins the search for the next constant that no rule gives at once.
  STPRUNE_DEVICE void search(BudgetState& state) const {
    const double size = static_cast<double>(BUDGET_SAMPLE), share = size / static_cast<double>(n);
    const double target = count * share - (size - state.known);
    double ratio = count / static_cast<double>(n);
    ratio = ratio > 0.0 ? ratio : 0.0;
    ratio = ratio < 1.0 ? ratio : 1.0;
    // Three standard deviations of the most unequal probabilities with this mean.
    const double width = 3.0 * square_root(ratio * (1.0 - ratio) * size) + 1.0;
    while (state.stage != Stage::kDone) {
      const bool middle = state.stage == Stage::kMiddle;
      const double wanted = middle ? target : state.stage == Stage::kLow ? target - width : target + width;
      if (wanted <= minimum * state.known) {
        accept(state, 0.0);
      } else if (wanted >= state.positive + minimum * (state.known - state.positive)) {
        accept(state, LARGEST);
      } else {
        state.newton.begin(middle ? 1.0 : state.middle, 0.0, LARGEST, wanted);
        return;
      }
    }
  }
};

}  // namespace
}  // namespace stprune
