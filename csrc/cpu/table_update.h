// Takes the scores of a batch into the table (eq. 5) in one walk over the ids: of equal ids the last wins, and each
// starts from the value before the batch, so that none is smoothed twice.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>

#include "check.h"
#include "cpu/memory.h"

namespace stprune {
namespace {

// Ids whose lines are on their way while one is worked on: enough to hide the memory's latency.
constexpr int64_t IDS_AHEAD = 16;
// Ids from which threads pay.
constexpr int64_t IDS_GRAIN = 32768;
// What a visited entry's mark holds: scored in this epoch (1), scored since ranks last exchanged their scores (2), and
// above these the number of the batch, from 1 to BATCHES, which tells that an id may have come before in this batch.
constexpr uint8_t SCORED = 3;
constexpr int64_t BATCHES = 63;

struct ScoreTable {
  float* scores;    // [n]
  uint8_t* marks;   // [n]
  float* variance;  // [n] or null
  int64_t* count;   // [2]: samples of counted batches, all batches
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

// The last place before `place` that holds the same id, or -1.
inline int64_t earlier_place(const int64_t* index, int64_t place) {
  constexpr int64_t BLOCK = 16;
  int64_t end = place;
  for (bool found = false; end >= BLOCK && !found;) {
    int64_t same = 0;
    for (int64_t i = end - BLOCK; i < end; ++i) same += index[i] == index[place];
    found = same > 0;
    if (!found) end -= BLOCK;
  }
  while (end > 0 && index[end - 1] != index[place]) --end;
  return end - 1;
}

// One of `parts` groups of ids. Groups of 64 neighbours belong together: their entries share cache lines.
inline bool in_part(int64_t id, int64_t part, int64_t parts) {
  const uint64_t mixed = (static_cast<uint64_t>(id >> 6) * 0x9E3779B97F4A7C15u) >> 32;
  return static_cast<int64_t>((mixed * static_cast<uint64_t>(parts)) >> 32) == part;
}

// Takes in the ids of one part, in order. `before` and `spread` [size] get what scores and variances were.
inline void take_in(const ScoreTable& table, const ScoredBatch& batch, int64_t part, int64_t parts, uint8_t mark,
                    float* before, float* spread) {
  for (int64_t i = 0; i < batch.size; ++i) {
    const int64_t ahead = batch.index[std::min(i + IDS_AHEAD, batch.size - 1)];
    if (parts == 1 || in_part(ahead, part, parts)) prefetch_entry(table, ahead);
    const int64_t id = batch.index[i];
    if (parts > 1 && !in_part(id, part, parts)) continue;
    const float now = batch.values[i];
    // An equal mark is that of this batch, or of one BATCHES before.
    const int64_t same = table.marks[id] == mark ? earlier_place(batch.index, i) : -1;
    const float old = same < 0 ? table.scores[id] : before[same];
    before[i] = old;
    // A score that is not finite is replaced, never averaged.
    const bool smooth = std::isfinite(old);
    table.scores[id] = smooth ? batch.beta * old + batch.rest * now : now;
    table.marks[id] = mark;
    if (table.variance != nullptr) {
      const float change = now - old, was = same < 0 ? table.variance[id] : spread[same];
      spread[i] = was;
      table.variance[id] = smooth && std::isfinite(now) ? batch.beta * was + batch.rest * (change * change) : was;
    }
  }
}

inline void table_update_kernel(const ScoreTable& table, const ScoredBatch& batch, const char* op) {
  constexpr int64_t SMALL = 256;
  float on_stack[2 * SMALL];
  const int64_t columns = table.variance == nullptr ? 1 : 2;
  const Workspace<float> on_heap(batch.size > SMALL ? columns * batch.size : 0, op);
  float* before = batch.size > SMALL ? on_heap.data() : on_stack;
  float* spread = table.variance == nullptr ? nullptr : before + batch.size;
  const uint8_t mark = static_cast<uint8_t>(SCORED | (table.count[1] % BATCHES + 1) << 2);
  table.count[1] += 1;
  const int64_t parts =
      std::max<int64_t>(1, std::min<int64_t>(torch::stable::get_num_threads(), batch.size / IDS_GRAIN));
  if (parts == 1) {
    take_in(table, batch, 0, 1, mark, before, spread);
    return;
  }
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) take_in(table, batch, part, parts, mark, before, spread);
  });
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
  check(count, "count", ScalarType::Long, 2);
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
