// Registration of plan_budget for CUDA.
#include <tuple>

#include "cuda/glue.h"

namespace stprune {
namespace {

// The kept samples, their weights, and how many they are and the mean weight.
std::tuple<Tensor, Tensor, Tensor> plan_budget(const Tensor& scores, double alpha, int64_t count, double minimum,
                                               const std::optional<Tensor>& strata, const std::optional<Tensor>& sizes,
                                               int64_t seed, int64_t epoch, const std::optional<Tensor>& index_buffer,
                                               const std::optional<Tensor>& weight_buffer,
                                               const std::optional<Tensor>&) {
  const char* op = "plan_budget";
  check_vector(scores, op, "scores");
  const bool wide = is_float64(scores, op, "scores");
  const int64_t n = scores.numel();
  STD_TORCH_CHECK(alpha == 0.0 || alpha == 0.5 || alpha == 1.0, op, ": alpha must be 0, 0.5 or 1");
  // The sum of the fixed-point probabilities must fit into 63 bits.
  STD_TORCH_CHECK(n >= 1 && n <= int64_t{1} << 30, op, ": scores must have 1 to 2^30 elements");
  STD_TORCH_CHECK(count >= 0 && count <= n, op, ": count must lie in [0, n]");
  STD_TORCH_CHECK(strata.has_value() == sizes.has_value(), op, ": strata and sizes belong together");
  int label_bytes = 0;
  if (strata.has_value()) {
    label_bytes = check_strata(*strata, *sizes, scores, op);
    STD_TORCH_CHECK(strata->numel() == n, op, ": strata must have one label for each score");
  }
  const int64_t num_strata = sizes.has_value() ? sizes->numel() : 0;
  const OnDevice on(scores);
  Output indices(index_buffer, scores, ScalarType::Long, op, "out indices");
  Output weights(weight_buffer, scores, ScalarType::Float, op, "out weights");
  const Tensor scratch = scratch_like(scores, stprune_cuda_plan_budget_scratch(wide, n, num_strata));
  // With buffers the number of samples is asked for once, in the end.
  int64_t kept = 0, room = 0;
  check_launch(stprune_cuda_plan_budget_begin(wide, scores.const_data_ptr(), n, alpha, static_cast<double>(count),
                                              minimum, scratch.mutable_data_ptr(),
                                              index_buffer.has_value() ? nullptr : &kept, on.stream()),
               op);
  if (index_buffer.has_value()) {
    STD_TORCH_CHECK(weight_buffer.has_value(), op, ": out must have all buffers or none");
    room = index_buffer->numel() < weight_buffer->numel() ? index_buffer->numel() : weight_buffer->numel();
  } else {
    room = kept;
  }
  Tensor totals = torch::stable::empty({2}, ScalarType::Double);
  check_launch(
      stprune_cuda_plan_budget_finish(wide, scores.const_data_ptr(), n, alpha, seed, epoch, label_bytes,
                                      num_strata > 0 ? strata->const_data_ptr() : nullptr,
                                      num_strata > 0 ? sizes->const_data_ptr<int64_t>() : nullptr, num_strata,
                                      scratch.mutable_data_ptr(), room, indices.take<int64_t>({room}),
                                      weights.take<float>({room}), totals.mutable_data_ptr<double>(), on.stream()),
      op);
  return {indices.result(), weights.result(), totals};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CUDA, m) { m.impl("plan_budget", TORCH_BOX(&plan_budget)); }

}  // namespace stprune
