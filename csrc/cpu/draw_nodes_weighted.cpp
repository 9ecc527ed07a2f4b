// draw_nodes_weighted: priority sampling of the nodes of each window, a function of (seed, epoch, window) and the
// weights.
#include <functional>
#include <tuple>

#include "cpu/node_tasks.h"

namespace stprune {
namespace {

// Work a task takes at least, in words: a few microseconds, so that small batches stay on one thread.
constexpr int64_t TASK_WORDS = 1 << 13;

// Scratch of one window: its words, minus its keys, and a copy of these to search in.
struct Scratch {
  uint32_t* words;     // [padded]
  float *keys, *copy;  // [padded] each

  static size_t bytes(int64_t padded) { return static_cast<size_t>(padded) * 12; }
  Scratch(void* memory, int64_t padded)
      : words(static_cast<uint32_t*>(memory)), keys(reinterpret_cast<float*>(words + padded)), copy(keys + padded) {}
};

struct Draw {
  int64_t num_nodes, count;
  PhiloxKey key;
  uint32_t epoch;

  // The nodes with the `count` smallest keys u / w, ties to the smaller node, and max(1, 1 / (threshold w)) of each,
  // where the threshold is the smallest key of the others.
  void row(int64_t window, const float* weights, const Scratch& scratch, int64_t* nodes, float* out) const {
    node_words(key, epoch, window, num_nodes, scratch.words);
    kernels().priority(weights, scratch.words, num_nodes, scratch.keys);
    std::copy(scratch.keys, scratch.keys + num_nodes, scratch.copy);
    float *const last = scratch.copy + (count - 1), *const end = scratch.copy + num_nodes;
    std::nth_element(scratch.copy, last, end, std::greater<float>());
    const float kept = *last, threshold = -*std::max_element(last + 1, end);
    int64_t ties = count;
    for (int64_t node = 0; node < num_nodes; ++node) ties -= scratch.keys[node] > kept;
    int64_t* to = nodes;
    for (int64_t node = 0; node < num_nodes; ++node) {
      const float k = scratch.keys[node];
      if (k > kept || (k == kept && ties-- > 0)) *to++ = node;
    }
    // A threshold that underflowed to zero would make the weights infinite.
    const double tau = 1.0 / std::max(static_cast<double>(threshold), 0x1p-149);
    kernels().sample_weights(weights, nodes, count, tau, out);
  }
};

std::tuple<Tensor, Tensor> draw_nodes_weighted(const Tensor& weights, const Tensor& index, int64_t count, int64_t seed,
                                               int64_t epoch) {
  check_vector(index, "draw_nodes_weighted", "index");
  check_dtype(index, ScalarType::Long, "draw_nodes_weighted", "index");
  check_dtype(weights, ScalarType::Float, "draw_nodes_weighted", "weights");
  STD_TORCH_CHECK(weights.dim() == 2 && weights.size(0) == index.numel() && weights.is_contiguous(),
                  "draw_nodes_weighted: weights must be contiguous [batch, nodes]");
  const int64_t rows = index.numel(), num_nodes = weights.size(1);
  STD_TORCH_CHECK(count >= 1 && count <= num_nodes && num_nodes <= int64_t{1} << 31,
                  "draw_nodes_weighted: count must lie in [1, num_nodes]");
  Tensor nodes = torch::stable::new_empty(index, {rows, count}, ScalarType::Long);
  Tensor out = torch::stable::new_empty(weights, {rows, count}, ScalarType::Float);
  const int64_t* windows = index.const_data_ptr<int64_t>();
  const float* w = weights.const_data_ptr<float>();
  int64_t* to = nodes.mutable_data_ptr<int64_t>();
  float* result = out.mutable_data_ptr<float>();
  const int64_t padded = (num_nodes + 63) / 64 * 64;
  const Draw draw{num_nodes, count, philox_key(seed), static_cast<uint32_t>(epoch)};
  if (count == num_nodes) {
    // All are certain.
    for (int64_t at = 0; at < rows * count; ++at) to[at] = at % count;
    std::fill(result, result + rows * count, 1.0f);
    return {nodes, out};
  }
  for_rows<Scratch>(rows, padded, TASK_WORDS, "draw_nodes_weighted",
                    [&](int64_t first, int64_t last, const Scratch& scratch) {
                      for (int64_t row = first; row < last; ++row) {
                        draw.row(windows[row], w + row * num_nodes, scratch, to + row * count, result + row * count);
                      }
                    });
  return {nodes, out};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) { m.impl("draw_nodes_weighted", TORCH_BOX(&draw_nodes_weighted)); }

}  // namespace stprune
