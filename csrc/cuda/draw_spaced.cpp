// Registration of draw_spaced for CUDA.
#include "cuda/glue.h"

namespace stprune {
namespace {

Tensor draw_spaced(const Tensor& scores, int64_t spacing, double threshold, int64_t seed, int64_t epoch) {
  const char* op = "draw_spaced";
  check_vector(scores, op, "scores");
  const bool wide = is_float64(scores, op, "scores");
  // The product of a distance and a random word must fit into 63 bits.
  STD_TORCH_CHECK(spacing >= 1 && spacing < int64_t{1} << 31, op, ": spacing must lie in [1, 2^31 - 1]");
  const int64_t n = scores.numel();
  const OnDevice on(scores);
  const Tensor scratch = scratch_like(scores, stprune_cuda_draw_spaced_scratch(n));
  int64_t drawn = 0;
  check_launch(stprune_cuda_draw_spaced_mark(wide, scores.const_data_ptr(), n, spacing, threshold, seed, epoch,
                                             scratch.mutable_data_ptr(), &drawn, on.stream()),
               op);
  Tensor out = torch::stable::new_empty(scores, {drawn}, ScalarType::Long);
  check_launch(
      stprune_cuda_draw_spaced_emit(n, scratch.mutable_data_ptr(), out.mutable_data_ptr<int64_t>(), on.stream()), op);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CUDA, m) { m.impl("draw_spaced", TORCH_BOX(&draw_spaced)); }

}  // namespace stprune
