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

// What a selection needs beside its input and its output: marks of all keys, and candidates. Every chunk has room for
// somewhat more of these than its share; more of them get memory of their own. The sample lies where the marks come to
// lie.
template <typename T>
class Scratch {
 public:
  std::vector<Candidates<T>> candidates;

  template <typename Source>
  Scratch(const Source& source, int64_t rank)
      : candidates(num_chunks(source.n)),
        words_(std::max((source.n + 63) / 64, sample_size<Source>(source.n) * int64_t{sizeof(T)} / 8)),
        room_(std::min(CHUNK, static_cast<int64_t>(1.3 * CHUNK * inside_share<Source>(source.n, rank)) / 32 * 32 + 64)),
        memory_(words_ * 8 + num_chunks(source.n) * room_ * SIZE, "select") {}
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { clear(); }

  uint64_t* marks() const { return reinterpret_cast<uint64_t*>(memory_.data()); }
  T* sample() const { return reinterpret_cast<T*>(memory_.data()); }

  // Sets the candidates of a chunk aside; false when memory ran out.
  bool keep(int64_t chunk, const T* values, const uint16_t* positions, int64_t count) {
    const bool fits = count <= room_;
    void* memory =
        fits ? memory_.data() + words_ * 8 + chunk * room_ * SIZE : std::malloc(static_cast<size_t>(count * SIZE));
    if (memory == nullptr) return false;
    Candidates<T>& list = candidates[chunk];
    list.values = static_cast<T*>(memory);
    list.positions = reinterpret_cast<uint16_t*>(list.values + count);
    list.count = count;
    std::memcpy(list.values, values, static_cast<size_t>(count) * sizeof(T));
    std::memcpy(list.positions, positions, static_cast<size_t>(count) * sizeof(uint16_t));
    return true;
  }

  void clear() {
    for (Candidates<T>& list : candidates) {
      if (list.count > room_) std::free(list.values);
      list = {};
    }
  }

 private:
  static constexpr int64_t SIZE = sizeof(T) + sizeof(uint16_t);
  int64_t words_, room_;
  Workspace<char> memory_;
};

// Marks what is above the bracket and sets aside what is inside; false when memory ran out.
template <typename Source>
bool split_all(const Source& source, Bracket<typename Source::Key> ends, Scratch<typename Source::Key>& scratch,
               Counts& counts) {
  using T = typename Source::Key;
  std::atomic<bool> enough{true};
  for_chunks(num_chunks(source.n), [&](int64_t chunk) {
    typename Source::Buffer buffer;
    T values[CHUNK];
    uint16_t positions[CHUNK];
    int64_t found = 0;
    const int64_t begin = chunk * CHUNK, end = begin + chunk_size(source.n, chunk);
    for (int64_t first = begin; first < end; first += Source::BLOCK) {
      const int64_t size = std::min(Source::BLOCK, end - first);
      counts.greater[chunk] +=
          source.split(first, size, buffer, ends, scratch.marks() + first / 64, [&](int64_t i, T key) {
            values[found] = key;
            positions[found++] = static_cast<uint16_t>(first - begin + i);
          });
    }
    counts.equal[chunk] = found;
    if (!scratch.keep(chunk, values, positions, found)) enough.store(false, std::memory_order_relaxed);
  });
  counts.sum();
  return enough.load();
}

// The threshold among the candidates is known: mark those before it, then the first that equal it, and write indices.
template <typename T, typename Visit>
void emit_marked(const Scratch<T>& scratch, T threshold, const Counts& above, int64_t n, int64_t take,
                 int64_t* out /* [take] */, const Visit& visit) {
  Counts counts(num_chunks(n));
  for_chunks(num_chunks(n), [&](int64_t chunk) {
    const Candidates<T>& list = scratch.candidates[chunk];
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
    const Candidates<T>& list = scratch.candidates[chunk];
    uint64_t* bits = scratch.marks() + chunk * CHUNK_WORDS;
    int64_t ties = places.quota[chunk];
    for (int64_t i = 0; i < list.count; ++i) {
      const bool tie = list.values[i] == threshold && ties > 0;
      ties -= tie;
      const uint64_t mark = list.values[i] > threshold || tie;
      bits[list.positions[i] >> 6] |= mark << (list.positions[i] & 63);
    }
    const int64_t total = counts.greater[chunk] + places.quota[chunk];
    kernels().emit(bits, (chunk_size(n, chunk) + 63) / 64, chunk * CHUNK, out + places.offset[chunk], total);
    visit(threshold, chunk, bits, places.offset[chunk]);
  });
}

// The rank-th largest key, 1 <= rank <= n, and the indices of the `take` largest, ascending; take is rank or rank - 1.
// visit(threshold, chunk, bits, first) is called, on any thread, when the indices of the marked of a chunk have been
// written from `first` on.
template <typename Source, typename Visit>
typename Source::Key select_largest(const Source& source, int64_t rank, int64_t take, int64_t* out /* [take] */,
                                    const Visit& visit) {
  using T = typename Source::Key;
  T threshold;
  if (source.n <= SMALL_SELECT) {
    source.accept(false);
    std::vector<T> values(source.n);
    for_blocks(source, 0, [&](const T* keys, int64_t first, int64_t size) {
      std::copy(keys, keys + size, values.begin() + first);
    });
    std::nth_element(values.begin(), values.begin() + (rank - 1), values.end(), before<T>);
    threshold = values[rank - 1];
  } else {
    Scratch<T> scratch(source, rank);
    for (const double sigmas : {SIGMAS, MORE_SIGMAS}) {
      scratch.clear();
      const Bracket<T> ends = bracket(source, rank, sigmas, scratch.sample());
      bool below_high = false;
      // Where even the sample is tied around the rank, the threshold most likely is that key.
      if (ends.low < ends.high) {
        Counts counts(num_chunks(source.n));
        const bool enough = split_all(source, ends, scratch, counts);
        STD_TORCH_CHECK(enough, "select: out of memory");
        source.accept(true);
        if (counts.holds(rank)) {
          std::vector<T> values;
          values.reserve(counts.total_equal);
          for (const Candidates<T>& list : scratch.candidates) {
            values.insert(values.end(), list.values, list.values + list.count);
          }
          threshold = kth_largest(values.data(), counts.total_equal, rank - counts.total_greater);
          emit_marked(scratch, threshold, counts, source.n, take, out, visit);
          return threshold;
        }
        below_high = counts.total_greater < rank;
      }
      source.accept(false);
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
  return select_largest(source, rank, take, out, [](typename Source::Key, int64_t, const uint64_t*, int64_t) {});
}

}  // namespace
}  // namespace stprune
