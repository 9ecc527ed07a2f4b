// table_age: at the end of an epoch visits become stamps, and scores of samples not visited move towards the mean (eq.
// 5). count_nonfinite: how many visited samples have no number. One pass each.
#include <atomic>
#include <optional>

#include "cpu/chunks.h"

namespace stprune {
namespace {

constexpr int32_t NEVER = -1;
constexpr uint8_t VISITED = 1, FRESH = 2;

void check_table(const Tensor& scores, const Tensor& stamp, const Tensor& marks, const char* op) {
  check_vector(scores, op, "scores");
  check_vector(stamp, op, "stamp");
  check_vector(marks, op, "marks");
  check_dtype(scores, ScalarType::Float, op, "scores");
  check_dtype(stamp, ScalarType::Int, op, "stamp");
  check_dtype(marks, ScalarType::Byte, op, "marks");
  STD_TORCH_CHECK(scores.numel() == stamp.numel() && scores.numel() == marks.numel(), op,
                  ": scores, stamp and marks must have one size");
}

void table_age(Tensor scores, Tensor stamp, Tensor marks, int64_t epoch, std::optional<double> mean, double keep) {
  check_table(scores, stamp, marks, "table_age");
  float* score = scores.mutable_data_ptr<float>();
  int32_t* stamps = stamp.mutable_data_ptr<int32_t>();
  uint8_t* mark = marks.mutable_data_ptr<uint8_t>();
  const int32_t now = static_cast<int32_t>(epoch);
  const float middle = static_cast<float>(mean.value_or(0.0)), share = static_cast<float>(keep);
  for_chunks(num_chunks(scores.numel()), [&](int64_t chunk) {
    const int64_t first = chunk * CHUNK, end = first + chunk_size(scores.numel(), chunk);
    for (int64_t i = first; i < end; ++i) {
      stamps[i] = (mark[i] & VISITED) != 0 ? now : stamps[i];
      mark[i] &= FRESH;
    }
    if (!mean.has_value()) return;
    for (int64_t i = first; i < end; ++i) {
      const float old = score[i], moved = middle + share * (old - middle);
      // The difference is 0 for finite numbers only.
      const bool idle = (stamps[i] != now) & (old - old == 0.0f);
      score[i] = idle ? moved : old;
    }
  });
}

Tensor count_nonfinite(const Tensor& scores, const Tensor& stamp, const Tensor& marks) {
  check_table(scores, stamp, marks, "count_nonfinite");
  const float* score = scores.const_data_ptr<float>();
  const int32_t* stamps = stamp.const_data_ptr<int32_t>();
  const uint8_t* mark = marks.const_data_ptr<uint8_t>();
  std::atomic<int64_t> total{0};
  for_chunks(num_chunks(scores.numel()), [&](int64_t chunk) {
    const int64_t first = chunk * CHUNK, end = first + chunk_size(scores.numel(), chunk);
    int32_t count = 0;
    for (int64_t i = first; i < end; ++i) {
      const bool known = (stamps[i] != NEVER) | ((mark[i] & VISITED) != 0);
      count += static_cast<int32_t>(known & !(score[i] - score[i] == 0.0f));
    }
    total.fetch_add(count, std::memory_order_relaxed);
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
