// Registration of draw_weighted for CUDA.
#include <tuple>

#include "cuda/glue.h"

namespace stprune {
namespace {

std::tuple<Tensor, Tensor> draw_weighted(const Tensor& weights, int64_t k, int64_t seed, int64_t epoch, bool race,
                                         const std::optional<Tensor>& index_buffer,
                                         const std::optional<Tensor>& weight_buffer) {
  check_vector(weights, "draw_weighted", "weights");
  check_dtype(weights, ScalarType::Float, "draw_weighted", "weights");
  const int64_t n = weights.numel();
  STD_TORCH_CHECK(k >= 0 && k <= n, "draw_weighted: k must lie in [0, ", n, "], got ", k);
  const OnDevice on(weights);
  Output indices(index_buffer, weights, ScalarType::Long, "draw_weighted", "out indices");
  Output sample_weights(weight_buffer, weights, ScalarType::Float, "draw_weighted", "out weights");
  const Tensor scratch = scratch_like(weights, k == 0 || k == n ? 0 : stprune_cuda_draw_weighted_scratch(n));
  check_launch(
      stprune_cuda_draw_weighted(weights.const_data_ptr<float>(), n, k, seed, epoch, race, scratch.mutable_data_ptr(),
                                 indices.take<int64_t>({k}), sample_weights.take<float>({race ? 0 : k}), on.stream()),
      "draw_weighted");
  return {indices.result(), sample_weights.result()};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CUDA, m) { m.impl("draw_weighted", TORCH_BOX(&draw_weighted)); }

}  // namespace stprune
