// Registration of draw_weighted for CUDA.
#include <tuple>

#include "cuda/glue.h"

namespace stprune {
namespace {

std::tuple<Tensor, Tensor> draw_weighted(const Tensor& weights, int64_t k, int64_t seed, int64_t epoch, bool race) {
  check_vector(weights, "draw_weighted", "weights");
  check_dtype(weights, ScalarType::Float, "draw_weighted", "weights");
  const int64_t n = weights.numel();
  STD_TORCH_CHECK(k >= 0 && k <= n, "draw_weighted: k must lie in [0, ", n, "], got ", k);
  const OnDevice on(weights);
  Tensor indices = torch::stable::new_empty(weights, {k}, ScalarType::Long);
  Tensor out = torch::stable::new_empty(weights, {race ? 0 : k});
  const Tensor scratch = scratch_like(weights, k == 0 || k == n ? 0 : stprune_cuda_draw_weighted_scratch(n));
  check_launch(
      stprune_cuda_draw_weighted(weights.const_data_ptr<float>(), n, k, seed, epoch, race, scratch.mutable_data_ptr(),
                                 indices.mutable_data_ptr<int64_t>(), out.mutable_data_ptr<float>(), on.stream()),
      "draw_weighted");
  return {indices, out};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CUDA, m) { m.impl("draw_weighted", TORCH_BOX(&draw_weighted)); }

}  // namespace stprune
