// Registration of gather_nodes and its backward for CUDA. That every node id is in range is checked by the kernels,
// which stop the device if not: looking from the host would wait for it.
#include "cuda/glue.h"

namespace stprune {
namespace {

// A kernel divides 32-bit places within one row.
constexpr int64_t LONGEST_ROW = (int64_t{1} << 31) - 2048;

void check_node(const Tensor& node, const Tensor& x, int64_t samples, const char* op) {
  STD_TORCH_CHECK(node.dim() == 2 && node.is_contiguous() && node.size(0) == samples, op,
                  ": node must be contiguous with shape [B, m]");
  check_dtype(node, ScalarType::Long, op, "node");
  check_same_device(node, x, op, "node");
}

Tensor gather_nodes(const Tensor& x, const Tensor& node) {
  STD_TORCH_CHECK(x.dim() == 4, "gather_nodes: x must have four dimensions, got ", x.dim());
  const int64_t samples = x.size(0), outer = x.size(1), num_nodes = x.size(2), inner = x.size(3);
  check_node(node, x, samples, "gather_nodes");
  STD_TORCH_CHECK(x.numel() == 0 || ((inner == 1 || x.stride(3) == 1) && (num_nodes == 1 || x.stride(2) == inner)),
                  "gather_nodes: nodes and channels of x must be contiguous");
  const int64_t m = node.size(1), bytes = static_cast<int64_t>(x.element_size());
  STD_TORCH_CHECK(m * inner * bytes < LONGEST_ROW, "gather_nodes: one step's nodes must fill less than 2 GiB");
  const OnDevice on(x);
  Tensor out = torch::stable::new_empty(x, {samples, outer, m, inner});
  if (out.numel() == 0) return out;
  STD_TORCH_CHECK(num_nodes > 0, "gather_nodes: node must be empty where x has no nodes");
  check_launch(stprune_cuda_gather_nodes(x.const_data_ptr(), node.const_data_ptr<int64_t>(), samples, outer, num_nodes,
                                         m, inner * bytes, x.stride(0) * bytes, x.stride(1) * bytes,
                                         out.mutable_data_ptr(), on.stream()),
               "gather_nodes");
  return out;
}

Tensor gather_nodes_backward(const Tensor& grad, const Tensor& node, int64_t num_nodes) {
  STD_TORCH_CHECK(grad.dim() == 4 && grad.is_contiguous(),
                  "gather_nodes_backward: grad must be contiguous with four dimensions");
  const int64_t samples = grad.size(0), outer = grad.size(1), m = grad.size(2);
  int64_t inner = grad.size(3);
  check_node(node, grad, samples, "gather_nodes_backward");
  STD_TORCH_CHECK(node.size(1) == m, "gather_nodes_backward: grad and node must have the same number of nodes");
  int kind = 0;
  switch (grad.scalar_type()) {
    case ScalarType::Float:
      break;
    case ScalarType::Double:
      kind = 1;
      break;
    case ScalarType::BFloat16:
      kind = 2;
      break;
    case ScalarType::Half:
      kind = 3;
      break;
    // Complex numbers add up by parts.
    case ScalarType::ComplexFloat:
      inner *= 2;
      break;
    case ScalarType::ComplexDouble:
      kind = 1;
      inner *= 2;
      break;
    default:
      STD_TORCH_CHECK(false, "gather_nodes_backward: unsupported dtype");
  }
  STD_TORCH_CHECK(num_nodes * inner < LONGEST_ROW && m < LONGEST_ROW,
                  "gather_nodes_backward: one step's nodes must have less than 2^31 elements");
  const OnDevice on(grad);
  Tensor out = torch::stable::new_empty(grad, {samples, outer, num_nodes, grad.size(3)});
  if (out.numel() == 0) return out;
  const Tensor scratch = scratch_like(grad, stprune_cuda_gather_nodes_backward_scratch(samples, num_nodes, m));
  check_launch(stprune_cuda_gather_nodes_backward(kind, grad.const_data_ptr(), node.const_data_ptr<int64_t>(), samples,
                                                  outer, num_nodes, m, inner, scratch.mutable_data_ptr(),
                                                  out.mutable_data_ptr(), on.stream()),
               "gather_nodes_backward");
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CUDA, m) {
  m.impl("gather_nodes", TORCH_BOX(&gather_nodes));
  m.impl("gather_nodes_backward", TORCH_BOX(&gather_nodes_backward));
}

}  // namespace stprune
