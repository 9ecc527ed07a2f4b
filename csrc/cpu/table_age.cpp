// table_age: at the end of an epoch visits become stamps, and scores of samples not visited move towards the mean (eq.
// 5). count_nonfinite: how many visited samples have no number. One pass each.
#include <atomic>
#include <bit>
#include <optional>

#include "cpu/chunks.h"

namespace stprune {
namespace {

constexpr uint32_t NEVER = ~uint32_t{0};
constexpr uint8_t VISITED = 1, FRESH = 2;

// All ones where a float with these bits is finite, else zero: masks instead of conditions, so that whole registers are
// worked on.
inline uint32_t finite_mask(uint32_t bits) { return (bits & 0x7F800000u) != 0x7F800000u ? ~uint32_t{0} : 0; }
inline uint32_t visited_mask(uint8_t mark) { return ~uint32_t{0} * (mark & VISITED); }

void stamp_visits(const uint8_t* __restrict mark, int64_t n, uint32_t now, uint32_t* __restrict stamps) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t visited = visited_mask(mark[i]);
    stamps[i] = (now & visited) | (stamps[i] & ~visited);
  }
}

void clear_visits(int64_t n, uint8_t* mark) {
  for (int64_t i = 0; i < n; ++i) mark[i] &= FRESH;
}

void age(const uint32_t* __restrict stamps, int64_t n, uint32_t now, float mean, float keep, float* __restrict scores) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t old = std::bit_cast<uint32_t>(scores[i]);
    const uint32_t moved = std::bit_cast<uint32_t>(mean + keep * (scores[i] - mean));
    const uint32_t idle = finite_mask(old) & (stamps[i] != now ? ~uint32_t{0} : 0);
    scores[i] = std::bit_cast<float>((moved & idle) | (old & ~idle));
  }
}

int32_t count(const float* scores, const uint32_t* stamps, const uint8_t* mark, int64_t n) {
  uint32_t found = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t known = (stamps[i] != NEVER ? ~uint32_t{0} : 0) | visited_mask(mark[i]);
    found += known & ~finite_mask(std::bit_cast<uint32_t>(scores[i])) & 1;
  }
  return static_cast<int32_t>(found);
}

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
  uint32_t* stamps = reinterpret_cast<uint32_t*>(stamp.mutable_data_ptr<int32_t>());
  uint8_t* mark = marks.mutable_data_ptr<uint8_t>();
  const uint32_t now = static_cast<uint32_t>(epoch);
  for_chunks(num_chunks(scores.numel()), [&](int64_t chunk) {
    const int64_t first = chunk * CHUNK, size = chunk_size(scores.numel(), chunk);
    stamp_visits(mark + first, size, now, stamps + first);
    clear_visits(size, mark + first);
    if (!mean.has_value()) return;
    age(stamps + first, size, now, static_cast<float>(*mean), static_cast<float>(keep), score + first);
  });
}

Tensor count_nonfinite(const Tensor& scores, const Tensor& stamp, const Tensor& marks) {
  check_table(scores, stamp, marks, "count_nonfinite");
  const float* score = scores.const_data_ptr<float>();
  const uint32_t* stamps = reinterpret_cast<const uint32_t*>(stamp.const_data_ptr<int32_t>());
  const uint8_t* mark = marks.const_data_ptr<uint8_t>();
  std::atomic<int64_t> total{0};
  for_chunks(num_chunks(scores.numel()), [&](int64_t chunk) {
    const int64_t first = chunk * CHUNK, size = chunk_size(scores.numel(), chunk);
    total.fetch_add(count(score + first, stamps + first, mark + first, size), std::memory_order_relaxed);
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
