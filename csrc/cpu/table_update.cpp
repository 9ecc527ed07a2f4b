// table_update: takes the scores of a batch into the table (eq. 5) in two walks over the ids: all new values from the
// old state first, then written in order, so that the last of equal ids wins and none is smoothed twice.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <optional>
#include <vector>

#include "check.h"

namespace stprune {
namespace {

// Ids whose lines are on their way while one is worked on: enough to hide the memory's latency.
constexpr int64_t AHEAD = 16;
// Ids from which threads pay.
constexpr int64_t GRAIN = 8192;

struct Table {
  float* scores;         // [n]
  int32_t* stamp;        // [n]
  uint8_t* fresh;        // [n] bool
  float* variance;       // [n] or null
  const int64_t* state;  // [2]: epoch, samples counted
  int64_t n;
};

struct Batch {
  const int64_t* index;  // [size]
  const float* values;   // [size]
  int64_t size;
  float beta, rest;  // rest = 1 - beta
};

void prefetch(const Table& table, int64_t id) {
  __builtin_prefetch(table.scores + id, 1);
  __builtin_prefetch(table.stamp + id, 1);
  __builtin_prefetch(table.fresh + id, 1);
  if (table.variance != nullptr) __builtin_prefetch(table.variance + id, 1);
}

void measure(const Table& table, const Batch& batch, int64_t begin, int64_t end, float* mixed, float* variance) {
  for (int64_t i = begin; i < std::min(begin + AHEAD, end); ++i) prefetch(table, batch.index[i]);
  for (int64_t i = begin; i < end; ++i) {
    if (i + AHEAD < end) prefetch(table, batch.index[i + AHEAD]);
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
void write(const Table& table, const Batch& batch, int64_t part, int64_t parts, const float* mixed,
           const float* variance) {
  const int32_t epoch = static_cast<int32_t>(table.state[0]);
  for (int64_t i = 0; i < batch.size; ++i) {
    const int64_t id = batch.index[i];
    // Groups of 64 neighbours: their entries share cache lines.
    if (parts > 1 && (id >> 6) % parts != part) continue;
    table.scores[id] = mixed[i];
    table.stamp[id] = epoch;
    table.fresh[id] = 1;
    if (table.variance != nullptr) table.variance[id] = variance[i];
  }
}

void table_update_kernel(const Table& table, const Batch& batch) {
  constexpr int64_t SMALL = 256;
  float on_stack[2 * SMALL];
  std::vector<float> on_heap;
  float* mixed = on_stack;
  if (batch.size > SMALL) {
    on_heap.resize(static_cast<size_t>(2 * batch.size));
    mixed = on_heap.data();
  }
  float* variance = mixed + batch.size;
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(torch::stable::get_num_threads(), batch.size / GRAIN));
  if (parts == 1) {
    measure(table, batch, 0, batch.size, mixed, variance);
    write(table, batch, 0, 1, mixed, variance);
  } else {
    torch::stable::parallel_for(
        0, batch.size, GRAIN, [&](int64_t begin, int64_t end) { measure(table, batch, begin, end, mixed, variance); });
    torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) write(table, batch, part, parts, mixed, variance);
    });
  }
}

void table_update(Tensor scores, Tensor stamp, Tensor fresh, std::optional<Tensor> variance, Tensor state,
                  const Tensor& index, const Tensor& values, double beta, bool counted) {
  const char* op = "table_update";
  const auto check = [&](const Tensor& tensor, const char* name, ScalarType dtype) {
    check_vector(tensor, op, name);
    check_dtype(tensor, dtype, op, name);
  };
  check(scores, "scores", ScalarType::Float);
  check(stamp, "stamp", ScalarType::Int);
  check(fresh, "fresh", ScalarType::Bool);
  check(state, "state", ScalarType::Long);
  check(index, "index", ScalarType::Long);
  check(values, "values", ScalarType::Float);
  const int64_t n = scores.numel();
  STD_TORCH_CHECK(stamp.numel() == n && fresh.numel() == n && state.numel() == 2, op,
                  ": the table's tensors do not fit");
  if (variance.has_value()) {
    check(*variance, "variance", ScalarType::Float);
    STD_TORCH_CHECK(variance->numel() == n, op, ": variance must have the size of scores");
  }
  STD_TORCH_CHECK(values.numel() == index.numel(), op, ": values must have the shape of index");
  const Batch batch{index.const_data_ptr<int64_t>(), values.const_data_ptr<float>(), index.numel(),
                    static_cast<float>(beta), static_cast<float>(1.0 - beta)};
  uint64_t largest = 0;  // a negative id is a huge one
  for (int64_t i = 0; i < batch.size; ++i) largest = std::max(largest, static_cast<uint64_t>(batch.index[i]));
  STD_TORCH_CHECK(batch.size == 0 || largest < static_cast<uint64_t>(n), op, ": index must lie in [0, ", n - 1,
                  "], got ", static_cast<int64_t>(largest));
  int64_t* counters = state.mutable_data_ptr<int64_t>();
  table_update_kernel(Table{scores.mutable_data_ptr<float>(), stamp.mutable_data_ptr<int32_t>(),
                            static_cast<uint8_t*>(fresh.mutable_data_ptr()),
                            variance.has_value() ? variance->mutable_data_ptr<float>() : nullptr, counters, n},
                      batch);
  if (counted) counters[1] += batch.size;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) { m.impl("table_update", TORCH_BOX(&table_update)); }

}  // namespace stprune
