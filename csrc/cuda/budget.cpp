// Registration of inclusion_budget for CUDA.
#include "cuda/glue.h"

namespace stprune {
namespace {

Tensor inclusion_budget(const Tensor& scores, double alpha, double count, double minimum) {
  check_vector(scores, "inclusion_budget", "scores");
  const bool wide = is_float64(scores, "inclusion_budget", "scores");
  STD_TORCH_CHECK(alpha == 0.0 || alpha == 0.5 || alpha == 1.0, "inclusion_budget: alpha must be 0, 0.5 or 1");
  const int64_t n = scores.numel();
  STD_TORCH_CHECK(n < int64_t{1} << 39, "inclusion_budget: scores must have fewer than 2^39 elements");
  const OnDevice on(scores);
  Tensor out = torch::stable::new_empty(scores, {n}, ScalarType::Float);
  const Tensor scratch = scratch_like(scores, stprune_cuda_budget_scratch(wide, n));
  check_launch(stprune_cuda_budget(wide, scores.const_data_ptr(), n, alpha, count, minimum, scratch.mutable_data_ptr(),
                                   out.mutable_data_ptr<float>(), on.stream()),
               "inclusion_budget");
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CUDA, m) { m.impl("inclusion_budget", TORCH_BOX(&inclusion_budget)); }

}  // namespace stprune
