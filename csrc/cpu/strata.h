// Labels are uint8 where 256 are enough, else int32. Totals by stratum in an order that depends on the sizes alone
// (stprune/reference/plan_weights.py): the samples are cut into parts, and the j-th kept sample adds to lane j % 4 of
// its stratum in the part it lies in.
#pragma once

#include <bit>
#include <vector>

#include "cpu/chunks.h"

namespace stprune {
namespace {

constexpr int64_t MOST_PARTS = 64;
constexpr int64_t MOST_TOTALS = 1 << 20;
constexpr int64_t TOTAL_LANES = 4;
// A stratum with fewer kept samples merges with a neighbour.
constexpr int64_t MIN_STRATUM = 30;

// A total weight and, as one addition does for both, how many it is of.
typedef double Total __attribute__((vector_size(16)));

// Calls body(pointer to the labels) for either type.
template <typename Body>
void with_labels(const Tensor& labels, const char* op, const Body& body) {
  if (labels.scalar_type() == ScalarType::Byte) return body(labels.const_data_ptr<uint8_t>());
  STD_TORCH_CHECK(labels.scalar_type() == ScalarType::Int, op, ": labels must be uint8 or int32");
  body(labels.const_data_ptr<int32_t>());
}

class StratumTotals {
 public:
  StratumTotals(int64_t n, int64_t num_strata)
      : n_(n),
        num_strata_(num_strata),
        places_(static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(std::max<int64_t>(1, num_strata))))) {
    const int64_t chunks = num_chunks(n);
    const int64_t most =
        std::max<int64_t>(1, std::min({MOST_PARTS, chunks, MOST_TOTALS / std::max<int64_t>(1, num_strata)}));
    part_size_ = (chunks + most - 1) / most * CHUNK;
    parts_ = part_size_ == 0 ? 0 : (n + part_size_ - 1) / part_size_;
    sums_.resize(static_cast<size_t>(parts_ * width()));
  }

  int64_t parts() const { return parts_; }
  int64_t begin(int64_t part) const { return part * part_size_; }
  int64_t end(int64_t part) const { return std::min(n_, (part + 1) * part_size_); }
  // A power of two that bounds the labels that add() takes, and what a part holds of each.
  int64_t places() const { return places_; }
  int64_t width() const { return places_ * TOTAL_LANES; }

  // The kept samples index[j ..], of which the first is the j-th of all: their strata to `member`. False for a label
  // out of range.
  template <typename Label>
  bool add(int64_t part, const Label* label, const int64_t* index, const float* weight, int64_t j, int64_t count,
           Label* member) {
    Total* sums = sums_.data() + part * width();
    for (int64_t i = 0; i < count; ++i) {
      const int64_t stratum = label[index[i]];
      if (static_cast<uint64_t>(stratum) >= static_cast<uint64_t>(places_)) return false;
      member[i] = static_cast<Label>(stratum);
      sums[stratum * TOTAL_LANES + (j + i) % TOTAL_LANES] += Total{static_cast<double>(weight[i]), 1.0};
    }
    return true;
  }

  Total of(int64_t stratum) const {
    Total total{};
    for (int64_t part = 0; part < parts_; ++part) {
      const Total* t = sums_.data() + part * width() + stratum * TOTAL_LANES;
      total += (t[0] + t[1]) + (t[2] + t[3]);
    }
    return total;
  }

  // Whether add() saw no label from num_strata on.
  bool in_range() const {
    for (int64_t stratum = num_strata_; stratum < places_; ++stratum) {
      if (of(stratum)[1] != 0.0) return false;
    }
    return true;
  }

 private:
  int64_t n_, num_strata_, places_, part_size_ = 0, parts_ = 0;
  std::vector<Total> sums_;
};

struct Sizes {
  const int64_t* of;  // [num]
  int64_t num;
};

// What the weights of each stratum are multiplied by so that they add up to its true size (eq. 10).
std::vector<double> stratum_factors(const StratumTotals& totals, Sizes strata) {
  std::vector<int64_t> group(strata.num);
  std::vector<double> total(strata.num), group_size, group_total;
  int64_t complete = 0, members = 0;
  for (int64_t stratum = 0; stratum < strata.num; ++stratum) {
    const Total found = totals.of(stratum);
    total[stratum] = found[0];
    group[stratum] = complete;
    members += static_cast<int64_t>(found[1]);
    if (members >= MIN_STRATUM) {
      ++complete;
      members = 0;
    }
  }
  group_size.resize(std::max<int64_t>(1, complete));
  group_total.resize(group_size.size());
  for (int64_t stratum = 0; stratum < strata.num; ++stratum) {
    // What is left over at the end joins the last complete group.
    group[stratum] = std::min(group[stratum], std::max<int64_t>(0, complete - 1));
    group_size[group[stratum]] += static_cast<double>(strata.of[stratum]);
    group_total[group[stratum]] += total[stratum];
  }
  std::vector<double> factor(strata.num);
  for (int64_t stratum = 0; stratum < strata.num; ++stratum) {
    factor[stratum] = group_size[group[stratum]] / group_total[group[stratum]];
  }
  return factor;
}

}  // namespace
}  // namespace stprune
