// Bernoulli draws: index i is kept when its random word is below p_i * 2^32.
#pragma once

#include "cuda/compact.h"

namespace stprune {
namespace {

template <class T>
struct BernoulliMark {
  static constexpr int THREADS = CHUNK_THREADS;
  struct Shared {
    SharedArray<uint32_t, WARP> warps;
  };
  const T* probability;  // [n]
  int64_t n;
  PhiloxKey key;
  uint32_t epoch;
  uint32_t* marks;   // [chunks * 256]
  uint32_t* counts;  // [chunks]

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared& shared) const {
    const int64_t chunk = block.index();
    PerThread<uint32_t> mark;
    block.own([&](int t) { mark[t] = 0; });
#pragma unroll 2
    for (int tile = 0; tile < SEGMENT_TILES; ++tile) {
      PerThread<Four<T>> p;
      PerThread<PhiloxWords> words;
      block.own([&](int t) {
        const int64_t first = chunk * CHUNK_KEYS + t / WARP * SEGMENT + tile * TILE;
        p[t] = load_tile(probability + first, n - first, t);
        words[t] = tile_words(key, epoch, STREAM_DRAW, first, t);
      });
      PerThread<Four<uint32_t>> ballots;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        PerThread<bool> kept;
        // A probability of 0 is never drawn, so the padding is not either.
        block.own([&](int t) {
          kept[t] = static_cast<double>(words[t].word[j]) < static_cast<double>(p[t].item[j]) * 0x1p32;
        });
        const PerThread<uint32_t> ballot = block.ballot(kept);
        block.own([&](int t) { ballots[t].item[j] = ballot[t]; });
      }
      block.own([&](int t) {
        if (((t & (WARP - 1)) >> 2) == tile) mark[t] = tile_word(ballots[t], t & 3);
      });
    }
    PerThread<uint32_t> count;
    block.own([&](int t) {
      marks[chunk * THREADS + t] = mark[t];
      count[t] = popcount(mark[t]);
    });
    const uint32_t total = reduce(block, shared.warps, count, Sum{});
    block.own([&](int t) {
      if (t == 0) counts[chunk] = pack_counts(total, 0);
    });
  }
};

struct BernoulliMemory {
  uint32_t *marks, *counts;
  ChunkPlaces places;
};

inline BernoulliMemory bernoulli_memory(int64_t n, Scratch& scratch) {
  const int64_t chunks = blocks_of(n, CHUNK_KEYS);
  BernoulliMemory memory;
  memory.marks = scratch.take<uint32_t>(chunks * CHUNK_THREADS);
  memory.counts = scratch.take<uint32_t>(chunks);
  memory.places = {scratch.take<int64_t>(chunks + 1), scratch.take<int64_t>(chunks + 1)};
  return memory;
}

}  // namespace
}  // namespace stprune
