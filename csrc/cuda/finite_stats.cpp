// Registration of finite_stats for CUDA.
#include "cuda/glue.h"

namespace stprune {
namespace {

Tensor finite_stats(const Tensor& values) {
  check_vector(values, "finite_stats", "values");
  const bool wide = is_float64(values, "finite_stats", "values");
  const int64_t n = values.numel();
  const OnDevice on(values);
  Tensor out = torch::stable::new_empty(values, {4}, ScalarType::Double);
  const Tensor scratch = scratch_like(values, stprune_cuda_finite_stats_scratch(n));
  check_launch(stprune_cuda_finite_stats(wide, values.const_data_ptr(), n, scratch.mutable_data_ptr(),
                                         out.mutable_data_ptr<double>(), on.stream()),
               "finite_stats");
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CUDA, m) { m.impl("finite_stats", TORCH_BOX(&finite_stats)); }

}  // namespace stprune
