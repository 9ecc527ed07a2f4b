// draw_weighted: weighted sampling without replacement. The keys are functions of (seed, epoch, index) and the weight;
// they are recomputed block by block and never stored.
#include <atomic>
#include <numeric>
#include <tuple>

#include "cpu/order.h"

namespace stprune {
namespace {

// What is known of the weights. The counts are made while the keys are split, so that no pass is spent on them.
struct WeightsSeen {
  std::atomic<int64_t> positive{0};
  std::atomic<bool> bad{false};
  bool accepted = false;
};

// Bounds of a bracket that a product with the weight is compared with instead of a quotient by it: an item whose key's
// numerator is at most sure * weight has a key of at most the smaller end, and one above never * weight a key of at
// least the larger. 2^-20 is more than the product's rounding; where products could be subnormal no item is certain.
struct CertainBounds {
  static constexpr float SLACK = 0x1p-20f, LEAST = 0x1p-90f, MOST = 0x1p90f;
  float sure, never;

  // Ends of negated keys.
  explicit CertainBounds(Bracket<float> ends)
      : sure(-ends.high >= LEAST ? std::min(-ends.high, MOST) * (1.0f - SLACK) : -1.0f),
        never(-ends.low >= LEAST && -ends.low <= MOST ? -ends.low * (1.0f + SLACK)
                                                      : std::numeric_limits<float>::infinity()) {}
};

// Minus the sampling keys, so that the smallest become the largest: negation is exact.
struct WeightedKeys {
  using Key = float;
  // 2,048 words and keys fill 16 KiB: half of a common L1.
  static constexpr int64_t BLOCK = 2048, RUN = 64;
  struct Buffer {
    uint32_t words[BLOCK];
    float keys[BLOCK];
  };
  const float* weights;  // [n]
  int64_t n, k;
  PhiloxKey key;
  uint32_t epoch;
  bool race;
  WeightsSeen* seen;

  void make_words(int64_t first, int64_t size, uint32_t* words) const {
    const PhiloxCounter at = words_from(key, epoch, STREAM_WEIGHTED, first);
    kernels().words(at.key_low, at.key_high, at.c0, at.c1, at.c2, at.c3, (size + 63) / 64, words);
  }

  void fill(const float* w, const uint32_t* words, int64_t size, float* keys) const {
    race ? kernels().race(w, words, size, keys) : kernels().priority(w, words, size, keys);
  }

  void run(int64_t first, float* out /* [RUN] */) const {
    uint32_t words[RUN];
    make_words(first, RUN, words);
    fill(weights + first, words, RUN, out);
  }

  const float* block(int64_t first, int64_t size, Buffer& buffer) const {
    make_words(first, size, buffer.words);
    fill(weights + first, buffer.words, size, buffer.keys);
    return buffer.keys;
  }

  // Almost every item is above the bracket or below it by so much that a product shows it; only the others' keys are
  // made.
  template <typename Aside>
  int64_t split(int64_t first, int64_t size, Buffer& buffer, Bracket<float> ends, uint64_t* above,
                const Aside& aside) const {
    const CertainBounds bounds(ends);
    uint64_t unsure[BLOCK / 64];
    uint16_t places[BLOCK];
    float few[BLOCK];
    const PhiloxCounter at = words_from(key, epoch, STREAM_WEIGHTED, first);
    WeightedSplit found;
    (race ? kernels().split_race : kernels().split_priority)(&at, weights + first, size, bounds.sure, bounds.never,
                                                             above, unsure, buffer.words, &found);
    seen->positive.fetch_add(found.positive, std::memory_order_relaxed);
    if (found.bad) seen->bad.store(true, std::memory_order_relaxed);
    int64_t count = 0;
    for_set_bits(unsure, (size + 63) / 64, [&](int64_t i) {
      few[count] = weights[first + i];
      buffer.words[count] = buffer.words[i];
      places[count++] = static_cast<uint16_t>(i);
    });
    fill(few, buffer.words, count, buffer.keys);
    for (int64_t j = 0; j < count; ++j) {
      const float found_key = buffer.keys[j];
      if (found_key >= ends.high) {
        above[places[j] / 64] |= uint64_t{1} << (places[j] % 64);
        ++found.drawn;
      } else if (found_key > ends.low) {
        aside(places[j], found_key);
      }
    }
    return found.drawn;
  }

  // Refuses bad weights and a k above the number of positive ones.
  void accept(bool all_split) const {
    if (seen->accepted) return;
    if (!all_split) {
      for_chunks(num_chunks(n), [&](int64_t chunk) {
        int64_t positive;
        const int64_t bad = kernels().range_f32(weights + chunk * CHUNK, chunk_size(n, chunk),
                                                std::numeric_limits<float>::max(), &positive);
        seen->positive.fetch_add(positive, std::memory_order_relaxed);
        if (bad >= 0) seen->bad.store(true, std::memory_order_relaxed);
      });
    }
    STD_TORCH_CHECK(!seen->bad.load(), "draw_weighted: weights must be finite and not negative");
    STD_TORCH_CHECK(k <= seen->positive.load(), "draw_weighted: k must lie in [0, ", seen->positive.load(), "], got ",
                    k);
    seen->accepted = true;
  }
};

// The k items drawn and, but for the race, their Horvitz-Thompson weights max(1, tau / w), tau = 1 / threshold. Nothing
// is written where a weight is bad or fewer than k are positive.
void draw_weighted_kernel(const float* weights /* [n] */, int64_t n, int64_t k, int64_t seed, int64_t epoch, bool race,
                          int64_t* to /* [k] */, float* result /* [k] */) {
  WeightsSeen seen;
  const WeightedKeys keys{weights, n, k, philox_key(seed), static_cast<uint32_t>(epoch), race, &seen};
  if (k == 0 || k == n) {
    keys.accept(false);
    std::iota(to, to + k, int64_t{0});
    if (!race) std::fill(result, result + k, 1.0f);
  } else if (race) {
    select_largest(keys, k, k, to);
  } else {
    // The threshold is the key after the last that is kept; infinite when only items of weight 0 are left: all weigh 1.
    // One that underflowed to zero would make the weights infinite.
    select_largest(keys, k + 1, k, to, [&](float key, int64_t chunk, const uint64_t* bits, int64_t first) {
      const double tau =
          key == -std::numeric_limits<float>::infinity() ? 0.0 : 1.0 / std::max(static_cast<double>(-key), 0x1p-149);
      kernels().marked_weights(bits, weights + chunk * CHUNK, chunk_size(n, chunk), tau, result + first);
    });
  }
}

void check(const Tensor& weights, int64_t k) {
  check_vector(weights, "draw_weighted", "weights");
  check_dtype(weights, ScalarType::Float, "draw_weighted", "weights");
  STD_TORCH_CHECK(k >= 0 && k <= weights.numel(), "draw_weighted: k must lie in [0, ", weights.numel(), "], got ", k);
}

// For the race the sample's weights are empty.
std::tuple<Tensor, Tensor> draw_weighted(const Tensor& weights, int64_t k, int64_t seed, int64_t epoch, bool race,
                                         const std::optional<Tensor>& index_buffer,
                                         const std::optional<Tensor>& weight_buffer) {
  check(weights, k);
  Output indices(index_buffer, weights, ScalarType::Long, "draw_weighted", "out indices");
  Output sample_weights(weight_buffer, weights, ScalarType::Float, "draw_weighted", "out weights");
  int64_t* index_to = indices.take<int64_t>({k});
  float* weight_to = sample_weights.take<float>({race ? 0 : k});
  draw_weighted_kernel(weights.const_data_ptr<float>(), weights.numel(), k, seed, epoch, race, index_to, weight_to);
  return {indices.result(), sample_weights.result()};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) { m.impl("draw_weighted", TORCH_BOX(&draw_weighted)); }

}  // namespace stprune
