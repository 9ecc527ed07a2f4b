// plan_lookup: weights of sample ids in an epoch's plan.
#include <algorithm>
#include <optional>

#include "check.h"

namespace stprune {
namespace {

// Where `id` stands in ascending ids [n], or where it would. Kept ids spread over the samples nearly evenly: a guess by
// interpolation and a search that doubles its stride touch two or three cache lines where bisection touches log n.
int64_t find(const int64_t* ids, int64_t n, int64_t id) {
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

Tensor plan_lookup(const Tensor& index, const Tensor& indices, const Tensor& weights, bool full,
                   const std::optional<Tensor>& mean_weight) {
  const char* op = "plan_lookup";
  check_vector(index, op, "index");
  check_vector(indices, op, "indices");
  check_dtype(index, ScalarType::Long, op, "index");
  check_dtype(indices, ScalarType::Long, op, "indices");
  check_dtype(weights, ScalarType::Float, op, "weights");
  const int64_t size = index.numel(), kept = indices.numel();
  STD_TORCH_CHECK(weights.dim() == 1 && weights.numel() == kept, op, ": weights must have the shape of indices");
  Tensor out = torch::stable::new_empty(index, {size}, ScalarType::Float);
  const int64_t *ids = index.const_data_ptr<int64_t>(), *known = indices.const_data_ptr<int64_t>();
  const float* weight = weights.const_data_ptr<float>();
  const int64_t stride = weights.stride(0);
  float divisor = 1.0f;
  if (mean_weight.has_value()) {
    check_dtype(*mean_weight, ScalarType::Float, op, "mean_weight");
    STD_TORCH_CHECK(mean_weight->numel() == 1, op, ": mean_weight must have one element");
    divisor = *mean_weight->const_data_ptr<float>();
  }
  float* to = out.mutable_data_ptr<float>();
  for (int64_t i = 0; i < size; ++i) {
    const int64_t id = ids[i];
    int64_t position = id;
    bool found = id >= 0 && id < kept;
    if (!full) {
      position = kept == 0 ? 0 : find(known, kept, id);
      found = kept > 0 && known[position] == id;
    }
    STD_TORCH_CHECK(found, op, ": index must hold ids of the plan, got ", id);
    to[i] = weight[position * stride] / divisor;
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) { m.impl("plan_lookup", TORCH_BOX(&plan_lookup)); }

}  // namespace stprune
