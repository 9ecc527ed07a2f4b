// draw_spaced: the high windows, and every spacing-th of each run of low windows far from all of them.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "check.h"
#include "philox.h"

namespace stprune {
namespace {

// Mirrors stprune/reference/spacing.py.
constexpr uint32_t STREAM_SPACED = 9;

// Calls keep(window) for every kept one, ascending. One pass: a run of free windows ends where the next high one is
// seen.
template <typename T, typename Keep>
void for_kept(const T* scores, int64_t n, int64_t spacing, double threshold, PhiloxKey key, uint32_t epoch, Keep keep) {
  const auto run = [&](int64_t first, int64_t last) {
    if (first >= last) return;
    const uint64_t choices = static_cast<uint64_t>(std::min(spacing, last - first));
    const uint64_t word = philox_word_at(key, epoch, STREAM_SPACED, first);
    for (int64_t i = first + static_cast<int64_t>(word * choices >> 32); i < last; i += spacing) keep(i);
  };
  int64_t free_from = 0;
  for (int64_t i = 0; i < n; ++i) {
    // False for NaN alone: unknown windows are high.
    if (static_cast<double>(scores[i]) < threshold) continue;
    run(free_from, i - spacing + 1);
    keep(i);
    free_from = i + spacing;
  }
  run(free_from, n);
}

template <typename T>
Tensor launch(const Tensor& tensor, int64_t spacing, double threshold, int64_t seed, int64_t epoch) {
  const T* scores = tensor.const_data_ptr<T>();
  const int64_t n = tensor.numel();
  std::vector<int64_t> kept;
  for_kept(scores, n, spacing, threshold, philox_key(seed), static_cast<uint32_t>(epoch),
           [&](int64_t i) { kept.push_back(i); });
  Tensor out = torch::stable::new_empty(tensor, {static_cast<int64_t>(kept.size())}, ScalarType::Long);
  std::copy(kept.begin(), kept.end(), out.mutable_data_ptr<int64_t>());
  return out;
}

Tensor draw_spaced(const Tensor& scores, int64_t spacing, double threshold, int64_t seed, int64_t epoch) {
  check_vector(scores, "draw_spaced", "scores");
  // Distances and the product with a 32-bit word stay far from overflow.
  STD_TORCH_CHECK(spacing >= 1 && spacing < int64_t{1} << 31, "draw_spaced: spacing must lie in [1, 2^31 - 1]");
  const ScalarType dtype = scores.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, "draw_spaced: unsupported dtype");
  return dtype == ScalarType::Float ? launch<float>(scores, spacing, threshold, seed, epoch)
                                    : launch<double>(scores, spacing, threshold, seed, epoch);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) { m.impl("draw_spaced", TORCH_BOX(&draw_spaced)); }

}  // namespace stprune
