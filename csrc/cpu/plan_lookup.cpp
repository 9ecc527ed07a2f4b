// plan_lookup: the weights of a batch's samples in an epoch's plan, for losses that are computed elsewhere.
#include "cpu/plan_lookup.h"

#include "cpu/memory.h"

namespace stprune {
namespace {

Tensor plan_lookup(const Tensor& index, const std::optional<Tensor>& plan_ids, const Tensor& plan_weights,
                   const std::optional<Tensor>& mean_weight, int64_t num_samples) {
  const char* op = "plan_lookup";
  const PlanTable plan = plan_table(op, plan_ids, plan_weights, mean_weight, num_samples);
  check_vector(index, op, "index");
  check_dtype(index, ScalarType::Long, op, "index");
  Tensor out = new_host_vector(op, index.numel(), ScalarType::Float);
  look_up(op, plan, index.const_data_ptr<int64_t>(), index.numel(), out.mutable_data_ptr<float>());
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) { m.impl("plan_lookup", TORCH_BOX(&plan_lookup)); }

}  // namespace stprune
