// Sums in a fixed order (stprune/reference/finite_stats.py), and the plan's kernels by element type.
#pragma once

#include "cpu/order.h"
#include "cpu/plan_kernels.h"

namespace stprune {
namespace {

static_assert(CHUNK % SUM_BLOCK == 0);

inline int64_t num_sum_blocks(int64_t n) { return (n + SUM_BLOCK - 1) / SUM_BLOCK; }

// Calls body(block, its first element, its size) for every block of n elements, a chunk of them at a time in parallel.
template <typename Body>
void for_sum_blocks(int64_t n, const Body& body) {
  for_chunks(num_chunks(n), [&](int64_t chunk) {
    const int64_t end = chunk * CHUNK + chunk_size(n, chunk);
    for (int64_t first = chunk * CHUNK; first < end; first += SUM_BLOCK) {
      body(first / SUM_BLOCK, first, std::min(SUM_BLOCK, end - first));
    }
  });
}

// Adds neighbours until one is left; reorders nothing, overwrites the sums.
inline double tree_sum(std::vector<double>& sums) {
  size_t size = sums.size();
  if (size == 0) return 0.0;
  for (; size > 1; size = (size + 1) / 2) {
    for (size_t i = 0; i < size / 2; ++i) sums[i] = sums[2 * i] + sums[2 * i + 1];
    if (size % 2 == 1) sums[size / 2] = sums[size - 1] + 0.0;
  }
  return sums[0];
}

inline void block_stats(const float* x, int64_t n, BlockStats* out) { plan_kernels().stats_f32(x, n, out); }
inline void block_stats(const double* x, int64_t n, BlockStats* out) { plan_kernels().stats_f64(x, n, out); }

inline void scale_weights(float* weights, const uint8_t* members, int64_t n, const double* factor) {
  plan_kernels().scale_u8(weights, members, n, factor);
}
inline void scale_weights(float* weights, const int32_t* members, int64_t n, const double* factor) {
  plan_kernels().scale_i32(weights, members, n, factor);
}

// The statistics of all blocks together.
inline BlockStats stats_of(const std::vector<BlockStats>& blocks) {
  std::vector<double> sums(blocks.size());
  BlockStats all{0.0, std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity(), 0};
  for (size_t block = 0; block < blocks.size(); ++block) {
    sums[block] = blocks[block].sum;
    all.least = std::min(all.least, blocks[block].least);
    all.largest = std::max(all.largest, blocks[block].largest);
    all.count += blocks[block].count;
  }
  all.sum = tree_sum(sums);
  // One zero of the two.
  all.least += 0.0;
  all.largest += 0.0;
  return all;
}

// Sum, number, least and largest of the finite entries of x [n].
template <typename T>
BlockStats finite_stats_of(const T* x, int64_t n) {
  std::vector<BlockStats> blocks(num_sum_blocks(n));
  for_sum_blocks(n, [&](int64_t block, int64_t first, int64_t size) { block_stats(x + first, size, &blocks[block]); });
  return stats_of(blocks);
}

// Mean of the finite entries: NaN when there are none, exact when all are equal.
inline double mean_of(const BlockStats& stats) {
  if (stats.least == stats.largest) return stats.least;
  return stats.count > 0 ? stats.sum / static_cast<double>(stats.count) : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace
}  // namespace stprune
