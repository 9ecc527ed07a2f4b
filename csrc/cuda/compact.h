// From marks to ascending indices: a prefix sum over the chunks' counts, then every chunk writes its own. A mark is
// either certain or tied; of the tied ones the first `quota` are taken.
#pragma once

#include "cuda/collective.h"
#include "cuda/keys.h"

namespace stprune {
namespace {

// Counts of one chunk in one number: certain marks in the low half, tied ones in the high half. Both are at most 8,192.
STPRUNE_HOST_DEVICE uint32_t pack_counts(uint32_t certain, uint32_t tied) { return certain | tied << 16; }
STPRUNE_HOST_DEVICE int64_t certain_of(uint32_t packed) { return packed & 0xFFFFu; }
STPRUNE_HOST_DEVICE int64_t tied_of(uint32_t packed) { return packed >> 16; }

// What lies before every chunk.
struct ChunkPlaces {
  int64_t* certain;  // [chunks + 1]
  int64_t* tied;     // [chunks + 1]
};

// Exclusive prefix sums of the chunks' counts, by one block.
struct ScanChunks {
  static constexpr int THREADS = 1024;
  // Consecutive chunks a thread takes at a time: 8,192 chunks, 67 million keys, a turn.
  static constexpr int EACH = 8;
  struct Shared {
    SharedArray<int64_t, WARP> warps;
  };
  const uint32_t* counts;  // [chunks]
  int64_t chunks;
  ChunkPlaces places;

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared& shared) const {
    int64_t certain = 0, tied = 0;
    for (int64_t first = 0; first < chunks; first += THREADS * EACH) {
      PerThread<int64_t> certain_before, tied_before;
      block.own([&](int t) {
        certain_before[t] = tied_before[t] = 0;
        for (int i = 0; i < EACH; ++i) {
          const int64_t chunk = first + t * EACH + i;
          const uint32_t packed = chunk < chunks ? counts[chunk] : 0;
          certain_before[t] += certain_of(packed);
          tied_before[t] += tied_of(packed);
        }
      });
      const int64_t all_certain = exclusive_scan(block, shared.warps, certain_before);
      const int64_t all_tied = exclusive_scan(block, shared.warps, tied_before);
      block.own([&](int t) {
        int64_t next_certain = certain + certain_before[t], next_tied = tied + tied_before[t];
        for (int i = 0; i < EACH; ++i) {
          const int64_t chunk = first + t * EACH + i;
          if (chunk >= chunks) break;
          places.certain[chunk] = next_certain;
          places.tied[chunk] = next_tied;
          next_certain += certain_of(counts[chunk]);
          next_tied += tied_of(counts[chunk]);
        }
      });
      certain += all_certain;
      tied += all_tied;
    }
    block.own([&](int t) {
      if (t != 0) return;
      places.certain[chunks] = certain;
      places.tied[chunks] = tied;
    });
  }
};

// Clears all but the first `keep` bits.
STPRUNE_DEVICE uint32_t first_bits(uint32_t bits, int64_t keep) {
  if (keep <= 0) return 0;
  for (int extra = popcount(bits) - static_cast<int>(least(keep, 32)); extra > 0; --extra) {
    bits &= ~(1u << last_bit(bits));
  }
  return bits;
}

// Writes the positions of set bits, one word a thread, to list[before[t]], list[before[t] + 1], ...
template <int THREADS, int N>
STPRUNE_DEVICE void list_bits(Block<THREADS>& block, SharedArray<uint16_t, N>& list, const PerThread<uint32_t>& word,
                              const PerThread<uint32_t>& before) {
  block.phase([&](int t) {
    int place = static_cast<int>(before[t]);
    for (uint32_t bits = word[t]; bits != 0; bits &= bits - 1) {
      list[place++] = static_cast<uint16_t>(32 * t + first_bit(bits));
    }
  });
}

// Writes the indices of a chunk's marks. sink(place, index) stores the place-th of them; sink.begin() comes first.
template <class Sink>
struct EmitChunks {
  static constexpr int THREADS = CHUNK_THREADS;
  struct Shared {
    SharedArray<uint32_t, WARP> warps;
    SharedArray<uint16_t, CHUNK_KEYS> list;
  };
  const uint32_t* certain;  // [chunks * 256] marks
  const uint32_t* tied;     // the same; null when there are none
  const int64_t* quota;     // how many of the tied are taken; null when there are none
  ChunkPlaces places;
  Sink sink;

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared& shared) const {
    Sink to = sink;
    to.begin();
    const int64_t chunk = block.index();
    const int64_t ties_before = tied == nullptr ? 0 : places.tied[chunk], take = tied == nullptr ? 0 : *quota;
    PerThread<uint32_t> word, tie, before;
    block.own([&](int t) {
      const int64_t i = chunk * THREADS + t;
      word[t] = certain[i];
      tie[t] = tied == nullptr ? 0 : tied[i];
      before[t] = pack_counts(popcount(word[t]), popcount(tie[t]));
    });
    exclusive_scan(block, shared.warps, before);
    block.own([&](int t) {
      word[t] |= first_bits(tie[t], take - ties_before - tied_of(before[t]));
      before[t] = static_cast<uint32_t>(popcount(word[t]));
    });
    const int64_t total = exclusive_scan(block, shared.warps, before);
    list_bits(block, shared.list, word, before);
    const int64_t place = places.certain[chunk] + least(ties_before, take);
    block.own([&](int t) {
      for (int64_t j = t; j < total; j += THREADS) to(place + j, chunk * CHUNK_KEYS + shared.list[j]);
    });
  }
};

struct IndexSink {
  int64_t* out;

  STPRUNE_DEVICE void begin() {}
  STPRUNE_DEVICE void operator()(int64_t place, int64_t index) const { out[place] = index; }
};

// 0, 1, 2, ...
template <class Sink>
struct EmitAll {
  static constexpr int THREADS = 256;
  static constexpr int EACH = 4;
  struct Shared {};
  int64_t n;
  Sink sink;

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared&) const {
    Sink to = sink;
    to.begin();
    block.own([&](int t) {
      for (int i = 0; i < EACH; ++i) {
        const int64_t index = (block.index() * EACH + i) * THREADS + t;
        if (index < n) to(index, index);
      }
    });
  }
};

template <class Sink>
int emit_all(int64_t n, const Sink& sink, void* stream) {
  return launch(EmitAll<Sink>{n, sink}, blocks_of(n, EmitAll<Sink>::THREADS * EmitAll<Sink>::EACH), stream);
}

// Hands out parts of one piece of scratch memory. Without a base it only counts bytes.
struct Scratch {
  char* base;
  int64_t used = 0;

  template <class T>
  T* take(int64_t count) {
    T* part = base == nullptr ? nullptr : reinterpret_cast<T*>(base + used);
    // 256 bytes: what the allocator itself aligns to.
    used += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
    return part;
  }
};

}  // namespace
}  // namespace stprune
