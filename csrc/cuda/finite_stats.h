// Sum, number, least and largest of the finite entries of a vector, with the bits of stprune/reference/finite_stats.py:
// blocks of 4,096 in 32 lanes are a warp's, and the blocks' sums are added neighbour by neighbour. Eight of them are a
// thread block's, which writes what it found of all.
#pragma once

#include "cuda/compact.h"

namespace stprune {
namespace {

constexpr int64_t FINITE_BLOCK = 4096;
constexpr int FINITE_THREADS = 256;
constexpr int64_t FINITE_GROUP = FINITE_THREADS / WARP * FINITE_BLOCK;

// How many elements there are: a number that the host knows, or one on the device; none where that is more than the
// host has room for.
struct Size {
  int64_t most;
  const int64_t* on_device;  // null: `most`

  STPRUNE_DEVICE int64_t get() const { return on_device == nullptr ? most : *on_device <= most ? *on_device : 0; }
};

struct FiniteMemory {
  double* sums[2];  // [groups] each: a level of the tree and the next
  double *least, *largest;
  int64_t* counts;  // [groups]
};

inline FiniteMemory finite_memory(int64_t n, Scratch& scratch) {
  const int64_t groups = blocks_of(n, FINITE_GROUP);
  FiniteMemory memory;
  memory.sums[0] = scratch.take<double>(groups);
  memory.sums[1] = scratch.take<double>(groups);
  memory.least = scratch.take<double>(groups);
  memory.largest = scratch.take<double>(groups);
  memory.counts = scratch.take<int64_t>(groups);
  return memory;
}

STPRUNE_DEVICE double infinity() { return double_of(0x7FF0000000000000ull); }

// Calls body(value) for a lane's numbers of block `number` of the n, in their order; infinity, which counts nowhere,
// stands in for what is missing in the last one. 32 bytes of a lane's loads are in flight together.
template <class T, class F>
STPRUNE_DEVICE void for_lane(const T* values, int64_t n, int64_t number, int lane, F body) {
  constexpr int EACH = 32 / sizeof(T);
  const int64_t first = number * FINITE_BLOCK + lane;
  for (int row = 0; row < FINITE_BLOCK / WARP; row += EACH) {
    T loaded[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      const int64_t index = first + (row + i) * WARP;
      loaded[i] = static_cast<T>(infinity());
      if (index < n) loaded[i] = input(values, index);
    }
#pragma unroll
    for (int i = 0; i < EACH; ++i) body(loaded[i]);
  }
}

template <class T>
struct FiniteGroups {
  static constexpr int THREADS = FINITE_THREADS;
  struct Shared {
    SharedArray<int64_t, WARP> counts;
    SharedArray<double, WARP> sums;
  };
  const T* values;  // [size]
  Size size;
  FiniteMemory memory;

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared& shared) const {
    const int64_t n = size.get();
    if (block.index() * FINITE_GROUP >= n) return;
    PerThread<double> sum, low, high;
    PerThread<int64_t> count;
    block.own([&](int t) {
      sum[t] = 0.0;
      count[t] = 0;
      low[t] = infinity();
      high[t] = -infinity();
      for_lane(values, n, block.index() * (THREADS / WARP) + t / WARP, t & (WARP - 1), [&](T loaded) {
        const double value = static_cast<double>(loaded);
        if (!(value - value == 0.0)) return;
        sum[t] += value;
        count[t] += 1;
        low[t] = value < low[t] ? value : low[t];
        high[t] = value > high[t] ? value : high[t];
      });
    });
    reduce_warp(block, sum, Sum{});
    const double all = sum_neighbours(block, shared.sums, sum);
    const int64_t all_count = reduce(block, shared.counts, count, Sum{});
    const double all_low = reduce(block, shared.sums, low, Least{}),
                 all_high = reduce(block, shared.sums, high, Most{});
    block.own([&](int t) {
      if (t != 0) return;
      memory.sums[0][block.index()] = all;
      memory.counts[block.index()] = all_count;
      memory.least[block.index()] = all_low;
      memory.largest[block.index()] = all_high;
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
  Size size;
  FiniteMemory memory;
  double* out;  // [4]

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared& shared) const {
    const int64_t groups = blocks_of(size.get(), FINITE_GROUP);
    PerThread<int64_t> count;
    PerThread<double> low, high;
    block.own([&](int t) {
      count[t] = 0;
      low[t] = infinity();
      high[t] = -infinity();
      for (int64_t i = t; i < groups; i += THREADS) {
        count[t] += memory.counts[i];
        low[t] = memory.least[i] < low[t] ? memory.least[i] : low[t];
        high[t] = memory.largest[i] > high[t] ? memory.largest[i] : high[t];
      }
    });
    const int64_t all = reduce(block, shared.counts, count, Sum{});
    const double all_low = reduce(block, shared.ends, low, Least{});
    const double all_high = reduce(block, shared.ends, high, Most{});
    const double sum = tree_sum(block, memory.sums, groups);
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
int finite_stats(const T* values, Size size, const FiniteMemory& memory, double* out, void* stream) {
  STPRUNE_TRY(launch(FiniteGroups<T>{values, size, memory}, blocks_of(size.most, FINITE_GROUP), stream));
  return launch(FiniteSettle{size, memory, out}, 1, stream);
}

// Mean of the finite entries; NaN when there are none, exact when all are equal.
STPRUNE_HOST_DEVICE double mean_of(const double* stats /* [4] */) {
  return stats[2] == stats[3] ? stats[2] : stats[0] / stats[1];
}

}  // namespace
}  // namespace stprune
