// Keys as kernels see them: unsigned codes whose order is the key order (the first key has the largest code), from keys
// in memory or computed from a random word and a weight. And the layout in which a warp meets 128 consecutive keys.
#pragma once

#include "cuda/block.h"

#if !defined(__CUDACC__)
#include <cmath>
#endif

namespace stprune {
namespace {

// NaN, +inf .. -inf with -0 = +0, as an unsigned number that falls along this order. Without branches: between loads
// they would make each wait for the one before.
STPRUNE_DEVICE uint32_t key_code(float key) {
  const uint32_t bits = bits_of(key + 0.0f), flipped = bits ^ ((bits >> 31 ? 0x7FFFFFFFu : 0u) | 0x80000000u);
  return key != key ? 0xFFFFFFFFu : flipped;
}
STPRUNE_DEVICE uint64_t key_code(double key) {
  constexpr uint64_t SIGN = 0x8000000000000000ull;
  const uint64_t bits = bits_of(key + 0.0), flipped = bits ^ ((bits >> 63 ? ~SIGN : 0) | SIGN);
  return key != key ? ~uint64_t{0} : flipped;
}

template <class Key>
struct CodeOf;
template <>
struct CodeOf<float> {
  using Code = uint32_t;
};
template <>
struct CodeOf<double> {
  using Code = uint64_t;
};

// A tile is 128 consecutive indices. Lane l of a warp holds the four at 64 * (l >> 4) + 16 * j + (l & 15): one Philox
// counter (philox_counter) makes the words of all four.
constexpr int TILE = 128;
STPRUNE_HOST_DEVICE int tile_offset(int lane, int j) { return 64 * ((lane >> 4) & 1) + 16 * j + (lane & 15); }

template <class T>
struct Four {
  T item[4];
};

// A lane's four of `size` elements at `from`; 0 where there are none.
template <class T>
STPRUNE_DEVICE Four<T> load_tile(const T* from, int64_t size, int lane) {
  Four<T> values;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int offset = tile_offset(lane, j);
    values.item[j] = T(0);
    if (offset < size) values.item[j] = input(from, offset);
  }
  return values;
}

STPRUNE_DEVICE PhiloxWords tile_words(PhiloxKey key, uint32_t epoch, uint32_t stream, int64_t first, int lane) {
  const uint64_t c = philox_counter(first + tile_offset(lane, 0));
  return philox(key, static_cast<uint32_t>(c), static_cast<uint32_t>(c >> 32), epoch, stream);
}

// A source of keys hands out a lane's four values of a tile (0 from index first + size on), and turns them into codes.
// The two are apart so that the loads of several tiles can be in flight together.

// Keys that lie in memory.
template <class Key>
struct StoredKeys {
  using Code = typename CodeOf<Key>::Code;
  using Value = Key;
  // Tiles whose loads are in flight together: 16 keys a thread.
  static constexpr int TILES_AT_ONCE = 4;
  const Key* keys;  // [n]

  STPRUNE_DEVICE Value value(int64_t i) const { return input(keys, i); }
  STPRUNE_DEVICE Code code(Value value, int64_t) const { return key_code(value); }
  STPRUNE_DEVICE Four<Value> load(int64_t first, int64_t size, int lane) const {
    return load_tile(keys + first, size, lane);
  }
  STPRUNE_DEVICE Four<Code> codes(const Four<Value>& values, int64_t, int) const {
    return {{key_code(values.item[0]), key_code(values.item[1]), key_code(values.item[2]), key_code(values.item[3])}};
  }
};

// log of normal positive doubles by + - * / alone: see stprune/reference/draw_weighted.py.
STPRUNE_DEVICE double logarithm(double u) {
  const uint64_t bits = bits_of(u);
  int64_t exponent = static_cast<int64_t>(bits >> 52) - 1022;
  double m = double_of((bits & 0x000FFFFFFFFFFFFFull) | 0x3FE0000000000000ull);
  if (m < 0.70710678118654752440) {
    m = m + m;
    exponent -= 1;
  }
  const double e = static_cast<double>(exponent);
  const double s = (m - 1.0) / (m + 1.0);
  const double z = s * s;
  double series = 1.0 / 21.0;
  series = series * z + 1.0 / 19.0;
  series = series * z + 1.0 / 17.0;
  series = series * z + 1.0 / 15.0;
  series = series * z + 1.0 / 13.0;
  series = series * z + 1.0 / 11.0;
  series = series * z + 1.0 / 9.0;
  series = series * z + 1.0 / 7.0;
  series = series * z + 1.0 / 5.0;
  series = series * z + 1.0 / 3.0;
  const double tail = s * (z * series);
  return e * 6.93147180369123816490e-01 + (2.0 * s + (2.0 * tail + e * 1.90821492927058770002e-10));
}

STPRUNE_DEVICE float priority_numerator(uint32_t word) { return (static_cast<float>(word) + 0.5f) * 0x1p-32f; }
STPRUNE_DEVICE float race_numerator(uint32_t word) {
  return -static_cast<float>(logarithm((static_cast<double>(word) + 0.5) * 0x1p-32));
}

// Random keys of weighted sampling, recomputed wherever they are needed. The smallest key is the first: its code is
// the complement of the key's bits, which order non-negative floats.
template <bool RACE>
struct WeightedKeys {
  using Code = uint32_t;
  using Value = float;
  // Random words keep a thread busy; more tiles would not fit into its registers.
  static constexpr int TILES_AT_ONCE = 2;
  const float* weights;  // [n]
  PhiloxKey key;
  uint32_t epoch;

  STPRUNE_DEVICE Code code_of(uint32_t word, float weight) const {
    constexpr float LARGEST = 0x1.fffffep127f;
    const float quotient = (RACE ? race_numerator(word) : priority_numerator(word)) / weight;
    const uint32_t key = bits_of(quotient > LARGEST ? LARGEST : quotient);
    return ~(weight > 0.0f ? key : 0x7F800000u);  // +inf
  }
  STPRUNE_DEVICE Value value(int64_t i) const { return input(weights, i); }
  STPRUNE_DEVICE Code code(Value value, int64_t i) const {
    return code_of(philox_word_at(key, epoch, STREAM_WEIGHTED, i), value);
  }
  STPRUNE_DEVICE Four<Value> load(int64_t first, int64_t size, int lane) const {
    return load_tile(weights + first, size, lane);
  }
  STPRUNE_DEVICE Four<Code> codes(const Four<Value>& values, int64_t first, int lane) const {
    const PhiloxWords words = tile_words(key, epoch, STREAM_WEIGHTED, first, lane);
    Four<Code> codes;
#pragma unroll
    for (int j = 0; j < 4; ++j) codes.item[j] = code_of(words.word[j], values.item[j]);
    return codes;
  }
};

// The float key of a code of WeightedKeys.
STPRUNE_DEVICE float weighted_key(uint32_t code) { return float_of(~code); }

// Word q = 0 .. 3 of a tile's 128 marks in index order, from the ballots of its four steps.
STPRUNE_DEVICE uint32_t tile_word(const Four<uint32_t>& ballots, int q) {
  const uint32_t low = (q & 1) ? ballots.item[2] : ballots.item[0], high = (q & 1) ? ballots.item[3] : ballots.item[1];
  return (q & 2) ? (low >> 16) | (high & 0xFFFF0000u) : (low & 0xFFFFu) | (high << 16);
}

// A warp's piece of work is a segment of 8 tiles: 1,024 indices, whose marks are one word a lane. A block's is a chunk
// of 8 segments, one word a thread.
constexpr int SEGMENT_TILES = 8;
constexpr int SEGMENT = SEGMENT_TILES * TILE;
constexpr int CHUNK_THREADS = 256;
constexpr int CHUNK_SEGMENTS = CHUNK_THREADS / WARP;
constexpr int CHUNK_KEYS = CHUNK_SEGMENTS * SEGMENT;
constexpr int SEGMENT_WORDS = SEGMENT / 32;

}  // namespace
}  // namespace stprune
