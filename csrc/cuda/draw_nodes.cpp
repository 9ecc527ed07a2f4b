// Registration of draw_nodes for CUDA.
#include "cuda/glue.h"

namespace stprune {
namespace {

Tensor draw_nodes(const Tensor& index, int64_t num_nodes, int64_t count, int64_t seed, int64_t epoch) {
  check_vector(index, "draw_nodes", "index");
  check_dtype(index, ScalarType::Long, "draw_nodes", "index");
  STD_TORCH_CHECK(count >= 1 && count <= num_nodes && num_nodes <= int64_t{1} << 31,
                  "draw_nodes: count must lie in [1, num_nodes]");
  const int64_t rows = index.numel();
  const OnDevice on(index);
  Tensor out = torch::stable::new_empty(index, {rows, count}, ScalarType::Long);
  check_launch(stprune_cuda_draw_nodes(index.const_data_ptr<int64_t>(), rows, num_nodes, count, seed, epoch,
                                       out.mutable_data_ptr<int64_t>(), on.stream()),
               "draw_nodes");
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CUDA, m) { m.impl("draw_nodes", TORCH_BOX(&draw_nodes)); }

}  // namespace stprune
