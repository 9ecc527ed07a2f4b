// check_range: the first value outside [0, high], how many are positive, and the sum of the values in units of 2^-32.
#include "cuda/collective.h"
#include "cuda/fixed_point.h"
#include "cuda/launchers.h"

namespace stprune {
namespace {

struct RangeStart {
  static constexpr int THREADS = 32;
  struct Shared {};
  int64_t* out;

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared&) const {
    block.own([&](int t) {
      // As unsigned numbers, which they are while threads compete for the least, -1 is the largest.
      if (t < 3) out[t] = t == 0 ? -1 : 0;
    });
  }
};

template <class T>
struct RangeOf {
  static constexpr int THREADS = 256;
  static constexpr int EACH = 8;
  struct Shared {
    SharedArray<uint64_t, WARP> warps;
  };
  const T* values;
  int64_t n;
  T high;
  int total;
  int64_t* out;  // [3]

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared& shared) const {
    PerThread<uint64_t> first, positive, units;
    block.own([&](int t) {
      first[t] = ~uint64_t{0};
      positive[t] = units[t] = 0;
      for (int64_t base = block.index() * THREADS * EACH; base < n; base += block.count() * THREADS * EACH) {
        T loaded[EACH];
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
          const int64_t index = base + i * THREADS + t;
          loaded[i] = T(0);  // in the range, and not positive
          if (index < n) loaded[i] = input(values, index);
        }
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
          const int64_t index = base + i * THREADS + t;
          const T value = loaded[i];
          const bool good = value >= T(0) && value <= high;
          if (!good && static_cast<uint64_t>(index) < first[t]) first[t] = static_cast<uint64_t>(index);
          positive[t] += value > T(0);
          if (total != 0 && good) units[t] += static_cast<uint64_t>(to_fixed(value));
        }
      }
    });
    const uint64_t all_first = reduce(block, shared.warps, first, Least{});
    const uint64_t all_positive = reduce(block, shared.warps, positive, Sum{});
    const uint64_t all_units = reduce(block, shared.warps, units, Sum{});
    block.own([&](int t) {
      if (t != 0) return;
      if (all_first != ~uint64_t{0}) global_min(reinterpret_cast<uint64_t*>(out), all_first);
      if (all_positive != 0) global_add(reinterpret_cast<uint64_t*>(out) + 1, all_positive);
      if (all_units != 0) global_add(reinterpret_cast<uint64_t*>(out) + 2, all_units);
    });
  }
};

template <class T>
int range_of(const T* values, int64_t n, double high, int total, int64_t* out, void* stream) {
  using Kernel = RangeOf<T>;
  int64_t processors = 0;
  STPRUNE_TRY(multiprocessors(&processors));
  STPRUNE_TRY(launch(RangeStart{out}, 1, stream));
  const int64_t blocks = least(blocks_of(n, Kernel::THREADS * Kernel::EACH), 8 * processors);
  return launch(Kernel{values, n, static_cast<T>(high), total, out}, blocks, stream);
}

}  // namespace
}  // namespace stprune

using namespace stprune;

extern "C" int stprune_cuda_check_range(int wide, const void* values, int64_t n, double high, int total, int64_t* out,
                                        void* stream) {
  return wide ? range_of(static_cast<const double*>(values), n, high, total, out, stream)
              : range_of(static_cast<const float*>(values), n, high, total, out, stream);
}
