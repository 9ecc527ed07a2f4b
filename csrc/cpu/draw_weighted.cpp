// draw_weighted: weighted sampling without replacement. The keys are functions of (seed, epoch, index) and the weight;
// they are recomputed block by block and never stored.
#include <numeric>
#include <tuple>

#include "cpu/order.h"

namespace stprune {
namespace {

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
  int64_t n;
  PhiloxKey key;
  uint32_t epoch;
  bool race;

  void fill(const float* w, const uint32_t* words, int64_t size, float* keys) const {
    race ? kernels().race(w, words, size, keys) : kernels().priority(w, words, size, keys);
  }

  void run(int64_t first, float* out /* [RUN] */) const {
    Buffer buffer;
    std::memcpy(out, block(first, RUN, buffer), RUN * sizeof(float));
  }

  const float* block(int64_t first, int64_t size, Buffer& buffer) const {
    const uint64_t c = philox_counter(first);
    kernels().words(key.low, key.high, static_cast<uint32_t>(c), static_cast<uint32_t>(c >> 32), epoch, STREAM_WEIGHTED,
                    (size + 63) / 64, buffer.words);
    fill(weights + first, buffer.words, size, buffer.keys);
    return buffer.keys;
  }
};

// Horvitz-Thompson weights of priority sampling: max(1, tau / w), tau = 1 / threshold. All weigh 1 where the threshold
// is infinite.
void priority_weights(const float* weights, const int64_t* indices, int64_t k, float threshold, float* out /* [k] */) {
  if (threshold == std::numeric_limits<float>::infinity()) {
    std::fill(out, out + k, 1.0f);
    return;
  }
  // A threshold that underflowed to zero would make the weights infinite.
  const double tau = 1.0 / std::max(static_cast<double>(threshold), 0x1p-149);
  kernels().sample_weights(weights, indices, k, tau, out);
}

// The k items drawn and, but for the race, their weights.
void draw_weighted_kernel(const float* weights /* [n] */, int64_t n, int64_t k, int64_t seed, int64_t epoch, bool race,
                          int64_t* to /* [k] */, float* result /* [k] */) {
  if (k == 0) return;
  const WeightedKeys keys{weights, n, philox_key(seed), static_cast<uint32_t>(epoch), race};
  if (k == n) {
    std::iota(to, to + n, int64_t{0});
    if (!race) std::fill(result, result + k, 1.0f);
  } else if (race) {
    select_largest(keys, k, k, to);
  } else {
    // The threshold is the key after the last that is kept; infinite when only items of weight 0 are left.
    select_largest(keys, k + 1, k, to, [&](float key, int64_t first, int64_t count) {
      priority_weights(weights, to + first, count, -key, result + first);
    });
  }
}

void check(const Tensor& weights, int64_t k) {
  check_vector(weights, "draw_weighted", "weights");
  check_dtype(weights, ScalarType::Float, "draw_weighted", "weights");
  STD_TORCH_CHECK(k >= 0 && k <= weights.numel(), "draw_weighted: k must lie in [0, ", weights.numel(), "], got ", k);
}

std::tuple<Tensor, Tensor> draw_weighted(const Tensor& weights, int64_t k, int64_t seed, int64_t epoch, bool race) {
  check(weights, k);
  Tensor indices = new_output(weights, k, ScalarType::Long);
  Tensor out = new_output(weights, race ? 0 : k, ScalarType::Float);
  draw_weighted_kernel(weights.const_data_ptr<float>(), weights.numel(), k, seed, epoch, race,
                       indices.mutable_data_ptr<int64_t>(), out.mutable_data_ptr<float>());
  return {indices, out};
}

// Into buffers of k elements that the caller owns; for the race the second has none.
void draw_weighted_into(Tensor indices, Tensor out, const Tensor& weights, int64_t seed, int64_t epoch, bool race) {
  check_vector(indices, "draw_weighted", "out");
  check_vector(out, "draw_weighted", "out weights");
  check_dtype(indices, ScalarType::Long, "draw_weighted", "out");
  check_dtype(out, ScalarType::Float, "draw_weighted", "out weights");
  const int64_t k = indices.numel();
  check(weights, k);
  STD_TORCH_CHECK(out.numel() == (race ? 0 : k), "draw_weighted: out weights must have ", race ? 0 : k, " elements");
  draw_weighted_kernel(weights.const_data_ptr<float>(), weights.numel(), k, seed, epoch, race,
                       indices.mutable_data_ptr<int64_t>(), out.mutable_data_ptr<float>());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) {
  m.impl("draw_weighted", TORCH_BOX(&draw_weighted));
  m.impl("draw_weighted_into", TORCH_BOX(&draw_weighted_into));
}

}  // namespace stprune
