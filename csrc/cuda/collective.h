// What whole blocks do together: prefix sums, reductions, histograms and the bin of a rank in them, small sorts.
#pragma once

#include "cuda/block.h"

namespace stprune {
namespace {

// value[t] becomes the sum of the values of the threads before t; returns the sum of all. A fixed order: the result
// does not depend on timing.
template <int THREADS, class T>
STPRUNE_DEVICE T exclusive_scan(Block<THREADS>& block, SharedArray<T, WARP>& warps, PerThread<T>& value) {
  PerThread<T> sum = value;
  for (int distance = 1; distance < WARP; distance *= 2) {
    const PerThread<T> before = block.shuffle_up(sum, distance);
    block.own([&](int t) {
      if ((t & (WARP - 1)) >= distance) sum[t] += before[t];
    });
  }
  block.phase([&](int t) {
    if ((t & (WARP - 1)) == WARP - 1) warps[t / WARP] = sum[t];
  });
  block.own([&](int t) {
    T before = 0;
    for (int warp = 0; warp < t / WARP; ++warp) before += warps[warp];
    value[t] = before + sum[t] - value[t];
  });
  T total = 0;
  for (int warp = 0; warp < THREADS / WARP; ++warp) total += warps[warp];
  block.sync();
  return total;
}

struct Sum {
  template <class T>
  STPRUNE_DEVICE T operator()(T a, T b) const {
    return a + b;
  }
};
struct Least {
  template <class T>
  STPRUNE_DEVICE T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};
struct Most {
  template <class T>
  STPRUNE_DEVICE T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};

// The values of a warp combined, in each of its threads: the upper half of them with the lower half until one is left.
template <int THREADS, class T, class F>
STPRUNE_DEVICE void reduce_warp(Block<THREADS>& block, PerThread<T>& value, F combine) {
  for (int mask = WARP / 2; mask > 0; mask /= 2) {
    const PerThread<T> other = block.shuffle_xor(value, mask);
    block.own([&](int t) { value[t] = combine(value[t], other[t]); });
  }
}

// Combines the values of all threads with an associative, commutative operation.
template <int THREADS, class T, class F>
STPRUNE_DEVICE T reduce(Block<THREADS>& block, SharedArray<T, WARP>& warps, PerThread<T> value, F combine) {
  reduce_warp(block, value, combine);
  block.phase([&](int t) {
    if ((t & (WARP - 1)) == 0) warps[t / WARP] = value[t];
  });
  T total = warps[0];
  for (int warp = 1; warp < THREADS / WARP; ++warp) total = combine(total, static_cast<T>(warps[warp]));
  block.sync();
  return total;
}

// The sum of the warps' values, which every thread of a warp holds, neighbour by neighbour: of a tree of sums the part
// over as many leaves as the block has warps.
template <int THREADS>
STPRUNE_DEVICE double sum_neighbours(Block<THREADS>& block, SharedArray<double, WARP>& warps, PerThread<double> value) {
  block.phase([&](int t) {
    if ((t & (WARP - 1)) == 0) warps[t / WARP] = value[t];
  });
  PerThread<double> sum;
  block.own([&](int t) { sum[t] = warps[t & (THREADS / WARP - 1)]; });
  for (int mask = 1; mask < THREADS / WARP; mask *= 2) {
    const PerThread<double> other = block.shuffle_xor(sum, mask);
    block.own([&](int t) { sum[t] += other[t]; });
  }
  block.sync();
  return sum[0];
}

template <int BINS>
using Histogram = SharedArray<uint32_t, BINS>;

template <int THREADS, int BINS>
STPRUNE_DEVICE void clear(Block<THREADS>& block, Histogram<BINS>& histogram) {
  block.phase([&](int t) {
    for (int bin = t; bin < BINS; bin += THREADS) histogram[bin] = 0u;
  });
}

// Counts each thread's bin; -1 is none. The lanes that share the bin of the warp's first lane with one are counted at
// once: where all keys are equal, 32 additions to one address would queue. No barrier.
template <int THREADS, int BINS>
STPRUNE_DEVICE void count_bins(Block<THREADS>& block, Histogram<BINS>& histogram, const PerThread<int>& bin) {
  PerThread<bool> flag;
  block.own([&](int t) { flag[t] = bin[t] >= 0; });
  const PerThread<uint32_t> counted = block.ballot(flag);
  PerThread<int> leader;
  block.own([&](int t) { leader[t] = counted[t] == 0 ? 0 : first_bit(counted[t]); });
  const PerThread<int> common = block.shuffle(bin, leader);
  block.own([&](int t) { flag[t] = bin[t] >= 0 && bin[t] == common[t]; });
  const PerThread<uint32_t> together = block.ballot(flag);
  block.own([&](int t) {
    if (bin[t] < 0) return;
    if (bin[t] != common[t]) {
      histogram.add(bin[t], 1u);
    } else if ((t & (WARP - 1)) == leader[t]) {
      histogram.add(bin[t], static_cast<uint32_t>(popcount(together[t])));
    }
  });
}

struct RankShared {
  SharedArray<int64_t, WARP> warps;
  SharedArray<int64_t, 1> bin, rank;
};

// The bin that holds item number `rank` (from 1) when bins are met from the last to the first, and the item's rank in
// it. count(bin) is the number of items of a bin; they must be at least `rank` in all.
template <int BINS, int THREADS, class F>
STPRUNE_DEVICE int64_t bin_of_rank(Block<THREADS>& block, RankShared& shared, F count, int64_t& rank) {
  constexpr int EACH = (BINS + THREADS - 1) / THREADS;
  PerThread<int64_t> own, before;
  block.own([&](int t) {
    own[t] = 0;
    for (int i = 0; i < EACH; ++i) {
      const int from_top = t * EACH + i;
      if (from_top < BINS) own[t] += count(BINS - 1 - from_top);
    }
    before[t] = own[t];
  });
  exclusive_scan(block, shared.warps, before);
  block.phase([&](int t) {
    if (rank <= before[t] || rank > before[t] + own[t]) return;
    int64_t rest = rank - before[t];
    int bin = BINS - 1 - t * EACH;
    for (; rest > count(bin); --bin) rest -= count(bin);
    shared.bin[0] = int64_t{bin};
    shared.rank[0] = rest;
  });
  const int64_t found = shared.bin[0];
  rank = shared.rank[0];
  block.sync();
  return found;
}

// Sorts size pairs, a power of two at most N, by ascending key and, where keys are equal, ascending item (bitonic).
template <int THREADS, int N, class Key>
STPRUNE_DEVICE void sort_pairs(Block<THREADS>& block, SharedArray<Key, N>& keys, SharedArray<uint16_t, N>& items,
                               int size) {
  for (int run = 2; run <= size; run *= 2) {
    for (int stride = run / 2; stride > 0; stride /= 2) {
      block.phase([&](int t) {
        for (int pair = t; pair < size / 2; pair += THREADS) {
          const int i = ((pair & -stride) << 1) | (pair & (stride - 1)), j = i + stride;
          const Key a = keys[i], b = keys[j];
          const uint16_t p = items[i], q = items[j];
          const bool ascending = (i & run) == 0, ordered = a < b || (a == b && p < q);
          if (ascending == ordered) continue;
          keys[i] = b;
          keys[j] = a;
          items[i] = q;
          items[j] = p;
        }
      });
    }
  }
}

STPRUNE_HOST_DEVICE int power_of_two_from(int64_t n) {
  int size = 1;
  while (size < n) size *= 2;
  return size;
}

}  // namespace
}  // namespace stprune
