// draw_nodes: for each window the nodes with the smallest random words, a function of (seed, epoch, window).
#include <cmath>
#include <numeric>

#include "cpu/node_tasks.h"

namespace stprune {
namespace {

// Work a task takes at least, in words: a few microseconds, so that small batches stay on one thread.
constexpr int64_t TASK_WORDS = 1 << 14;

// Scratch of one window: its words, a copy to search in, and three rows of marks.
struct Scratch {
  uint32_t *words, *copy;              // [padded] each
  uint64_t *less, *equal, *less_high;  // [padded / 64] each

  static size_t bytes(int64_t padded) {
    return static_cast<size_t>(padded) * (2 * sizeof(uint32_t)) + padded / 64 * 24;
  }
  Scratch(void* memory, int64_t padded)
      : words(static_cast<uint32_t*>(memory)),
        copy(words + padded),
        less(reinterpret_cast<uint64_t*>(copy + padded)),
        equal(less + padded / 64),
        less_high(equal + padded / 64) {}
};

// The rank-th smallest word. Words are uniform, so four standard deviations around its expected value almost always
// hold it; where they do not, all words are searched.
uint32_t kth_smallest(const Scratch& scratch, int64_t n, int64_t rank) {
  const double share = static_cast<double>(rank) / static_cast<double>(n);
  const double width = 4.0 * std::sqrt(share * (1.0 - share) / static_cast<double>(n)) + 2.0 / static_cast<double>(n);
  const uint32_t low = static_cast<uint32_t>(std::max(0.0, share - width) * 4294967295.0);
  const uint32_t high = static_cast<uint32_t>(std::min(1.0, share + width) * 4294967295.0);
  int64_t ties;
  const int64_t num_low = kernels().below(scratch.words, n, low, scratch.less, scratch.equal, &ties);
  const int64_t num_high = kernels().below(scratch.words, n, high, scratch.less_high, scratch.equal, &ties);
  int64_t size = 0;
  if (num_low < rank && rank <= num_high) {
    for (int64_t word = 0; word < (n + 63) / 64; ++word) {
      for (uint64_t bits = scratch.less_high[word] & ~scratch.less[word]; bits != 0; bits &= bits - 1) {
        scratch.copy[size++] = scratch.words[64 * word + __builtin_ctzll(bits)];
      }
    }
    rank -= num_low;
  } else {
    std::copy(scratch.words, scratch.words + n, scratch.copy);
    size = n;
  }
  std::nth_element(scratch.copy, scratch.copy + (rank - 1), scratch.copy + size);
  return scratch.copy[rank - 1];
}

void draw_row(int64_t window, int64_t num_nodes, int64_t count, PhiloxKey key, uint32_t epoch, const Scratch& scratch,
              int64_t* out /* [count] */) {
  node_words(key, epoch, window, num_nodes, scratch.words);
  const uint32_t threshold = kth_smallest(scratch, num_nodes, count);
  int64_t ties;
  const int64_t num_less = kernels().below(scratch.words, num_nodes, threshold, scratch.less, scratch.equal, &ties);
  emit_drawn(scratch, num_nodes, count - num_less, count, out);
}

Tensor draw_nodes(const Tensor& index, int64_t num_nodes, int64_t count, int64_t seed, int64_t epoch) {
  check_draw("draw_nodes", index, num_nodes, count);
  const int64_t rows = index.numel();
  Tensor out = torch::stable::new_empty(index, {rows, count}, ScalarType::Long);
  const int64_t* windows = index.const_data_ptr<int64_t>();
  int64_t* to = out.mutable_data_ptr<int64_t>();
  const int64_t padded = (num_nodes + 63) / 64 * 64;
  if (count == num_nodes) {
    for (int64_t row = 0; row < rows; ++row) std::iota(to + row * count, to + (row + 1) * count, int64_t{0});
    return out;
  }
  for_rows<Scratch>(rows, padded, TASK_WORDS, "draw_nodes", [&](int64_t first, int64_t last, const Scratch& scratch) {
    for (int64_t row = first; row < last; ++row) {
      draw_row(windows[row], num_nodes, count, philox_key(seed), static_cast<uint32_t>(epoch), scratch,
               to + row * count);
    }
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) { m.impl("draw_nodes", TORCH_BOX(&draw_nodes)); }

}  // namespace stprune
