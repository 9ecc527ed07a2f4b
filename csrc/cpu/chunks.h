// Work in fixed chunks on torch's threads: what every op on a long vector shares.
#pragma once

#include <algorithm>
#include <cstdint>

#include "check.h"
#include "cpu/kernels.h"
#include "cpu/memory.h"

namespace stprune {
namespace {

constexpr int64_t CHUNK_WORDS = CHUNK / 64;

inline int64_t num_chunks(int64_t n) { return (n + CHUNK - 1) / CHUNK; }
inline int64_t chunk_size(int64_t n, int64_t chunk) { return std::min(CHUNK, n - chunk * CHUNK); }

// The words of `stream` from index `first` on, a multiple of 64.
inline PhiloxCounter words_from(PhiloxKey key, uint32_t epoch, uint32_t stream, int64_t first) {
  const uint64_t c = philox_counter(first);
  return {key.low, key.high, static_cast<uint32_t>(c), static_cast<uint32_t>(c >> 32), epoch, stream};
}

// Runs body(chunk) for every chunk on torch's threads. The body must not throw.
template <typename Body>
void for_chunks(int64_t chunks, const Body& body) {
  torch::stable::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) body(chunk);
  });
}

// Calls body(position) for every set bit, ascending. Few words have one: which they are is found without a branch for
// every word, as its outcome could not be predicted.
template <typename Body>
void for_set_bits(const uint64_t* bits, int64_t num_words, const Body& body) {
  for (int64_t group = 0; group < num_words; group += 64) {
    const int64_t end = std::min(group + 64, num_words);
    uint64_t busy = 0;
    for (int64_t word = group; word < end; ++word) busy |= static_cast<uint64_t>(bits[word] != 0) << (word - group);
    for (; busy != 0; busy &= busy - 1) {
      const int64_t word = group + __builtin_ctzll(busy);
      for (uint64_t rest = bits[word]; rest != 0; rest &= rest - 1) body(64 * word + __builtin_ctzll(rest));
    }
  }
}

// Clears all but the first `keep` bits.
inline void keep_first(uint64_t* bits, int64_t num_words, int64_t keep) {
  for (int64_t word = 0; word < num_words; ++word) {
    const int64_t count = __builtin_popcountll(bits[word]);
    if (count <= keep) {
      keep -= count;
      continue;
    }
    uint64_t kept = 0;
    for (uint64_t rest = bits[word]; keep > 0; --keep, rest &= rest - 1) kept |= rest & (~rest + 1);
    bits[word] = kept;
  }
}

}  // namespace
}  // namespace stprune
