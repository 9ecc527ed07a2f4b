// A sample of keys brackets the one of a given rank; the rank-th largest of values in memory.
#pragma once

#include <functional>
#include <vector>

#include "cpu/keys.h"

namespace stprune {
namespace {

// So few keys are copied and searched by std::nth_element: a sample would be a good part of them.
constexpr int64_t SMALL_SELECT = 4096;

// Positions of a pseudo-random sample; a stride would resonate with daily and weekly periods.
inline int64_t sample_position(uint64_t i, int64_t n) {
  uint64_t x = (i + 1) * 0x9E3779B97F4A7C15ull;  // splitmix64
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  x ^= x >> 31;
  return static_cast<int64_t>((static_cast<unsigned __int128>(x) * static_cast<uint64_t>(n)) >> 64);
}

template <typename T>
struct Bracket {
  T low, high;
};

template <typename T>
T kth_largest(std::vector<T>& values, int64_t rank);

// Two keys that most likely have the rank-th largest of the n keys strictly between them, so many standard deviations
// of the sample's rank apart from it. No NaN: it counts as infinity.
template <typename Source>
Bracket<typename Source::Key> bracket(const Source& source, int64_t rank, double sigmas) {
  using T = typename Source::Key;
  // A sample of the order of n^(2/3) balances its own cost against that of the keys inside the bracket.
  const double root = std::cbrt(static_cast<double>(source.n));
  const int64_t size = std::clamp<int64_t>(static_cast<int64_t>(Source::SAMPLE * root * root), 256, int64_t{1} << 18);
  std::vector<T> sample(size);
  for (int64_t first = 0; first < size; first += SAMPLE_BATCH) {
    int64_t places[SAMPLE_BATCH];
    const int64_t count = std::min(SAMPLE_BATCH, size - first);
    for (int64_t i = 0; i < count; ++i) places[i] = sample_position(first + i, source.n);
    source.gather(places, count, sample.data() + first);
  }
  for (T& key : sample) {
    if (std::isnan(key)) key = std::numeric_limits<T>::infinity();
  }
  const double share = static_cast<double>(rank) / static_cast<double>(source.n);
  const double middle = share * static_cast<double>(size);
  const double width = sigmas * std::sqrt(middle * std::max(0.0, 1.0 - share)) + 2.0;
  const int64_t first = static_cast<int64_t>(std::floor(middle - width)) + 1;
  const int64_t last = static_cast<int64_t>(std::ceil(middle + width)) + 1;
  Bracket<T> found{-std::numeric_limits<T>::infinity(), std::numeric_limits<T>::infinity()};
  if (first >= 1) {
    std::vector<T> copy(sample);
    found.high = kth_largest(copy, first);
  }
  if (last <= size) found.low = kth_largest(sample, last);
  return found;
}

// Three deviations: one bracket in 400 misses, and is tried again with eight.
constexpr double SIGMAS = 3.0, MORE_SIGMAS = 8.0;

// The rank-th largest of values without NaN; leaves them in any order.
template <typename T>
T kth_largest(std::vector<T>& values, int64_t rank) {
  while (static_cast<int64_t>(values.size()) > SMALL_SELECT) {
    const int64_t n = static_cast<int64_t>(values.size());
    const Bracket<T> ends = bracket(StoredKeys<T>{values.data(), n}, rank, SIGMAS);
    std::vector<T> inside;
    inside.reserve(static_cast<size_t>(n / 4));
    int64_t num_above = 0;
    uint64_t above[CHUNK_WORDS], middle[CHUNK_WORDS];
    for (int64_t first = 0; first < n; first += CHUNK) {
      const int64_t size = std::min(CHUNK, n - first);
      int64_t count;
      num_above += split_keys(values.data() + first, size, ends.low, ends.high, above, middle, &count);
      for (int64_t word = 0; count > 0 && 64 * word < size; ++word) {
        for (uint64_t bits = middle[word]; bits != 0; bits &= bits - 1) {
          inside.push_back(values[first + 64 * word + __builtin_ctzll(bits)]);
        }
      }
    }
    const int64_t size = static_cast<int64_t>(inside.size());
    if (rank <= num_above || rank > num_above + size || size > n / 2) break;
    values.swap(inside);
    rank -= num_above;
  }
  std::nth_element(values.begin(), values.begin() + (rank - 1), values.end(), std::greater<T>());
  return values[rank - 1];
}

}  // namespace
}  // namespace stprune
