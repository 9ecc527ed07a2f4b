// A stable radix sort of (code, index) pairs by ascending code, 8 bits a pass: count, scan, scatter.
#pragma once

#include "cuda/compact.h"

namespace stprune {
namespace {

constexpr int SORT_BITS = 8;
constexpr int SORT_BINS = 1 << SORT_BITS;
constexpr int SORT_THREADS = 256;
constexpr int SORT_STEPS = 16;  // pairs a thread holds
constexpr int SORT_TILE = SORT_THREADS * SORT_STEPS;
static_assert(SORT_BINS == SORT_THREADS);

template <class Code>
struct Pairs {
  Code* codes;
  int64_t* indices;
};

// offsets[bin * tiles + tile] = pairs of the tile in the bin.
template <class Code>
struct SortCount {
  static constexpr int THREADS = SORT_THREADS;
  struct Shared {
    Histogram<SORT_BINS> histogram;
  };
  const Code* codes;  // [n]
  int64_t n, tiles;
  int shift;
  int64_t* offsets;  // [256 * tiles]

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared& shared) const {
    clear(block, shared.histogram);
    for (int step = 0; step < SORT_STEPS; ++step) {
      PerThread<int> bin;
      block.own([&](int t) {
        const int64_t i = block.index() * SORT_TILE + step * THREADS + t;
        bin[t] = i < n ? static_cast<int>((codes[i] >> shift) & (SORT_BINS - 1)) : -1;
      });
      count_bins(block, shared.histogram, bin);
    }
    block.sync();
    block.own([&](int t) { offsets[t * tiles + block.index()] = shared.histogram[t]; });
  }
};

// Exclusive prefix sums of every bin's tiles in place, one block a bin, and the bins' sizes.
struct SortScan {
  static constexpr int THREADS = 256;
  struct Shared {
    SharedArray<int64_t, WARP> warps;
  };
  int64_t* offsets;  // [256 * tiles]
  int64_t tiles;
  int64_t* sizes;  // [256]

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared& shared) const {
    int64_t* values = offsets + block.index() * tiles;
    int64_t total = 0;
    for (int64_t first = 0; first < tiles; first += THREADS) {
      PerThread<int64_t> before;
      block.own([&](int t) { before[t] = first + t < tiles ? values[first + t] : 0; });
      const int64_t sum = exclusive_scan(block, shared.warps, before);
      block.own([&](int t) {
        if (first + t < tiles) values[first + t] = total + before[t];
      });
      total += sum;
    }
    block.own([&](int t) {
      if (t == 0) sizes[block.index()] = total;
    });
  }
};

// A warp's pairs are consecutive; it meets them 32 at a time and counts equal digits in order, so that the sort is
// stable.
template <class Code>
struct SortScatter {
  static constexpr int THREADS = SORT_THREADS;
  static constexpr int WARPS = THREADS / WARP;
  struct Shared {
    SharedArray<uint32_t, WARPS * SORT_BINS> counts;
    SharedArray<int64_t, SORT_BINS> starts;
    SharedArray<int64_t, WARP> warps;
  };
  Pairs<Code> from, to;  // [n]
  int64_t n, tiles;
  int shift;
  const int64_t* offsets;  // [256 * tiles] in the bin
  const int64_t* sizes;    // [256] of the bins

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared& shared) const {
    PerThread<int64_t> start;
    block.own([&](int t) { start[t] = sizes[t]; });
    exclusive_scan(block, shared.warps, start);
    block.phase([&](int t) {
      shared.starts[t] = start[t] + offsets[t * tiles + block.index()];
      for (int i = t; i < WARPS * SORT_BINS; i += THREADS) shared.counts[i] = 0u;
    });
    PerThread<uint32_t> place[SORT_STEPS];
    const auto position = [&](int t, int step) {
      return block.index() * SORT_TILE + (t / WARP) * (WARP * SORT_STEPS) + step * WARP + (t & (WARP - 1));
    };
    const auto digit = [&](int64_t i) { return static_cast<uint32_t>((from.codes[i] >> shift) & (SORT_BINS - 1)); };
#pragma unroll
    for (int step = 0; step < SORT_STEPS; ++step) {
      PerThread<uint32_t> key;
      block.own([&](int t) {
        const int64_t i = position(t, step);
        key[t] = i < n ? digit(i) : SORT_BINS;
      });
      const PerThread<uint32_t> peers = block.match_any(key);
      block.phase([&](int t) {
        if (key[t] < SORT_BINS)
          place[step][t] = shared.counts[t / WARP * SORT_BINS + key[t]] + popcount(peers[t] & lanes_below(t));
      });
      block.phase([&](int t) {
        if (key[t] >= SORT_BINS || (peers[t] & lanes_below(t)) != 0) return;
        shared.counts[t / WARP * SORT_BINS + key[t]] += static_cast<uint32_t>(popcount(peers[t]));
      });
    }
    // Counts of a bin become where each warp's pairs of it start in the tile.
    block.phase([&](int t) {
      uint32_t next = 0;
      for (int warp = 0; warp < WARPS; ++warp) {
        const uint32_t count = shared.counts[warp * SORT_BINS + t];
        shared.counts[warp * SORT_BINS + t] = next;
        next += count;
      }
    });
    block.own([&](int t) {
#pragma unroll
      for (int step = 0; step < SORT_STEPS; ++step) {
        const int64_t i = position(t, step);
        if (i >= n) continue;
        const uint32_t bin = digit(i);
        const int64_t j = shared.starts[bin] + shared.counts[t / WARP * SORT_BINS + bin] + place[step][t];
        to.codes[j] = from.codes[i];
        to.indices[j] = from.indices[i];
      }
    });
  }
};

template <class Code>
struct SortMemory {
  Pairs<Code> pairs, other;  // [n] each
  int64_t* offsets;          // [256 * tiles]
  int64_t* sizes;            // [256]
};

template <class Code>
SortMemory<Code> sort_memory(int64_t n, Scratch& scratch) {
  SortMemory<Code> memory;
  memory.pairs = {scratch.take<Code>(n), scratch.take<int64_t>(n)};
  memory.other = {scratch.take<Code>(n), scratch.take<int64_t>(n)};
  memory.offsets = scratch.take<int64_t>(SORT_BINS * blocks_of(n, SORT_TILE));
  memory.sizes = scratch.take<int64_t>(SORT_BINS);
  return memory;
}

// Sorts memory.pairs; the number of passes is even, so the result is there again.
template <class Code>
int sort_pairs_by_code(int64_t n, const SortMemory<Code>& memory, void* stream) {
  static_assert(8 * sizeof(Code) / SORT_BITS % 2 == 0);
  const int64_t tiles = blocks_of(n, SORT_TILE);
  Pairs<Code> from = memory.pairs, to = memory.other;
  for (int shift = 0; shift < static_cast<int>(8 * sizeof(Code)); shift += SORT_BITS) {
    STPRUNE_TRY(launch(SortCount<Code>{from.codes, n, tiles, shift, memory.offsets}, tiles, stream));
    STPRUNE_TRY(launch(SortScan{memory.offsets, tiles, memory.sizes}, SORT_BINS, stream));
    STPRUNE_TRY(launch(SortScatter<Code>{from, to, n, tiles, shift, memory.offsets, memory.sizes}, tiles, stream));
    const Pairs<Code> sorted = to;
    to = from;
    from = sorted;
  }
  return 0;
}

}  // namespace
}  // namespace stprune
