// draw_spaced: the high windows, and every spacing-th of each run of low windows far from all of them. The free windows
// between two high ones are one run, so that a window's fate follows from the nearest high ones on either side.
#include "cuda/chosen.h"
#include "cuda/launchers.h"

namespace stprune {
namespace {

// Mirrors stprune/reference/spacing.py.
constexpr uint32_t STREAM_SPACED = 9;
constexpr int64_t NOWHERE_AFTER = int64_t{1} << 62;

struct SpacedMemory {
  MarkMemory marks;  // of high windows, then of kept ones
  int64_t* first;    // [chunks] the first high window of a chunk, or NOWHERE_AFTER,
  int64_t* last;     // [chunks] and the last one, or -1
};

inline SpacedMemory spaced_memory(int64_t n, Scratch& scratch) {
  const int64_t chunks = blocks_of(n, CHUNK_KEYS);
  SpacedMemory memory;
  memory.marks = mark_memory(n, scratch);
  memory.first = scratch.take<int64_t>(chunks);
  memory.last = scratch.take<int64_t>(chunks);
  return memory;
}

template <class T>
struct HighWindows {
  static constexpr int THREADS = CHUNK_THREADS;
  struct Shared {
    SharedArray<int64_t, WARP> warps;
  };
  const T* scores;  // [n]
  int64_t n;
  double threshold;
  SpacedMemory memory;

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared& shared) const {
    const auto choose = [&](const Four<T>& score, int64_t first, int lane) {
      uint32_t high = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        // Not low: NaN is high.
        const bool low = static_cast<double>(score.item[j]) < threshold;
        high |= static_cast<uint32_t>(first + tile_offset(lane, j) < n && !low) << j;
      }
      return high;
    };
    const PerThread<uint32_t> high = marks_of(block, scores, n, choose);
    PerThread<int64_t> least_of, most_of;
    block.own([&](int t) {
      const int64_t word = block.index() * THREADS + t;
      memory.marks.marks[word] = high[t];
      least_of[t] = high[t] == 0 ? NOWHERE_AFTER : 32 * word + first_bit(high[t]);
      most_of[t] = high[t] == 0 ? -1 : 32 * word + last_bit(high[t]);
    });
    const int64_t first = reduce(block, shared.warps, least_of, Least{}),
                  last = reduce(block, shared.warps, most_of, Most{});
    block.own([&](int t) {
      if (t != 0) return;
      memory.first[block.index()] = first;
      memory.last[block.index()] = last;
    });
  }
};

struct SpacedWindows {
  static constexpr int THREADS = CHUNK_THREADS;
  struct Shared {
    SharedArray<uint32_t, WARP> warps;
    SharedArray<int64_t, WARP> ends;
    SharedArray<uint32_t, THREADS> words;
    SharedArray<uint32_t, THREADS / WARP> busy;  // which words of a warp have a high window
  };
  int64_t n, spacing;
  PhiloxKey key;
  uint32_t epoch;
  SpacedMemory memory;

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared& shared) const {
    const int64_t chunk_before = high_before(block, shared), chunk_after = high_after(block, shared);
    PerThread<uint32_t> high;
    PerThread<bool> some;
    block.own([&](int t) {
      high[t] = memory.marks.marks[block.index() * THREADS + t];
      some[t] = high[t] != 0;
      shared.words[t] = high[t];
    });
    const PerThread<uint32_t> busy = block.ballot(some);
    block.phase([&](int t) {
      if ((t & (WARP - 1)) == 0) shared.busy[t / WARP] = busy[t];
    });
    PerThread<uint32_t> kept;
    block.own([&](int t) {
      const int64_t base = (block.index() * THREADS + t) * 32;
      int64_t before = chunk_before, after = chunk_after;
      for (int warp = t / WARP; warp >= 0; --warp) {
        const uint32_t below = shared.busy[warp] & (warp == t / WARP ? lanes_below(t) : ALL_LANES);
        if (below == 0) continue;
        const int word = warp * WARP + last_bit(below);
        before = (block.index() * THREADS + word) * 32 + last_bit(shared.words[word]);
        break;
      }
      for (int warp = t / WARP; warp < THREADS / WARP; ++warp) {
        const uint32_t own = lanes_below(t) | 1u << (t & (WARP - 1));
        const uint32_t above = shared.busy[warp] & ~(warp == t / WARP ? own : 0u);
        if (above == 0) continue;
        const int word = warp * WARP + first_bit(above);
        after = (block.index() * THREADS + word) * 32 + first_bit(shared.words[word]);
        break;
      }
      kept[t] = high[t];
      for (uint32_t rest = high[t]; rest != 0; rest &= rest - 1) {
        const int64_t next = base + first_bit(rest);
        kept[t] |= spaced_between(before, next, base);
        before = next;
      }
      kept[t] |= spaced_between(before, after, base);
    });
    memory.marks.write(block, shared.warps, kept);
  }

  // The last high window before the chunk; -spacing where there is none, as far as the first window must be.
  STPRUNE_DEVICE int64_t high_before(Block<THREADS>& block, Shared& shared) const {
    for (int64_t end = block.index(); end > 0; end -= THREADS) {
      PerThread<int64_t> last;
      block.own([&](int t) { last[t] = end - 1 - t >= 0 ? memory.last[end - 1 - t] : -1; });
      const int64_t found = reduce(block, shared.ends, last, Most{});
      if (found >= 0) return found;
    }
    return -spacing;
  }

  // The first high window after the chunk; where there is none, as far as the last window must be.
  STPRUNE_DEVICE int64_t high_after(Block<THREADS>& block, Shared& shared) const {
    for (int64_t begin = block.index() + 1; begin < block.count(); begin += THREADS) {
      PerThread<int64_t> first;
      block.own([&](int t) { first[t] = begin + t < block.count() ? memory.first[begin + t] : NOWHERE_AFTER; });
      const int64_t found = reduce(block, shared.ends, first, Least{});
      if (found < NOWHERE_AFTER) return found;
    }
    return n - 1 + spacing;
  }

  // The windows kept between two neighbouring high ones, as bits of the word of windows base .. base + 31.
  STPRUNE_DEVICE uint32_t spaced_between(int64_t before, int64_t after, int64_t base) const {
    const int64_t first = before + spacing, last = after - spacing;
    if (first > last || first >= base + 32 || last < base) return 0;
    const uint64_t word = philox_word_at(key, epoch, STREAM_SPACED, first);
    int64_t at = first + static_cast<int64_t>(word * static_cast<uint64_t>(least(spacing, last - first + 1)) >> 32);
    if (at < base) at += blocks_of(base - at, spacing) * spacing;
    uint32_t kept = 0;
    for (; at <= last && at < base + 32; at += spacing) kept |= 1u << (at - base);
    return kept;
  }
};

template <class T>
int spaced_mark(const T* scores, int64_t n, int64_t spacing, double threshold, int64_t seed, int64_t epoch,
                void* scratch, int64_t* drawn, void* stream) {
  Scratch parts{static_cast<char*>(scratch)};
  const SpacedMemory memory = spaced_memory(n, parts);
  const int64_t chunks = blocks_of(n, CHUNK_KEYS);
  STPRUNE_TRY(launch(HighWindows<T>{scores, n, threshold, memory}, chunks, stream));
  const SpacedWindows kernel{n, spacing, philox_key(seed), static_cast<uint32_t>(epoch), memory};
  STPRUNE_TRY(launch(kernel, chunks, stream));
  return count_marks(n, memory.marks, drawn, stream);
}

}  // namespace
}  // namespace stprune

using namespace stprune;

extern "C" {

int64_t stprune_cuda_draw_spaced_scratch(int64_t n) {
  Scratch scratch{nullptr};
  spaced_memory(n, scratch);
  return scratch.used;
}

int stprune_cuda_draw_spaced_mark(int wide, const void* scores, int64_t n, int64_t spacing, double threshold,
                                  int64_t seed, int64_t epoch, void* scratch, int64_t* drawn, void* stream) {
  return wide ? spaced_mark(static_cast<const double*>(scores), n, spacing, threshold, seed, epoch, scratch, drawn,
                            stream)
              : spaced_mark(static_cast<const float*>(scores), n, spacing, threshold, seed, epoch, scratch, drawn,
                            stream);
}

int stprune_cuda_draw_spaced_emit(int64_t n, void* scratch, int64_t* out, void* stream) {
  Scratch parts{static_cast<char*>(scratch)};
  return emit_marks(n, spaced_memory(n, parts).marks, out, stream);
}
}
