// Registration of draw for CUDA.
#include <optional>

#include "cuda/glue.h"

namespace stprune {
namespace {

Tensor draw(const Tensor& probability, std::optional<int64_t> count, int64_t seed, int64_t epoch) {
  check_vector(probability, "draw", "probability");
  const bool wide = is_float64(probability, "draw", "probability");
  const int64_t n = probability.numel();
  const OnDevice on(probability);
  if (!count.has_value()) {
    const Tensor scratch = scratch_like(probability, stprune_cuda_bernoulli_scratch(n));
    // How many are drawn is known on the device only, and the result has that length: the one place where an op waits.
    int64_t drawn = 0;
    check_launch(stprune_cuda_bernoulli_mark(wide, probability.const_data_ptr(), n, seed, epoch,
                                             scratch.mutable_data_ptr(), &drawn, on.stream()),
                 "draw");
    Tensor out = torch::stable::new_empty(probability, {drawn}, ScalarType::Long);
    check_launch(
        stprune_cuda_bernoulli_emit(n, scratch.mutable_data_ptr(), out.mutable_data_ptr<int64_t>(), on.stream()),
        "draw");
    return out;
  }
  // The sum of the fixed-point probabilities must fit into 63 bits.
  STD_TORCH_CHECK(n <= int64_t{1} << 30, "draw: probability must have at most 2^30 elements");
  STD_TORCH_CHECK(*count >= 0 && *count <= n, "draw: count must lie in [0, ", n, "], got ", *count);
  Tensor out = torch::stable::new_empty(probability, {*count}, ScalarType::Long);
  const Tensor scratch = scratch_like(probability, stprune_cuda_systematic_scratch(n));
  check_launch(stprune_cuda_systematic(wide, probability.const_data_ptr(), n, *count, seed, epoch,
                                       scratch.mutable_data_ptr(), out.mutable_data_ptr<int64_t>(), on.stream()),
               "draw");
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CUDA, m) { m.impl("draw", TORCH_BOX(&draw)); }

}  // namespace stprune
