// Probabilities as integers in units of 2^-32, and the spreading of what their rounding leaves: see
// stprune/reference/draw.py.
#pragma once

#include "cuda/block.h"

namespace stprune {
namespace {

constexpr int64_t ONE = int64_t{1} << 32;

// round(p * 2^32), half to even.
STPRUNE_DEVICE int64_t to_fixed(float p) { return static_cast<int64_t>(rint(static_cast<double>(p) * 0x1p32)); }
STPRUNE_DEVICE int64_t to_fixed(double p) { return static_cast<int64_t>(rint(p * 0x1p32)); }

// Each round either halves what is left or drops a quarter of the items (a round's dropped items leave at most twice
// their share of the rest), so 31 + log_{4/3}(2^30) = 104 rounds are never exceeded.
constexpr int MOST_ROUNDS = 128;

// The rounds in which what is missing is handed out: round r gives share[r] units to every item that is still free, and
// one more to those before index cut[r].
struct Rounds {
  int64_t number, sign;
  int64_t more;  // whether another one has to be found
  int64_t share[MOST_ROUNDS], cut[MOST_ROUNDS];
};

// An item of q units after the rounds; `free` tells whether it can take part in another one.
STPRUNE_DEVICE int64_t after_rounds(int64_t q, int64_t index, const Rounds& rounds, bool& free) {
  free = q > 0 && q < ONE;
  for (int64_t r = 0; free && r < rounds.number; ++r) {
    const int64_t room = rounds.sign > 0 ? ONE - q : q;
    const int64_t give = least(rounds.share[r] + (index < rounds.cut[r]), room);
    q += rounds.sign * give;
    free = room > give;
  }
  return q;
}

}  // namespace
}  // namespace stprune
