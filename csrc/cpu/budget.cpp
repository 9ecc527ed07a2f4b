// inclusion_budget: clip(c * size, minimum, 1) with a given sum (eq. 7).
#include "cpu/budget.h"

namespace stprune {
namespace {

template <typename T>
void budget_kernel(const Tensor& scores, Power power, double count, double minimum, Tensor& out) {
  Budget<T> budget(scores.const_data_ptr<T>(), scores.numel(), power, count, minimum);
  budget.write(budget.find(), out.mutable_data_ptr<float>());
}

Tensor inclusion_budget(const Tensor& scores, double alpha, double count, double minimum) {
  check_vector(scores, "inclusion_budget", "scores");
  const ScalarType dtype = scores.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, "inclusion_budget: unsupported dtype");
  STD_TORCH_CHECK(alpha == 0.0 || alpha == 0.5 || alpha == 1.0, "inclusion_budget: alpha must be 0, 0.5 or 1");
  STD_TORCH_CHECK(scores.numel() < int64_t{1} << 39, "inclusion_budget: scores must have fewer than 2^39 elements");
  const Power power = alpha == 0.5 ? Power::kRoot : alpha == 1.0 ? Power::kOne : Power::kZero;
  Tensor out = new_output(scores, scores.numel(), ScalarType::Float);
  if (scores.numel() == 0) return out;
  if (dtype == ScalarType::Float) {
    budget_kernel<float>(scores, power, count, minimum, out);
  } else {
    budget_kernel<double>(scores, power, count, minimum, out);
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) { m.impl("inclusion_budget", TORCH_BOX(&inclusion_budget)); }

}  // namespace stprune
