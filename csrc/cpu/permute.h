// A stretch of a counter-based permutation, of any length.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "cpu/kernels.h"

namespace stprune {
namespace {

// Positions worked on at a time: 8 KiB of indices stay in L1.
constexpr int64_t PERMUTE_BLOCK = 1024;

// The whole permutation of n < PERMUTATION_SMALL indices: they are sorted by random 64-bit keys.
template <typename Index>
void permute_small(int64_t n, PhiloxKey key, uint32_t epoch, uint32_t stream, uint32_t block, Index* out /* [n] */) {
  std::pair<int64_t, int64_t> keyed[PERMUTATION_SMALL];
  for (int64_t i = 0; i < n; ++i) {
    const PhiloxWords words = philox(key, static_cast<uint32_t>(i), block, epoch, stream | PURPOSE_SMALL_KEYS);
    keyed[i] = {static_cast<int64_t>(static_cast<uint64_t>(words.word[1]) << 32 | words.word[0]), i};
  }
  std::sort(keyed, keyed + n);
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<Index>(keyed[i].second);
}

}  // namespace
}  // namespace stprune
