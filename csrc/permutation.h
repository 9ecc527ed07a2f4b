// The counter-based permutation: perm(position) of [0, n) from (seed, epoch, stream, block), nothing stored.
// Generalized Feistel network on Z_a x Z_b with cycle walking (Black, Rogaway, CT-RSA 2002). Mirrors
// stprune/reference/shuffle.py.
#pragma once

#include "philox.h"

namespace stprune {

constexpr int PERMUTATION_ROUNDS = 6;

struct Permutation {
  int64_t n;
  uint32_t a, b;  // n <= a * b, both at most 2^20 for n <= 2^40
  uint32_t keys[2 * PERMUTATION_ROUNDS];
};

namespace {

// Shorter permutations are made by sorting random keys: see stprune/reference/shuffle.py.
constexpr int64_t PERMUTATION_SMALL = 1024;

// The least a with a * a >= n, by bisection: exact, and the same in every language.
STPRUNE_HOST_DEVICE uint32_t ceil_sqrt(int64_t n) {
  int64_t low = 0, high = int64_t{1} << 31;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (middle * middle >= n) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return static_cast<uint32_t>(low);
}

STPRUNE_HOST_DEVICE void permutation_keys(Permutation& p, PhiloxKey key, uint32_t epoch, uint32_t stream,
                                          uint32_t block) {
  for (uint32_t c = 0; c < PERMUTATION_ROUNDS / 2; ++c) {
    const PhiloxWords words = philox(key, c, block, epoch, stream | PURPOSE_ROUND_KEYS);
    for (uint32_t w = 0; w < 4; ++w) p.keys[4 * c + w] = words.word[w];
  }
}

STPRUNE_HOST_DEVICE Permutation make_permutation(int64_t n, PhiloxKey key, uint32_t epoch, uint32_t stream,
                                                 uint32_t block) {
  Permutation p;
  p.n = n;
  p.a = ceil_sqrt(n);
  p.b = static_cast<uint32_t>((n + p.a - 1) / p.a);
  permutation_keys(p, key, epoch, stream, block);
  return p;
}

constexpr uint32_t MIX_M0 = 0x7FEB352Du;
constexpr uint32_t MIX_M1 = 0x846CA68Bu;

STPRUNE_HOST_DEVICE uint32_t feistel_step(uint32_t from, uint32_t to, uint32_t size, uint32_t key_a, uint32_t key_b) {
  uint32_t x = from ^ key_a;
  x ^= x >> 16;
  x *= MIX_M0;
  x ^= x >> 15;
  x += key_b;
  x *= MIX_M1;
  to += static_cast<uint32_t>((static_cast<uint64_t>(x) * size) >> 32);
  return to >= size ? to - size : to;
}

// One application of the network to the place with these halves: left in [0, a), right in [0, b).
STPRUNE_HOST_DEVICE int64_t feistel_of_halves(const Permutation& p, uint32_t left, uint32_t right) {
  for (int r = 0; r < PERMUTATION_ROUNDS; r += 2) {
    left = feistel_step(right, left, p.a, p.keys[2 * r], p.keys[2 * r + 1]);
    right = feistel_step(left, right, p.b, p.keys[2 * r + 2], p.keys[2 * r + 3]);
  }
  return static_cast<int64_t>(left) * p.b + right;
}

// One application of the network to x in [0, a * b).
STPRUNE_HOST_DEVICE int64_t feistel(const Permutation& p, int64_t x) {
  // A 64-bit division costs a GPU several times one of 32 bits.
  if (x >> 32 == 0) {
    const uint32_t low = static_cast<uint32_t>(x), left = low / p.b;
    return feistel_of_halves(p, left, low - left * p.b);
  }
  return feistel_of_halves(p, static_cast<uint32_t>(x / p.b), static_cast<uint32_t>(x % p.b));
}

// What feistel_step added to `to` is taken away again.
STPRUNE_HOST_DEVICE uint32_t feistel_step_back(uint32_t from, uint32_t to, uint32_t size, uint32_t key_a,
                                               uint32_t key_b) {
  const uint32_t zero = feistel_step(from, 0, size, key_a, key_b);
  return to >= zero ? to - zero : to + size - zero;
}

// The x in [0, a * b) that feistel takes to `image`.
STPRUNE_HOST_DEVICE int64_t feistel_back(const Permutation& p, int64_t image) {
  uint32_t left = static_cast<uint32_t>(image / p.b), right = static_cast<uint32_t>(image % p.b);
  for (int r = PERMUTATION_ROUNDS - 2; r >= 0; r -= 2) {
    right = feistel_step_back(left, right, p.b, p.keys[2 * r + 2], p.keys[2 * r + 3]);
    left = feistel_step_back(right, left, p.a, p.keys[2 * r], p.keys[2 * r + 1]);
  }
  return static_cast<int64_t>(left) * p.b + right;
}

STPRUNE_HOST_DEVICE int64_t permutation_at(const Permutation& p, int64_t position) {
  int64_t image = feistel(p, position);
  while (image >= p.n) image = feistel(p, image);
  return image;
}

// The position that holds `image`, the inverse of permutation_at.
STPRUNE_HOST_DEVICE int64_t position_of(const Permutation& p, int64_t image) {
  int64_t position = feistel_back(p, image);
  while (position >= p.n) position = feistel_back(p, position);
  return position;
}

}  // namespace
}  // namespace stprune
