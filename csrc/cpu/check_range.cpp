// check_range: the first value outside [0, high] and how many are positive, in one pass; what draws check their input
// with.
#include <atomic>
#include <limits>

#include "cpu/chunks.h"

namespace stprune {
namespace {

int64_t range_of(const float* x, int64_t n, double high, int64_t* positive) {
  return kernels().range_f32(x, n, static_cast<float>(high), positive);
}
int64_t range_of(const double* x, int64_t n, double high, int64_t* positive) {
  return kernels().range_f64(x, n, high, positive);
}

inline void fixed_sums(const float* p, int64_t n, BlockSums* out) { kernels().fixed_sums_f32(p, n, out); }
inline void fixed_sums(const double* p, int64_t n, BlockSums* out) { kernels().fixed_sums_f64(p, n, out); }

// Sum of round(p * 2^32) over a chunk of values in [0, 1]. Integers: the order of adding does not matter.
template <typename T>
int64_t fixed_sum(const T* p, int64_t n) {
  BlockSums sums;
  fixed_sums(p, n, &sums);
  return sums.sum;
}

template <typename T>
void range_kernel(const T* values /* [n] */, int64_t n, double high, bool total, int64_t* out /* [3] */) {
  std::atomic<int64_t> first_bad{std::numeric_limits<int64_t>::max()}, num_positive{0}, sum{0};
  for_chunks(num_chunks(n), [&](int64_t chunk) {
    int64_t positive;
    const int64_t bad = range_of(values + chunk * CHUNK, chunk_size(n, chunk), high, &positive);
    num_positive.fetch_add(positive, std::memory_order_relaxed);
    if (bad < 0) {
      if (total) sum.fetch_add(fixed_sum(values + chunk * CHUNK, chunk_size(n, chunk)), std::memory_order_relaxed);
      return;
    }
    int64_t seen = first_bad.load();
    while (chunk * CHUNK + bad < seen && !first_bad.compare_exchange_weak(seen, chunk * CHUNK + bad)) {
    }
  });
  out[0] = first_bad.load() == std::numeric_limits<int64_t>::max() ? -1 : first_bad.load();
  out[1] = num_positive.load();
  out[2] = sum.load();
}

Tensor check_range(const Tensor& values, double high, bool total) {
  check_vector(values, "check_range", "values");
  Tensor out = torch::stable::new_empty(values, {3}, ScalarType::Long);
  int64_t* to = out.mutable_data_ptr<int64_t>();
  switch (values.scalar_type()) {
    case ScalarType::Float:
      range_kernel(values.const_data_ptr<float>(), values.numel(), high, total, to);
      break;
    case ScalarType::Double:
      range_kernel(values.const_data_ptr<double>(), values.numel(), high, total, to);
      break;
    default:
      STD_TORCH_CHECK(false, "check_range: unsupported dtype");
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) { m.impl("check_range", TORCH_BOX(&check_range)); }

}  // namespace stprune
