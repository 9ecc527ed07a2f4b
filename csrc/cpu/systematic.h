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
  void mark(const uint16_t* __restrict order, int64_t n, int64_t before, uint64_t* bits) const {
    // Bytes may alias anything unless they are said not to.
    uint8_t marks[SYSTEMATIC_BLOCK], *__restrict kept = marks;
    // What pads the last word.
    std::fill(kept + n / 64 * 64, kept + (n + 63) / 64 * 64, 0);
    uint32_t sum = static_cast<uint32_t>(before);
    int64_t j = 0;
    // Four at a time: their loads and the additions in front of them overlap.
    for (; j + 4 <= n; j += 4) {
      const uint32_t a = order[j], b = order[j + 1], c = order[j + 2], d = order[j + 3];
      const uint32_t share_a = low[a], share_b = low[b], share_c = low[c], share_d = low[d];
      const uint32_t to_a = sum + share_a, to_b = to_a + share_b, to_c = to_b + share_c;
      sum = to_c + share_d;
      kept[a] = to_a < share_a;
      kept[b] = to_b < share_b;
      kept[c] = to_c < share_c;
      kept[d] = sum < share_d;
    }
    for (; j < n; ++j) {
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

// Probabilities that lie in memory.
template <typename T>
struct Given {
  using Element = T;
  const T* p;  // [n]
  const T* block(int64_t first, int64_t, T* /* room for a block */) const { return p + first; }
};

// A draw whose blocks can be marked in any order. `Source` gives the probabilities of a block, in memory of its own or
// in the room it is offered; it is asked twice for each.
template <typename Source>
class SystematicDraw {
 public:
  using T = typename Source::Element;

  SystematicDraw(const Source& source, const Systematic& drawn)
      : source_(source), drawn_(drawn), sums_(drawn.blocks()), before_(drawn.blocks() + 1), ranks_(drawn.blocks() + 1) {
    for_chunks(drawn_.blocks(), [&](int64_t block) {
      T room[SYSTEMATIC_BLOCK];
      const int64_t size = drawn_.size_of(block);
      fixed_sums(source_.block(block * SYSTEMATIC_BLOCK, size, room), size, &sums_[block]);
    });
    for (const BlockSums& block : sums_) {
      all_.sum += block.sum;
      all_.free += block.free;
      all_.least = std::min(all_.least, block.least);
      all_.most = std::max(all_.most, block.most);
    }
  }

  // How many units of 2^-32 the probabilities lack to `count`.
  int64_t rest() const { return drawn_.count * ONE - all_.sum; }

  // Spreads the rest, which must be done before a block is marked. False where the items cannot take it.
  bool spread() {
    if (rest() != 0) {
      if (all_.free == 0) return false;
      spread_.sign = rest() < 0 ? -1 : 1;
      spread_.share = std::abs(rest()) / all_.free;
      spread_.extra = std::abs(rest()) % all_.free;
      const int64_t room = rest() > 0 ? ONE - all_.most : all_.least;
      if (spread_.share + (spread_.extra > 0) > room) spread_each();
    }
    // The sum in front of every block; its whole part is the number of items kept before it.
    const int64_t blocks = drawn_.blocks();
    int64_t sum = philox(drawn_.key, 0, 0, drawn_.epoch, STREAM_SYSTEMATIC | PURPOSE_OFFSET).word[0], rank = 0;
    for (int64_t block = 0; block <= blocks; ++block) {
      before_[block] = sum + spread_.given_before(rank);
      ranks_[block] = rank;
      if (block == blocks) break;
      sum += sums_[block].sum;
      rank += sums_[block].free;
    }
    return place_of(blocks) == drawn_.count;
  }

  // How many items are kept in front of a block.
  int64_t place_of(int64_t block) const { return before_[block] >> 32; }

  // Marks of the kept items of a block, of which p [size] are the probabilities that the source gives.
  void mark(int64_t block, const T* p, uint64_t* bits) const {
    BlockItems items;
    uint16_t order[SYSTEMATIC_BLOCK];
    const int64_t size = drawn_.size_of(block), first = block * SYSTEMATIC_BLOCK;
    const bool all_extra = ranks_[block + 1] <= spread_.extra, none_extra = ranks_[block] >= spread_.extra;
    if (!adjusted_.empty()) {
      items.take(adjusted_.data() + first, size);
    } else if (all_extra || none_extra) {
      fixed_low(p, size, spread_.sign * (spread_.share + all_extra), items.low, items.certain);
    } else {
      int64_t q[SYSTEMATIC_BLOCK];
      to_fixed(p, size, q);
      spread_.apply(q, size, ranks_[block]);
      items.take(q, size);
    }
    order_of(drawn_, block, order);
    items.mark(order, size, before_[block], bits);
  }

 private:
  // For the rare case that one round does not do.
  void spread_each() {
    adjusted_.resize(drawn_.n);
    for (int64_t block = 0; block < drawn_.blocks(); ++block) {
      T room[SYSTEMATIC_BLOCK];
      const int64_t first = block * SYSTEMATIC_BLOCK, size = drawn_.size_of(block);
      to_fixed(source_.block(first, size, room), size, adjusted_.data() + first);
    }
    spread_in_rounds(adjusted_, rest());
    for (int64_t block = 0; block < drawn_.blocks(); ++block) {
      const int64_t* q = adjusted_.data() + block * SYSTEMATIC_BLOCK;
      sums_[block].sum = 0;
      for (int64_t i = 0; i < drawn_.size_of(block); ++i) sums_[block].sum += q[i];
    }
    spread_ = {1, 0, 0};
  }

  Source source_;
  Systematic drawn_;
  std::vector<BlockSums> sums_;
  BlockSums all_{0, 0, ONE, 0};
  Spread spread_{1, 0, 0};
  std::vector<int64_t> adjusted_;  // [n] if one round is not enough, else empty
  std::vector<int64_t> before_, ranks_;
};

template <typename T>
void draw_systematic(const T* p /* [n] */, const Systematic& drawn, int64_t* to /* [count] */) {
  SystematicDraw<Given<T>> draw({p}, drawn);
  // The door asks for 0.5 and what rounding adds; as long as it is below 1 there always are items to give to or take
  // from.
  STD_TORCH_CHECK(std::abs(draw.rest()) <= ONE / 4 * 3, "draw: count must be the sum of probability to within 0.5");
  STD_TORCH_CHECK(draw.spread(), "draw: count must be the sum of probability");
  for_chunks(drawn.blocks(), [&](int64_t block) {
    uint64_t bits[SYSTEMATIC_BLOCK / 64];
    const int64_t size = drawn.size_of(block), first = block * SYSTEMATIC_BLOCK, place = draw.place_of(block);
    draw.mark(block, p + first, bits);
    kernels().emit(bits, (size + 63) / 64, first, to + place, draw.place_of(block + 1) - place);
  });
}

}  // namespace
}  // namespace stprune
