// table_age and count_nonfinite: the table's pass at the end of an epoch, and the count of scores without a number.
#include "cuda/collective.h"
#include "cuda/launchers.h"
#include "marks.h"

namespace stprune {
namespace {

STPRUNE_DEVICE bool is_finite(float x) { return x - x == 0.0f; }

struct Age {
  static constexpr int THREADS = 256;
  static constexpr int EACH = 8;
  struct Shared {};
  float* scores;   // [n]
  uint8_t* marks;  // [n]
  int64_t n;
  bool moves;  // else marks alone are cleared
  float mean, keep;

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared&) const {
    block.own([&](int t) {
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        const int64_t index = (block.index() * EACH + i) * THREADS + t;
        if (index >= n) continue;
        const uint8_t mark = marks[index];
        marks[index] = mark & (FRESH | KNOWN);
        if (!moves || (mark & SCORED) != 0) continue;
        const float score = scores[index];
        if (is_finite(score)) scores[index] = mean + keep * (score - mean);
      }
    });
  }
};

struct CountNonfinite {
  static constexpr int THREADS = 1024;
  static constexpr int EACH = 16;
  static constexpr int64_t GROUP = THREADS * EACH;
  struct Shared {
    SharedArray<int64_t, WARP> warps;
  };
  const float* scores;   // [n]
  const uint8_t* marks;  // [n]
  int64_t n;
  int64_t* counts;  // [groups]
  int64_t* out;     // [1]

  STPRUNE_DEVICE bool go_on() const { return false; }

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared& shared, int) const {
    for (int64_t group = block.index(); group * GROUP < n; group += block.count()) {
      PerThread<int64_t> found;
      block.own([&](int t) {
        found[t] = 0;
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
          const int64_t index = group * GROUP + i * THREADS + t;
          if (index < n) found[t] += (marks[index] & KNOWN) != 0 && !is_finite(input(scores, index));
        }
      });
      const int64_t all = reduce(block, shared.warps, found, Sum{});
      block.own([&](int t) {
        if (t == 0) counts[group] = all;
      });
    }
  }

  STPRUNE_DEVICE void settle(Block<THREADS>& block, Shared& shared, int) const {
    PerThread<int64_t> found;
    block.own([&](int t) {
      found[t] = 0;
      for (int64_t group = t; group * GROUP < n; group += THREADS) found[t] += counts[group];
    });
    const int64_t all = reduce(block, shared.warps, found, Sum{});
    block.own([&](int t) {
      if (t == 0) out[0] = all;
    });
  }
};

}  // namespace
}  // namespace stprune

using namespace stprune;

extern "C" {

int stprune_cuda_table_age(float* scores, uint8_t* marks, int64_t n, int moves, double mean, double keep,
                           void* stream) {
  const Age kernel{scores, marks, n, moves != 0, static_cast<float>(mean), static_cast<float>(keep)};
  return launch(kernel, blocks_of(n, Age::THREADS * Age::EACH), stream);
}

int64_t stprune_cuda_count_nonfinite_scratch(int64_t n) { return 8 * blocks_of(n, CountNonfinite::GROUP); }

int stprune_cuda_count_nonfinite(const float* scores, const uint8_t* marks, int64_t n, void* scratch, int64_t* out,
                                 void* stream) {
  const CountNonfinite kernel{scores, marks, n, static_cast<int64_t*>(scratch), out};
  return launch_rounds(kernel, blocks_of(n, CountNonfinite::GROUP), stream);
}
}
