// The k largest keys in the key order (NaN, +inf .. -inf with -0 = +0, then the smaller index), exactly and without a
// sort.
//
// Sample-bracket selection (Floyd, Rivest 1975): a small sample brackets the k-th key; one pass marks what lies above
// the bracket and sets the few keys inside it aside; the threshold is found among those, the ones before it are marked
// too, and the marks become ascending indices. Where the bracket misses or its ends are heavily tied, one more pass
// counts, and a radix search is the last resort: time changes, the result does not.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "check.h"
#include "cpu/kernels.h"
#include "cpu/memory.h"

namespace stprune {
namespace {

constexpr int64_t CHUNK_WORDS = CHUNK / 64;
// Below this many keys std::nth_element on a copy is faster than a sample and a pass (measured on Zen 4: 4096 keys take
// 20 us either way).
constexpr int64_t SMALL_SELECT = 4096;

inline int64_t num_chunks(int64_t n) { return (n + CHUNK - 1) / CHUNK; }
inline int64_t chunk_size(int64_t n, int64_t chunk) { return std::min(CHUNK, n - chunk * CHUNK); }

// Runs body(chunk) for every chunk on torch's threads. The body must not throw.
template <typename Body>
void for_chunks(int64_t chunks, const Body& body) {
  torch::stable::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) body(chunk);
  });
}

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

inline void to_fixed(const float* p, int64_t n, int64_t* q) { kernels().fixed_point_f32(p, n, q); }
inline void to_fixed(const double* p, int64_t n, int64_t* q) { kernels().fixed_point_f64(p, n, q); }

// Keys that lie in memory. SAMPLE times n^(2/3) keys make the sample (larger where a key is cheap). A source hands out
// its keys in blocks of at most BLOCK, through a buffer if it computes them.
template <typename T>
struct StoredKeys {
  using Key = T;
  struct Buffer {};
  static constexpr int64_t BLOCK = CHUNK;
  static constexpr double SAMPLE = 0.5;
  const T* keys;  // [n]
  int64_t n;

  T at(int64_t i) const { return keys[i]; }
  const T* block(int64_t first, int64_t, Buffer&) const { return keys + first; }
};

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
  for (int64_t i = 0; i < size; ++i) {
    const T key = source.at(sample_position(i, source.n));
    sample[i] = std::isnan(key) ? std::numeric_limits<T>::infinity() : key;
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

// The order of keys as that of unsigned integers, for the radix search.
inline uint32_t radix_code(float key) {
  if (std::isnan(key)) return UINT32_MAX;
  uint32_t bits;
  const float plus_zero = key + 0.0f;
  std::memcpy(&bits, &plus_zero, sizeof bits);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
inline uint64_t radix_code(double key) {
  if (std::isnan(key)) return UINT64_MAX;
  uint64_t bits;
  const double plus_zero = key + 0.0;
  std::memcpy(&bits, &plus_zero, sizeof bits);
  return bits >> 63 ? ~bits : bits | 0x8000000000000000ull;
}
inline float radix_key(uint32_t code) {
  if (code == UINT32_MAX) return std::numeric_limits<float>::quiet_NaN();
  const uint32_t bits = code >> 31 ? code & 0x7FFFFFFFu : ~code;
  float key;
  std::memcpy(&key, &bits, sizeof key);
  return key;
}
inline double radix_key(uint64_t code) {
  if (code == UINT64_MAX) return std::numeric_limits<double>::quiet_NaN();
  const uint64_t bits = code >> 63 ? code & 0x7FFFFFFFFFFFFFFFull : ~code;
  double key;
  std::memcpy(&key, &bits, sizeof key);
  return key;
}

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

constexpr int RADIX_DIGIT = 11;
constexpr int64_t RADIX_BINS = int64_t{1} << RADIX_DIGIT;

// The rank-th key by digits of 11 bits, most significant first: always right, several passes.
template <typename Source>
typename Source::Key radix_threshold(const Source& source, int64_t rank) {
  using Code = decltype(radix_code(typename Source::Key{}));
  constexpr int WIDTH = 8 * sizeof(Code);
  Code prefix = 0, known = 0;
  for (int shift = WIDTH; shift > 0;) {
    const int digit = std::min(RADIX_DIGIT, shift);
    shift -= digit;
    const int64_t bins = int64_t{1} << digit;
    std::unique_ptr<std::atomic<int64_t>[]> histogram(new std::atomic<int64_t>[bins]());
    for_chunks(num_chunks(source.n), [&](int64_t chunk) {
      int32_t local[RADIX_BINS] = {};
      for_blocks(source, chunk, [&](const typename Source::Key* keys, int64_t, int64_t size) {
        for (int64_t i = 0; i < size; ++i) {
          const Code code = radix_code(keys[i]);
          if ((code & known) == prefix) ++local[(code >> shift) & (bins - 1)];
        }
      });
      for (int64_t bin = 0; bin < bins; ++bin) {
        if (local[bin] != 0) histogram[bin].fetch_add(local[bin], std::memory_order_relaxed);
      }
    });
    int64_t bin = bins - 1;
    while (bin > 0 && histogram[bin] < rank) rank -= histogram[bin--];
    prefix |= static_cast<Code>(bin) << shift;
    known |= static_cast<Code>(bins - 1) << shift;
  }
  return radix_key(prefix);
}

// How many keys of every chunk come before a threshold, and how many equal it.
struct Counts {
  std::vector<int64_t> greater, equal;
  int64_t total_greater = 0, total_equal = 0;

  explicit Counts(int64_t chunks) : greater(chunks), equal(chunks) {}
  bool holds(int64_t rank) const { return total_greater < rank && rank <= total_greater + total_equal; }
  void sum() {
    total_greater = total_equal = 0;
    for (size_t chunk = 0; chunk < greater.size(); ++chunk) {
      total_greater += greater[chunk];
      total_equal += equal[chunk];
    }
  }
};

template <typename Source>
Counts count_around(const Source& source, typename Source::Key threshold) {
  Counts counts(num_chunks(source.n));
  for_chunks(num_chunks(source.n), [&](int64_t chunk) {
    uint64_t greater[CHUNK_WORDS], equal[CHUNK_WORDS];
    for_blocks(source, chunk, [&](const typename Source::Key* keys, int64_t, int64_t size) {
      int64_t num_equal;
      counts.greater[chunk] += compare_keys(keys, size, threshold, greater, equal, &num_equal);
      counts.equal[chunk] += num_equal;
    });
  });
  counts.sum();
  return counts;
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

// For every chunk, how many of its ties are taken (`quota`) and where its indices start in the output (`offset`).
struct Places {
  std::vector<int64_t> quota, offset;

  Places(const Counts& counts, int64_t take) : quota(counts.greater.size()), offset(counts.greater.size()) {
    int64_t rest = take - counts.total_greater, place = 0;
    for (size_t chunk = 0; chunk < quota.size(); ++chunk) {
      quota[chunk] = std::min(counts.equal[chunk], rest);
      rest -= quota[chunk];
      offset[chunk] = place;
      place += counts.greater[chunk] + quota[chunk];
    }
  }
};

// Indices of the keys before the threshold and of the first that equal it: `take` in all, ascending.
template <typename Source>
void emit_around(const Source& source, typename Source::Key threshold, const Counts& counts, int64_t take,
                 int64_t* out /* [take] */) {
  const Places places(counts, take);
  for_chunks(num_chunks(source.n), [&](int64_t chunk) {
    const int64_t total = counts.greater[chunk] + places.quota[chunk];
    if (total == 0) return;
    uint64_t greater[CHUNK_WORDS], equal[CHUNK_WORDS];
    for_blocks(source, chunk, [&](const typename Source::Key* keys, int64_t first, int64_t size) {
      int64_t num_equal;
      const int64_t word = (first - chunk * CHUNK) / 64;
      compare_keys(keys, size, threshold, greater + word, equal + word, &num_equal);
    });
    const int64_t num_words = (chunk_size(source.n, chunk) + 63) / 64;
    keep_first(equal, num_words, places.quota[chunk]);
    for (int64_t word = 0; word < num_words; ++word) greater[word] |= equal[word];
    kernels().emit(greater, num_words, chunk * CHUNK, out + places.offset[chunk], total);
  });
}

// Keys strictly inside the bracket, of one chunk, by position.
template <typename T>
struct Candidates {
  T* values = nullptr;
  uint16_t* positions = nullptr;
  int64_t count = 0;
};

template <typename T>
struct CandidateLists {
  std::vector<Candidates<T>> chunks;

  explicit CandidateLists(int64_t count) : chunks(count) {}
  CandidateLists(const CandidateLists&) = delete;
  CandidateLists& operator=(const CandidateLists&) = delete;
  ~CandidateLists() {
    for (Candidates<T>& chunk : chunks) std::free(chunk.values);
  }
};

// Marks what is above the bracket in `marks` [ceil(n / 64)] and sets aside what is inside; false when memory ran out.
template <typename Source>
bool split_all(const Source& source, Bracket<typename Source::Key> ends, uint64_t* marks,
               CandidateLists<typename Source::Key>& lists, Counts& counts) {
  using T = typename Source::Key;
  std::atomic<bool> enough{true};
  for_chunks(num_chunks(source.n), [&](int64_t chunk) {
    uint64_t inside[CHUNK_WORDS];
    T values[CHUNK];
    uint16_t positions[CHUNK];
    int64_t found = 0;
    for_blocks(source, chunk, [&](const T* keys, int64_t first, int64_t size) {
      int64_t num_inside;
      counts.greater[chunk] += split_keys(keys, size, ends.low, ends.high, marks + first / 64, inside, &num_inside);
      const int64_t offset = first - chunk * CHUNK;
      for (int64_t word = 0; num_inside > 0 && 64 * word < size; ++word) {
        for (uint64_t bits = inside[word]; bits != 0; bits &= bits - 1) {
          const int64_t i = 64 * word + __builtin_ctzll(bits);
          values[found] = keys[i];
          positions[found++] = static_cast<uint16_t>(offset + i);
        }
      }
    });
    counts.equal[chunk] = found;
    if (found == 0) return;
    void* memory = std::malloc(static_cast<size_t>(found) * (sizeof(T) + sizeof(uint16_t)));
    if (memory == nullptr) {
      enough.store(false, std::memory_order_relaxed);
      return;
    }
    Candidates<T>& list = lists.chunks[chunk];
    list.values = static_cast<T*>(memory);
    list.positions = reinterpret_cast<uint16_t*>(list.values + found);
    list.count = found;
    std::memcpy(list.values, values, static_cast<size_t>(found) * sizeof(T));
    std::memcpy(list.positions, positions, static_cast<size_t>(found) * sizeof(uint16_t));
  });
  counts.sum();
  return enough.load();
}

// The threshold among the candidates is known: mark those before it, then the first that equal it, and write indices.
template <typename T>
void emit_marked(const CandidateLists<T>& lists, T threshold, const Counts& above, int64_t n, int64_t take,
                 uint64_t* marks, int64_t* out /* [take] */) {
  Counts counts(num_chunks(n));
  for_chunks(num_chunks(n), [&](int64_t chunk) {
    const Candidates<T>& list = lists.chunks[chunk];
    int64_t greater = 0, equal = 0;
    for (int64_t i = 0; i < list.count; ++i) {
      greater += list.values[i] > threshold;
      equal += list.values[i] == threshold;
    }
    counts.greater[chunk] = above.greater[chunk] + greater;
    counts.equal[chunk] = equal;
  });
  counts.sum();
  const Places places(counts, take);
  for_chunks(num_chunks(n), [&](int64_t chunk) {
    const Candidates<T>& list = lists.chunks[chunk];
    uint64_t* bits = marks + chunk * CHUNK_WORDS;
    int64_t ties = places.quota[chunk];
    for (int64_t i = 0; i < list.count; ++i) {
      const bool tie = list.values[i] == threshold && ties > 0;
      ties -= tie;
      const uint64_t mark = list.values[i] > threshold || tie;
      bits[list.positions[i] >> 6] |= mark << (list.positions[i] & 63);
    }
    kernels().emit(bits, (chunk_size(n, chunk) + 63) / 64, chunk * CHUNK, out + places.offset[chunk],
                   counts.greater[chunk] + places.quota[chunk]);
  });
}

// The rank-th largest key, 1 <= rank <= n, and the indices of the `take` largest, ascending; take is rank or rank - 1.
// `like` is any CPU tensor: scratch comes from its allocator.
template <typename Source>
typename Source::Key select_largest(const Source& source, int64_t rank, int64_t take, const Tensor& like,
                                    int64_t* out /* [take] */) {
  using T = typename Source::Key;
  T threshold;
  if (source.n <= SMALL_SELECT) {
    std::vector<T> values(source.n);
    for_blocks(source, 0, [&](const T* keys, int64_t first, int64_t size) {
      std::copy(keys, keys + size, values.begin() + first);
    });
    std::nth_element(values.begin(), values.begin() + (rank - 1), values.end(), before<T>);
    threshold = values[rank - 1];
  } else {
    for (const double sigmas : {SIGMAS, MORE_SIGMAS}) {
      const Bracket<T> ends = bracket(source, rank, sigmas);
      bool below_high = false;
      // Where even the sample is tied around the rank, the threshold most likely is that key.
      if (ends.low < ends.high) {
        Tensor scratch = new_output(like, (source.n + 63) / 64, ScalarType::Long);
        uint64_t* marks = reinterpret_cast<uint64_t*>(scratch.mutable_data_ptr<int64_t>());
        CandidateLists<T> lists(num_chunks(source.n));
        Counts counts(num_chunks(source.n));
        const bool enough = split_all(source, ends, marks, lists, counts);
        STD_TORCH_CHECK(enough, "select: out of memory");
        if (counts.holds(rank)) {
          std::vector<T> values;
          values.reserve(counts.total_equal);
          for (const Candidates<T>& list : lists.chunks) {
            values.insert(values.end(), list.values, list.values + list.count);
          }
          threshold = kth_largest(values, rank - counts.total_greater);
          emit_marked(lists, threshold, counts, source.n, take, marks, out);
          return threshold;
        }
        below_high = counts.total_greater < rank;
      }
      // It may equal the end of the bracket that it lies at.
      threshold = below_high ? ends.low : ends.high;
      const Counts counts = count_around(source, threshold);
      if (counts.holds(rank)) {
        emit_around(source, threshold, counts, take, out);
        return threshold;
      }
    }
    threshold = radix_threshold(source, rank);
  }
  emit_around(source, threshold, count_around(source, threshold), take, out);
  return threshold;
}

}  // namespace
}  // namespace stprune
