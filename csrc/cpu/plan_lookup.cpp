// plan_lookup: weights of sample ids in an epoch's plan.
#include "cpu/plan_lookup.h"

namespace stprune {
namespace {

Tensor plan_lookup(const Tensor& index, const Tensor& indices, const Tensor& weights, bool full,
                   const std::optional<Tensor>& mean_weight) {
  const char* op = "plan_lookup";
  check_vector(index, op, "index");
  check_dtype(index, ScalarType::Long, op, "index");
  const PlanTable plan = plan_table(op, indices, weights, full, mean_weight);
  Tensor out = torch::stable::new_empty(index, {index.numel()}, ScalarType::Float);
  look_up(op, plan, index.const_data_ptr<int64_t>(), index.numel(), out.mutable_data_ptr<float>());
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) { m.impl("plan_lookup", TORCH_BOX(&plan_lookup)); }

}  // namespace stprune
