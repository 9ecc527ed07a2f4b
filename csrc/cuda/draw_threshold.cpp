// Registration of draw_threshold for CUDA.
#include <tuple>

#include "cuda/glue.h"

namespace stprune {
namespace {

std::tuple<Tensor, Tensor> draw_threshold(const Tensor& scores, double keep, bool exact_count, int64_t seed,
                                          int64_t epoch) {
  check_vector(scores, "draw_threshold", "scores");
  const bool wide = is_float64(scores, "draw_threshold", "scores");
  const int64_t n = scores.numel();
  const OnDevice on(scores);
  const Tensor scratch = scratch_like(scores, stprune_cuda_draw_threshold_scratch(n));
  // How many are drawn is known on the device only, and the results have that length: the one place where this waits.
  int64_t drawn = 0;
  check_launch(stprune_cuda_draw_threshold_mark(wide, scores.const_data_ptr(), n, keep, exact_count, seed, epoch,
                                                scratch.mutable_data_ptr(), &drawn, on.stream()),
               "draw_threshold");
  Tensor indices = torch::stable::new_empty(scores, {drawn}, ScalarType::Long);
  Tensor weights = torch::stable::new_empty(scores, {drawn}, ScalarType::Float);
  check_launch(stprune_cuda_draw_threshold_emit(wide, scores.const_data_ptr(), n, keep, scratch.mutable_data_ptr(),
                                                indices.mutable_data_ptr<int64_t>(), weights.mutable_data_ptr<float>(),
                                                on.stream()),
               "draw_threshold");
  return {indices, weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CUDA, m) { m.impl("draw_threshold", TORCH_BOX(&draw_threshold)); }

}  // namespace stprune
