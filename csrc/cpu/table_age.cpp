// table_age: at the end of an epoch the scores of samples not visited in it move towards the mean (eq. 5), and marks
// that belong to the epoch are cleared. count_nonfinite: how many samples were scored but have no number. One pass
// each.
#include <atomic>
#include <bit>
#include <optional>

#include "cpu/chunks.h"
#include "marks.h"

namespace stprune {
namespace {

// All ones where a float with these bits is finite, else zero: masks instead of conditions, so that whole registers are
// worked on.
inline uint32_t finite_mask(uint32_t bits) { return (bits & 0x7F800000u) != 0x7F800000u ? ~uint32_t{0} : 0; }
inline uint32_t mark_mask(uint8_t mark, uint8_t bit) { return (mark & bit) != 0 ? ~uint32_t{0} : 0; }

void clear_epoch(int64_t n, uint8_t* mark) {
  for (int64_t i = 0; i < n; ++i) mark[i] &= FRESH | KNOWN;
}

void age(const uint8_t* __restrict mark, int64_t n, float mean, float keep, float* __restrict scores) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t old = std::bit_cast<uint32_t>(scores[i]);
    const uint32_t moved = std::bit_cast<uint32_t>(mean + keep * (scores[i] - mean));
    const uint32_t idle = finite_mask(old) & ~mark_mask(mark[i], SCORED);
    scores[i] = std::bit_cast<float>((moved & idle) | (old & ~idle));
  }
}

int32_t count(const float* scores, const uint8_t* mark, int64_t n) {
  uint32_t found = 0;
  for (int64_t i = 0; i < n; ++i) {
    found += mark_mask(mark[i], KNOWN) & ~finite_mask(std::bit_cast<uint32_t>(scores[i])) & 1;
  }
  return static_cast<int32_t>(found);
}

void table_age(Tensor scores, Tensor marks, std::optional<double> mean, double keep) {
  check_table(scores, marks, "table_age");
  float* score = scores.mutable_data_ptr<float>();
  uint8_t* mark = marks.mutable_data_ptr<uint8_t>();
  for_chunks(num_chunks(scores.numel()), [&](int64_t chunk) {
    const int64_t first = chunk * CHUNK, size = chunk_size(scores.numel(), chunk);
    if (mean.has_value()) {
      age(mark + first, size, static_cast<float>(*mean), static_cast<float>(keep), score + first);
    }
    clear_epoch(size, mark + first);
  });
}

Tensor count_nonfinite(const Tensor& scores, const Tensor& marks) {
  check_table(scores, marks, "count_nonfinite");
  const float* score = scores.const_data_ptr<float>();
  const uint8_t* mark = marks.const_data_ptr<uint8_t>();
  std::atomic<int64_t> total{0};
  for_chunks(num_chunks(scores.numel()), [&](int64_t chunk) {
    const int64_t first = chunk * CHUNK, size = chunk_size(scores.numel(), chunk);
    total.fetch_add(count(score + first, mark + first, size), std::memory_order_relaxed);
  });
  Tensor out = torch::stable::new_empty(scores, {1}, ScalarType::Long);
  *out.mutable_data_ptr<int64_t>() = total.load();
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) {
  m.impl("table_age", TORCH_BOX(&table_age));
  m.impl("count_nonfinite", TORCH_BOX(&count_nonfinite));
}

}  // namespace stprune
