// Weights of sample ids in an epoch's plan.
#pragma once

#include <algorithm>
#include <optional>

#include "check.h"

namespace stprune {
namespace {

struct PlanTable {
  const int64_t* ids;   // [size] kept ids, ascending; null where every id is kept, at its own position
  const float* weight;  // [size] or one for all
  int64_t size, num_samples;
  int64_t stride;  // entries from one weight to the next
  float mean;
};

inline PlanTable plan_table(const char* op, const std::optional<Tensor>& ids, const Tensor& weights,
                            const std::optional<Tensor>& mean_weight, int64_t num_samples) {
  if (ids.has_value()) {
    check_vector(*ids, op, "plan_ids");
    check_dtype(*ids, ScalarType::Long, op, "plan_ids");
  }
  const int64_t size = ids.has_value() ? ids->numel() : num_samples;
  check_dtype(weights, ScalarType::Float, op, "plan_weights");
  STD_TORCH_CHECK(weights.dim() == 1 && (weights.numel() == size || weights.numel() == 1), op,
                  ": plan_weights must have one element or one for each of ", size, " ids, got ", weights.numel());
  float mean = 1.0f;
  if (mean_weight.has_value()) {
    check_dtype(*mean_weight, ScalarType::Float, op, "mean_weight");
    STD_TORCH_CHECK(mean_weight->numel() == 1, op, ": mean_weight must have one element");
    mean = *mean_weight->const_data_ptr<float>();
  }
  return {ids.has_value() ? ids->const_data_ptr<int64_t>() : nullptr,
          weights.const_data_ptr<float>(),
          size,
          num_samples,
          weights.numel() == 1 ? 0 : weights.stride(0),
          mean};
}

// Where `id` stands in ascending ids [n], or where it would. Kept ids spread over the samples nearly evenly: a guess by
// interpolation and a search that doubles its stride touch two or three cache lines where bisection touches log n.
inline int64_t find_id(const int64_t* ids, int64_t n, int64_t id) {
  const int64_t low_id = ids[0], high_id = ids[n - 1];
  if (id <= low_id) return 0;
  if (id >= high_id) return n - 1;
  const double share = static_cast<double>(id - low_id) / static_cast<double>(high_id - low_id);
  int64_t low = std::clamp<int64_t>(static_cast<int64_t>(share * static_cast<double>(n - 1)), 0, n - 1), high = low,
          stride = 8;
  while (low > 0 && ids[low] > id) {
    high = low;
    low = std::max<int64_t>(0, low - stride);
    stride *= 2;
  }
  while (high < n - 1 && ids[high] < id) {
    low = high;
    high = std::min(n - 1, high + stride);
    stride *= 2;
  }
  return std::lower_bound(ids + low, ids + high + 1, id) - ids;
}

template <typename A>
void look_up(const char* op, const PlanTable& plan, const int64_t* index, int64_t size, A* out) {
  for (int64_t i = 0; i < size; ++i) {
    const int64_t id = index[i];
    int64_t position = id;
    bool found = id >= 0 && id < plan.size;
    if (plan.ids != nullptr) {
      position = plan.size == 0 ? 0 : find_id(plan.ids, plan.size, id);
      found = plan.size > 0 && plan.ids[position] == id;
    }
    STD_TORCH_CHECK(found, op, ": index must hold ids of the plan, got ", id);
    out[i] = static_cast<A>(plan.weight[position * plan.stride] / plan.mean);
  }
}

}  // namespace
}  // namespace stprune
