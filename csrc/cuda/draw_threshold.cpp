// Registration of draw_threshold for CUDA.
#include <tuple>

#include "cuda/glue.h"

namespace stprune {
namespace {

// Indices, weights and how many they are.
std::tuple<Tensor, Tensor, Tensor> draw_threshold(const Tensor& scores, double keep, bool exact_count, int64_t seed,
                                                  int64_t epoch, const std::optional<Tensor>& index_buffer,
                                                  const std::optional<Tensor>& weight_buffer) {
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
  Output indices(index_buffer, scores, ScalarType::Long, "draw_threshold", "out indices");
  Output weights(weight_buffer, scores, ScalarType::Float, "draw_threshold", "out weights");
  if (!indices.fits(drawn) || !weights.fits(drawn)) return {indices.result(), weights.result(), new_size(drawn)};
  check_launch(
      stprune_cuda_draw_threshold_emit(wide, scores.const_data_ptr(), n, keep, scratch.mutable_data_ptr(),
                                       indices.take<int64_t>({drawn}), weights.take<float>({drawn}), on.stream()),
      "draw_threshold");
  return {indices.result(), weights.result(), new_size(drawn)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CUDA, m) { m.impl("draw_threshold", TORCH_BOX(&draw_threshold)); }

}  // namespace stprune
