// draw_threshold: what lies at or above the mean, and a share of the rest, with weights. See
// stprune/reference/draw_threshold.py.
#include "cuda/finite_stats.h"
#include "cuda/launchers.h"
#include "cuda/permute.h"

namespace stprune {
namespace {

constexpr int SMALL_WORDS = static_cast<int>(PERMUTATION_SMALL / 32);

struct ThresholdMemory {
  double* stats;  // [4]
  FiniteMemory finite;
  uint32_t *below, *kept;  // [chunks * 256] marks
  uint32_t* counts;        // [chunks]
  ChunkPlaces places;
  uint32_t* head;  // [32] which ranks of a small pool are kept
};

inline ThresholdMemory threshold_memory(int64_t n, Scratch& scratch) {
  const int64_t chunks = blocks_of(n, CHUNK_KEYS);
  ThresholdMemory memory;
  memory.stats = scratch.take<double>(4);
  memory.finite = finite_memory(n, scratch);
  memory.below = scratch.take<uint32_t>(chunks * CHUNK_THREADS);
  memory.kept = scratch.take<uint32_t>(chunks * CHUNK_THREADS);
  memory.counts = scratch.take<uint32_t>(chunks);
  memory.places = {scratch.take<int64_t>(chunks + 1), scratch.take<int64_t>(chunks + 1)};
  memory.head = scratch.take<uint32_t>(SMALL_WORDS);
  return memory;
}

// Marks what lies below the mean and, where each is drawn on its own, what is kept; counts what the next step needs.
template <class T, bool EXACT>
struct ThresholdMark {
  static constexpr int THREADS = CHUNK_THREADS;
  struct Shared {
    SharedArray<uint32_t, WARP> warps;
  };
  const T* scores;  // [n]
  int64_t n;
  double limit;  // keep * 2^32
  PhiloxKey key;
  uint32_t epoch;
  ThresholdMemory memory;

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared& shared) const {
    const int64_t chunk = block.index();
    const T threshold = static_cast<T>(mean_of(memory.stats));
    PerThread<uint32_t> below, kept;
    block.own([&](int t) { below[t] = kept[t] = 0; });
#pragma unroll 2
    for (int tile = 0; tile < SEGMENT_TILES; ++tile) {
      PerThread<Four<T>> score;
      PerThread<PhiloxWords> words;
      block.own([&](int t) {
        const int64_t first = chunk * CHUNK_KEYS + t / WARP * SEGMENT + tile * TILE;
        score[t] = load_tile(scores + first, n - first, t);
        if (!EXACT) words[t] = tile_words(key, epoch, STREAM_DRAW, first, t);
      });
      PerThread<Four<uint32_t>> below_ballots, kept_ballots;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        PerThread<bool> is_below, is_kept;
        block.own([&](int t) {
          const int64_t first = chunk * CHUNK_KEYS + t / WARP * SEGMENT + tile * TILE;
          const bool inside = first + tile_offset(t, j) < n;
          // NaN is not below.
          is_below[t] = inside && score[t].item[j] < threshold;
          is_kept[t] = inside && !is_below[t];
          if (!EXACT) is_kept[t] = is_kept[t] || (inside && static_cast<double>(words[t].word[j]) < limit);
        });
        const PerThread<uint32_t> below_ballot = block.ballot(is_below), kept_ballot = block.ballot(is_kept);
        block.own([&](int t) {
          below_ballots[t].item[j] = below_ballot[t];
          kept_ballots[t].item[j] = kept_ballot[t];
        });
      }
      block.own([&](int t) {
        if (((t & (WARP - 1)) >> 2) != tile) return;
        below[t] = tile_word(below_ballots[t], t & 3);
        kept[t] = tile_word(kept_ballots[t], t & 3);
      });
    }
    PerThread<uint32_t> count;
    block.own([&](int t) {
      memory.below[chunk * THREADS + t] = below[t];
      memory.kept[chunk * THREADS + t] = kept[t];
      count[t] = popcount(EXACT ? below[t] : kept[t]);
    });
    const uint32_t total = reduce(block, shared.warps, count, Sum{});
    block.own([&](int t) {
      if (t == 0) memory.counts[chunk] = pack_counts(total, 0);
    });
  }
};

// Which ranks of a pool of fewer than 1,024 lie in the head of its random order.
struct SmallHead {
  static constexpr int THREADS = 256;
  struct Shared {
    SmallShared small;
    SharedArray<uint32_t, SMALL_WORDS> bits;
  };
  int64_t pool, size;
  PhiloxKey key;
  uint32_t epoch;
  uint32_t* head;  // [32]

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared& shared) const {
    permute_small(block, shared.small, static_cast<int>(pool), key, epoch, STREAM_SHUFFLE, 0);
    block.phase([&](int t) {
      if (t < SMALL_WORDS) shared.bits[t] = 0u;
    });
    block.phase([&](int t) {
      for (int64_t i = t; i < size; i += THREADS) {
        const int rank = shared.small.items[static_cast<int>(i)];
        shared.bits.merge(rank / 32, 1u << (rank % 32));
      }
    });
    block.own([&](int t) {
      if (t < SMALL_WORDS) head[t] = shared.bits[t];
    });
  }
};

// Keeps those below whose rank lies in the head of the pool's random order: each asks for its place there, so nothing
// is scattered.
struct KeepHead {
  static constexpr int THREADS = CHUNK_THREADS;
  struct Shared {
    SharedArray<uint32_t, WARP> warps;
    SharedArray<uint16_t, CHUNK_KEYS> list;
    SharedArray<uint32_t, CHUNK_THREADS> chosen;
  };
  Permutation permutation;  // of a pool that is not small
  int64_t pool, head;
  ThresholdMemory memory;

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared& shared) const {
    const int64_t chunk = block.index(), first = memory.places.certain[chunk];
    PerThread<uint32_t> below, before;
    block.own([&](int t) {
      below[t] = memory.below[chunk * THREADS + t];
      before[t] = static_cast<uint32_t>(popcount(below[t]));
    });
    const int64_t total = exclusive_scan(block, shared.warps, before);
    block.own([&](int t) { shared.chosen[t] = 0u; });
    list_bits(block, shared.list, below, before);
    block.phase([&](int t) {
      for (int64_t j = t; j < total; j += THREADS) {
        const int64_t rank = first + j;
        const bool taken = pool < PERMUTATION_SMALL ? (memory.head[rank / 32] >> (rank % 32) & 1) != 0
                                                    : position_of(permutation, rank) < head;
        const int place = shared.list[static_cast<int>(j)];
        if (taken) shared.chosen.merge(place / 32, 1u << (place % 32));
      }
    });
    PerThread<uint32_t> count;
    block.own([&](int t) {
      const uint32_t kept = memory.kept[chunk * THREADS + t] | shared.chosen[t];
      memory.kept[chunk * THREADS + t] = kept;
      count[t] = static_cast<uint32_t>(popcount(kept));
    });
    const uint32_t all = reduce(block, shared.warps, count, Sum{});
    block.own([&](int t) {
      if (t == 0) memory.counts[chunk] = pack_counts(all, 0);
    });
  }
};

template <class T>
struct ThresholdSink {
  const T* scores;
  const double* stats;
  float weight;  // of what lies below
  int64_t* indices;
  float* weights;
  T threshold;

  STPRUNE_DEVICE void begin() { threshold = static_cast<T>(mean_of(stats)); }
  STPRUNE_DEVICE void operator()(int64_t place, int64_t index) const {
    indices[place] = index;
    weights[place] = scores[index] < threshold ? weight : 1.0f;
  }
};

template <class T>
int mark(const T* scores, int64_t n, double keep, bool exact, int64_t seed, int64_t epoch, void* scratch,
         int64_t* drawn, void* stream) {
  Scratch parts{static_cast<char*>(scratch)};
  const ThresholdMemory memory = threshold_memory(n, parts);
  const int64_t chunks = blocks_of(n, CHUNK_KEYS);
  const PhiloxKey key = philox_key(seed);
  const uint32_t low_epoch = static_cast<uint32_t>(epoch);
  const double limit = keep * 0x1p32;
  STPRUNE_TRY(finite_stats(scores, {n, nullptr}, memory.finite, memory.stats, stream));
  if (!exact) {
    STPRUNE_TRY(launch(ThresholdMark<T, false>{scores, n, limit, key, low_epoch, memory}, chunks, stream));
    STPRUNE_TRY(launch(ScanChunks{memory.counts, chunks, memory.places}, 1, stream));
    return read_back(drawn, memory.places.certain + chunks, 1, stream);
  }
  STPRUNE_TRY(launch(ThresholdMark<T, true>{scores, n, limit, key, low_epoch, memory}, chunks, stream));
  STPRUNE_TRY(launch(ScanChunks{memory.counts, chunks, memory.places}, 1, stream));
  int64_t pool = 0;
  STPRUNE_TRY(read_back(&pool, memory.places.certain + chunks, 1, stream));
  int64_t head = static_cast<int64_t>(keep * static_cast<double>(pool));
  if (head == 0 && pool > 0) {
    const uint32_t word = philox_word_at(key, low_epoch, STREAM_DRAW, 0);
    head = static_cast<double>(word) < keep * static_cast<double>(pool) * 0x1p32;
  }
  *drawn = n - pool + head;
  Permutation permutation{};
  if (pool < PERMUTATION_SMALL) {
    STPRUNE_TRY(launch(SmallHead{pool, head, key, low_epoch, memory.head}, 1, stream));
  } else {
    permutation = make_permutation(pool, key, low_epoch, STREAM_SHUFFLE, 0);
  }
  STPRUNE_TRY(launch(KeepHead{permutation, pool, head, memory}, chunks, stream));
  return launch(ScanChunks{memory.counts, chunks, memory.places}, 1, stream);
}

template <class T>
int emit(const T* scores, int64_t n, double keep, void* scratch, int64_t* indices, float* weights, void* stream) {
  Scratch parts{static_cast<char*>(scratch)};
  const ThresholdMemory memory = threshold_memory(n, parts);
  const ThresholdSink<T> sink{scores, memory.stats, 1.0f / static_cast<float>(keep), indices, weights, T(0)};
  return launch(EmitChunks<ThresholdSink<T>>{memory.kept, nullptr, nullptr, memory.places, sink},
                blocks_of(n, CHUNK_KEYS), stream);
}

}  // namespace
}  // namespace stprune

using namespace stprune;

extern "C" {

int64_t stprune_cuda_draw_threshold_scratch(int64_t n) {
  Scratch scratch{nullptr};
  threshold_memory(n, scratch);
  return scratch.used;
}

int stprune_cuda_draw_threshold_mark(int wide, const void* scores, int64_t n, double keep, int exact, int64_t seed,
                                     int64_t epoch, void* scratch, int64_t* drawn, void* stream) {
  return wide ? mark(static_cast<const double*>(scores), n, keep, exact != 0, seed, epoch, scratch, drawn, stream)
              : mark(static_cast<const float*>(scores), n, keep, exact != 0, seed, epoch, scratch, drawn, stream);
}

int stprune_cuda_draw_threshold_emit(int wide, const void* scores, int64_t n, double keep, void* scratch,
                                     int64_t* indices, float* weights, void* stream) {
  return wide ? emit(static_cast<const double*>(scores), n, keep, scratch, indices, weights, stream)
              : emit(static_cast<const float*>(scores), n, keep, scratch, indices, weights, stream);
}
}
