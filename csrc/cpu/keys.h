// Keys: their order, where they come from, and the kernels by type.
#pragma once

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "cpu/chunks.h"

namespace stprune {
namespace {

template <typename T>
bool before(T a, T b) {
  return std::isnan(a) ? !std::isnan(b) : a > b;
}

inline int64_t split_keys(const float* x, int64_t n, float low, float high, uint64_t* above, uint64_t* inside,
                          int64_t* count) {
  return kernels().split_f32(x, n, low, high, above, inside, count);
}
inline int64_t split_keys(const double* x, int64_t n, double low, double high, uint64_t* above, uint64_t* inside,
                          int64_t* count) {
  return kernels().split_f64(x, n, low, high, above, inside, count);
}
inline int64_t compare_keys(const float* x, int64_t n, float t, uint64_t* greater, uint64_t* equal, int64_t* count) {
  return kernels().compare_f32(x, n, t, greater, equal, count);
}
inline int64_t compare_keys(const double* x, int64_t n, double t, uint64_t* greater, uint64_t* equal, int64_t* count) {
  return kernels().compare_f64(x, n, t, greater, equal, count);
}

template <typename T>
struct Bracket {
  T low, high;
};

// Marks keys in memory that lie above the bracket and calls aside(i, key) for those strictly inside; how many lie
// above.
template <typename T, typename Aside>
int64_t split_block(const T* keys /* [size] */, int64_t size, Bracket<T> ends, uint64_t* above, const Aside& aside) {
  uint64_t inside[CHUNK_WORDS];
  int64_t num_inside;
  const int64_t num_above = split_keys(keys, size, ends.low, ends.high, above, inside, &num_inside);
  if (num_inside > 0) for_set_bits(inside, (size + 63) / 64, [&](int64_t i) { aside(i, keys[i]); });
  return num_above;
}

// Keys that lie in memory. A source hands out its keys in blocks of at most BLOCK, through a buffer if it computes
// them, and those of a sample in runs of RUN consecutive ones from a multiple of RUN on: what a line of the cache
// holds, or what is computed together.
template <typename T>
struct StoredKeys {
  using Key = T;
  struct Buffer {};
  static constexpr int64_t BLOCK = CHUNK, RUN = 16;
  const T* keys;  // [n]
  int64_t n;

  T at(int64_t i) const { return keys[i]; }
  void run(int64_t first, T* out /* [RUN] */) const { std::memcpy(out, keys + first, RUN * sizeof(T)); }
  const T* block(int64_t first, int64_t, Buffer&) const { return keys + first; }
  template <typename Aside>
  int64_t split(int64_t first, int64_t size, Buffer&, Bracket<T> ends, uint64_t* above, const Aside& aside) const {
    return split_block(keys + first, size, ends, above, aside);
  }
  void accept(bool) const {}
};

// Keys of 16 bits in memory, widened to float32 a block at a time: that is exact and keeps their order.
template <void (*Kernels::*WIDEN)(const uint16_t*, int64_t, float*)>
struct NarrowKeys {
  using Key = float;
  // 2,048 keys fill 8 KiB of L1.
  static constexpr int64_t BLOCK = 2048, RUN = 64;
  struct Buffer {
    float keys[BLOCK];
  };
  const uint16_t* keys;  // [n]
  int64_t n;

  float at(int64_t i) const {
    float key;
    (kernels().*WIDEN)(keys + i, 1, &key);
    return key;
  }
  void run(int64_t first, float* out /* [RUN] */) const { (kernels().*WIDEN)(keys + first, RUN, out); }
  const float* block(int64_t first, int64_t size, Buffer& buffer) const {
    (kernels().*WIDEN)(keys + first, size, buffer.keys);
    return buffer.keys;
  }
  template <typename Aside>
  int64_t split(int64_t first, int64_t size, Buffer& buffer, Bracket<float> ends, uint64_t* above,
                const Aside& aside) const {
    return split_block(block(first, size, buffer), size, ends, above, aside);
  }
  void accept(bool) const {}
};

// Calls body(keys, first, size) for the blocks of a chunk.
template <typename Source, typename Body>
void for_blocks(const Source& source, int64_t chunk, const Body& body) {
  typename Source::Buffer buffer;
  const int64_t end = chunk * CHUNK + chunk_size(source.n, chunk);
  for (int64_t first = chunk * CHUNK; first < end; first += Source::BLOCK) {
    const int64_t size = std::min(Source::BLOCK, end - first);
    body(source.block(first, size, buffer), first, size);
  }
}

// The order of keys as that of unsigned integers, for the radix search.
template <typename Key>
auto radix_code(Key key) {
  using Code = std::conditional_t<sizeof(Key) == 4, uint32_t, uint64_t>;
  constexpr Code sign = Code{1} << (8 * sizeof(Code) - 1);
  if (std::isnan(key)) return std::numeric_limits<Code>::max();
  const Code bits = std::bit_cast<Code>(key + Key{0});  // -0 becomes +0
  return bits & sign ? ~bits : bits | sign;
}
template <typename Code>
auto radix_key(Code code) {
  using Key = std::conditional_t<sizeof(Code) == 4, float, double>;
  constexpr Code sign = Code{1} << (8 * sizeof(Code) - 1);
  if (code == std::numeric_limits<Code>::max()) return std::numeric_limits<Key>::quiet_NaN();
  return std::bit_cast<Key>(code & sign ? code & ~sign : ~code);
}

}  // namespace
}  // namespace stprune
