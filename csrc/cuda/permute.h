// Counter-based permutations inside kernels: see csrc/permutation.h.
#pragma once

#include "cuda/collective.h"
#include "permutation.h"

namespace stprune {
namespace {

struct SmallShared {
  SharedArray<int64_t, PERMUTATION_SMALL> keys;
  SharedArray<uint16_t, PERMUTATION_SMALL> items;
};

// The whole permutation of n < 1,024 indices into shared.items[0 .. n): they are sorted by random 64-bit keys.
template <int THREADS>
STPRUNE_DEVICE void permute_small(Block<THREADS>& block, SmallShared& shared, int n, PhiloxKey key, uint32_t epoch,
                                  uint32_t stream, uint32_t number) {
  const int size = power_of_two_from(n);
  block.phase([&](int t) {
    for (int i = t; i < size; i += THREADS) {
      const PhiloxWords words = philox(key, static_cast<uint32_t>(i), number, epoch, stream | PURPOSE_SMALL_KEYS);
      // The padding has the largest key and, among those, the largest items.
      const uint64_t random = static_cast<uint64_t>(words.word[1]) << 32 | words.word[0];
      shared.keys[i] = static_cast<int64_t>(i < n ? random : 0x7FFFFFFFFFFFFFFFull);
      shared.items[i] = static_cast<uint16_t>(i);
    }
  });
  sort_pairs(block, shared.keys, shared.items, size);
}

}  // namespace
}  // namespace stprune
