// draw_nodes_weighted: priority sampling of the nodes of each window, a function of (seed, epoch, window) and the
// weights. draw_nodes_by_score: the same with weights made of the window's scores in a table of pairs.
#include <bit>
#include <functional>
#include <limits>
#include <tuple>

#include "cpu/node_tasks.h"

namespace stprune {
namespace {

// Work a task takes at least, in words: a few microseconds, so that small batches stay on one thread.
constexpr int64_t TASK_WORDS = 1 << 13;

// Keys are positive: their order is that of their bits, of which these are the highest.
constexpr int KEY_SHIFT = 20, KEY_BINS = 1 << (31 - KEY_SHIFT);

// Scratch of one window: its words, minus its keys, scores that become a part of the keys to search in, chances, marks
// of keys, and how many keys have the same highest bits.
struct Scratch {
  uint32_t* words;               // [padded]
  float *keys, *some, *chances;  // [padded] each
  uint64_t *less, *equal;        // [padded / 64] each
  uint32_t* bins;                // [KEY_BINS]

  static size_t bytes(int64_t padded) { return static_cast<size_t>(padded) * 16 + padded / 64 * 16 + KEY_BINS * 4; }
  Scratch(void* memory, int64_t padded)
      : words(static_cast<uint32_t*>(memory)),
        keys(reinterpret_cast<float*>(words + padded)),
        some(keys + padded),
        chances(some + padded),
        less(reinterpret_cast<uint64_t*>(chances + padded)),
        equal(less + padded / 64),
        bins(reinterpret_cast<uint32_t*>(equal + padded / 64)) {}
};

uint32_t bin_of(float key) { return (std::bit_cast<uint32_t>(key) & 0x7FFFFFFFu) >> KEY_SHIFT; }

// Minus the key of this rank, counted from 0 and the smallest, of n keys in scratch with their signs changed.
float key_at(const Scratch& scratch, int64_t n, int64_t rank) {
  std::fill(scratch.bins, scratch.bins + KEY_BINS, 0u);
  for (int64_t i = 0; i < n; ++i) ++scratch.bins[bin_of(scratch.keys[i])];
  uint32_t bin = 0;
  while (rank >= scratch.bins[bin]) rank -= scratch.bins[bin++];
  int64_t size = 0;
  for (int64_t i = 0; i < n; ++i) {
    scratch.some[size] = scratch.keys[i];
    size += bin_of(scratch.keys[i]) == bin;
  }
  std::nth_element(scratch.some, scratch.some + rank, scratch.some + size, std::greater<float>());
  return scratch.some[rank];
}

struct Draw {
  int64_t num_nodes, count;
  PhiloxKey key;
  uint32_t epoch;

  // The nodes with the `count` smallest keys u / w, ties to the smaller node, and max(1, 1 / (threshold w)) of each,
  // where the threshold is the smallest key of the others.
  void row(int64_t window, const float* weights, const Scratch& scratch, int64_t* nodes, float* out) const {
    node_words(key, epoch, window, num_nodes, scratch.words);
    kernels().priority(weights, scratch.words, num_nodes, scratch.keys);
    const float threshold = key_at(scratch, num_nodes, count);
    int64_t ties;
    const int64_t less = kernels().compare_f32(scratch.keys, num_nodes, threshold, scratch.less, scratch.equal, &ties);
    emit_drawn(scratch, num_nodes, count - less, count, nodes);
    // A threshold that underflowed to zero would make the weights infinite.
    const double tau = 1.0 / std::max(-static_cast<double>(threshold), 0x1p-149);
    kernels().marked_weights(scratch.less, weights, num_nodes, tau, out);
  }
};

// Nodes and weights [rows, count] of windows, where row(row, scratch, nodes, weights) draws those of one.
template <typename Row>
std::tuple<Tensor, Tensor> drawn(const char* op, const Tensor& index, int64_t num_nodes, int64_t count,
                                 const Row& row) {
  const int64_t rows = index.numel();
  Tensor nodes = torch::stable::new_empty(index, {rows, count}, ScalarType::Long);
  Tensor out = torch::stable::new_empty(index, {rows, count}, ScalarType::Float);
  int64_t* to = nodes.mutable_data_ptr<int64_t>();
  float* result = out.mutable_data_ptr<float>();
  if (count == num_nodes) {
    // All are certain.
    for (int64_t at = 0; at < rows * count; ++at) to[at] = at % count;
    std::fill(result, result + rows * count, 1.0f);
    return {nodes, out};
  }
  for_rows<Scratch>(rows, (num_nodes + 63) / 64 * 64, TASK_WORDS, op,
                    [&](int64_t first, int64_t last, const Scratch& scratch) {
                      for (int64_t at = first; at < last; ++at) row(at, scratch, to + at * count, result + at * count);
                    });
  return {nodes, out};
}

std::tuple<Tensor, Tensor> draw_nodes_weighted(const Tensor& weights, const Tensor& index, int64_t count, int64_t seed,
                                               int64_t epoch) {
  const char* op = "draw_nodes_weighted";
  check_dtype(weights, ScalarType::Float, op, "weights");
  STD_TORCH_CHECK(weights.dim() == 2 && weights.size(0) == index.numel() && weights.is_contiguous(), op,
                  ": weights must be contiguous [batch, nodes]");
  const int64_t num_nodes = weights.size(1);
  check_draw(op, index, num_nodes, count);
  const int64_t* windows = index.const_data_ptr<int64_t>();
  const float* w = weights.const_data_ptr<float>();
  const Draw draw{num_nodes, count, philox_key(seed), static_cast<uint32_t>(epoch)};
  return drawn(op, index, num_nodes, count, [&](int64_t row, const Scratch& scratch, int64_t* nodes, float* out) {
    draw.row(windows[row], w + row * num_nodes, scratch, nodes, out);
  });
}

// The scores of one window in a table of pairs, padded with infinity.
void scores_of(const Tensor& values, const Tensor& scale, int64_t window, int64_t num_nodes, float* out) {
  const int64_t columns = values.size(1), padded = (num_nodes + 63) / 64 * 64;
  if (values.scalar_type() == ScalarType::Byte) {
    kernels().widen_levels(values.const_data_ptr<uint8_t>() + window * columns,
                           scale.const_data_ptr<float>() + window * (columns / 64), padded, out);
    return;
  }
  if (values.scalar_type() == ScalarType::Float) {
    const float* row = values.const_data_ptr<float>() + window * columns;
    std::copy(row, row + num_nodes, out);
  } else {
    kernels().widen_bf16(static_cast<const uint16_t*>(values.const_data_ptr()) + window * columns, num_nodes, out);
  }
  std::fill(out + num_nodes, out + padded, std::numeric_limits<float>::infinity());
}

std::tuple<Tensor, Tensor> draw_nodes_by_score(const Tensor& values, const Tensor& scale, const Tensor& index,
                                               int64_t num_nodes, int64_t count, double floor, int64_t seed,
                                               int64_t epoch) {
  const char* op = "draw_nodes_by_score";
  const bool levels = values.scalar_type() == ScalarType::Byte;
  STD_TORCH_CHECK(levels || values.scalar_type() == ScalarType::Float || values.scalar_type() == ScalarType::BFloat16,
                  op, ": values has an unexpected dtype");
  const int64_t padded = (num_nodes + 63) / 64 * 64;
  STD_TORCH_CHECK(values.dim() == 2 && values.is_contiguous() && values.size(1) == (levels ? padded : num_nodes), op,
                  ": values must be contiguous rows of all nodes");
  check_dtype(scale, ScalarType::Float, op, "scale");
  STD_TORCH_CHECK(!levels || (scale.is_contiguous() && scale.numel() == values.size(0) * (padded / 64)), op,
                  ": scale must have one element for 64 nodes");
  check_draw(op, index, num_nodes, count);
  const int64_t* windows = index.const_data_ptr<int64_t>();
  for (int64_t row = 0; row < index.numel(); ++row) {
    STD_TORCH_CHECK(windows[row] >= 0 && windows[row] < values.size(0), "Priority.draw: index must lie in [0, ",
                    values.size(0) - 1, "], got ", windows[row]);
  }
  const Draw draw{num_nodes, count, philox_key(seed), static_cast<uint32_t>(epoch)};
  const float low = static_cast<float>(floor), rest = static_cast<float>(1.0 - floor);
  const float share = static_cast<float>(static_cast<double>(count) / static_cast<double>(num_nodes));
  return drawn(op, index, num_nodes, count, [&](int64_t row, const Scratch& scratch, int64_t* nodes, float* out) {
    scores_of(values, scale, windows[row], num_nodes, scratch.some);
    kernels().chances(scratch.some, padded, low, rest, scratch.chances);
    draw.row(windows[row], scratch.chances, scratch, nodes, out);
    const float first = scratch.chances[0];
    const bool equal = std::all_of(scratch.chances, scratch.chances + num_nodes, [&](float c) { return c == first; });
    for (int64_t i = 0; i < count; ++i) out[i] = equal ? 1.0f : out[i] * share;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) {
  m.impl("draw_nodes_weighted", TORCH_BOX(&draw_nodes_weighted));
  m.impl("draw_nodes_by_score", TORCH_BOX(&draw_nodes_by_score));
}

}  // namespace stprune
