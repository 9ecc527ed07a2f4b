// Registration of check_range for CUDA.
#include "cuda/glue.h"

namespace stprune {
namespace {

Tensor check_range(const Tensor& values, double high, bool total) {
  check_vector(values, "check_range", "values");
  const bool wide = is_float64(values, "check_range", "values");
  const OnDevice on(values);
  Tensor out = torch::stable::new_empty(values, {3}, ScalarType::Long);
  check_launch(stprune_cuda_check_range(wide, values.const_data_ptr(), values.numel(), high, total,
                                        out.mutable_data_ptr<int64_t>(), on.stream()),
               "check_range");
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CUDA, m) { m.impl("check_range", TORCH_BOX(&check_range)); }

}  // namespace stprune
