// gather_nodes: the drawn nodes of every sample, and the sum of gradients back onto them.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "check.h"

namespace stprune {
namespace {

// Bytes per thread below which starting a thread costs more than it saves.
constexpr int64_t kGrainBytes = 1 << 16;

// Copies rows of `run` bytes (a constant when kRun > 0): out[i] = source[node[i]].
template <int64_t kRun>
void gather_row(const char* source, const int64_t* node, int64_t m, int64_t run, char* out) {
  for (int64_t i = 0; i < m; ++i) {
    if constexpr (kRun > 0) {
      std::memcpy(out + i * kRun, source + node[i] * kRun, kRun);
    } else {
      std::memcpy(out + i * run, source + node[i] * run, static_cast<size_t>(run));
    }
  }
}

using GatherRow = void (*)(const char*, const int64_t*, int64_t, int64_t, char*);

GatherRow gather_row_for(int64_t run) {
  switch (run) {
    case 1:
      return &gather_row<1>;
    case 2:
      return &gather_row<2>;
    case 4:
      return &gather_row<4>;
    case 8:
      return &gather_row<8>;
    case 12:
      return &gather_row<12>;
    case 16:
      return &gather_row<16>;
    default:
      return &gather_row<0>;
  }
}

void check_node(const Tensor& node, int64_t samples, int64_t num_nodes, const char* op) {
  STD_TORCH_CHECK(node.dim() == 2 && node.is_contiguous() && node.size(0) == samples, op,
                  ": node must be contiguous with shape [B, m]");
  check_dtype(node, ScalarType::Long, op, "node");
  const int64_t* index = node.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < node.numel(); ++i) {
    STD_TORCH_CHECK(index[i] >= 0 && index[i] < num_nodes, op, ": node must lie in [0, ", num_nodes - 1, "], got ",
                    index[i]);
  }
}

Tensor gather_nodes(const Tensor& x, const Tensor& node) {
  STD_TORCH_CHECK(x.dim() == 4, "gather_nodes: x must have four dimensions, got ", x.dim());
  const int64_t samples = x.size(0), outer = x.size(1), num_nodes = x.size(2), inner = x.size(3);
  check_node(node, samples, num_nodes, "gather_nodes");
  STD_TORCH_CHECK(x.numel() == 0 || ((inner == 1 || x.stride(3) == 1) && (num_nodes == 1 || x.stride(2) == inner)),
                  "gather_nodes: nodes and channels of x must be contiguous");
  const int64_t m = node.size(1), bytes = static_cast<int64_t>(x.element_size()), run = inner * bytes;
  Tensor out = torch::stable::new_empty(x, {samples, outer, m, inner});
  if (out.numel() == 0) return out;
  const char* source = static_cast<const char*>(x.const_data_ptr());
  char* destination = static_cast<char*>(out.mutable_data_ptr());
  const int64_t* index = node.const_data_ptr<int64_t>();
  const int64_t sample_stride = x.stride(0) * bytes, outer_stride = x.stride(1) * bytes;
  const GatherRow gather = gather_row_for(run);
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / (m * run));
  torch::stable::parallel_for(0, samples * outer, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t sample = i / outer;
      gather(source + sample * sample_stride + (i % outer) * outer_stride, index + sample * m, m, run,
             destination + i * m * run);
    }
  });
  return out;
}

// A repeated node adds up, in the order of `node`: the same bits for any thread count. Narrow types add in float.
template <typename T, typename A>
void gather_nodes_backward_kernel(const T* grad /* [B, outer, m, inner] */, const int64_t* node /* [B, m] */,
                                  int64_t samples, int64_t outer, int64_t m, int64_t num_nodes, int64_t inner,
                                  T* out /* [B, outer, num_nodes, inner] */) {
  const int64_t row = num_nodes * inner, count = samples * outer;
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / static_cast<int64_t>(row * sizeof(T)));
  // Allocated here: nothing may throw inside parallel_for. One part per thread, each with its own scratch row.
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(torch::stable::get_num_threads(), count / grain));
  std::vector<A> scratch(std::is_same_v<T, A> ? 0 : parts * row);
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * count / parts; i < end * count / parts; ++i) {
      A* sum;
      if constexpr (std::is_same_v<T, A>) {
        sum = out + i * row;
      } else {
        sum = scratch.data() + begin * row;
      }
      std::fill(sum, sum + row, A(0));
      const T* source = grad + i * m * inner;
      const int64_t* index = node + (i / outer) * m;
      for (int64_t j = 0; j < m; ++j) {
        for (int64_t c = 0; c < inner; ++c) sum[index[j] * inner + c] += static_cast<A>(source[j * inner + c]);
      }
      if constexpr (!std::is_same_v<T, A>) std::copy(sum, sum + row, out + i * row);
    }
  });
}

Tensor gather_nodes_backward(const Tensor& grad, const Tensor& node, int64_t num_nodes) {
  STD_TORCH_CHECK(grad.dim() == 4 && grad.is_contiguous(),
                  "gather_nodes_backward: grad must be contiguous with four dimensions");
  const int64_t samples = grad.size(0), outer = grad.size(1), m = grad.size(2), inner = grad.size(3);
  check_node(node, samples, num_nodes, "gather_nodes_backward");
  STD_TORCH_CHECK(node.size(1) == m, "gather_nodes_backward: grad and node must have the same number of nodes");
  Tensor out = torch::stable::new_empty(grad, {samples, outer, num_nodes, inner});
  if (out.numel() == 0) return out;
  const auto run = [&]<typename T, typename A>(int64_t width) {
    gather_nodes_backward_kernel<T, A>(static_cast<const T*>(grad.const_data_ptr()), node.const_data_ptr<int64_t>(),
                                       samples, outer, m, num_nodes, width, static_cast<T*>(out.mutable_data_ptr()));
  };
  switch (grad.scalar_type()) {
    case ScalarType::Float:
      run.template operator()<float, float>(inner);
      break;
    case ScalarType::Double:
      run.template operator()<double, double>(inner);
      break;
    case ScalarType::BFloat16:
      run.template operator()<c10::BFloat16, float>(inner);
      break;
    case ScalarType::Half:
      run.template operator()<c10::Half, float>(inner);
      break;
    case ScalarType::ComplexFloat:
      run.template operator()<float, float>(2 * inner);
      break;
    case ScalarType::ComplexDouble:
      run.template operator()<double, double>(2 * inner);
      break;
    default:
      STD_TORCH_CHECK(false, "gather_nodes_backward: unsupported dtype");
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) {
  m.impl("gather_nodes", TORCH_BOX(&gather_nodes));
  m.impl("gather_nodes_backward", TORCH_BOX(&gather_nodes_backward));
}

}  // namespace stprune
