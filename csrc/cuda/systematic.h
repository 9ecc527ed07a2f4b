// Systematic draws of exactly `count` items: see stprune/reference/draw.py. The running sum of fixed-point
// probabilities meets the items in blocks of 4,096, inside a block in a random order; whoever carries it over a
// multiple of 2^32 is kept.
#pragma once

#include "cuda/compact.h"
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

// Sum, free items and their room of every block.
template <class T>
struct SystematicSums {
  static constexpr int THREADS = 256;
  struct Shared {
    SharedArray<int64_t, WARP> warps;
  };
  const T* probability;  // [n]
  int64_t n;
  SystematicMemory memory;

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared& shared) const {
    PerThread<int64_t> sum, free, room, above;
    block.own([&](int t) {
      sum[t] = free[t] = 0;
      room[t] = above[t] = ONE;
      T p[SYSTEMATIC_BLOCK / THREADS];
#pragma unroll
      for (int i = 0; i < SYSTEMATIC_BLOCK / THREADS; ++i) {
        const int64_t index = block.index() * SYSTEMATIC_BLOCK + i * THREADS + t;
        p[i] = T(0);
        if (index < n) p[i] = probability[index];
      }
#pragma unroll
      for (int i = 0; i < SYSTEMATIC_BLOCK / THREADS; ++i) {
        const int64_t q = to_fixed(p[i]);
        sum[t] += q;
        if (q <= 0 || q >= ONE) continue;
        free[t] += 1;
        room[t] = least(room[t], q);
        above[t] = least(above[t], ONE - q);
      }
    });
    const int64_t all = reduce(block, shared.warps, sum, Sum{}), all_free = reduce(block, shared.warps, free, Sum{});
    const int64_t nearest = reduce(block, shared.warps, room, Least{});
    const int64_t nearest_above = reduce(block, shared.warps, above, Least{});
    block.own([&](int t) {
      if (t != 0) return;
      memory.sums[block.index()] = all;
      memory.free[block.index()] = all_free;
      memory.room[block.index()] = nearest;
      memory.above[block.index()] = nearest_above;
    });
  }
};

// The rounds of spreading and the running sum in front of every block, by one block of threads. More than one round is
// rare (an item within a few units of 0 or 1, and a sum that is off by much more than rounding): then this block alone
// passes over all items for each, which takes long.
template <class T>
struct SystematicSettle {
  static constexpr int THREADS = 1024;
  static constexpr int EACH = SYSTEMATIC_BLOCK / THREADS;
  struct Shared {
    SharedArray<int64_t, WARP> warps;
    SharedArray<int64_t, 2> found;
  };
  const T* probability;  // [n]
  int64_t n, count, offset;
  SystematicMemory memory;

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared& shared) const {
    const int64_t blocks = blocks_of(n, SYSTEMATIC_BLOCK);
    int64_t free = total(block, shared, memory.free, blocks, Sum{}, 0);
    int64_t rest = count * ONE - total(block, shared, memory.sums, blocks, Sum{}, 0);
    const int64_t sign = rest > 0 ? 1 : -1;
    const int64_t room = total(block, shared, sign > 0 ? memory.above : memory.room, blocks, Least{}, ONE);
    rest *= sign;
    // The door asks for 0.5; there always is an item to give to or take from then.
    STPRUNE_DEVICE_CHECK(rest <= ONE / 4 * 3 && (rest == 0 || free > 0));
    int64_t number = 0, extra = 0;
    block.phase([&](int t) {
      if (t != 0) return;
      memory.rounds->sign = sign;
      memory.rounds->number = 0;
    });
    bool counted = true;  // sums and free are those after the rounds so far
    while (rest > 0 && free > 0 && number < MOST_ROUNDS) {
      const int64_t share = rest / free;
      extra = rest % free;
      const int64_t cut = extra == 0 ? 0 : index_of_free(block, shared, blocks, extra);
      block.phase([&](int t) {
        if (t != 0) return;
        memory.rounds->share[number] = share;
        memory.rounds->cut[number] = cut;
        memory.rounds->number = number + 1;
      });
      number += 1;
      if (number == 1 && share + (extra > 0) <= room) {
        counted = false;
        break;
      }
      recount(block, shared, blocks);
      free = total(block, shared, memory.free, blocks, Sum{}, 0);
      rest = sign * (count * ONE - total(block, shared, memory.sums, blocks, Sum{}, 0));
    }
    // After the one round that nearly always does, a block's sum follows from its free items.
    const int64_t share = counted ? 0 : memory.rounds->share[0];
    if (counted) extra = 0;
    int64_t sum = offset, rank = 0;
    for (int64_t first = 0; first < blocks; first += THREADS) {
      PerThread<int64_t> free_before, sum_before, own;
      block.own([&](int t) { free_before[t] = first + t < blocks ? memory.free[first + t] : 0; });
      const int64_t all_free = exclusive_scan(block, shared.warps, free_before);
      block.own([&](int t) {
        own[t] = 0;
        if (first + t < blocks) {
          const int64_t number_free = memory.free[first + t];
          const int64_t more = most(0, least(number_free, extra - rank - free_before[t]));
          own[t] = memory.sums[first + t] + sign * (share * number_free + more);
        }
        sum_before[t] = own[t];
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
    STPRUNE_DEVICE_CHECK(sum == offset + count * ONE);
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

  // q of item i of a block after the rounds so far.
  STPRUNE_DEVICE int64_t item(int64_t index, bool& free) const {
    free = false;
    return index < n ? after_rounds(to_fixed(probability[index]), index, *memory.rounds, free) : 0;
  }

  STPRUNE_DEVICE void recount(Block<THREADS>& block, Shared& shared, int64_t blocks) const {
    for (int64_t number = 0; number < blocks; ++number) {
      PerThread<int64_t> sum, free;
      block.own([&](int t) {
        sum[t] = free[t] = 0;
        for (int i = 0; i < EACH; ++i) {
          bool is_free;
          sum[t] += item(number * SYSTEMATIC_BLOCK + i * THREADS + t, is_free);
          free[t] += is_free;
        }
      });
      const int64_t all = reduce(block, shared.warps, sum, Sum{}), all_free = reduce(block, shared.warps, free, Sum{});
      block.phase([&](int t) {
        if (t != 0) return;
        memory.sums[number] = all;
        memory.free[number] = all_free;
      });
    }
  }

  // The index of the free item number `rank` (from 0); there are more than that.
  STPRUNE_DEVICE int64_t index_of_free(Block<THREADS>& block, Shared& shared, int64_t blocks, int64_t rank) const {
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
    PerThread<int64_t> before;
    block.own([&](int t) {
      before[t] = 0;
      for (int i = 0; i < EACH; ++i) {
        bool is_free;
        item(number * SYSTEMATIC_BLOCK + t * EACH + i, is_free);
        before[t] += is_free;
      }
    });
    exclusive_scan(block, shared.warps, before);
    block.phase([&](int t) {
      int64_t seen = before[t];
      for (int i = 0; i < EACH; ++i) {
        const int64_t index = number * SYSTEMATIC_BLOCK + t * EACH + i;
        bool is_free;
        item(index, is_free);
        if (is_free && seen == rank) shared.found[0] = index;
        seen += is_free;
      }
    });
    const int64_t found = shared.found[0];
    block.sync();
    return found;
  }
};

// Marks and writes the kept items of every block.
template <class T>
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
  const T* probability;  // [n]
  int64_t n;
  PhiloxKey key;
  uint32_t epoch;
  Permutation last;  // of the last block when it has 1,024 to 4,095 items
  SystematicMemory memory;
  int64_t* out;

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared& shared) const {
    const int64_t number = block.index(), first = number * SYSTEMATIC_BLOCK;
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
        q[i][t] = after_rounds(to_fixed(probability[index]), index, *memory.rounds, free);
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
      for (int64_t j = t; j < kept; j += THREADS) out[place + j] = first + shared.list[j];
    });
  }
};

}  // namespace
}  // namespace stprune
