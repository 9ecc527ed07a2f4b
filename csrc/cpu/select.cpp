// select: indices of the k largest keys, ascending. topk: the same with their values, and largest first if asked.
#include <numeric>
#include <tuple>

#include "cpu/order.h"

namespace stprune {
namespace {

template <typename T>
void select_kernel(const Tensor& keys /* [n] */, int64_t k, int64_t* out /* [k] */) {
  const int64_t n = keys.numel();
  if (k == 0) return;
  if (k == n) {
    for_chunks(num_chunks(n), [out, n](int64_t chunk) {
      int64_t* to = out + chunk * CHUNK;
      std::iota(to, to + chunk_size(n, chunk), chunk * CHUNK);
    });
    return;
  }
  select_largest(StoredKeys<T>{keys.const_data_ptr<T>(), n}, k, k, keys, out);
}

Tensor select(const Tensor& keys, int64_t k) {
  check_vector(keys, "select", "keys");
  STD_TORCH_CHECK(k >= 0 && k <= keys.numel(), "select: k must lie in [0, ", keys.numel(), "], got ", k);
  Tensor out = new_output(keys, k, ScalarType::Long);
  int64_t* indices = out.mutable_data_ptr<int64_t>();
  switch (keys.scalar_type()) {
    case ScalarType::Float:
      select_kernel<float>(keys, k, indices);
      break;
    case ScalarType::Double:
      select_kernel<double>(keys, k, indices);
      break;
    default:
      STD_TORCH_CHECK(false, "select: unsupported dtype");
  }
  return out;
}

template <typename Code>
struct Ranked {
  Code code;
  int64_t index;
};

// Sorts pairs by descending code, keeping the order of equal codes: a radix sort with 11-bit digits.
template <typename Code>
void sort_descending(std::vector<Ranked<Code>>& pairs) {
  // Below this the passes over histograms cost more than comparisons.
  if (pairs.size() < 512) {
    std::stable_sort(pairs.begin(), pairs.end(), [](const auto& a, const auto& b) { return a.code > b.code; });
    return;
  }
  constexpr int DIGIT = 11, BINS = 1 << DIGIT, PASSES = (8 * sizeof(Code) + DIGIT - 1) / DIGIT;
  std::vector<Ranked<Code>> other(pairs.size());
  std::vector<int64_t> counts(PASSES * BINS);
  for (const Ranked<Code>& pair : pairs) {
    for (int pass = 0; pass < PASSES; ++pass) ++counts[pass * BINS + ((~pair.code >> (DIGIT * pass)) & (BINS - 1))];
  }
  for (int pass = 0; pass < PASSES; ++pass) {
    int64_t* bins = counts.data() + pass * BINS;
    // A digit that all codes share moves nothing.
    if (std::any_of(bins, bins + BINS, [&](int64_t c) { return c == static_cast<int64_t>(pairs.size()); })) continue;
    std::exclusive_scan(bins, bins + BINS, bins, int64_t{0});
    for (const Ranked<Code>& pair : pairs) other[bins[(~pair.code >> (DIGIT * pass)) & (BINS - 1)]++] = pair;
    pairs.swap(other);
  }
}

template <typename T>
void topk_kernel(const Tensor& keys, int64_t k, bool sorted, T* values /* [k] */, int64_t* indices /* [k] */) {
  select_kernel<T>(keys, k, indices);
  const T* from = keys.const_data_ptr<T>();
  if (sorted) {
    using Code = decltype(radix_code(T{}));
    std::vector<Ranked<Code>> pairs(k);
    for (int64_t i = 0; i < k; ++i) pairs[i] = {radix_code(from[indices[i]]), indices[i]};
    sort_descending(pairs);
    for (int64_t i = 0; i < k; ++i) indices[i] = pairs[i].index;
  }
  for (int64_t i = 0; i < k; ++i) values[i] = from[indices[i]];
}

std::tuple<Tensor, Tensor> topk(const Tensor& keys, int64_t k, bool sorted) {
  check_vector(keys, "topk", "keys");
  STD_TORCH_CHECK(k >= 0 && k <= keys.numel(), "topk: k must lie in [0, ", keys.numel(), "], got ", k);
  Tensor values = new_output(keys, k, keys.scalar_type());
  Tensor indices = new_output(keys, k, ScalarType::Long);
  switch (keys.scalar_type()) {
    case ScalarType::Float:
      topk_kernel(keys, k, sorted, values.mutable_data_ptr<float>(), indices.mutable_data_ptr<int64_t>());
      break;
    case ScalarType::Double:
      topk_kernel(keys, k, sorted, values.mutable_data_ptr<double>(), indices.mutable_data_ptr<int64_t>());
      break;
    default:
      STD_TORCH_CHECK(false, "topk: unsupported dtype");
  }
  return {values, indices};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) {
  m.impl("select", TORCH_BOX(&select));
  m.impl("topk", TORCH_BOX(&topk));
}

}  // namespace stprune
