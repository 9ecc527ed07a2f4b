// Takes the scores of a batch into the table (eq. 5) in two walks over the ids: all new values from the old state
// first, then written in order, so that the last of equal ids wins and none is smoothed twice.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "check.h"

namespace stprune {
namespace {

// Ids whose lines are on their way while one is worked on: enough to hide the memory's latency.
constexpr int64_t IDS_AHEAD = 16;
// Ids from which threads pay.
constexpr int64_t IDS_GRAIN = 8192;
// What a visited entry's mark becomes: scored in this epoch (1), scored since ranks last exchanged their scores (2).
constexpr uint8_t SCORED = 3;

struct ScoreTable {
  float* scores;    // [n]
  uint8_t* marks;   // [n]
  float* variance;  // [n] or null
  int64_t* count;   // [1] samples of counted batches
  int64_t n;
};

struct ScoredBatch {
  const int64_t* index;  // [size]
  const float* values;   // [size]
  int64_t size;
  float beta, rest;  // rest = 1 - beta
};

inline void prefetch_entry(const ScoreTable& table, int64_t id) {
  __builtin_prefetch(table.scores + id, 1);
  __builtin_prefetch(table.marks + id, 1);
  if (table.variance != nullptr) __builtin_prefetch(table.variance + id, 1);
}

inline void smooth_scores(const ScoreTable& table, const ScoredBatch& batch, int64_t begin, int64_t end, float* mixed,
                          float* variance) {
  for (int64_t i = begin; i < std::min(begin + IDS_AHEAD, end); ++i) prefetch_entry(table, batch.index[i]);
  for (int64_t i = begin; i < end; ++i) {
    if (i + IDS_AHEAD < end) prefetch_entry(table, batch.index[i + IDS_AHEAD]);
    const int64_t id = batch.index[i];
    const float old = table.scores[id], now = batch.values[i];
    // A score that is not finite is replaced, never averaged.
    const bool smooth = std::isfinite(old);
    mixed[i] = smooth ? batch.beta * old + batch.rest * now : now;
    if (table.variance != nullptr) {
      const float change = now - old, before = table.variance[id];
      variance[i] = smooth && std::isfinite(now) ? batch.beta * before + batch.rest * (change * change) : before;
    }
  }
}

// Ids of one of `parts` groups, in order: equal ids belong to one group.
inline void write_scores(const ScoreTable& table, const ScoredBatch& batch, int64_t part, int64_t parts,
                         const float* mixed, const float* variance) {
  for (int64_t i = 0; i < batch.size; ++i) {
    const int64_t id = batch.index[i];
    // Groups of 64 neighbours: their entries share cache lines.
    if (parts > 1 && (id >> 6) % parts != part) continue;
    table.scores[id] = mixed[i];
    table.marks[id] = SCORED;
    if (table.variance != nullptr) table.variance[id] = variance[i];
  }
}

inline void table_update_kernel(const ScoreTable& table, const ScoredBatch& batch) {
  constexpr int64_t SMALL = 256;
  float on_stack[2 * SMALL];
  std::vector<float> on_heap;
  float* mixed = on_stack;
  if (batch.size > SMALL) {
    on_heap.resize(static_cast<size_t>(2 * batch.size));
    mixed = on_heap.data();
  }
  float* variance = mixed + batch.size;
  const int64_t parts =
      std::max<int64_t>(1, std::min<int64_t>(torch::stable::get_num_threads(), batch.size / IDS_GRAIN));
  if (parts == 1) {
    smooth_scores(table, batch, 0, batch.size, mixed, variance);
    write_scores(table, batch, 0, 1, mixed, variance);
  } else {
    torch::stable::parallel_for(0, batch.size, IDS_GRAIN, [&](int64_t begin, int64_t end) {
      smooth_scores(table, batch, begin, end, mixed, variance);
    });
    torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) write_scores(table, batch, part, parts, mixed, variance);
    });
  }
}

inline ScoreTable score_table(const char* op, Tensor& scores, Tensor& marks, std::optional<Tensor>& variance,
                              Tensor& count) {
  const auto check = [&](const Tensor& tensor, const char* name, ScalarType dtype, int64_t size) {
    check_vector(tensor, op, name);
    check_dtype(tensor, dtype, op, name);
    STD_TORCH_CHECK(tensor.numel() == size, op, ": ", name, " must have ", size, " elements");
  };
  const int64_t n = scores.numel();
  check(scores, "scores", ScalarType::Float, n);
  check(marks, "marks", ScalarType::Byte, n);
  if (variance.has_value()) check(*variance, "variance", ScalarType::Float, n);
  check(count, "count", ScalarType::Long, 1);
  return {scores.mutable_data_ptr<float>(), marks.mutable_data_ptr<uint8_t>(),
          variance.has_value() ? variance->mutable_data_ptr<float>() : nullptr, count.mutable_data_ptr<int64_t>(), n};
}

inline void check_ids(const char* op, const int64_t* index, int64_t size, int64_t n) {
  uint64_t largest = 0;  // a negative id is a huge one
  for (int64_t i = 0; i < size; ++i) largest = std::max(largest, static_cast<uint64_t>(index[i]));
  STD_TORCH_CHECK(size == 0 || largest < static_cast<uint64_t>(n), op, ": index must lie in [0, ", n - 1, "], got ",
                  static_cast<int64_t>(largest));
}

}  // namespace
}  // namespace stprune
