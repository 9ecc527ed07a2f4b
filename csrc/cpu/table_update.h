// Takes the scores of a batch into the table (eq. 5) in one walk over the ids: of equal ids the last wins, and each
// starts from the value before the batch, so that none is smoothed twice.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <optional>

#include "check.h"
#include "cpu/memory.h"
#include "marks.h"

namespace stprune {
namespace {

// Ids whose lines are on their way while one is worked on: enough to hide the memory's latency.
constexpr int64_t IDS_AHEAD = 16;
// Ids from which threads pay.
constexpr int64_t IDS_GRAIN = 32768;
struct ScoreTable {
  float* scores;    // [n], or null: nothing is stored, only count[2] moves
  uint8_t* marks;   // [n]
  float* variance;  // [n] or null
  int64_t* count;   // [4]: samples trained on in this epoch, batches, samples of all trained batches, unused here
  int64_t n;
};

struct ScoredBatch {
  const int64_t* index;    // [size]
  const float* values;     // [size]
  const int64_t* entries;  // [size] or null: 0 where the sample keeps its score
  int64_t size;
  float beta, one_minus_beta;
  bool trained;  // an id that was trained on before in this epoch is left alone
};

inline ScoredBatch scored_batch(const int64_t* index, const float* values, const int64_t* entries, int64_t size,
                                double beta, bool trained) {
  return {index, values, entries, size, static_cast<float>(beta), static_cast<float>(1.0 - beta), trained};
}

// What a sample had before the batch.
struct Entry {
  float score, variance;
  uint8_t mark;
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

// Takes in the ids of one part, in order, and gives how many of them were not trained on before. `before` [size] gets
// what the table held.
inline int64_t take_in(const ScoreTable& table, const ScoredBatch& batch, int64_t part, int64_t parts, uint8_t number,
                       Entry* before) {
  int64_t fresh = 0;
  for (int64_t i = 0; i < batch.size; ++i) {
    const int64_t ahead = batch.index[std::min(i + IDS_AHEAD, batch.size - 1)];
    if (parts == 1 || in_part(ahead, part, parts)) prefetch_entry(table, ahead);
    const int64_t id = batch.index[i];
    if (parts > 1 && !in_part(id, part, parts)) continue;
    const uint8_t mark = table.marks[id];
    // An equal number is that of this batch, or of one BATCHES before.
    const int64_t same = mark >> BATCH_SHIFT == number ? earlier_place(batch.index, i) : -1;
    const Entry old =
        same < 0 ? Entry{table.scores[id], table.variance == nullptr ? 0.0f : table.variance[id], mark} : before[same];
    before[i] = old;
    if (batch.trained && (old.mark & TRAINED) != 0) continue;
    const bool scored = batch.entries == nullptr || batch.entries[i] > 0;
    const float now = batch.values[i], change = now - old.score;
    // A score that is not finite is replaced, never averaged.
    const bool smooth = std::isfinite(old.score);
    const float mixed = smooth ? batch.beta * old.score + batch.one_minus_beta * now : now;
    table.scores[id] = scored ? mixed : old.score;
    if (table.variance != nullptr) {
      const bool moves = scored && smooth && std::isfinite(now);
      table.variance[id] = moves ? batch.beta * old.variance + batch.one_minus_beta * (change * change) : old.variance;
    }
    const int set = (scored ? SCORED | FRESH | KNOWN : 0) | (batch.trained ? TRAINED : 0);
    table.marks[id] = static_cast<uint8_t>((old.mark & ((1 << BATCH_SHIFT) - 1)) | set | number << BATCH_SHIFT);
    fresh += same < 0;
  }
  return fresh;
}

inline void table_update_kernel(const ScoreTable& table, const ScoredBatch& batch, const char* op) {
  if (batch.trained) table.count[2] += batch.size;
  if (table.scores == nullptr) return;
  constexpr int64_t SMALL = 256;
  Entry on_stack[SMALL];
  const Workspace<Entry> on_heap(batch.size > SMALL ? batch.size : 0, op);
  Entry* before = batch.size > SMALL ? on_heap.data() : on_stack;
  const uint8_t number = static_cast<uint8_t>(table.count[1] % BATCHES + 1);
  table.count[1] += 1;
  const int64_t parts =
      std::max<int64_t>(1, std::min<int64_t>(torch::stable::get_num_threads(), batch.size / IDS_GRAIN));
  std::atomic<int64_t> fresh{0};
  const auto take = [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) fresh += take_in(table, batch, part, parts, number, before);
  };
  if (parts == 1) {
    take(0, 1);
  } else {
    torch::stable::parallel_for(0, parts, 1, take);
  }
  if (batch.trained) table.count[0] += fresh;
}

inline ScoreTable score_table(const char* op, std::optional<Tensor>& scores, std::optional<Tensor>& marks,
                              std::optional<Tensor>& variance, Tensor& count, int64_t n) {
  const auto check = [&](const Tensor& tensor, const char* name, ScalarType dtype, int64_t size) {
    check_vector(tensor, op, name);
    check_dtype(tensor, dtype, op, name);
    STD_TORCH_CHECK(tensor.numel() == size, op, ": ", name, " must have ", size, " elements");
  };
  check(count, "count", ScalarType::Long, 4);
  STD_TORCH_CHECK(scores.has_value() == marks.has_value() && (scores.has_value() || !variance.has_value()), op,
                  ": scores, marks and variance must be given together");
  if (scores.has_value()) check(*scores, "scores", ScalarType::Float, n);
  if (marks.has_value()) check(*marks, "marks", ScalarType::Byte, n);
  if (variance.has_value()) check(*variance, "variance", ScalarType::Float, n);
  return {scores.has_value() ? scores->mutable_data_ptr<float>() : nullptr,
          marks.has_value() ? marks->mutable_data_ptr<uint8_t>() : nullptr,
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
