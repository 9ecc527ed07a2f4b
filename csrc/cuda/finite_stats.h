// Sum, number, least and largest of the finite entries of a vector, with the bits of stprune/reference/finite_stats.py:
// blocks of 4,096 in 32 lanes are a warp's, and the blocks' sums are added neighbour by neighbour.
#pragma once

#include "cuda/compact.h"

namespace stprune {
namespace {

constexpr int64_t FINITE_BLOCK = 4096;

struct FiniteMemory {
  double* sums[2];  // [blocks] each: a level of the tree and the next
  double *least, *largest;
  int64_t* counts;  // [blocks]
};

inline FiniteMemory finite_memory(int64_t n, Scratch& scratch) {
  const int64_t blocks = blocks_of(n, FINITE_BLOCK);
  FiniteMemory memory;
  memory.sums[0] = scratch.take<double>(blocks);
  memory.sums[1] = scratch.take<double>(blocks);
  memory.least = scratch.take<double>(blocks);
  memory.largest = scratch.take<double>(blocks);
  memory.counts = scratch.take<int64_t>(blocks);
  return memory;
}

STPRUNE_DEVICE double infinity() { return double_of(0x7FF0000000000000ull); }

template <class T>
struct FiniteBlocks {
  static constexpr int THREADS = 256;
  static constexpr int WARPS = THREADS / WARP;
  // Loads of a lane that are in flight together.
  static constexpr int EACH = 8;
  struct Shared {};
  const T* values;  // [n]
  int64_t n;
  FiniteMemory memory;

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared&) const {
    PerThread<double> sum, low, high;
    PerThread<int> count;
    block.own([&](int t) {
      const int64_t first = (block.index() * WARPS + t / WARP) * FINITE_BLOCK + (t & (WARP - 1));
      sum[t] = 0.0;
      count[t] = 0;
      low[t] = infinity();
      high[t] = -infinity();
      for (int row = 0; row < FINITE_BLOCK / WARP; row += EACH) {
        T loaded[EACH];
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
          const int64_t index = first + (row + i) * WARP;
          loaded[i] = static_cast<T>(infinity());  // counts nowhere
          if (index < n) loaded[i] = values[index];
        }
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
          const double value = static_cast<double>(loaded[i]);
          if (!(value - value == 0.0)) continue;
          sum[t] += value;
          count[t] += 1;
          low[t] = value < low[t] ? value : low[t];
          high[t] = value > high[t] ? value : high[t];
        }
      }
    });
    sum_warp(block, sum);
    sum_warp(block, count);
    for (int mask = WARP / 2; mask > 0; mask /= 2) {
      const PerThread<double> other_low = block.shuffle_xor(low, mask), other_high = block.shuffle_xor(high, mask);
      block.own([&](int t) {
        low[t] = other_low[t] < low[t] ? other_low[t] : low[t];
        high[t] = other_high[t] > high[t] ? other_high[t] : high[t];
      });
    }
    block.own([&](int t) {
      const int64_t place = block.index() * WARPS + t / WARP;
      if ((t & (WARP - 1)) != 0 || place * FINITE_BLOCK >= n) return;
      memory.sums[0][place] = sum[t];
      memory.counts[place] = count[t];
      memory.least[place] = low[t];
      memory.largest[place] = high[t];
    });
  }
};

// Sum of the blocks' sums[0], neighbour by neighbour, in every thread; zero when there are none. Both levels are
// overwritten.
template <int THREADS>
STPRUNE_DEVICE double tree_sum(Block<THREADS>& block, double* const sums[2], int64_t blocks) {
  double *from = sums[0], *to = sums[1];
  for (int64_t left = blocks; left > 1; left = blocks_of(left, 2)) {
    block.phase([&](int t) {
      for (int64_t i = t; i < blocks_of(left, 2); i += THREADS) {
        to[i] = from[2 * i] + (2 * i + 1 < left ? from[2 * i + 1] : 0.0);
      }
    });
    double* const next = from;
    from = to;
    to = next;
  }
  const double sum = blocks > 0 ? from[0] : 0.0;
  block.sync();
  return sum;
}

// One block adds up what the blocks found.
struct FiniteSettle {
  static constexpr int THREADS = 1024;
  struct Shared {
    SharedArray<int64_t, WARP> counts;
    SharedArray<double, WARP> ends;
  };
  int64_t blocks;
  FiniteMemory memory;
  double* out;  // [4]

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared& shared) const {
    PerThread<int64_t> count;
    PerThread<double> low, high;
    block.own([&](int t) {
      count[t] = 0;
      low[t] = infinity();
      high[t] = -infinity();
      for (int64_t i = t; i < blocks; i += THREADS) {
        count[t] += memory.counts[i];
        low[t] = memory.least[i] < low[t] ? memory.least[i] : low[t];
        high[t] = memory.largest[i] > high[t] ? memory.largest[i] : high[t];
      }
    });
    const int64_t all = reduce(block, shared.counts, count, Sum{});
    const double all_low = reduce(block, shared.ends, low, Least{});
    const double all_high = reduce(block, shared.ends, high, Most{});
    const double sum = tree_sum(block, memory.sums, blocks);
    block.own([&](int t) {
      if (t != 0) return;
      out[0] = sum;
      out[1] = static_cast<double>(all);
      // Adding zero makes one zero of the two.
      out[2] = all_low + 0.0;
      out[3] = all_high + 0.0;
    });
  }
};

template <class T>
int finite_stats(const T* values, int64_t n, const FiniteMemory& memory, double* out, void* stream) {
  const int64_t blocks = blocks_of(n, FINITE_BLOCK);
  STPRUNE_TRY(launch(FiniteBlocks<T>{values, n, memory}, blocks_of(blocks, FiniteBlocks<T>::WARPS), stream));
  return launch(FiniteSettle{blocks, memory, out}, 1, stream);
}

// Mean of the finite entries; NaN when there are none, exact when all are equal.
STPRUNE_DEVICE double mean_of(const double* stats /* [4] */) {
  if (stats[2] == stats[3]) return stats[2];
  return stats[1] > 0.0 ? stats[0] / stats[1] : double_of(0x7FF8000000000000ull);
}

}  // namespace
}  // namespace stprune
