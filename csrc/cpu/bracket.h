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

// Three deviations: one bracket in 400 misses, and is tried again with eight.
constexpr double SIGMAS = 3.0, MORE_SIGMAS = 8.0;

// Keys of the sample: an order of n^(2/3) balances their cost against that of the keys inside the bracket.
template <typename Source>
int64_t sample_size(int64_t n) {
  const double root = std::cbrt(static_cast<double>(n));
  return std::clamp<int64_t>(static_cast<int64_t>(1.5 * root * root) / Source::RUN, 32, (1 << 18) / Source::RUN) *
         Source::RUN;
}

// Half the width of a bracket, in keys of the sample whose `middle`-th is where the rank lies.
inline double half_width(double sigmas, double middle, int64_t size) {
  return sigmas * std::sqrt(middle * std::max(0.0, 1.0 - middle / static_cast<double>(size))) + 2.0;
}

// The share of n keys that lies inside the bracket of the rank when the keys are in no order.
template <typename Source>
double inside_share(int64_t n, int64_t rank) {
  const int64_t size = sample_size<Source>(n);
  const double middle = static_cast<double>(rank) / static_cast<double>(n) * static_cast<double>(size);
  return std::min(1.0, 2.0 * half_width(SIGMAS, middle, size) / static_cast<double>(size));
}

template <typename T>
T kth_largest(const T* values, int64_t n, int64_t rank);

// How many times the variance of a sample's rank exceeds that of keys drawn one by one, where the keys of a run
// resemble each other (as those of neighbouring windows do): estimated from the spread of the runs around a key near
// the rank.
template <int64_t RUN, typename T>
double run_effect(const T* sample, int64_t size, double share) {
  std::vector<T> few(sample, sample + std::min<int64_t>(size, 256));
  const int64_t near = std::clamp<int64_t>(static_cast<int64_t>(share * static_cast<double>(few.size())), 0,
                                           static_cast<int64_t>(few.size()) - 1);
  std::nth_element(few.begin(), few.begin() + near, few.end(), std::greater<T>());
  const T pivot = few[near];
  int64_t sum = 0, squares = 0;
  for (int64_t first = 0; first < size; first += RUN) {
    int32_t count = 0;
    for (int64_t i = 0; i < RUN; ++i) count += sample[first + i] >= pivot;
    sum += count;
    squares += int64_t{count} * count;
  }
  const double runs = static_cast<double>(size / RUN), mean = static_cast<double>(sum) / runs;
  const double single = mean * (1.0 - mean / static_cast<double>(RUN));
  return single > 0.0 ? std::max(1.0, (static_cast<double>(squares) / runs - mean * mean) / single) : 1.0;
}

// Two keys that most likely have the rank-th largest of the n keys strictly between them, so many standard deviations
// of the sample's rank apart from it. No NaN: it counts as infinity.
template <typename Source>
Bracket<typename Source::Key> bracket(const Source& source, int64_t rank, double sigmas,
                                      typename Source::Key* sample /* [sample_size(n)] */) {
  using T = typename Source::Key;
  constexpr int64_t RUN = Source::RUN;
  constexpr T INFINITE = std::numeric_limits<T>::infinity();
  const int64_t size = sample_size<Source>(source.n);
  for (int64_t i = 0; i < size / RUN; ++i) {
    source.run(sample_position(static_cast<uint64_t>(i), source.n / RUN) * RUN, sample + i * RUN);
  }
  for (int64_t i = 0; i < size; ++i) sample[i] = sample[i] <= INFINITE ? sample[i] : INFINITE;
  const double share = static_cast<double>(rank) / static_cast<double>(source.n);
  const double middle = share * static_cast<double>(size);
  const double width = half_width(sigmas * std::sqrt(run_effect<RUN>(sample, size, share)), middle, size);
  const int64_t first = static_cast<int64_t>(std::floor(middle - width)) + 1;
  const int64_t last = static_cast<int64_t>(std::ceil(middle + width)) + 1;
  Bracket<T> found{-INFINITE, INFINITE};
  if (first >= 1) found.high = kth_largest(sample, size, first);
  if (last <= size) found.low = kth_largest(sample, size, last);
  return found;
}

// The keys strictly inside the bracket, and how many lie above it.
template <typename T>
int64_t narrow(const T* values, int64_t n, Bracket<T> ends, std::vector<T>& inside) {
  int64_t num_above = 0;
  uint64_t above[CHUNK_WORDS];
  for (int64_t first = 0; first < n; first += CHUNK) {
    num_above += split_block(values + first, std::min(CHUNK, n - first), ends, above,
                             [&](int64_t, T key) { inside.push_back(key); });
  }
  return num_above;
}

// The rank-th largest of values without NaN.
template <typename T>
T kth_largest(const T* values, int64_t n, int64_t rank) {
  std::vector<T> kept, inside;
  while (n > SMALL_SELECT) {
    std::vector<T> sample(sample_size<StoredKeys<T>>(n));
    const Bracket<T> ends = bracket(StoredKeys<T>{values, n}, rank, SIGMAS, sample.data());
    inside.clear();
    inside.reserve(static_cast<size_t>(1.2 * inside_share<StoredKeys<T>>(n, rank) * static_cast<double>(n)) + 64);
    const int64_t num_above = ends.low < ends.high ? narrow(values, n, ends, inside) : 0;
    const int64_t size = static_cast<int64_t>(inside.size());
    if (rank <= num_above || rank > num_above + size) {
      // Among many equal keys it most likely is an end of the bracket.
      const T end = rank <= num_above ? ends.high : ends.low;
      uint64_t greater[CHUNK_WORDS], equal[CHUNK_WORDS];
      int64_t num_greater = 0, num_equal = 0;
      for (int64_t first = 0; first < n; first += CHUNK) {
        int64_t count;
        num_greater += compare_keys(values + first, std::min(CHUNK, n - first), end, greater, equal, &count);
        num_equal += count;
      }
      if (num_greater < rank && rank <= num_greater + num_equal) return end;
      break;
    }
    if (size > n / 2) break;
    kept.swap(inside);
    values = kept.data();
    n = size;
    rank -= num_above;
  }
  if (values != kept.data()) kept.assign(values, values + n);
  std::nth_element(kept.begin(), kept.begin() + (rank - 1), kept.end(), std::greater<T>());
  return kept[rank - 1];
}

}  // namespace
}  // namespace stprune
