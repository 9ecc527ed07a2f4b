// draw: samples with given inclusion probabilities, independently (Bernoulli) or exactly `count` of them (systematic).
#include <cstdlib>
#include <optional>
#include <vector>

#include "cpu/chunks.h"
#include "cpu/permute.h"

namespace stprune {
namespace {

// Words made at a time: 8 KiB stay in L1.
constexpr int64_t WORD_BLOCK = 2048;

inline int64_t keep(const float* p, const uint32_t* words, int64_t n, uint64_t* bits) {
  return kernels().bernoulli_f32(p, words, n, bits);
}
inline int64_t keep(const double* p, const uint32_t* words, int64_t n, uint64_t* bits) {
  return kernels().bernoulli_f64(p, words, n, bits);
}

// Index i is kept when its word is below p_i * 2^32. One pass marks, a second writes the indices.
template <typename T>
Tensor draw_bernoulli(const Tensor& probability, int64_t seed, int64_t epoch) {
  const T* p = probability.const_data_ptr<T>();
  const int64_t n = probability.numel();
  const PhiloxKey key = philox_key(seed);
  Tensor scratch = new_output(probability, (n + 63) / 64, ScalarType::Long);
  uint64_t* marks = reinterpret_cast<uint64_t*>(scratch.mutable_data_ptr<int64_t>());
  std::vector<int64_t> counts(num_chunks(n)), offsets(num_chunks(n));
  for_chunks(num_chunks(n), [&](int64_t chunk) {
    uint32_t words[WORD_BLOCK];
    const int64_t end = chunk * CHUNK + chunk_size(n, chunk);
    for (int64_t first = chunk * CHUNK; first < end; first += WORD_BLOCK) {
      const int64_t size = std::min(WORD_BLOCK, end - first);
      const uint64_t c = philox_counter(first);
      kernels().words(key.low, key.high, static_cast<uint32_t>(c), static_cast<uint32_t>(c >> 32),
                      static_cast<uint32_t>(epoch), STREAM_DRAW, (size + 63) / 64, words);
      counts[chunk] += keep(p + first, words, size, marks + first / 64);
    }
  });
  int64_t total = 0;
  for (size_t chunk = 0; chunk < counts.size(); ++chunk) {
    offsets[chunk] = total;
    total += counts[chunk];
  }
  Tensor out = new_output(probability, total, ScalarType::Long);
  int64_t* to = out.mutable_data_ptr<int64_t>();
  for_chunks(num_chunks(n), [&](int64_t chunk) {
    kernels().emit(marks + chunk * CHUNK_WORDS, (chunk_size(n, chunk) + 63) / 64, chunk * CHUNK, to + offsets[chunk],
                   counts[chunk]);
  });
  return out;
}

constexpr int64_t ONE = int64_t{1} << 32;
// Items put in random order together: see stprune/reference/draw.py.
constexpr int64_t SYSTEMATIC_BLOCK = 4096;
static_assert(CHUNK % SYSTEMATIC_BLOCK == 0);

// Fixed-point probabilities whose sum is exactly count * 2^32: what is missing is spread over the items with 0 < q <
// 2^32. One round gives those of rank r (in index order) `share` units, and one more where r < extra.
struct Spread {
  int64_t sign, share, extra;

  int64_t given_before(int64_t rank) const { return sign * (share * rank + std::min(rank, extra)); }
  void apply(int64_t* q, int64_t n, int64_t rank) const {
    if (share == 0 && rank >= extra) return;
    for (int64_t i = 0; i < n; ++i) {
      if (q[i] <= 0 || q[i] >= ONE) continue;
      q[i] += sign * (share + (rank < extra));
      ++rank;
    }
  }
};

// The rounds of stprune/reference/draw.py: spread, for the rare case that one round does not do.
void spread_in_rounds(std::vector<int64_t>& q, int64_t rest) {
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

BlockSums sum_block(const int64_t* q, int64_t n) {
  BlockSums sums;
  kernels().summarize(q, n, &sums);
  return sums;
}

// The running sum meets the items of a block in random order; whoever carries it over a multiple of 2^32 is kept. An
// item carries it over one at most, so the lowest bit of the whole part tells.
void mark_block(const int64_t* q, const uint32_t* order, int64_t n, int64_t before, uint64_t* bits) {
  uint8_t kept[SYSTEMATIC_BLOCK] = {};
  int64_t sum = before;
  for (int64_t j = 0; j < n; ++j) {
    const int64_t next = sum + q[order[j]];
    kept[order[j]] = static_cast<uint8_t>(((next ^ sum) >> 32) & 1);
    sum = next;
  }
  kernels().pack(kept, SYSTEMATIC_BLOCK / 64, bits);
}

template <typename T>
Tensor draw_systematic(const Tensor& probability, int64_t count, int64_t seed, int64_t epoch) {
  const T* p = probability.const_data_ptr<T>();
  const int64_t n = probability.numel();
  const int64_t blocks = (n + SYSTEMATIC_BLOCK - 1) / SYSTEMATIC_BLOCK;
  const auto size_of = [n](int64_t block) { return std::min(SYSTEMATIC_BLOCK, n - block * SYSTEMATIC_BLOCK); };

  std::vector<BlockSums> sums(blocks);
  for_chunks(blocks, [&](int64_t block) {
    int64_t q[SYSTEMATIC_BLOCK];
    to_fixed(p + block * SYSTEMATIC_BLOCK, size_of(block), q);
    sums[block] = sum_block(q, size_of(block));
  });
  BlockSums all{0, 0, ONE, 0};
  for (const BlockSums& block : sums) {
    all.sum += block.sum;
    all.free += block.free;
    all.least = std::min(all.least, block.least);
    all.most = std::max(all.most, block.most);
  }
  const int64_t rest = count * ONE - all.sum;
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
      for (int64_t block = 0; block < blocks; ++block) {
        to_fixed(p + block * SYSTEMATIC_BLOCK, size_of(block), adjusted.data() + block * SYSTEMATIC_BLOCK);
      }
      spread_in_rounds(adjusted, rest);
      for (int64_t block = 0; block < blocks; ++block) {
        sums[block] = sum_block(adjusted.data() + block * SYSTEMATIC_BLOCK, size_of(block));
      }
      spread = {1, 0, 0};
    }
  }

  // The sum in front of every block; its whole part is the number of items kept before it.
  const PhiloxKey key = philox_key(seed);
  const uint32_t low_epoch = static_cast<uint32_t>(epoch);
  const int64_t offset = philox(key, 0, 0, low_epoch, STREAM_SYSTEMATIC | PURPOSE_OFFSET).word[0];
  std::vector<int64_t> before(blocks + 1), ranks(blocks);
  int64_t sum = offset, rank = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    before[block] = sum + spread.given_before(rank);
    ranks[block] = rank;
    sum += sums[block].sum;
    rank += sums[block].free;
  }
  before[blocks] = sum + spread.given_before(rank);

  Tensor out = new_output(probability, count, ScalarType::Long);
  int64_t* to = out.mutable_data_ptr<int64_t>();
  Permutation shape{};
  if (n >= SYSTEMATIC_BLOCK) shape = make_permutation(SYSTEMATIC_BLOCK, key, low_epoch, STREAM_SYSTEMATIC, 0);
  for_chunks(blocks, [&](int64_t block) {
    int64_t local[SYSTEMATIC_BLOCK];
    uint32_t order[SYSTEMATIC_BLOCK];
    uint64_t bits[SYSTEMATIC_BLOCK / 64];
    const int64_t size = size_of(block), first = block * SYSTEMATIC_BLOCK;
    const int64_t* q = local;
    if (adjusted.empty()) {
      to_fixed(p + first, size, local);
      spread.apply(local, size, ranks[block]);
    } else {
      q = adjusted.data() + first;
    }
    const uint32_t number = static_cast<uint32_t>(block);
    if (size < PERMUTATION_SMALL) {
      permute_small(size, key, low_epoch, STREAM_SYSTEMATIC, number, order);
    } else {
      Permutation permutation = shape;
      if (size == SYSTEMATIC_BLOCK) {
        permutation_keys(permutation, key, low_epoch, STREAM_SYSTEMATIC, number);
      } else {
        permutation = make_permutation(size, key, low_epoch, STREAM_SYSTEMATIC, number);
      }
      kernels().permute_u32(&permutation, 0, size, order);
    }
    mark_block(q, order, size, before[block], bits);
    const int64_t place = before[block] >> 32;
    kernels().emit(bits, (size + 63) / 64, first, to + place, (before[block + 1] >> 32) - place);
  });
  return out;
}

Tensor draw(const Tensor& probability, std::optional<int64_t> count, int64_t seed, int64_t epoch) {
  check_vector(probability, "draw", "probability");
  const ScalarType dtype = probability.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, "draw: unsupported dtype");
  if (!count.has_value()) {
    return dtype == ScalarType::Float ? draw_bernoulli<float>(probability, seed, epoch)
                                      : draw_bernoulli<double>(probability, seed, epoch);
  }
  // The sum of the fixed-point probabilities must fit into 63 bits.
  STD_TORCH_CHECK(probability.numel() <= int64_t{1} << 30, "draw: probability must have at most 2^30 elements");
  STD_TORCH_CHECK(*count >= 0 && *count <= probability.numel(), "draw: count must lie in [0, n]");
  return dtype == ScalarType::Float ? draw_systematic<float>(probability, *count, seed, epoch)
                                    : draw_systematic<double>(probability, *count, seed, epoch);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) { m.impl("draw", TORCH_BOX(&draw)); }

}  // namespace stprune
