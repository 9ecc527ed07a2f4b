// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011): the random numbers of every draw, as a function of
// (seed, epoch, stream, index) alone. Mirrors stprune/reference/random.py; usable from host and device code, and free
// of headers that define anything, so that each instruction set can compile its own copy.
#pragma once

#include <stdint.h>

#if defined(__CUDACC__)
#define STPRUNE_HOST_DEVICE __host__ __device__ inline
#else
#define STPRUNE_HOST_DEVICE inline
#endif

namespace stprune {
namespace {

// Streams: low 8 bits of the fourth counter word. Purposes: its other 24 bits (window bits for NODES).
constexpr uint32_t STREAM_DRAW = 0;
constexpr uint32_t STREAM_WEIGHTED = 1;
constexpr uint32_t STREAM_SHUFFLE = 2;
constexpr uint32_t STREAM_SYSTEMATIC = 3;
constexpr uint32_t STREAM_NODES = 4;
constexpr uint32_t PURPOSE_SMALL_KEYS = 1u << 8;
constexpr uint32_t PURPOSE_ROUND_KEYS = 2u << 8;
constexpr uint32_t PURPOSE_OFFSET = 3u << 8;

constexpr uint32_t PHILOX_M0 = 0xD2511F53u;
constexpr uint32_t PHILOX_M1 = 0xCD9E8D57u;
constexpr uint32_t PHILOX_W0 = 0x9E3779B9u;
constexpr uint32_t PHILOX_W1 = 0xBB67AE85u;
constexpr int PHILOX_ROUNDS = 10;

struct PhiloxKey {
  uint32_t low, high;
};

struct PhiloxWords {
  uint32_t word[4];
};

STPRUNE_HOST_DEVICE PhiloxKey philox_key(int64_t seed) {
  return {static_cast<uint32_t>(seed), static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32)};
}

STPRUNE_HOST_DEVICE PhiloxWords philox(PhiloxKey key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
  for (int round = 0; round < PHILOX_ROUNDS; ++round) {
    const uint64_t product_0 = static_cast<uint64_t>(PHILOX_M0) * c0;
    const uint64_t product_1 = static_cast<uint64_t>(PHILOX_M1) * c2;
    c0 = static_cast<uint32_t>(product_1 >> 32) ^ c1 ^ key.low;
    c1 = static_cast<uint32_t>(product_1);
    c2 = static_cast<uint32_t>(product_0 >> 32) ^ c3 ^ key.high;
    c3 = static_cast<uint32_t>(product_0);
    key.low += PHILOX_W0;
    key.high += PHILOX_W1;
  }
  return {{c0, c1, c2, c3}};
}

// The counter of an index: 16 counters serve 64 consecutive indices, word j those of 16 * j .. 16 * j + 15.
STPRUNE_HOST_DEVICE uint64_t philox_counter(int64_t index) {
  return 16 * (static_cast<uint64_t>(index) >> 6) + (static_cast<uint64_t>(index) & 15);
}

STPRUNE_HOST_DEVICE uint32_t philox_word_at(PhiloxKey key, uint32_t epoch, uint32_t stream, int64_t index) {
  const uint64_t c = philox_counter(index);
  const PhiloxWords words = philox(key, static_cast<uint32_t>(c), static_cast<uint32_t>(c >> 32), epoch, stream);
  return words.word[(index >> 4) & 3];
}

}  // namespace
}  // namespace stprune
