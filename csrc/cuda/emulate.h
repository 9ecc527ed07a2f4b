// The host's version of block.h: threads of a block are loops, one phase after the other, in an order that can be
// turned round or mixed; blocks likewise. Shared arrays check every access: see SharedArray.
#pragma once

#include <cmath>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>

#define STPRUNE_DEVICE inline
#define STPRUNE_DEVICE_CHECK(condition, rule)                               \
  do {                                                                      \
    if (!(condition)) throw std::logic_error("device check failed: " rule); \
  } while (0)

namespace stprune {

struct Emulation {
  int order = 0;                // 0 ascending, 1 descending, 2 mixed
  int64_t multiprocessors = 2;  // small, so that persistent grids take several turns
  int thread = -1;              // -1: outside of phases
  uint64_t interval = 1;        // barriers so far
  int64_t launches = 0;
  int64_t waits = 0;   // for the device, by the host
  int64_t rounds = 0;  // of kernels of rounds
  int64_t reads = 0;   // elements of an op's input that the block has read in this launch or round
  int64_t most_reads = 0;
  std::string error;

  void end_block() {
    ++interval;
    most_reads = reads > most_reads ? reads : most_reads;
    reads = 0;
  }
};
inline Emulation emulation;

namespace {

constexpr int MOST_THREADS = 1024;

STPRUNE_DEVICE int popcount(uint32_t x) { return __builtin_popcount(x); }
STPRUNE_DEVICE int leading_zeros(uint64_t x) { return x == 0 ? 64 : __builtin_clzll(x); }
STPRUNE_DEVICE int first_bit(uint32_t x) { return __builtin_ffs(static_cast<int>(x)) - 1; }
STPRUNE_DEVICE int last_bit(uint32_t x) { return x == 0 ? -1 : 31 - __builtin_clz(x); }
STPRUNE_DEVICE uint64_t high_product(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>((static_cast<unsigned __int128>(a) * b) >> 64);
}
STPRUNE_DEVICE float square_root(float x) { return std::sqrt(x); }
STPRUNE_DEVICE double square_root(double x) { return std::sqrt(x); }
template <class To, class From>
To bit_copy(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}
STPRUNE_DEVICE uint32_t bits_of(float x) { return bit_copy<uint32_t>(x); }
STPRUNE_DEVICE uint64_t bits_of(double x) { return bit_copy<uint64_t>(x); }
STPRUNE_DEVICE float float_of(uint32_t bits) { return bit_copy<float>(bits); }
STPRUNE_DEVICE double double_of(uint64_t bits) { return bit_copy<double>(bits); }

STPRUNE_DEVICE void global_add(uint64_t* to, uint64_t value) { *to += value; }
STPRUNE_DEVICE void global_min(uint64_t* to, uint64_t value) { *to = value < *to ? value : *to; }
STPRUNE_DEVICE void global_min(int32_t* to, int32_t value) { *to = value < *to ? value : *to; }

template <class T>
STPRUNE_DEVICE T input(const T* from, int64_t i) {
  ++emulation.reads;
  return from[i];
}

// A register of every thread, filled with garbage at first.
template <class T>
struct PerThread {
  T values[MOST_THREADS];
  PerThread() { std::memset(static_cast<void*>(values), 0xA5, sizeof values); }
  T& operator[](int t) { return values[t]; }
  const T& operator[](int t) const { return values[t]; }
};

// Between two barriers a cell may be read by many threads, or added to by many, or used by one: all else is a race.
// Reading what this block has not written is an error, too.
template <class T>
struct SharedCell {
  static constexpr int NOBODY = -2, MANY = -3;
  T value;
  bool known = false;
  uint64_t interval = 0;
  int reader = NOBODY, writer = NOBODY, adder = NOBODY;

  void enter() {
    if (interval == emulation.interval) return;
    interval = emulation.interval;
    reader = writer = adder = NOBODY;
  }
  static bool other(int who) { return who != NOBODY && (who != emulation.thread || emulation.thread < 0); }
  static void join(int& who) {
    who = who == NOBODY && emulation.thread >= 0 ? emulation.thread : who == emulation.thread ? who : MANY;
  }
  static void fail(const char* what) { throw std::logic_error(std::string("shared memory: ") + what); }
  T read() {
    enter();
    if (!known) fail("read before written");
    if (other(writer) || other(adder)) fail("read races with a write");
    join(reader);
    return value;
  }
  void write(T x) {
    enter();
    if (emulation.thread < 0) fail("written by all threads");
    if (other(writer) || other(adder) || other(reader)) fail("write races");
    writer = emulation.thread;
    value = x;
    known = true;
  }
  template <class F>
  void update(F f) {
    enter();
    if (!known) fail("added to before written");
    if (emulation.thread < 0) fail("added to by all threads");
    if (other(writer) || other(reader)) fail("atomic races with a plain access");
    join(adder);
    value = f(value);
  }
};

template <class T>
struct SharedReference {
  SharedCell<T>& cell;
  operator T() const { return cell.read(); }
  const SharedReference& operator=(T x) const {
    cell.write(x);
    return *this;
  }
  const SharedReference& operator=(const SharedReference& from) const {
    cell.write(from.cell.read());
    return *this;
  }
  const SharedReference& operator+=(T x) const {
    cell.write(static_cast<T>(cell.read() + x));
    return *this;
  }
};

template <class T, int N>
struct SharedArray {
  SharedCell<T> cells[N];
  SharedCell<T>& cell(int i) {
    if (i < 0 || i >= N) throw std::logic_error("shared memory: index out of range");
    return cells[i];
  }
  SharedReference<T> operator[](int i) { return {cell(i)}; }
  void add(int i, T value) {
    cell(i).update([value](T x) { return static_cast<T>(x + value); });
  }
  void merge(int i, T bits) {
    cell(i).update([bits](T x) { return static_cast<T>(x | bits); });
  }
};

inline int64_t place_in_order(int64_t i, int64_t count) {
  if (emulation.order == 1) return count - 1 - i;
  // Every other one first, then the rest backwards.
  if (emulation.order == 2) return 2 * i < count ? 2 * i : 2 * (count - 1 - i) + 1;
  return i;
}

template <int COUNT>
struct Block {
  static constexpr int THREADS = COUNT;
  int64_t number, total;

  int64_t index() const { return number; }
  int64_t count() const { return total; }
  void sync() { ++emulation.interval; }

  template <class F>
  void own(F f) {
    for (int i = 0; i < THREADS; ++i) {
      emulation.thread = static_cast<int>(place_in_order(i, THREADS));
      f(emulation.thread);
    }
    emulation.thread = -1;
  }
  template <class F>
  void phase(F f) {
    own(f);
    sync();
  }

  bool any(const PerThread<bool>& x) {
    bool found = false;
    for (int t = 0; t < THREADS; ++t) found = found || x[t];
    sync();
    return found;
  }
  PerThread<uint32_t> ballot(const PerThread<bool>& x) {
    PerThread<uint32_t> result;
    for (int t = 0; t < THREADS; ++t) {
      result[t] = 0;
      for (int lane = 0; lane < WARP; ++lane) result[t] |= static_cast<uint32_t>(x[(t & -WARP) + lane]) << lane;
    }
    return result;
  }
  PerThread<uint32_t> match_any(const PerThread<uint32_t>& x) {
    PerThread<uint32_t> result;
    for (int t = 0; t < THREADS; ++t) {
      result[t] = 0;
      for (int lane = 0; lane < WARP; ++lane) {
        result[t] |= static_cast<uint32_t>(x[(t & -WARP) + lane] == x[t]) << lane;
      }
    }
    return result;
  }
  template <class T>
  PerThread<T> shuffle_up(const PerThread<T>& x, int distance) {
    PerThread<T> result;
    for (int t = 0; t < THREADS; ++t) result[t] = x[(t & (WARP - 1)) >= distance ? t - distance : t];
    return result;
  }
  template <class T>
  PerThread<T> shuffle_xor(const PerThread<T>& x, int mask) {
    PerThread<T> result;
    for (int t = 0; t < THREADS; ++t) result[t] = x[t ^ mask];
    return result;
  }
  template <class T>
  PerThread<T> shuffle(const PerThread<T>& x, const PerThread<int>& lane) {
    PerThread<T> result;
    for (int t = 0; t < THREADS; ++t) result[t] = x[(t & -WARP) + (lane[t] & (WARP - 1))];
    return result;
  }
};

// Runs `all`; 1 when a block broke a rule (see emulation.error).
template <class F>
int unless_broken(F all) {
  try {
    ++emulation.launches;
    all();
    return 0;
  } catch (const std::logic_error& error) {
    emulation.thread = -1;
    emulation.error = error.what();
    return 1;
  }
}

// Runs body(block, shared) for blocks one after the other.
template <class Kernel, class F>
void for_blocks(int64_t blocks, F body) {
  for (int64_t i = 0; i < blocks; ++i) {
    const auto shared = std::make_unique<typename Kernel::Shared>();
    Block<Kernel::THREADS> block{place_in_order(i, blocks), blocks};
    body(block, *shared);
    emulation.end_block();
  }
}

template <class Kernel>
int launch(const Kernel& kernel, int64_t blocks, void*) {
  return unless_broken([&] { for_blocks<Kernel>(blocks, kernel); });
}

template <class Kernel>
int launch_rounds(const Kernel& kernel, int64_t blocks, void*) {
  return unless_broken([&] {
    int round = 0;
    do {
      for_blocks<Kernel>(most(1, least(blocks, emulation.multiprocessors)),
                         [&](auto& block, auto& shared) { kernel(block, shared, round); });
      for_blocks<Kernel>(1, [&](auto& block, auto& shared) { kernel.settle(block, shared, round); });
      ++round;
      ++emulation.rounds;
    } while (kernel.go_on());
  });
}

inline int multiprocessors(int64_t* count) {
  *count = emulation.multiprocessors;
  return 0;
}

inline const char* error_text(int) { return emulation.error.c_str(); }

template <class T>
int read_back(T* host, const T* device, int64_t count, void*) {
  ++emulation.waits;
  std::memcpy(host, device, static_cast<size_t>(count) * sizeof(T));
  return 0;
}

}  // namespace
}  // namespace stprune
