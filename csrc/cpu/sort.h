// Sorts few indices by their keys, largest first.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "cpu/keys.h"

namespace stprune {
namespace {

template <typename Code>
struct Ranked {
  Code code;
  int64_t index;
};

// Sorts pairs by descending code, keeping the order of equal codes: a radix sort with 11-bit digits.
template <typename Code>
void sort_descending(std::vector<Ranked<Code>>& pairs) {
  // Below this the passes over histograms cost more than comparisons.
  if (pairs.size() < 512) {
    std::stable_sort(pairs.begin(), pairs.end(), [](const auto& a, const auto& b) { return a.code > b.code; });
    return;
  }
  constexpr int DIGIT = 11, BINS = 1 << DIGIT, PASSES = (8 * sizeof(Code) + DIGIT - 1) / DIGIT;
  std::vector<Ranked<Code>> other(pairs.size());
  std::vector<int64_t> counts(PASSES * BINS);
  for (const Ranked<Code>& pair : pairs) {
    for (int pass = 0; pass < PASSES; ++pass) ++counts[pass * BINS + ((~pair.code >> (DIGIT * pass)) & (BINS - 1))];
  }
  for (int pass = 0; pass < PASSES; ++pass) {
    int64_t* bins = counts.data() + pass * BINS;
    // A digit that all codes share moves nothing.
    if (std::any_of(bins, bins + BINS, [&](int64_t c) { return c == static_cast<int64_t>(pairs.size()); })) continue;
    std::exclusive_scan(bins, bins + BINS, bins, int64_t{0});
    for (const Ranked<Code>& pair : pairs) other[bins[(~pair.code >> (DIGIT * pass)) & (BINS - 1)]++] = pair;
    pairs.swap(other);
  }
}

// Puts ascending indices in descending order of their keys; equal keys keep theirs.
template <typename Source>
void sort_by_key(const Source& source, int64_t k, int64_t* indices /* [k] */) {
  using Code = decltype(radix_code(typename Source::Key{}));
  std::vector<Ranked<Code>> pairs(k);
  for (int64_t i = 0; i < k; ++i) pairs[i] = {radix_code(source.at(indices[i])), indices[i]};
  sort_descending(pairs);
  for (int64_t i = 0; i < k; ++i) indices[i] = pairs[i].index;
}

}  // namespace
}  // namespace stprune
