// Registration of draw for CUDA.
#include <optional>
#include <tuple>

#include "cuda/glue.h"

namespace stprune {
namespace {

// The indices and how many they are.
std::tuple<Tensor, Tensor> draw(const Tensor& probability, std::optional<int64_t> count, int64_t seed, int64_t epoch,
                                const std::optional<Tensor>& buffer) {
  check_vector(probability, "draw", "probability");
  const bool wide = is_float64(probability, "draw", "probability");
  const int64_t n = probability.numel();
  const OnDevice on(probability);
  Output out(buffer, probability, ScalarType::Long, "draw", "out");
  if (!count.has_value()) {
    const Tensor scratch = scratch_like(probability, stprune_cuda_bernoulli_scratch(n));
    // How many are drawn is known on the device only, and the result has that length: the one place where an op waits.
    int64_t drawn = 0;
    check_launch(stprune_cuda_bernoulli_mark(wide, probability.const_data_ptr(), n, seed, epoch,
                                             scratch.mutable_data_ptr(), &drawn, on.stream()),
                 "draw");
    if (out.fits(drawn)) {
      check_launch(stprune_cuda_bernoulli_emit(n, scratch.mutable_data_ptr(), out.take<int64_t>({drawn}), on.stream()),
                   "draw");
    }
    return {out.result(), new_size(drawn)};
  }
  // The sum of the fixed-point probabilities must fit into 63 bits.
  STD_TORCH_CHECK(n <= int64_t{1} << 30, "draw: probability must have at most 2^30 elements");
  STD_TORCH_CHECK(*count >= 0 && *count <= n, "draw: count must lie in [0, ", n, "], got ", *count);
  if (!out.fits(*count)) return {out.result(), new_size(*count)};
  const Tensor scratch = scratch_like(probability, stprune_cuda_systematic_scratch(n));
  check_launch(stprune_cuda_systematic(wide, probability.const_data_ptr(), n, *count, seed, epoch,
                                       scratch.mutable_data_ptr(), out.take<int64_t>({*count}), on.stream()),
               "draw");
  return {out.result(), new_size(*count)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CUDA, m) { m.impl("draw", TORCH_BOX(&draw)); }

}  // namespace stprune
