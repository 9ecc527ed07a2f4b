// The keys of the largest codes, exactly and without a sort or a host decision.
//
// Sample-bracket selection (Floyd, Rivest 1975) as on the CPU: a sample brackets the wanted code; one pass over the
// keys marks what lies above the bracket and sets the few codes inside aside; rounds of 11-bit digits narrow the range
// of the wanted code among those, in their own narrow range, so two rounds mostly do; then marks become ascending
// indices. If the bracket missed, the same rounds read all keys.
#pragma once

#include <cmath>

#include "cuda/compact.h"

namespace stprune {
namespace {

constexpr int DIGIT = 11;
constexpr int BINS = 1 << DIGIT;
constexpr int SAMPLE = 16384;
// Codes inside the bracket that a segment of 1,024 keys can set aside: a sample of 16,384 and five standard deviations
// put 40 +- 6 there on average. A segment that has more reads its keys again.
constexpr int ASIDE = 64;

template <class Code>
constexpr int ROUNDS = (8 * sizeof(Code) + DIGIT - 1) / DIGIT;

// The wanted code lies in [base, last], and is the rank-th largest (from 1) of the codes there; known when base ==
// last.
template <class Code>
struct Range {
  Code base, last;
  int64_t rank;
  int32_t everywhere;  // 1: among all keys, 0: among the codes set aside
};

template <class Code>
struct SelectState {
  Code low, high;  // bracket, both ends inside
  uint64_t above, inside;
  Range<Code> range;  // after the rounds so far
  int64_t quota;      // how many keys of the wanted code are taken
  uint64_t histograms[ROUNDS<Code>][BINS];
};

template <class Code>
struct SelectMemory {
  SelectState<Code>* state;
  uint32_t* certain;    // [chunks * 256] marks
  uint32_t* tied;       // [chunks * 256]
  uint32_t* inside;     // [segments] codes inside the bracket
  Code* aside;          // [segments * ASIDE]
  uint16_t* positions;  // [segments * ASIDE] of those in their segment
  uint32_t* counts;     // [chunks]
  ChunkPlaces places;
};

template <class Code>
SelectMemory<Code> select_memory(int64_t n, Scratch& scratch) {
  const int64_t chunks = blocks_of(n, CHUNK_KEYS), segments = chunks * CHUNK_SEGMENTS;
  SelectMemory<Code> memory;
  memory.state = scratch.take<SelectState<Code>>(1);
  memory.certain = scratch.take<uint32_t>(chunks * CHUNK_THREADS);
  memory.tied = scratch.take<uint32_t>(chunks * CHUNK_THREADS);
  memory.inside = scratch.take<uint32_t>(segments);
  memory.aside = scratch.take<Code>(segments * ASIDE);
  memory.positions = scratch.take<uint16_t>(segments * ASIDE);
  memory.counts = scratch.take<uint32_t>(chunks);
  memory.places = {scratch.take<int64_t>(chunks + 1), scratch.take<int64_t>(chunks + 1)};
  return memory;
}

// How far codes of a range are shifted to become bins.
template <class Code>
STPRUNE_HOST_DEVICE int digit_shift(const Range<Code>& range) {
  int width = 0;
  for (Code rest = range.last - range.base; rest != 0; rest >>= 1) ++width;
  return width > DIGIT ? width - DIGIT : 0;
}

template <class Code>
STPRUNE_HOST_DEVICE Range<Code> narrowed(const Range<Code>& range, int64_t bin, int64_t rank) {
  const int shift = digit_shift(range);
  Range<Code> result = range;
  result.base = range.base + (static_cast<Code>(bin) << shift);
  const Code rest = (Code{1} << shift) - 1;
  if (range.last - result.base > rest) result.last = result.base + rest;
  result.rank = rank;
  return result;
}

// Positions of a pseudo-random sample; a stride would resonate with daily and weekly periods.
STPRUNE_DEVICE int64_t sample_position(uint64_t i, int64_t n) {
  uint64_t x = (i + 1) * 0x9E3779B97F4A7C15ull;  // splitmix64
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  x ^= x >> 31;
  return static_cast<int64_t>(high_product(x, static_cast<uint64_t>(n)));
}

// The bracket, by one block: order statistics of a sample on both sides of the wanted rank. Up to SAMPLE keys all are
// in the sample, and the bracket is the wanted code itself.
template <class Keys>
struct Bracket {
  using Code = typename Keys::Code;
  static constexpr int THREADS = 1024;
  static constexpr int EACH = SAMPLE / THREADS;
  struct Shared {
    Histogram<BINS> histogram;
    RankShared rank;
  };
  Keys keys;
  int64_t n, size;              // of all keys, of the sample
  int64_t rank_high, rank_low;  // in the sample, from 1; 0 and size + 1 stand for the ends of all codes
  SelectState<Code>* state;

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared& shared) const {
    PerThread<Code> codes[EACH];
    block.own([&](int t) {
      // All loads first: the sample lies all over the memory.
      typename Keys::Value values[EACH];
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        const int64_t sample = t + static_cast<int64_t>(i) * THREADS;
        values[i] = 0;
        if (sample < size) values[i] = keys.value(position(sample));
      }
#pragma unroll
      for (int i = 0; i < EACH; ++i)
        codes[i][t] = keys.code(values[i], position(t + static_cast<int64_t>(i) * THREADS));
    });
    const Code high = rank_high < 1 ? ~Code{0} : kth(block, shared, codes, rank_high);
    const Code low = rank_low > size ? Code{0} : rank_low == rank_high ? high : kth(block, shared, codes, rank_low);
    block.own([&](int t) {
      uint64_t* histograms = &state->histograms[0][0];
      for (int i = t; i < ROUNDS<Code> * BINS; i += THREADS) histograms[i] = 0;
      if (t != 0) return;
      state->low = low;
      state->high = high;
      state->above = state->inside = 0;
    });
  }

  STPRUNE_DEVICE int64_t position(int64_t sample) const { return size == n ? sample : sample_position(sample, n); }

  STPRUNE_DEVICE Code kth(Block<THREADS>& block, Shared& shared, const PerThread<Code> (&codes)[EACH],
                          int64_t rank) const {
    Range<Code> range{Code{0}, static_cast<Code>(~Code{0}), rank, 0};
    while (range.base != range.last) {
      clear(block, shared.histogram);
      const int shift = digit_shift(range);
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        PerThread<int> bin;
        block.own([&](int t) {
          const bool in = t + i * THREADS < size && codes[i][t] >= range.base && codes[i][t] <= range.last;
          bin[t] = in ? static_cast<int>((codes[i][t] - range.base) >> shift) : -1;
        });
        count_bins(block, shared.histogram, bin);
      }
      block.sync();
      int64_t rest = range.rank;
      const int64_t bin =
          bin_of_rank<BINS>(block, shared.rank, [&](int b) { return static_cast<int64_t>(shared.histogram[b]); }, rest);
      range = narrowed(range, bin, rest);
    }
    return range.base;
  }
};

// One pass over the keys: marks those above the bracket, sets the codes inside aside, counts both.
template <class Keys>
struct Classify {
  using Code = typename Keys::Code;
  static constexpr int THREADS = CHUNK_THREADS;
  struct Shared {
    SharedArray<int64_t, WARP> warps;
  };
  Keys keys;
  int64_t n;
  SelectMemory<Code> memory;

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared& shared) const {
    const Code low = memory.state->low, high = memory.state->high;
    PerThread<int64_t> num_above, num_inside;
    block.own([&](int t) { num_above[t] = num_inside[t] = 0; });
    const int64_t chunks = blocks_of(n, CHUNK_KEYS);
    for (int64_t chunk = block.index(); chunk < chunks; chunk += block.count()) {
      PerThread<uint32_t> marks, found;
      block.own([&](int t) { marks[t] = found[t] = 0; });
      constexpr int TILES = Keys::TILES_AT_ONCE;
#pragma unroll 1
      for (int tile = 0; tile < SEGMENT_TILES; tile += TILES) {
        PerThread<Four<typename Keys::Value>> values[TILES];
        block.own([&](int t) {
#pragma unroll
          for (int i = 0; i < TILES; ++i) {
            const int64_t first = chunk * CHUNK_KEYS + t / WARP * SEGMENT + (tile + i) * TILE;
            values[i][t] = keys.load(first, n - first, t);
          }
        });
#pragma unroll
        for (int i = 0; i < TILES; ++i) {
          PerThread<Four<Code>> codes;
          block.own([&](int t) {
            const int64_t first = chunk * CHUNK_KEYS + t / WARP * SEGMENT + (tile + i) * TILE;
            codes[t] = keys.codes(values[i][t], first, t);
          });
          sort_out(block, chunk, tile + i, codes, low, high, marks, found);
        }
      }
      block.own([&](int t) {
        const int64_t segment = chunk * CHUNK_SEGMENTS + t / WARP;
        memory.certain[chunk * THREADS + t] = marks[t];
        num_above[t] += popcount(marks[t]);
        if ((t & (WARP - 1)) != 0) return;
        memory.inside[segment] = found[t];
        num_inside[t] += found[t];
      });
    }
    const int64_t all_above = reduce(block, shared.warps, num_above, Sum{});
    const int64_t all_inside = reduce(block, shared.warps, num_inside, Sum{});
    block.own([&](int t) {
      if (t != 0) return;
      global_add(&memory.state->above, static_cast<uint64_t>(all_above));
      global_add(&memory.state->inside, static_cast<uint64_t>(all_inside));
    });
  }

  STPRUNE_DEVICE void sort_out(Block<THREADS>& block, int64_t chunk, int tile, const PerThread<Four<Code>>& codes,
                               Code low, Code high, PerThread<uint32_t>& marks, PerThread<uint32_t>& found) const {
    PerThread<Four<uint32_t>> ballots;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      PerThread<bool> is_above, is_inside;
      block.own([&](int t) {
        const int64_t rest = n - (chunk * CHUNK_KEYS + t / WARP * SEGMENT + tile * TILE);
        const bool valid = tile_offset(t, j) < rest;
        is_above[t] = valid && codes[t].item[j] > high;
        is_inside[t] = valid && codes[t].item[j] >= low && codes[t].item[j] <= high;
      });
      const PerThread<uint32_t> above = block.ballot(is_above), inside = block.ballot(is_inside);
      block.own([&](int t) {
        ballots[t].item[j] = above[t];
        const uint32_t slot = found[t] + popcount(inside[t] & lanes_below(t));
        if (is_inside[t] && slot < ASIDE) {
          const int64_t place = (chunk * CHUNK_SEGMENTS + t / WARP) * ASIDE + slot;
          memory.aside[place] = codes[t].item[j];
          memory.positions[place] = static_cast<uint16_t>(tile * TILE + tile_offset(t, j));
        }
        found[t] += popcount(inside[t]);
      });
    }
    block.own([&](int t) {
      if (((t & (WARP - 1)) >> 2) == tile) marks[t] = tile_word(ballots[t], t & 3);
    });
  }
};

// Rounds of digits until the wanted code is known: each counts the codes of its range in bins of a digit.
template <class Keys>
struct Refine {
  using Code = typename Keys::Code;
  static constexpr int THREADS = 1024;
  static constexpr int EACH = 4;  // segments a warp works on at a time: their loads overlap
  static constexpr int SEGMENTS = EACH * THREADS / WARP;
  struct Shared {
    Histogram<BINS> histogram;
    RankShared rank;
  };
  Keys keys;
  int64_t n, rank, take;
  SelectMemory<Code> memory;

  STPRUNE_DEVICE bool go_on() const { return memory.state->range.base != memory.state->range.last; }

  // The range of the first round.
  STPRUNE_DEVICE Range<Code> first() const {
    const SelectState<Code>& state = *memory.state;
    const int64_t above = static_cast<int64_t>(state.above), inside = static_cast<int64_t>(state.inside);
    if (rank <= above) return {static_cast<Code>(state.high + 1), static_cast<Code>(~Code{0}), rank, 1};
    if (rank > above + inside) return {Code{0}, static_cast<Code>(state.low - 1), rank - above - inside, 1};
    return {state.low, state.high, rank - above, 0};
  }

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared& shared, int round) const {
    const Range<Code> range = round == 0 ? first() : memory.state->range;
    if (range.base == range.last) return;
    const int shift = digit_shift(range);
    clear(block, shared.histogram);
    const int64_t segments = blocks_of(n, SEGMENT);
    for (int64_t group = block.index(); group * SEGMENTS < segments; group += block.count()) {
      count_aside(block, shared, range, shift, group * SEGMENTS, segments);
    }
    block.sync();
    block.own([&](int t) {
      for (int bin = t; bin < BINS; bin += THREADS) {
        const uint32_t count = shared.histogram[bin];
        if (count != 0) global_add(&memory.state->histograms[round][bin], count);
      }
    });
  }

  // The range of the next round and, as soon as the wanted code is known, how many keys of it are taken.
  STPRUNE_DEVICE void settle(Block<THREADS>& block, Shared& shared, int round) const {
    Range<Code> range = round == 0 ? first() : memory.state->range;
    if (range.base != range.last) {
      const uint64_t* counts = memory.state->histograms[round];
      int64_t rest = range.rank;
      const int64_t bin =
          bin_of_rank<BINS>(block, shared.rank, [&](int b) { return static_cast<int64_t>(counts[b]); }, rest);
      range = narrowed(range, bin, rest);
    }
    block.sync();
    block.own([&](int t) {
      if (t != 0) return;
      memory.state->range = range;
      memory.state->quota = take - (rank - range.rank);
    });
  }

  STPRUNE_DEVICE void count_aside(Block<THREADS>& block, Shared& shared, const Range<Code>& range, int shift,
                                  int64_t first_segment, int64_t segments) const {
    PerThread<Code> codes[EACH][ASIDE / WARP];
    PerThread<uint32_t> found[EACH];
    PerThread<bool> again[EACH], any_again;
    block.own([&](int t) {
      any_again[t] = false;
#pragma unroll
      for (int g = 0; g < EACH; ++g) {
        const int64_t segment = first_segment + g * (THREADS / WARP) + t / WARP;
        const bool exists = segment < segments;
        found[g][t] = exists && range.everywhere == 0 ? memory.inside[segment] : 0;
        again[g][t] = exists && (range.everywhere != 0 || found[g][t] > ASIDE);
        any_again[t] = any_again[t] || again[g][t];
        if (again[g][t]) found[g][t] = 0;
#pragma unroll
        for (int i = 0; i < ASIDE / WARP; ++i) {
          const uint32_t slot = (t & (WARP - 1)) + i * WARP;
          codes[g][i][t] = slot < found[g][t] ? memory.aside[segment * ASIDE + slot] : Code{0};
        }
      }
    });
#pragma unroll
    for (int g = 0; g < EACH; ++g) {
#pragma unroll
      for (int i = 0; i < ASIDE / WARP; ++i) {
        PerThread<int> bin;
        block.own([&](int t) {
          const bool in = (t & (WARP - 1)) + i * WARP < static_cast<int>(found[g][t]) && codes[g][i][t] >= range.base &&
                          codes[g][i][t] <= range.last;
          bin[t] = in ? static_cast<int>((codes[g][i][t] - range.base) >> shift) : -1;
        });
        count_bins(block, shared.histogram, bin);
      }
    }
    if (!block.any(any_again)) return;
#pragma unroll 1
    for (int g = 0; g < EACH; ++g) {
      if (!block.any(again[g])) continue;
#pragma unroll 1
      for (int tile = 0; tile < SEGMENT_TILES; ++tile) {
        PerThread<Four<Code>> four;
        PerThread<int64_t> rest;
        block.own([&](int t) {
          const int64_t segment = first_segment + g * (THREADS / WARP) + t / WARP,
                        first = segment * SEGMENT + tile * TILE;
          rest[t] = again[g][t] ? n - first : 0;
          four[t] = keys.codes(keys.load(first, rest[t], t), first, t);
        });
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          PerThread<int> bin;
          block.own([&](int t) {
            const bool in =
                tile_offset(t, j) < rest[t] && four[t].item[j] >= range.base && four[t].item[j] <= range.last;
            bin[t] = in ? static_cast<int>((four[t].item[j] - range.base) >> shift) : -1;
          });
          count_bins(block, shared.histogram, bin);
        }
      }
    }
  }
};

// Final marks and counts of every chunk: certain is what comes before the wanted code, tied what equals it.
template <class Keys>
struct Resolve {
  using Code = typename Keys::Code;
  static constexpr int THREADS = CHUNK_THREADS;
  struct Shared {
    SharedArray<uint32_t, THREADS> certain, tied;
    SharedArray<uint32_t, WARP> warps;
  };
  Keys keys;
  int64_t n;
  SelectMemory<Code> memory;

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared& shared) const {
    const Range<Code> range = memory.state->range;
    const Code wanted = range.base;
    const int64_t chunk = block.index();
    PerThread<bool> again;
    PerThread<uint32_t> certain, tied;
    block.phase([&](int t) {
      shared.certain[t] = memory.certain[chunk * THREADS + t];
      shared.tied[t] = 0u;
    });
    block.phase([&](int t) {
      const int64_t segment = chunk * CHUNK_SEGMENTS + t / WARP;
      const uint32_t found = memory.inside[segment];
      again[t] = range.everywhere != 0 || found > ASIDE;
      if (again[t]) return;
      for (uint32_t slot = t & (WARP - 1); slot < found; slot += WARP) {
        const Code code = memory.aside[segment * ASIDE + slot];
        const int position = memory.positions[segment * ASIDE + slot];
        const int word = t / WARP * SEGMENT_WORDS + position / 32;
        if (code > wanted) shared.certain.merge(word, 1u << (position & 31));
        if (code == wanted) shared.tied.merge(word, 1u << (position & 31));
      }
    });
    block.own([&](int t) {
      certain[t] = shared.certain[t];
      tied[t] = shared.tied[t];
    });
    if (block.any(again)) look_again(block, chunk, wanted, again, certain, tied);
    PerThread<uint32_t> packed;
    block.own([&](int t) {
      memory.certain[chunk * THREADS + t] = certain[t];
      memory.tied[chunk * THREADS + t] = tied[t];
      packed[t] = pack_counts(popcount(certain[t]), popcount(tied[t]));
    });
    const uint32_t total = reduce(block, shared.warps, packed, Sum{});
    block.own([&](int t) {
      if (t == 0) memory.counts[chunk] = total;
    });
  }

  // Marks from the keys themselves, in the warps that ask for it.
  STPRUNE_DEVICE void look_again(Block<THREADS>& block, int64_t chunk, Code wanted, const PerThread<bool>& again,
                                 PerThread<uint32_t>& certain, PerThread<uint32_t>& tied) const {
#pragma unroll 1
    for (int tile = 0; tile < SEGMENT_TILES; ++tile) {
      PerThread<Four<Code>> codes;
      PerThread<int64_t> rest;
      PerThread<Four<uint32_t>> before, equal;
      block.own([&](int t) {
        const int64_t first = chunk * CHUNK_KEYS + t / WARP * SEGMENT + tile * TILE;
        rest[t] = again[t] ? n - first : 0;
        codes[t] = keys.codes(keys.load(first, rest[t], t), first, t);
      });
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        PerThread<bool> is_before, is_equal;
        block.own([&](int t) {
          const bool valid = tile_offset(t, j) < rest[t];
          is_before[t] = valid && codes[t].item[j] > wanted;
          is_equal[t] = valid && codes[t].item[j] == wanted;
        });
        const PerThread<uint32_t> b = block.ballot(is_before), e = block.ballot(is_equal);
        block.own([&](int t) {
          before[t].item[j] = b[t];
          equal[t].item[j] = e[t];
        });
      }
      block.own([&](int t) {
        if (!again[t] || ((t & (WARP - 1)) >> 2) != tile) return;
        certain[t] = tile_word(before[t], t & 3);
        tied[t] = tile_word(equal[t], t & 3);
      });
    }
  }
};

// Emits the `take` largest of n keys in ascending order of their index; the rank-th largest decides, take is rank or
// rank - 1, and 1 <= rank <= n. After it, memory.state->range.base is the code of that rank.
template <class Keys, class Sink>
int select_largest(const Keys& keys, int64_t n, int64_t rank, int64_t take,
                   const SelectMemory<typename Keys::Code>& memory, const Sink& sink, void* stream) {
  int64_t processors = 0;
  STPRUNE_TRY(multiprocessors(&processors));
  Bracket<Keys> bracket{keys, n, least(n, SAMPLE), rank, rank, memory.state};
  if (n > SAMPLE) {
    const double share = static_cast<double>(rank) / static_cast<double>(n), middle = share * SAMPLE;
    // Five standard deviations of the sample's rank: one bracket in three million misses.
    const double width = 5.0 * std::sqrt(middle * (1.0 - share)) + 2.0;
    bracket.rank_high = most(0, static_cast<int64_t>(std::floor(middle - width)) + 1);
    bracket.rank_low = least(SAMPLE + 1, static_cast<int64_t>(std::ceil(middle + width)) + 1);
  }
  const int64_t chunks = blocks_of(n, CHUNK_KEYS);
  STPRUNE_TRY(launch(bracket, 1, stream));
  // Enough blocks to fill every processor; each adds its two totals once.
  STPRUNE_TRY(launch(Classify<Keys>{keys, n, memory}, least(chunks, 8 * processors), stream));
  const int64_t groups = blocks_of(n, int64_t{SEGMENT} * Refine<Keys>::SEGMENTS);
  STPRUNE_TRY(launch_rounds(Refine<Keys>{keys, n, rank, take, memory}, groups, stream));
  STPRUNE_TRY(launch(Resolve<Keys>{keys, n, memory}, chunks, stream));
  STPRUNE_TRY(launch(ScanChunks{memory.counts, chunks, memory.places}, 1, stream));
  return launch(EmitChunks<Sink>{memory.certain, memory.tied, &memory.state->quota, memory.places, sink}, chunks,
                stream);
}

}  // namespace
}  // namespace stprune
