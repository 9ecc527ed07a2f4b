// A known threshold: how many keys lie around it, and the indices of those before it. And the slow, certain way to it.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "cpu/keys.h"

namespace stprune {
namespace {

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

// Indices of the keys before the threshold and of the first that equal it: `take` in all, ascending. Calls
// visit(threshold, chunk, bits, first) for the marked of every chunk, whose indices have been written from `first` on.
template <typename Source, typename Visit>
void emit_around(const Source& source, typename Source::Key threshold, const Counts& counts, int64_t take,
                 int64_t* out /* [take] */, const Visit& visit) {
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
    visit(threshold, chunk, greater, places.offset[chunk]);
  });
}

}  // namespace
}  // namespace stprune
