// The rows of a draw of nodes, on torch's threads: small batches stay on one, and each task has scratch of its own.
#pragma once

#include <atomic>
#include <cstdlib>
#include <memory>

#include "cpu/chunks.h"

namespace stprune {
namespace {

// The random words of a window's nodes.  out [num_nodes rounded up to 64]
inline void node_words(PhiloxKey key, uint32_t epoch, int64_t window, int64_t num_nodes, uint32_t* out) {
  kernels().words(key.low, key.high, 0, static_cast<uint32_t>(window), epoch,
                  STREAM_NODES | static_cast<uint32_t>(window >> 32) << 8, (num_nodes + 63) / 64, out);
}

// What every draw of nodes asks of its batch.
inline void check_draw(const char* op, const Tensor& index, int64_t num_nodes, int64_t count) {
  check_vector(index, op, "index");
  check_dtype(index, ScalarType::Long, op, "index");
  STD_TORCH_CHECK(count >= 1 && count <= num_nodes && num_nodes <= int64_t{1} << 31, op,
                  ": count must lie in [1, num_nodes]");
}

// The nodes below a threshold, which are marked in scratch.less, and the first `ties` of those at it, marked in
// scratch.equal: `count` in all. They stay marked in scratch.less.
template <typename Scratch>
void emit_drawn(const Scratch& scratch, int64_t num_nodes, int64_t ties, int64_t count, int64_t* out) {
  const int64_t num_words = (num_nodes + 63) / 64;
  keep_first(scratch.equal, num_words, ties);
  for (int64_t word = 0; word < num_words; ++word) scratch.less[word] |= scratch.equal[word];
  kernels().emit(scratch.less, num_words, 0, out, count);
}

// Calls body(first, last, scratch) for stretches of [0, rows) of at least `task_words` words of `padded` a row;
// `Scratch` takes memory of Scratch::bytes(padded) bytes.
template <typename Scratch, typename Body>
void for_rows(int64_t rows, int64_t padded, int64_t task_words, const char* op, const Body& body) {
  const int64_t rows_a_task = std::max<int64_t>(1, task_words / padded);
  std::atomic<bool> enough{true};
  for_chunks((rows + rows_a_task - 1) / rows_a_task, [&](int64_t task) {
    const std::unique_ptr<void, decltype(&std::free)> memory(std::malloc(Scratch::bytes(padded)), &std::free);
    if (memory == nullptr) {
      enough.store(false, std::memory_order_relaxed);
      return;
    }
    const Scratch scratch(memory.get(), padded);
    const int64_t first = task * rows_a_task;
    body(first, std::min(rows, first + rows_a_task), scratch);
  });
  STD_TORCH_CHECK(enough.load(), op, ": out of memory");
}

}  // namespace
}  // namespace stprune
