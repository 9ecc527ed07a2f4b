// draw_nodes: for each window the nodes with the smallest random words, a function of (seed, epoch, window).
#include <numeric>

#include "cpu/order.h"

namespace stprune {
namespace {

// Work a task takes at least, in words: a few microseconds, so that small batches stay on one thread.
constexpr int64_t TASK_WORDS = 1 << 14;

// The rank-th smallest word. The words are uniform, so a narrow bracket around its expected value almost always holds
// it.
uint32_t kth_smallest(const uint32_t* words, int64_t n, int64_t rank, uint32_t* scratch /* [n] */) {
  const double share = static_cast<double>(rank) / static_cast<double>(n);
  const double width = 5.0 * std::sqrt(share * (1.0 - share) / static_cast<double>(n)) + 2.0 / static_cast<double>(n);
  const double low = std::max(0.0, share - width), high = std::min(1.0, share + width);
  const uint32_t from = static_cast<uint32_t>(low * 4294967295.0), to = static_cast<uint32_t>(high * 4294967295.0);
  int64_t below = 0, inside = 0;
  for (int64_t i = 0; i < n; ++i) {
    scratch[inside] = words[i];
    below += words[i] < from;
    inside += words[i] >= from && words[i] <= to;
  }
  if (below < rank && rank <= below + inside) {
    std::nth_element(scratch, scratch + (rank - below - 1), scratch + inside);
    return scratch[rank - below - 1];
  }
  std::copy(words, words + n, scratch);
  std::nth_element(scratch, scratch + (rank - 1), scratch + n);
  return scratch[rank - 1];
}

void draw_row(int64_t window, int64_t num_nodes, int64_t count, PhiloxKey key, uint32_t epoch, uint32_t* words,
              uint32_t* scratch, int64_t* out /* [count] */) {
  kernels().words(key.low, key.high, 0, static_cast<uint32_t>(window), epoch,
                  STREAM_NODES | static_cast<uint32_t>(window >> 32) << 8, (num_nodes + 63) / 64, words);
  const uint32_t threshold = kth_smallest(words, num_nodes, count, scratch);
  int64_t below = 0;
  for (int64_t node = 0; node < num_nodes; ++node) below += words[node] < threshold;
  int64_t ties = count - below, done = 0;
  for (int64_t node = 0; node < num_nodes && done < count; ++node) {
    const bool tie = words[node] == threshold && ties > 0;
    ties -= tie;
    out[done] = node;
    done += words[node] < threshold || tie;
  }
}

Tensor draw_nodes(const Tensor& index, int64_t num_nodes, int64_t count, int64_t seed, int64_t epoch) {
  check_vector(index, "draw_nodes", "index");
  check_dtype(index, ScalarType::Long, "draw_nodes", "index");
  STD_TORCH_CHECK(count >= 1 && count <= num_nodes && num_nodes <= int64_t{1} << 31,
                  "draw_nodes: count must lie in [1, num_nodes]");
  const int64_t rows = index.numel();
  Tensor out = torch::stable::new_empty(index, {rows, count}, ScalarType::Long);
  const int64_t* windows = index.const_data_ptr<int64_t>();
  int64_t* to = out.mutable_data_ptr<int64_t>();
  const int64_t padded = (num_nodes + 63) / 64 * 64;
  const int64_t rows_a_task = std::max<int64_t>(1, TASK_WORDS / padded);
  const int64_t tasks = (rows + rows_a_task - 1) / rows_a_task;
  std::atomic<bool> enough{true};
  for_chunks(tasks, [&](int64_t task) {
    const int64_t first = task * rows_a_task, last = std::min(rows, first + rows_a_task);
    if (count == num_nodes) {
      for (int64_t row = first; row < last; ++row) std::iota(to + row * count, to + (row + 1) * count, int64_t{0});
      return;
    }
    const std::unique_ptr<uint32_t, decltype(&std::free)> memory(
        static_cast<uint32_t*>(std::malloc(static_cast<size_t>(2 * padded + 1) * sizeof(uint32_t))), &std::free);
    if (memory == nullptr) {
      enough.store(false, std::memory_order_relaxed);
      return;
    }
    for (int64_t row = first; row < last; ++row) {
      draw_row(windows[row], num_nodes, count, philox_key(seed), static_cast<uint32_t>(epoch), memory.get(),
               memory.get() + padded, to + row * count);
    }
  });
  STD_TORCH_CHECK(enough.load(), "draw_nodes: out of memory");
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) { m.impl("draw_nodes", TORCH_BOX(&draw_nodes)); }

}  // namespace stprune
