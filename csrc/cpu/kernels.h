// The inner loops that profit from wide registers, compiled once per instruction set and chosen at run time (isa.cpp).
// Every set gives the same bits: integers, comparisons and single IEEE operations only, contraction off.
//
// `bits` are masks of 64 elements a word, element i at bit i & 63 of word i >> 6; the bits behind the last element are
// 0.
#pragma once

#include <stdint.h>

#include "permutation.h"

namespace stprune {

// Elements a kernel call handles at most, and a multiple of 64: small enough for positions in 16 bits and buffers in L1
// or L2, large enough that a call costs nothing. Chunks are fixed, so no result depends on the number of threads.
constexpr int64_t CHUNK = 1 << 14;

// Of fixed-point probabilities q: their sum, how many lie strictly between 0 and 2^32, and the least and most of those.
struct BlockSums {
  int64_t sum, free, least, most;
};

// Of items of a weighted draw: how many are drawn for certain, how many may be, and of their weights how many are
// positive and finite, and whether one is not even 0.
struct WeightedSplit {
  int64_t drawn, unsure, positive;
  bool bad;
};

// Where a run of words starts; chunks.h makes it.
struct PhiloxCounter {
  uint32_t key_low, key_high, c0, c1, c2, c3;
};

struct PlanKernels;
struct ResidualKernels;
struct WindowKernels;

// The table of one instruction set: the kernels of selections and draws, and the tables of the other sources.
struct Kernels {
  int isa;  // 0 baseline, 1 AVX2, 2 AVX-512
  const PlanKernels* plan;
  const ResidualKernels* residual;
  const WindowKernels* window;
  // Words of `blocks` runs of 64 indices: counter (c0 + 16 * block + lane, c1, c2, c3).  out [64 * blocks]
  void (*words)(uint32_t key_low, uint32_t key_high, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, int64_t blocks,
                uint32_t* out);
  // above: x >= high or NaN. inside: low < x < high. Returns the number above; *inside_count the number inside.
  int64_t (*split_f32)(const float* x, int64_t n, float low, float high, uint64_t* above, uint64_t* inside,
                       int64_t* inside_count);
  int64_t (*split_f64)(const double* x, int64_t n, double low, double high, uint64_t* above, uint64_t* inside,
                       int64_t* inside_count);
  // greater: x before t in the key order, equal: neither before nor after (so NaN equals NaN, -0 equals +0).
  int64_t (*compare_f32)(const float* x, int64_t n, float t, uint64_t* greater, uint64_t* equal, int64_t* equal_count);
  int64_t (*compare_f64)(const double* x, int64_t n, double t, uint64_t* greater, uint64_t* equal,
                         int64_t* equal_count);
  // float16 and bfloat16 to float32.
  void (*widen_f16)(const uint16_t* x, int64_t n, float* out);
  void (*widen_bf16)(const uint16_t* x, int64_t n, float* out);
  // less: x < t, equal: x == t. Returns the number below; *equal_count the number equal.
  int64_t (*below)(const uint32_t* x, int64_t n, uint32_t t, uint64_t* less, uint64_t* equal, int64_t* equal_count);
  // Minus the keys of weighted sampling (so that the largest are drawn): minus infinity where w = 0.
  void (*priority)(const float* w, const uint32_t* words, int64_t n, float* keys);
  void (*race)(const float* w, const uint32_t* words, int64_t n, float* keys);
  // Scores in 8 bits, relative to the scale of every SCALED_NODES of them; n is a multiple of that.  out [n]
  void (*widen_levels)(const uint8_t* levels, const float* scale, int64_t n, float* out);
  // Chances of nodes by their scores: stprune/reference/draw_nodes.py, chances_of; n is a multiple of 64, and infinity
  // pads.  out [n]
  void (*chances)(const float* scores, int64_t n, float floor, float rest, float* out);
  // drawn: the key's numerator is at most sure * w by more than rounding; neither that nor above never * w by more than
  // rounding: unsure.  words [n rounded up to 64], made here
  void (*split_priority)(const PhiloxCounter* at, const float* w, int64_t n, float sure, float never, uint64_t* drawn,
                         uint64_t* unsure, uint32_t* words, WeightedSplit* out);
  void (*split_race)(const PhiloxCounter* at, const float* w, int64_t n, float sure, float never, uint64_t* drawn,
                     uint64_t* unsure, uint32_t* words, WeightedSplit* out);
  // float32(max(1, tau / w)) of the marked among w [n].  out [number of set bits]
  void (*marked_weights)(const uint64_t* bits, const float* w, int64_t n, double tau, float* out);
  // float32(max(1, tau / w[index])).  out [n]
  void (*sample_weights)(const float* w, const int64_t* indices, int64_t n, double tau, float* out);
  // bit: word < p * 2^32. Returns the number of set bits; *bad: whether a p does not lie in [0, 1].
  int64_t (*bernoulli_f32)(const PhiloxCounter* at, const float* p, int64_t n, uint64_t* bits, bool* bad);
  int64_t (*bernoulli_f64)(const PhiloxCounter* at, const double* p, int64_t n, uint64_t* bits, bool* bad);
  // below: x < t. kept: not below, or word < limit, which is at most 2^32. Returns the number kept.
  int64_t (*keep_below_f32)(const PhiloxCounter* at, const float* x, int64_t n, float t, uint64_t limit,
                            uint64_t* below, uint64_t* kept);
  int64_t (*keep_below_f64)(const PhiloxCounter* at, const double* x, int64_t n, double t, uint64_t limit,
                            uint64_t* below, uint64_t* kept);
  // q = round(p * 2^32), half to even.  q [n]
  void (*fixed_point_f32)(const float* p, int64_t n, int64_t* q);
  void (*fixed_point_f64)(const double* p, int64_t n, int64_t* q);
  // Sums of those q, which need not be kept.
  void (*fixed_sums_f32)(const float* p, int64_t n, BlockSums* out);
  void (*fixed_sums_f64)(const double* p, int64_t n, BlockSums* out);
  // q with `add` units more where 0 < q < 2^32 (which none may leave): its low words, and marks where it is 2^32 then.
  // low [n rounded up to 64]
  void (*fixed_low_f32)(const float* p, int64_t n, int64_t add, uint32_t* low, uint64_t* certain);
  void (*fixed_low_f64)(const double* p, int64_t n, int64_t add, uint32_t* low, uint64_t* certain);
  // The permutation of [0, 4096) with these round keys.  keys [2 * PERMUTATION_ROUNDS], out [4096]
  void (*order_block)(const uint32_t* keys, uint16_t* out);
  // Bytes that are 0 or 1 to bits.  flags [64 * num_words]
  void (*pack)(const uint8_t* flags, int64_t num_words, uint64_t* bits);
  // First index with not 0 <= x <= high, or -1; *positive: how many x > 0.
  int64_t (*range_f32)(const float* x, int64_t n, float high, int64_t* positive);
  int64_t (*range_f64)(const double* x, int64_t n, double high, int64_t* positive);
  // base + position of every set bit, ascending, into out [count]; never writes behind it.
  void (*emit)(const uint64_t* bits, int64_t num_words, int64_t base, int64_t* out, int64_t count);
  // perm(start) .. perm(start + count - 1) for n >= PERMUTATION_SMALL.  out [count]
  void (*permute)(const Permutation* p, int64_t start, int64_t count, int64_t* out);
  // The same for n <= 2^31.
  void (*permute_u32)(const Permutation* p, int64_t start, int64_t count, uint32_t* out);
};

// The set in use: the widest this machine has, unless stprune_set_isa chose another.
const Kernels& kernels();

}  // namespace stprune
