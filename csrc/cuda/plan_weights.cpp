// Registration of calibrate for CUDA.
#include "cuda/glue.h"

namespace stprune {
namespace {

void calibrate(Tensor weights, const Tensor& indices, const Tensor& strata, const Tensor& sizes) {
  const char* op = "calibrate";
  check_vector(weights, op, "weights");
  check_vector(indices, op, "indices");
  check_dtype(weights, ScalarType::Float, op, "weights");
  check_dtype(indices, ScalarType::Long, op, "indices");
  STD_TORCH_CHECK(weights.numel() == indices.numel(), op, ": weights and indices must have one size");
  check_same_device(indices, weights, op, "indices");
  const int label_bytes = check_strata(strata, sizes, weights, op);
  const OnDevice on(weights);
  const Tensor scratch = scratch_like(weights, stprune_cuda_calibrate_scratch(strata.numel(), sizes.numel()));
  check_launch(
      stprune_cuda_calibrate(weights.mutable_data_ptr<float>(), indices.const_data_ptr<int64_t>(), indices.numel(),
                             label_bytes, strata.const_data_ptr(), strata.numel(), sizes.const_data_ptr<int64_t>(),
                             sizes.numel(), scratch.mutable_data_ptr(), on.stream()),
      op);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CUDA, m) { m.impl("calibrate", TORCH_BOX(&calibrate)); }

}  // namespace stprune
