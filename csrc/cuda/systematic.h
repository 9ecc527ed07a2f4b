// Systematic draws of exactly `count` items: see stprune/reference/draw.py. The running sum of fixed-point
// probabilities meets the items in blocks of 4,096, inside a block in a random order; whoever carries it over a
// multiple of 2^32 is kept.
#pragma once

#include "cuda/finite_stats.h"
#include "cuda/fixed_point.h"
#include "cuda/permute.h"

namespace stprune {
namespace {

constexpr int SYSTEMATIC_BLOCK = 4096;

struct SystematicMemory {
  Rounds* rounds;
  int64_t* sums;    // [blocks] of q, after the rounds
  int64_t* free;    // [blocks] items with 0 < q < 2^32 that can take part in another round
  int64_t* room;    // [blocks] how far the nearest of them is from 0, and
  int64_t* above;   // [blocks] from 2^32
  int64_t* before;  // [blocks + 1] the running sum in front of every block
};

inline SystematicMemory systematic_memory(int64_t n, Scratch& scratch) {
  const int64_t blocks = blocks_of(n, SYSTEMATIC_BLOCK);
  SystematicMemory memory;
  memory.rounds = scratch.take<Rounds>(1);
  memory.sums = scratch.take<int64_t>(blocks);
  memory.free = scratch.take<int64_t>(blocks);
  memory.room = scratch.take<int64_t>(blocks);
  memory.above = scratch.take<int64_t>(blocks);
  memory.before = scratch.take<int64_t>(blocks + 1);
  return memory;
}

// Where probabilities come from: memory. Another source (csrc/cuda/plan_budget.cu) makes them of scores.
template <class T>
struct Stored {
  const T* probability;  // [n]

  STPRUNE_DEVICE void begin() {}
  STPRUNE_DEVICE T operator()(int64_t index) const { return input(probability, index); }
};

// The rounds of spreading (one, but where an item is within a few units of 0 or 1 and the sum is off by more than
// rounding) and the running sum in front of every block. All blocks add up the items as the rounds so far leave them;
// one finds the next round, or the running sums where the next one gives every item its share.
template <class Source>
struct SystematicRounds {
  static constexpr int THREADS = 1024;
  static constexpr int EACH = SYSTEMATIC_BLOCK / THREADS;
  struct Shared {
    SharedArray<int64_t, WARP> warps;
    SharedArray<int64_t, 2> found;
  };
  Source source;
  int64_t n;
  Size count;
  int64_t most_missing;  // by how much the items' sum may be off
  int64_t offset;
  SystematicMemory memory;

  STPRUNE_DEVICE bool go_on() const { return memory.rounds->more != 0; }

  // q of an item after so many rounds.
  STPRUNE_DEVICE int64_t item(const Source& from, int64_t index, int round, bool& free) const {
    const int64_t q = index < n ? to_fixed(from(index)) : 0;
    free = q > 0 && q < ONE;
    return round == 0 || !free ? q : after_rounds(q, index, *memory.rounds, free);
  }

  // A warp has a block of items: sum, free ones, and how far the nearest of these is from 0 and from 2^32.
  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared&, int round) const {
    constexpr int WARPS = THREADS / WARP, LOADS = 8;
    const int64_t blocks = blocks_of(n, SYSTEMATIC_BLOCK);
    Source from = source;
    from.begin();
    for (int64_t first = block.index() * WARPS; first < blocks; first += block.count() * WARPS) {
      PerThread<int64_t> sum, free, room, above;
      block.own([&](int t) {
        sum[t] = free[t] = 0;
        room[t] = above[t] = ONE;
        for (int row = 0; row < SYSTEMATIC_BLOCK / WARP; row += LOADS) {
#pragma unroll
          for (int i = 0; i < LOADS; ++i) {
            bool is_free;
            const int64_t index = (first + t / WARP) * SYSTEMATIC_BLOCK + (row + i) * WARP + (t & (WARP - 1));
            const int64_t q = item(from, index, round, is_free);
            sum[t] += q;
            if (!is_free) continue;
            free[t] += 1;
            room[t] = least(room[t], q);
            above[t] = least(above[t], ONE - q);
          }
        }
      });
      reduce_warp(block, sum, Sum{});
      reduce_warp(block, free, Sum{});
      reduce_warp(block, room, Least{});
      reduce_warp(block, above, Least{});
      block.own([&](int t) {
        const int64_t number = first + t / WARP;
        if ((t & (WARP - 1)) != 0 || number >= blocks) return;
        memory.sums[number] = sum[t];
        memory.free[number] = free[t];
        memory.room[number] = room[t];
        memory.above[number] = above[t];
      });
    }
  }

  STPRUNE_DEVICE void settle(Block<THREADS>& block, Shared& shared, int round) const {
    const int64_t blocks = blocks_of(n, SYSTEMATIC_BLOCK), wanted = count.get() * ONE;
    const int64_t free = total(block, shared, memory.free, blocks, Sum{}, 0);
    int64_t rest = wanted - total(block, shared, memory.sums, blocks, Sum{}, 0);
    const int64_t sign = round > 0 ? memory.rounds->sign : rest > 0 ? 1 : -1;
    const int64_t room = total(block, shared, sign > 0 ? memory.above : memory.room, blocks, Least{}, ONE);
    rest *= sign;
    STPRUNE_DEVICE_CHECK(rest == 0 || (rest <= most_missing && free > 0 && round < MOST_ROUNDS),
                         "draw: count must be the sum of probability to within 0.5");
    const int64_t share = rest == 0 ? 0 : rest / free, extra = rest == 0 ? 0 : rest % free;
    const int64_t cut = extra == 0 ? 0 : index_of_free(block, shared, blocks, extra, round);
    const bool more = share + (extra > 0) > room;
    block.phase([&](int t) {
      if (t != 0) return;
      Rounds& rounds = *memory.rounds;
      rounds.more = more;
      rounds.sign = sign;
      rounds.number = round + (rest > 0);
      if (rest == 0) return;
      rounds.share[round] = share;
      rounds.cut[round] = cut;
    });
    if (!more) running_sums(block, shared, blocks, sign * share, sign, extra);
  }

  // After a round that gives every free item its share, a block's sum follows from how many it has.
  STPRUNE_DEVICE void running_sums(Block<THREADS>& block, Shared& shared, int64_t blocks, int64_t share, int64_t sign,
                                   int64_t extra) const {
    int64_t sum = offset, rank = 0;
    for (int64_t first = 0; first < blocks; first += THREADS) {
      PerThread<int64_t> free, free_before, sum_before;
      block.own([&](int t) { free[t] = free_before[t] = first + t < blocks ? memory.free[first + t] : 0; });
      const int64_t all_free = exclusive_scan(block, shared.warps, free_before);
      block.own([&](int t) {
        const int64_t one_more = most(0, least(free[t], extra - rank - free_before[t]));
        sum_before[t] = (first + t < blocks ? memory.sums[first + t] : 0) + share * free[t] + sign * one_more;
      });
      const int64_t all = exclusive_scan(block, shared.warps, sum_before);
      block.own([&](int t) {
        if (first + t < blocks) memory.before[first + t] = sum + sum_before[t];
      });
      sum += all;
      rank += all_free;
    }
    block.own([&](int t) {
      if (t == 0) memory.before[blocks] = sum;
    });
    STPRUNE_DEVICE_CHECK(sum == offset + count.get() * ONE, "draw: the rounds must end at the count");
  }

  template <class F>
  STPRUNE_DEVICE int64_t total(Block<THREADS>& block, Shared& shared, const int64_t* values, int64_t size, F combine,
                               int64_t neutral) const {
    PerThread<int64_t> value;
    block.own([&](int t) {
      value[t] = neutral;
      for (int64_t i = t; i < size; i += THREADS) value[t] = combine(value[t], values[i]);
    });
    return reduce(block, shared.warps, value, combine);
  }

  // The index of the free item number `rank` (from 0) after so many rounds; there are more than that.
  STPRUNE_DEVICE int64_t index_of_free(Block<THREADS>& block, Shared& shared, int64_t blocks, int64_t rank,
                                       int round) const {
    int64_t passed = 0, number = 0;
    for (int64_t first = 0; first < blocks; first += THREADS) {
      PerThread<int64_t> before;
      block.own([&](int t) { before[t] = first + t < blocks ? memory.free[first + t] : 0; });
      const int64_t all = exclusive_scan(block, shared.warps, before);
      if (rank >= passed + all) {
        passed += all;
        continue;
      }
      block.phase([&](int t) {
        if (first + t >= blocks) return;
        const int64_t from = passed + before[t];
        if (rank < from || rank >= from + memory.free[first + t]) return;
        shared.found[0] = first + t;
        shared.found[1] = rank - from;
      });
      number = shared.found[0];
      rank = shared.found[1];
      break;
    }
    block.sync();
    Source from = source;
    from.begin();
    PerThread<int64_t> before;
    block.own([&](int t) {
      before[t] = 0;
      for (int i = 0; i < EACH; ++i) {
        bool is_free;
        item(from, number * SYSTEMATIC_BLOCK + t * EACH + i, round, is_free);
        before[t] += is_free;
      }
    });
    exclusive_scan(block, shared.warps, before);
    block.phase([&](int t) {
      int64_t seen = before[t];
      for (int i = 0; i < EACH; ++i) {
        const int64_t index = number * SYSTEMATIC_BLOCK + t * EACH + i;
        bool is_free;
        item(from, index, round, is_free);
        if (is_free && seen == rank) shared.found[0] = index;
        seen += is_free;
      }
    });
    const int64_t found = shared.found[0];
    block.sync();
    return found;
  }
};

// Marks and writes the kept items of every block: sink(place, index, source) stores the place-th.
template <class Source, class Sink>
struct SystematicEmit {
  static constexpr int THREADS = 256;
  static constexpr int EACH = SYSTEMATIC_BLOCK / THREADS;  // consecutive positions of the order a thread holds
  static constexpr int WORDS = SYSTEMATIC_BLOCK / 32;
  struct Shared {
    SharedArray<int64_t, WARP> warps;
    SharedArray<uint32_t, WARP> few_warps;
    SharedArray<uint32_t, 2 * PERMUTATION_ROUNDS> keys;
    SharedArray<uint32_t, WORDS> marks;
    SharedArray<uint16_t, SYSTEMATIC_BLOCK> list;
    SmallShared small;
  };
  Source source;
  int64_t n;
  PhiloxKey key;
  uint32_t epoch;
  Permutation last;  // of the last block when it has 1,024 to 4,095 items
  SystematicMemory memory;
  Sink sink;

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared& shared) const {
    const int64_t number = block.index(), first = number * SYSTEMATIC_BLOCK;
    Source from = source;
    Sink to = sink;
    from.begin();
    to.begin();
    const int size = static_cast<int>(least(n - first, SYSTEMATIC_BLOCK));
    const uint32_t low_number = static_cast<uint32_t>(number);
    if (size < PERMUTATION_SMALL) permute_small(block, shared.small, size, key, epoch, STREAM_SYSTEMATIC, low_number);
    block.phase([&](int t) {
      if (t < WORDS) shared.marks[t] = 0u;
      if (t >= PERMUTATION_ROUNDS / 2) return;
      const PhiloxWords words =
          philox(key, static_cast<uint32_t>(t), low_number, epoch, STREAM_SYSTEMATIC | PURPOSE_ROUND_KEYS);
      for (int w = 0; w < 4; ++w) shared.keys[4 * t + w] = words.word[w];
    });
    Permutation whole;
    whole.n = SYSTEMATIC_BLOCK;
    whole.a = whole.b = 64;
    for (int i = 0; i < 2 * PERMUTATION_ROUNDS; ++i) whole.keys[i] = shared.keys[i];

    PerThread<int64_t> q[EACH];
    PerThread<int> items[EACH];
    PerThread<int64_t> before;
    block.own([&](int t) {
      before[t] = 0;
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        const int position = t * EACH + i;
        items[i][t] = 0;
        q[i][t] = 0;
        if (position >= size) continue;
        if (size == SYSTEMATIC_BLOCK) {
          items[i][t] = static_cast<int>(
              feistel_of_halves(whole, static_cast<uint32_t>(position) >> 6, static_cast<uint32_t>(position) & 63));
        } else if (size >= PERMUTATION_SMALL) {
          items[i][t] = static_cast<int>(permutation_at(last, position));
        } else {
          items[i][t] = static_cast<int>(shared.small.items[position]);
        }
        bool free;
        const int64_t index = first + items[i][t];
        q[i][t] = after_rounds(to_fixed(from(index)), index, *memory.rounds, free);
        before[t] += q[i][t];
      }
    });
    exclusive_scan(block, shared.warps, before);
    const int64_t start = memory.before[number];
    block.phase([&](int t) {
      // Only the place between whole numbers matters.
      int64_t sum = (start + before[t]) & (ONE - 1);
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        sum += q[i][t];
        if (sum >= ONE) shared.marks.merge(items[i][t] / 32, 1u << (items[i][t] & 31));
        sum &= ONE - 1;
      }
    });
    PerThread<uint32_t> word, places;
    block.own([&](int t) {
      word[t] = t < WORDS ? shared.marks[t] : 0u;
      places[t] = static_cast<uint32_t>(popcount(word[t]));
    });
    const int64_t kept = exclusive_scan(block, shared.few_warps, places);
    list_bits(block, shared.list, word, places);
    const int64_t place = start >> 32;
    block.own([&](int t) {
      for (int64_t j = t; j < kept; j += THREADS) to(place + j, first + shared.list[static_cast<int>(j)], from);
    });
  }
};

// Kept indices alone.
struct DrawnSink {
  int64_t* out;

  STPRUNE_DEVICE void begin() {}
  template <class Source>
  STPRUNE_DEVICE void operator()(int64_t place, int64_t index, const Source&) const {
    out[place] = index;
  }
};

// Draws `count` of n items, whose sum is off by no more than `most_missing` units.
template <class Source, class Sink>
int draw_systematic(const Source& source, int64_t n, Size count, int64_t most_missing, PhiloxKey key, uint32_t epoch,
                    const SystematicMemory& memory, const Sink& sink, void* stream) {
  const int64_t blocks = blocks_of(n, SYSTEMATIC_BLOCK), rest = n % SYSTEMATIC_BLOCK;
  const int64_t offset = philox(key, 0, 0, epoch, STREAM_SYSTEMATIC | PURPOSE_OFFSET).word[0];
  Permutation last{};
  if (rest >= PERMUTATION_SMALL) {
    last = make_permutation(rest, key, epoch, STREAM_SYSTEMATIC, static_cast<uint32_t>(blocks - 1));
  }
  using Sums = SystematicRounds<Source>;
  STPRUNE_TRY(launch_rounds(Sums{source, n, count, most_missing, offset, memory},
                            blocks_of(blocks, Sums::THREADS / WARP), stream));
  return launch(SystematicEmit<Source, Sink>{source, n, key, epoch, last, memory, sink}, blocks, stream);
}

}  // namespace
}  // namespace stprune
