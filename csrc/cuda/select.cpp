// Registration of select and topk for CUDA.
#include <tuple>

#include "cuda/glue.h"

namespace stprune {
namespace {

Tensor select(const Tensor& keys, int64_t k, const std::optional<Tensor>& buffer) {
  check_vector(keys, "select", "keys");
  const bool wide = is_float64(keys, "select", "keys");
  const int64_t n = keys.numel();
  STD_TORCH_CHECK(k >= 0 && k <= n, "select: k must lie in [0, ", n, "], got ", k);
  const OnDevice on(keys);
  Output out(buffer, keys, ScalarType::Long, "select", "out");
  const Tensor scratch = scratch_like(keys, stprune_cuda_select_scratch(wide, n, k));
  check_launch(stprune_cuda_select(wide, keys.const_data_ptr(), n, k, scratch.mutable_data_ptr(),
                                   out.take<int64_t>({k}), on.stream()),
               "select");
  return out.result();
}

std::tuple<Tensor, Tensor> topk(const Tensor& keys, int64_t k, bool sorted, const std::optional<Tensor>& value_buffer,
                                const std::optional<Tensor>& index_buffer) {
  check_vector(keys, "topk", "keys");
  const bool wide = is_float64(keys, "topk", "keys");
  const int64_t n = keys.numel();
  STD_TORCH_CHECK(k >= 0 && k <= n, "topk: k must lie in [0, ", n, "], got ", k);
  const OnDevice on(keys);
  Output values(value_buffer, keys, keys.scalar_type(), "topk", "out values");
  Output indices(index_buffer, keys, ScalarType::Long, "topk", "out indices");
  const Tensor scratch = scratch_like(keys, stprune_cuda_topk_scratch(wide, n, k, sorted));
  check_launch(stprune_cuda_topk(wide, keys.const_data_ptr(), n, k, sorted, scratch.mutable_data_ptr(),
                                 values.take<void>({k}), indices.take<int64_t>({k}), on.stream()),
               "topk");
  return {values.result(), indices.result()};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CUDA, m) {
  m.impl("select", TORCH_BOX(&select));
  m.impl("topk", TORCH_BOX(&topk));
}

}  // namespace stprune
