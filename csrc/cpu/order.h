// The k largest keys in the key order (NaN, +inf .. -inf with -0 = +0, then the smaller index), exactly and without a
// sort.
//
// Sample-bracket selection (Floyd, Rivest 1975): a small sample brackets the k-th key; one pass marks what lies above
// the bracket and sets the few keys inside it aside; the threshold is found among those, the ones before it are marked
// too, and the marks become ascending indices. Where the bracket misses or its ends are heavily tied, one more pass
// counts, and a radix search is the last resort: time changes, the result does not.
#pragma once

#include <atomic>
#include <cstdlib>
#include <vector>

#include "cpu/bracket.h"
#include "cpu/threshold.h"

namespace stprune {
namespace {

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
template <typename T, typename Visit>
void emit_marked(const CandidateLists<T>& lists, T threshold, const Counts& above, int64_t n, int64_t take,
                 uint64_t* marks, int64_t* out /* [take] */, const Visit& visit) {
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
    const int64_t total = counts.greater[chunk] + places.quota[chunk];
    kernels().emit(bits, (chunk_size(n, chunk) + 63) / 64, chunk * CHUNK, out + places.offset[chunk], total);
    visit(threshold, places.offset[chunk], total);
  });
}

// The rank-th largest key, 1 <= rank <= n, and the indices of the `take` largest, ascending; take is rank or rank - 1.
// visit(threshold, first, count) is called, on any thread, for the stretches of `out` when they have been written.
template <typename Source, typename Visit>
typename Source::Key select_largest(const Source& source, int64_t rank, int64_t take, int64_t* out /* [take] */,
                                    const Visit& visit) {
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
        const Workspace<uint64_t> marks((source.n + 63) / 64, "select");
        CandidateLists<T> lists(num_chunks(source.n));
        Counts counts(num_chunks(source.n));
        const bool enough = split_all(source, ends, marks.data(), lists, counts);
        STD_TORCH_CHECK(enough, "select: out of memory");
        if (counts.holds(rank)) {
          std::vector<T> values;
          values.reserve(counts.total_equal);
          for (const Candidates<T>& list : lists.chunks) {
            values.insert(values.end(), list.values, list.values + list.count);
          }
          threshold = kth_largest(values, rank - counts.total_greater);
          emit_marked(lists, threshold, counts, source.n, take, marks.data(), out, visit);
          return threshold;
        }
        below_high = counts.total_greater < rank;
      }
      // It may equal the end of the bracket that it lies at.
      threshold = below_high ? ends.low : ends.high;
      const Counts counts = count_around(source, threshold);
      if (counts.holds(rank)) {
        emit_around(source, threshold, counts, take, out, visit);
        return threshold;
      }
    }
    threshold = radix_threshold(source, rank);
  }
  emit_around(source, threshold, count_around(source, threshold), take, out, visit);
  return threshold;
}

template <typename Source>
typename Source::Key select_largest(const Source& source, int64_t rank, int64_t take, int64_t* out /* [take] */) {
  return select_largest(source, rank, take, out, [](typename Source::Key, int64_t, int64_t) {});
}

}  // namespace
}  // namespace stprune
