// The inner loops of an epoch plan, compiled once per instruction set beside those of kernels.h and under the same
// rules: every set gives the same bits, and masks hold 64 elements a word with zeros behind the last.
#pragma once

#include <stdint.h>

#include "permutation.h"

namespace stprune {

// Numbers that are summed in a fixed order: 32 lanes of 128 (stprune/reference/finite_stats.py).
constexpr int64_t SUM_BLOCK = 4096;
constexpr int SUM_LANES = 32;

// Of the finite entries of a block.
struct BlockStats {
  double sum, least, largest;
  int64_t count;
};

// What a size is made of a score: the score, its square root, or 1.
enum class Power { kOne, kRoot, kZero };

// Sizes clipped at the minimum and at 1, and the sum of the others.
struct Clipped {
  int64_t low, high;
  double middle;
};

// Where the sizes of scores x are certainly clipped or certainly not, whatever the constant between two bounds: at 1
// where x >= high, at the minimum where x <= low, not at all where from <= x <= to.
template <typename T>
struct Cuts {
  T high, low, from, to;
};

// What lies where.
struct Split {
  int64_t known, positive;
  Clipped sure;
};

struct PlanKernels {
  void (*stats_f32)(const float* x, int64_t n, BlockStats* out);
  void (*stats_f64)(const double* x, int64_t n, BlockStats* out);
  // x [n], n at most SUM_BLOCK: sizes times `scale` against `minimum` and 1.
  void (*clip_f32)(const float* x, int64_t n, Power power, double scale, double minimum, Clipped* out);
  void (*clip_f64)(const double* x, int64_t n, Power power, double scale, double minimum, Clipped* out);
  // aside: the finite scores that lie nowhere. Returns how many.
  int64_t (*split_f32)(const float* x, int64_t n, Power power, const Cuts<float>* cuts, uint64_t* aside, Split* out);
  int64_t (*split_f64)(const double* x, int64_t n, Power power, const Cuts<double>* cuts, uint64_t* aside, Split* out);
  // clip(size * scale, minimum, 1), 1 where x is not finite.  out [n]
  void (*probability_f32)(const float* x, int64_t n, Power power, double scale, double minimum, float* out);
  void (*probability_f64)(const double* x, int64_t n, Power power, double scale, double minimum, float* out);
  // bit: x < t. Returns the number of set bits.
  int64_t (*below_f32)(const float* x, int64_t n, float t, uint64_t* bits);
  int64_t (*below_f64)(const double* x, int64_t n, double t, uint64_t* bits);
  // bit: the permutation has element start + i among its first `head`; n >= PERMUTATION_SMALL.  bits [count]
  void (*in_head)(const Permutation* p, int64_t start, int64_t count, int64_t head, uint64_t* bits);
  // kept: not below, or the next bit of `chosen`. Returns the number of set bits.  chosen [one word more than needed]
  int64_t (*keep_chosen)(const uint64_t* below, const uint64_t* chosen, int64_t n, uint64_t* kept);
  // For every kept element `weight` where it is below, else 1, into out [count]; never writes behind it.
  void (*emit_weights)(const uint64_t* kept, const uint64_t* below, int64_t num_words, float weight, float* out,
                       int64_t count);
  // 1 / p of every set bit, into out [count]; never writes behind it.
  void (*emit_inverse)(const float* p, const uint64_t* bits, int64_t num_words, float* out, int64_t count);
  // weight * factor[member], in float64.  weights [n]
  void (*scale_u8)(float* weights, const uint8_t* members, int64_t n, const double* factor);
  void (*scale_i32)(float* weights, const int32_t* members, int64_t n, const double* factor);
};

// Those of kernels().
const PlanKernels& plan_kernels();

}  // namespace stprune
