// draw: samples with given inclusion probabilities, independently (Bernoulli) or exactly `count` of them (systematic).
#include <atomic>
#include <optional>
#include <tuple>
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

// The indices and how many they are.
std::tuple<Tensor, Tensor> draw(const Tensor& probability, std::optional<int64_t> count, int64_t seed, int64_t epoch,
                                const std::optional<Tensor>& buffer) {
  check(probability, count);
  Output out(buffer, probability, ScalarType::Long, "draw", "out");
  Tensor size = new_host_vector("draw", 1, ScalarType::Long);
  int64_t& total = *size.mutable_data_ptr<int64_t>();
  if (count.has_value()) {
    total = *count;
    if (out.fits(total)) exactly(probability, total, seed, epoch, out.take<int64_t>({total}));
  } else {
    const Bernoulli drawn = each(probability, seed, epoch);
    total = drawn.total();
    if (out.fits(total)) drawn.write(out.take<int64_t>({total}));
  }
  return {out.result(), size};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) { m.impl("draw", TORCH_BOX(&draw)); }

}  // namespace stprune
