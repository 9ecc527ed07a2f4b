// select: indices of the k largest keys, ascending. Template of the layout of an op file: kernel on raw pointers,
// launcher, registration.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "check.h"

namespace stprune {
namespace {

template <typename T>
void select_kernel(const T* keys /* [n] */, int64_t n, int64_t k, int64_t* out /* [k] */) {
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), int64_t{0});
  auto before = [keys](int64_t a, int64_t b) {
    const bool a_nan = std::isnan(keys[a]), b_nan = std::isnan(keys[b]);
    if (a_nan != b_nan) return a_nan;
    if (!a_nan && keys[a] != keys[b]) return keys[a] > keys[b];
    return a < b;
  };
  std::nth_element(order.begin(), order.begin() + k, order.end(), before);
  std::copy(order.begin(), order.begin() + k, out);
  std::sort(out, out + k);
}

Tensor select(const Tensor& keys, int64_t k) {
  check_vector(keys, "select", "keys");
  Tensor out = torch::stable::new_empty(keys, {k}, ScalarType::Long);
  const int64_t n = keys.numel();
  switch (keys.scalar_type()) {
    case ScalarType::Float:
      select_kernel(keys.const_data_ptr<float>(), n, k, out.mutable_data_ptr<int64_t>());
      break;
    case ScalarType::Double:
      select_kernel(keys.const_data_ptr<double>(), n, k, out.mutable_data_ptr<int64_t>());
      break;
    default:
      STD_TORCH_CHECK(false, "select: unsupported dtype");
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) {
  m.impl("select", TORCH_BOX(&select));
}

}  // namespace stprune
