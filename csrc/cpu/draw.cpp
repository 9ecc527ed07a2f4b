// draw: samples with given inclusion probabilities, independently (Bernoulli) or exactly `count` of them (systematic).
#include <atomic>
#include <optional>
#include <vector>

#include "cpu/systematic.h"

namespace stprune {
namespace {

inline int64_t keep(const PhiloxCounter& at, const float* p, int64_t n, uint64_t* bits, bool* bad) {
  return kernels().bernoulli_f32(&at, p, n, bits, bad);
}
inline int64_t keep(const PhiloxCounter& at, const double* p, int64_t n, uint64_t* bits, bool* bad) {
  return kernels().bernoulli_f64(&at, p, n, bits, bad);
}

// Index i is kept when its word is below p_i * 2^32. One pass marks, and refuses what is no probability; a second
// writes the indices.
class Bernoulli {
 public:
  template <typename T>
  Bernoulli(const T* p /* [n] */, int64_t n, int64_t seed, int64_t epoch)
      : n_(n),
        marks_((n + 63) / 64, "draw"),
        counts_(num_chunks(n)),
        offsets_(num_chunks(n)),
        key_(philox_key(seed)),
        epoch_(static_cast<uint32_t>(epoch)) {
    mark(p);
    for (size_t chunk = 0; chunk < counts_.size(); ++chunk) {
      offsets_[chunk] = total_;
      total_ += counts_[chunk];
    }
  }

  int64_t total() const { return total_; }

  void write(int64_t* out /* [total] */) const {
    for_chunks(num_chunks(n_), [&](int64_t chunk) {
      kernels().emit(marks_.data() + chunk * CHUNK_WORDS, (chunk_size(n_, chunk) + 63) / 64, chunk * CHUNK,
                     out + offsets_[chunk], counts_[chunk]);
    });
  }

 private:
  template <typename T>
  void mark(const T* p) {
    std::atomic<bool> any_bad{false};
    for_chunks(num_chunks(n_), [&](int64_t chunk) {
      const int64_t first = chunk * CHUNK;
      bool bad;
      counts_[chunk] = keep(words_from(key_, epoch_, STREAM_DRAW, first), p + first, chunk_size(n_, chunk),
                            marks_.data() + first / 64, &bad);
      if (bad) any_bad.store(true, std::memory_order_relaxed);
    });
    STD_TORCH_CHECK(!any_bad.load(), "draw: probability must lie in [0, 1]");
  }

  int64_t n_, total_ = 0;
  Workspace<uint64_t> marks_;
  std::vector<int64_t> counts_, offsets_;
  PhiloxKey key_;
  uint32_t epoch_;
};

void check(const Tensor& probability, std::optional<int64_t> count) {
  check_vector(probability, "draw", "probability");
  const ScalarType dtype = probability.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, "draw: unsupported dtype");
  if (!count.has_value()) return;
  // The sum of the fixed-point probabilities must fit into 63 bits.
  STD_TORCH_CHECK(probability.numel() <= int64_t{1} << 30, "draw: probability must have at most 2^30 elements");
  STD_TORCH_CHECK(*count >= 0 && *count <= probability.numel(), "draw: count must lie in [0, n]");
}

Bernoulli each(const Tensor& probability, int64_t seed, int64_t epoch) {
  const int64_t n = probability.numel();
  if (probability.scalar_type() == ScalarType::Float) {
    return Bernoulli(probability.const_data_ptr<float>(), n, seed, epoch);
  }
  return Bernoulli(probability.const_data_ptr<double>(), n, seed, epoch);
}

void exactly(const Tensor& probability, int64_t count, int64_t seed, int64_t epoch, int64_t* to /* [count] */) {
  const Systematic drawn{probability.numel(), count, philox_key(seed), static_cast<uint32_t>(epoch)};
  if (probability.scalar_type() == ScalarType::Float) {
    draw_systematic(probability.const_data_ptr<float>(), drawn, to);
  } else {
    draw_systematic(probability.const_data_ptr<double>(), drawn, to);
  }
}

Tensor draw(const Tensor& probability, std::optional<int64_t> count, int64_t seed, int64_t epoch) {
  check(probability, count);
  if (count.has_value()) {
    Tensor out = new_output(probability, *count, ScalarType::Long);
    exactly(probability, *count, seed, epoch, out.mutable_data_ptr<int64_t>());
    return out;
  }
  const Bernoulli drawn = each(probability, seed, epoch);
  Tensor out = new_output(probability, drawn.total(), ScalarType::Long);
  drawn.write(out.mutable_data_ptr<int64_t>());
  return out;
}

// Into the front of a buffer that the caller owns; returns how many. Nothing is written where it is too small.
Tensor draw_into(Tensor out, const Tensor& probability, std::optional<int64_t> count, int64_t seed, int64_t epoch) {
  check(probability, count);
  check_vector(out, "draw", "out");
  check_dtype(out, ScalarType::Long, "draw", "out");
  Tensor drawn = torch::stable::new_empty(probability, {1}, ScalarType::Long);
  int64_t& total = *drawn.mutable_data_ptr<int64_t>();
  if (count.has_value()) {
    total = *count;
    if (total <= out.numel()) exactly(probability, total, seed, epoch, out.mutable_data_ptr<int64_t>());
    return drawn;
  }
  const Bernoulli bernoulli = each(probability, seed, epoch);
  total = bernoulli.total();
  if (total <= out.numel()) bernoulli.write(out.mutable_data_ptr<int64_t>());
  return drawn;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) {
  m.impl("draw", TORCH_BOX(&draw));
  m.impl("draw_into", TORCH_BOX(&draw_into));
}

}  // namespace stprune
