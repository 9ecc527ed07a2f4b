// Draws of a number of samples that the data decides: marks, a word for 32 samples, then their indices.
#pragma once

#include "cuda/compact.h"

namespace stprune {
namespace {

// Marks of a chunk, one word a thread: choose(values, first, lane) tells by the bits 0 .. 3 which of a lane's four
// elements of the tile at `first` are marked; 0 stands in for those from n on.
template <class T, class F>
STPRUNE_DEVICE PerThread<uint32_t> marks_of(Block<CHUNK_THREADS>& block, const T* from, int64_t n, F choose) {
  PerThread<uint32_t> marks;
  block.own([&](int t) { marks[t] = 0; });
#pragma unroll 2
  for (int tile = 0; tile < SEGMENT_TILES; ++tile) {
    PerThread<uint32_t> chosen;
    block.own([&](int t) {
      const int64_t first = block.index() * CHUNK_KEYS + t / WARP * SEGMENT + tile * TILE;
      chosen[t] = choose(load_tile(from + first, n - first, t), first, t);
    });
    PerThread<Four<uint32_t>> ballots;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      PerThread<bool> is_marked;
      block.own([&](int t) { is_marked[t] = (chosen[t] >> j & 1u) != 0; });
      const PerThread<uint32_t> ballot = block.ballot(is_marked);
      block.own([&](int t) { ballots[t].item[j] = ballot[t]; });
    }
    block.own([&](int t) {
      if (((t & (WARP - 1)) >> 2) == tile) marks[t] = tile_word(ballots[t], t & 3);
    });
  }
  return marks;
}

struct MarkShared {
  SharedArray<uint32_t, WARP> warps;
};

struct MarkMemory {
  uint32_t* marks;   // [chunks * 256]
  uint32_t* counts;  // [chunks]
  ChunkPlaces places;

  // Writes a chunk's marks and how many there are.
  STPRUNE_DEVICE void write(Block<CHUNK_THREADS>& block, SharedArray<uint32_t, WARP>& warps,
                            const PerThread<uint32_t>& mark) const {
    PerThread<uint32_t> count;
    block.own([&](int t) {
      marks[block.index() * CHUNK_THREADS + t] = mark[t];
      count[t] = popcount(mark[t]);
    });
    const uint32_t total = reduce(block, warps, count, Sum{});
    block.own([&](int t) {
      if (t == 0) counts[block.index()] = pack_counts(total, 0);
    });
  }
};

inline MarkMemory mark_memory(int64_t n, Scratch& scratch) {
  const int64_t chunks = blocks_of(n, CHUNK_KEYS);
  MarkMemory memory;
  memory.marks = scratch.take<uint32_t>(chunks * CHUNK_THREADS);
  memory.counts = scratch.take<uint32_t>(chunks);
  memory.places = {scratch.take<int64_t>(chunks + 1), scratch.take<int64_t>(chunks + 1)};
  return memory;
}

// Waits for how many marks there are.
inline int count_marks(int64_t n, const MarkMemory& memory, int64_t* marked, void* stream) {
  const int64_t chunks = blocks_of(n, CHUNK_KEYS);
  STPRUNE_TRY(launch(ScanChunks{memory.counts, chunks, memory.places}, 1, stream));
  return read_back(marked, memory.places.certain + chunks, 1, stream);
}

inline int emit_marks(int64_t n, const MarkMemory& memory, int64_t* out, void* stream) {
  const EmitChunks<IndexSink> emit{memory.marks, nullptr, nullptr, memory.places, IndexSink{out}};
  return launch(emit, blocks_of(n, CHUNK_KEYS), stream);
}

}  // namespace
}  // namespace stprune
