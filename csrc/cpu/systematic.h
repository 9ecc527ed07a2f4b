// Systematic sampling with an exact count (stprune/reference/draw.py): the running sum of fixed-point probabilities
// meets the items block by block, in random order inside a block; whoever carries it over a whole number is kept.
#pragma once

#include <cstdlib>
#include <vector>

#include "cpu/chunks.h"
#include "cpu/permute.h"

namespace stprune {
namespace {

constexpr int64_t ONE = int64_t{1} << 32;
// Items put in random order together: see stprune/reference/draw.py.
constexpr int64_t SYSTEMATIC_BLOCK = 4096;
static_assert(CHUNK % SYSTEMATIC_BLOCK == 0);

inline void to_fixed(const float* p, int64_t n, int64_t* q) { kernels().fixed_point_f32(p, n, q); }
inline void to_fixed(const double* p, int64_t n, int64_t* q) { kernels().fixed_point_f64(p, n, q); }
inline void fixed_sums(const float* p, int64_t n, BlockSums* out) { kernels().fixed_sums_f32(p, n, out); }
inline void fixed_sums(const double* p, int64_t n, BlockSums* out) { kernels().fixed_sums_f64(p, n, out); }
inline void fixed_low(const float* p, int64_t n, int64_t add, uint32_t* low, uint64_t* certain) {
  kernels().fixed_low_f32(p, n, add, low, certain);
}
inline void fixed_low(const double* p, int64_t n, int64_t add, uint32_t* low, uint64_t* certain) {
  kernels().fixed_low_f64(p, n, add, low, certain);
}

struct Systematic {
  int64_t n, count;
  PhiloxKey key;
  uint32_t epoch;

  int64_t blocks() const { return (n + SYSTEMATIC_BLOCK - 1) / SYSTEMATIC_BLOCK; }
  int64_t size_of(int64_t block) const { return std::min(SYSTEMATIC_BLOCK, n - block * SYSTEMATIC_BLOCK); }
};

// Fixed-point probabilities whose sum is exactly count * 2^32: what is missing is spread over the items with 0 < q <
// 2^32. One round gives those of rank r (in index order) `share` units, and one more where r < extra.
struct Spread {
  int64_t sign, share, extra;

  int64_t given_before(int64_t rank) const { return sign * (share * rank + std::min(rank, extra)); }
  void apply(int64_t* q, int64_t n, int64_t rank) const {
    for (int64_t i = 0; i < n; ++i) {
      if (q[i] <= 0 || q[i] >= ONE) continue;
      q[i] += sign * (share + (rank < extra));
      ++rank;
    }
  }
};

// The rounds of stprune/reference/draw.py: spread, for the rare case that one round does not do.
inline void spread_in_rounds(std::vector<int64_t>& q, int64_t rest) {
  std::vector<int64_t> free;
  for (size_t i = 0; i < q.size(); ++i) {
    if (q[i] > 0 && q[i] < ONE) free.push_back(static_cast<int64_t>(i));
  }
  const int64_t sign = rest > 0 ? 1 : -1;
  rest = std::abs(rest);
  while (rest > 0 && !free.empty()) {
    const int64_t size = static_cast<int64_t>(free.size());
    const int64_t share = rest / size, extra = rest % size;
    int64_t left = 0;
    for (int64_t rank = 0; rank < size; ++rank) {
      int64_t& item = q[free[rank]];
      const int64_t room = sign > 0 ? ONE - item : item;
      const int64_t give = std::min(share + (rank < extra), room);
      item += sign * give;
      rest -= give;
      if (room > give) free[left++] = free[rank];
    }
    free.resize(left);
  }
}

// The items of a block: low words of their fixed-point probabilities, and marks of those that are 2^32, which change no
// low word of the sum and are always kept.
struct BlockItems {
  uint32_t low[SYSTEMATIC_BLOCK];
  uint64_t certain[SYSTEMATIC_BLOCK / 64];

  void take(const int64_t* q, int64_t n) {
    std::fill(certain, certain + (n + 63) / 64, 0);
    for (int64_t i = 0; i < n; ++i) {
      low[i] = static_cast<uint32_t>(q[i]);
      certain[i / 64] |= static_cast<uint64_t>(q[i] >> 32) << (i % 64);
    }
  }

  // Those kept when the sum in front of the block is `before`: the low word of the sum wraps when they are added.
  void mark(const uint16_t* order, int64_t n, int64_t before, uint64_t* bits) const {
    uint8_t kept[SYSTEMATIC_BLOCK];
    // What pads the last word.
    std::fill(kept + n / 64 * 64, kept + (n + 63) / 64 * 64, 0);
    uint32_t sum = static_cast<uint32_t>(before);
    for (int64_t j = 0; j < n; ++j) {
      const uint32_t item = order[j], share = low[item];
      sum += share;
      kept[item] = sum < share;
    }
    const int64_t num_words = (n + 63) / 64;
    kernels().pack(kept, num_words, bits);
    for (int64_t word = 0; word < num_words; ++word) bits[word] |= certain[word];
  }
};

// The order in which a block's items are met.
inline void order_of(const Systematic& drawn, int64_t block, uint16_t* order /* [size_of(block)] */) {
  const int64_t size = drawn.size_of(block);
  const uint32_t number = static_cast<uint32_t>(block);
  if (size == SYSTEMATIC_BLOCK) {
    Permutation permutation;
    permutation_keys(permutation, drawn.key, drawn.epoch, STREAM_SYSTEMATIC, number);
    kernels().order_block(permutation.keys, order);
    return;
  }
  uint32_t wide[SYSTEMATIC_BLOCK];
  if (size < PERMUTATION_SMALL) {
    permute_small(size, drawn.key, drawn.epoch, STREAM_SYSTEMATIC, number, wide);
  } else {
    const Permutation permutation = make_permutation(size, drawn.key, drawn.epoch, STREAM_SYSTEMATIC, number);
    kernels().permute_u32(&permutation, 0, size, wide);
  }
  std::copy(wide, wide + size, order);
}

template <typename T>
void draw_systematic(const T* p /* [n] */, const Systematic& drawn, int64_t* to /* [count] */) {
  const int64_t n = drawn.n, blocks = drawn.blocks();
  std::vector<BlockSums> sums(blocks);
  for_chunks(blocks,
             [&](int64_t block) { fixed_sums(p + block * SYSTEMATIC_BLOCK, drawn.size_of(block), &sums[block]); });
  BlockSums all{0, 0, ONE, 0};
  for (const BlockSums& block : sums) {
    all.sum += block.sum;
    all.free += block.free;
    all.least = std::min(all.least, block.least);
    all.most = std::max(all.most, block.most);
  }
  const int64_t rest = drawn.count * ONE - all.sum;
  // The door asks for 0.5 and what rounding adds; as long as it is below 1 there always are items to give to or take
  // from.
  STD_TORCH_CHECK(std::abs(rest) <= ONE / 4 * 3, "draw: count must be the sum of probability to within 0.5");

  Spread spread{rest < 0 ? -1 : 1, 0, 0};
  std::vector<int64_t> adjusted;  // [n] if one round is not enough, else empty
  if (rest != 0) {
    STD_TORCH_CHECK(all.free > 0, "draw: count must be the sum of probability");
    spread.share = std::abs(rest) / all.free;
    spread.extra = std::abs(rest) % all.free;
    const int64_t room = rest > 0 ? ONE - all.most : all.least;
    if (spread.share + (spread.extra > 0) > room) {
      adjusted.resize(n);
      to_fixed(p, n, adjusted.data());
      spread_in_rounds(adjusted, rest);
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t* q = adjusted.data() + block * SYSTEMATIC_BLOCK;
        sums[block].sum = 0;
        for (int64_t i = 0; i < drawn.size_of(block); ++i) sums[block].sum += q[i];
      }
      spread = {1, 0, 0};
    }
  }

  // The sum in front of every block; its whole part is the number of items kept before it.
  const int64_t offset = philox(drawn.key, 0, 0, drawn.epoch, STREAM_SYSTEMATIC | PURPOSE_OFFSET).word[0];
  std::vector<int64_t> before(blocks + 1), ranks(blocks + 1);
  int64_t sum = offset, rank = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    before[block] = sum + spread.given_before(rank);
    ranks[block] = rank;
    sum += sums[block].sum;
    rank += sums[block].free;
  }
  before[blocks] = sum + spread.given_before(rank);
  ranks[blocks] = rank;

  for_chunks(blocks, [&](int64_t block) {
    BlockItems items;
    uint16_t order[SYSTEMATIC_BLOCK];
    uint64_t bits[SYSTEMATIC_BLOCK / 64];
    const int64_t size = drawn.size_of(block), first = block * SYSTEMATIC_BLOCK;
    const bool all_extra = ranks[block + 1] <= spread.extra, none_extra = ranks[block] >= spread.extra;
    if (!adjusted.empty()) {
      items.take(adjusted.data() + first, size);
    } else if (all_extra || none_extra) {
      fixed_low(p + first, size, spread.sign * (spread.share + all_extra), items.low, items.certain);
    } else {
      int64_t q[SYSTEMATIC_BLOCK];
      to_fixed(p + first, size, q);
      spread.apply(q, size, ranks[block]);
      items.take(q, size);
    }
    order_of(drawn, block, order);
    items.mark(order, size, before[block], bits);
    const int64_t place = before[block] >> 32;
    kernels().emit(bits, (size + 63) / 64, first, to + place, (before[block + 1] >> 32) - place);
  });
}

}  // namespace
}  // namespace stprune
