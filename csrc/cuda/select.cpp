// Registration of select and topk for CUDA.
#include <tuple>

#include "cuda/glue.h"

namespace stprune {
namespace {

Tensor select(const Tensor& keys, int64_t k) {
  check_vector(keys, "select", "keys");
  const bool wide = is_float64(keys, "select", "keys");
  const int64_t n = keys.numel();
  STD_TORCH_CHECK(k >= 0 && k <= n, "select: k must lie in [0, ", n, "], got ", k);
  const OnDevice on(keys);
  Tensor out = torch::stable::new_empty(keys, {k}, ScalarType::Long);
  const Tensor scratch = scratch_like(keys, stprune_cuda_select_scratch(wide, n, k));
  check_launch(stprune_cuda_select(wide, keys.const_data_ptr(), n, k, scratch.mutable_data_ptr(),
                                   out.mutable_data_ptr<int64_t>(), on.stream()),
               "select");
  return out;
}

std::tuple<Tensor, Tensor> topk(const Tensor& keys, int64_t k, bool sorted) {
  check_vector(keys, "topk", "keys");
  const bool wide = is_float64(keys, "topk", "keys");
  const int64_t n = keys.numel();
  STD_TORCH_CHECK(k >= 0 && k <= n, "topk: k must lie in [0, ", n, "], got ", k);
  const OnDevice on(keys);
  Tensor values = torch::stable::new_empty(keys, {k});
  Tensor indices = torch::stable::new_empty(keys, {k}, ScalarType::Long);
  const Tensor scratch = scratch_like(keys, stprune_cuda_topk_scratch(wide, n, k, sorted));
  check_launch(stprune_cuda_topk(wide, keys.const_data_ptr(), n, k, sorted, scratch.mutable_data_ptr(),
                                 values.mutable_data_ptr(), indices.mutable_data_ptr<int64_t>(), on.stream()),
               "topk");
  return {values, indices};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CUDA, m) {
  m.impl("select", TORCH_BOX(&select));
  m.impl("topk", TORCH_BOX(&topk));
}

}  // namespace stprune
