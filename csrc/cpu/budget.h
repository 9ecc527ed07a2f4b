// The budget rule (eq. 7): the constant c of clip(c * size, minimum, 1) with a given sum. One pass with a bracket of c
// from a sample, then Newton's method on the few sizes that the bracket leaves open; the steps of
// stprune/reference/budget.py in their order.
#pragma once

#include <bit>
#include <cmath>
#include <new>
#include <type_traits>

#include "cpu/blocks.h"

namespace stprune {
namespace {

constexpr int64_t SAMPLED = 1 << 17;
constexpr int64_t SAMPLE = 1 << 16;
constexpr uint32_t STREAM_SAMPLE = 15;
constexpr int64_t CROWDED = 4;
// So few sizes are measured before another thread has woken up.
constexpr int64_t SERIAL = 1 << 18;
constexpr double TOLERANCE = 0x1p-44;
constexpr int MAX_STEPS = 200;
constexpr double LARGEST = std::numeric_limits<double>::max();
constexpr double INFINITE = std::numeric_limits<double>::infinity();

inline void clip_sizes(const float* x, int64_t n, Power power, double scale, double minimum, Clipped* out) {
  plan_kernels().clip_f32(x, n, power, scale, minimum, out);
}
inline void clip_sizes(const double* x, int64_t n, Power power, double scale, double minimum, Clipped* out) {
  plan_kernels().clip_f64(x, n, power, scale, minimum, out);
}
inline int64_t split_block(const float* x, int64_t n, Power power, const Cuts<float>& cuts, uint64_t* aside,
                           Split* out) {
  return plan_kernels().split_f32(x, n, power, &cuts, aside, out);
}
inline int64_t split_block(const double* x, int64_t n, Power power, const Cuts<double>& cuts, uint64_t* aside,
                           Split* out) {
  return plan_kernels().split_f64(x, n, power, &cuts, aside, out);
}
inline void write_block(const float* x, int64_t n, Power power, double scale, double minimum, float* out) {
  plan_kernels().probability_f32(x, n, power, scale, minimum, out);
}
inline void write_block(const double* x, int64_t n, Power power, double scale, double minimum, float* out) {
  plan_kernels().probability_f64(x, n, power, scale, minimum, out);
}

inline double total_of(const Clipped& found, double scale, double minimum) {
  return minimum * static_cast<double>(found.low) + (scale * found.middle + static_cast<double>(found.high));
}

// The double in the middle between two positive ones, in their order.
inline double halfway(double low, double high) {
  int64_t a, b;
  std::memcpy(&a, &low, sizeof(a));
  std::memcpy(&b, &high, sizeof(b));
  // Both are below 2^63 as bits; their sum may not be.
  const int64_t middle = static_cast<int64_t>((static_cast<uint64_t>(a) + static_cast<uint64_t>(b)) / 2);
  double out;
  std::memcpy(&out, &middle, sizeof(out));
  return out;
}

inline float size_of(float x, Power power) { return power == Power::kRoot ? std::sqrt(x) : x; }
inline double size_of(double x, Power power) { return power == Power::kRoot ? std::sqrt(x) : x; }

// The least score >= 0 whose size fulfils a condition that no larger one breaks; infinity where none does. Numbers >= 0
// are ordered as their bits are.
template <typename T, typename Condition>
T first_score(Power power, const Condition& holds) {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  constexpr T NONE = std::numeric_limits<T>::infinity();
  // Every score has the size 1.
  if (power == Power::kZero) return holds(1.0) ? -NONE : NONE;
  Bits low = 0, high = std::bit_cast<Bits>(NONE);
  while (low < high) {
    const Bits middle = low + (high - low) / 2;
    if (holds(static_cast<double>(size_of(std::bit_cast<T>(middle), power)))) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return std::bit_cast<T>(low);
}

// The largest score for which the condition does not hold yet; minus infinity where there is none.
template <typename T>
T before(T first) {
  return std::nextafter(first, -std::numeric_limits<T>::infinity());
}

// Where sizes times any constant in [low, high] lie against `minimum` and 1.
template <typename T>
Cuts<T> cuts_of(Power power, double low, double high, double minimum) {
  return {first_score<T>(power, [=](double size) { return size * low >= 1.0; }),
          before(first_score<T>(power, [=](double size) { return size * high > minimum; })),
          first_score<T>(power, [=](double size) { return size * low > minimum; }),
          before(first_score<T>(power, [=](double size) { return size * high >= 1.0; }))};
}

template <typename Measure>
double solve(const Measure& measure, double wanted, double minimum, double start, double low = 0.0,
             double high = LARGEST) {
  double scale = std::min(std::max(start, low), high);
  for (int step = 0; step < MAX_STEPS; ++step) {
    const Clipped found = measure(scale);
    const double total = total_of(found, scale, minimum);
    if (std::abs(total - wanted) <= TOLERANCE * wanted) return scale;
    (total < wanted ? low : high) = scale;
    double better = std::numeric_limits<double>::quiet_NaN();
    if (found.middle > 0.0) {
      better = (wanted - static_cast<double>(found.high) - minimum * static_cast<double>(found.low)) / found.middle;
    }
    if (better == scale) return scale;
    if (!(low < better && better < high) || (step >= 8 && step % 4 == 0)) {
      better = halfway(low, high);
      if (!(low < better && better < high)) return scale;
    }
    scale = better;
  }
  return scale;
}

// Constant and lower bound of the probabilities.
struct Scale {
  double scale, minimum;
};

template <typename T>
class Budget {
 public:
  Budget(const T* scores, int64_t n, Power power, double count, double minimum)
      : scores_(scores), n_(n), power_(power), count_(count), minimum_(minimum) {}

  Scale find() {
    double low = 0.0, middle = 0.0, high = LARGEST;
    // Without a sample the bracket leaves everything open, and nothing is set aside.
    const bool sampled = n_ >= SAMPLED;
    if (sampled) bracket(&low, &middle, &high);
    split(low, high, sampled ? n_ / CROWDED : -1);
    const double known = static_cast<double>(base_.known), positive = static_cast<double>(base_.positive);
    double wanted = count_ - static_cast<double>(n_ - base_.known);
    if (wanted < minimum_ * known) wanted = std::ceil(minimum_ * known);
    wanted = std::min(wanted, known);
    num_kept_ = n_ - base_.known + std::llround(wanted);
    if (base_.positive == 0) return {0.0, base_.known > 0 ? wanted / known : 1.0};
    if (positive + minimum_ * (known - positive) <= wanted) {
      // A minimum so small that the comparison rounds it away still bounds what the zeros share.
      const double share = positive < known ? (wanted - positive) / (known - positive) : 1.0;
      return {INFINITE, std::min(std::max(share, minimum_), 1.0)};
    }
    if (wanted <= minimum_ * known) return {0.0, minimum_};
    const double start = 0.0 < middle && middle < LARGEST ? middle : wanted / sum_of_sizes();
    if (!crowded_) {
      const auto measure = [&](double scale) {
        const Clipped found = measured(aside_.data(), static_cast<int64_t>(aside_.size()), scale);
        return Clipped{base_.sure.low + found.low, base_.sure.high + found.high, base_.sure.middle + found.middle};
      };
      if (total_of(measure(low), low, minimum_) <= wanted && wanted <= total_of(measure(high), high, minimum_)) {
        return {solve(measure, wanted, minimum_, start, low, high), minimum_};
      }
    }
    const auto everything = [&](double scale) { return measured(scores_, n_, scale); };
    return {solve(everything, wanted, minimum_, start), minimum_};
  }

  // What the probabilities of the last find() add up to, for a whole `count`.
  int64_t num_kept() const { return num_kept_; }

  void write(Scale found, float* out /* [n] */) const {
    for_chunks(num_chunks(n_), [&](int64_t chunk) {
      write_block(scores_ + chunk * CHUNK, chunk_size(n_, chunk), power_, found.scale, found.minimum,
                  out + chunk * CHUNK);
    });
  }

 private:
  Clipped measured(const T* x, int64_t n, double scale) const {
    std::vector<double> sums(num_sum_blocks(n));
    std::vector<Clipped> blocks(sums.size());
    const auto measure = [&](int64_t block, int64_t first, int64_t size) {
      clip_sizes(x + first, size, power_, scale, minimum_, &blocks[block]);
    };
    if (n <= SERIAL) {
      for (int64_t first = 0; first < n; first += SUM_BLOCK) {
        measure(first / SUM_BLOCK, first, std::min(SUM_BLOCK, n - first));
      }
    } else {
      for_sum_blocks(n, measure);
    }
    Clipped all{0, 0, 0.0};
    for (size_t block = 0; block < blocks.size(); ++block) {
      all.low += blocks[block].low;
      all.high += blocks[block].high;
      sums[block] = blocks[block].middle;
    }
    all.middle = tree_sum(sums);
    return all;
  }

  // All finite sizes: those that the zero scale leaves at or above the bound -1.
  double sum_of_sizes() const {
    std::vector<double> sums(num_sum_blocks(n_));
    for_sum_blocks(n_, [&](int64_t block, int64_t first, int64_t size) {
      Clipped found;
      clip_sizes(scores_ + first, size, power_, 0.0, -1.0, &found);
      sums[block] = found.middle;
    });
    return tree_sum(sums);
  }

  double sample_scale(const std::vector<T>& sample, const Split& counts, double wanted, double start) const {
    const double known = static_cast<double>(counts.known), positive = static_cast<double>(counts.positive);
    if (wanted <= minimum_ * known) return 0.0;
    if (wanted >= positive + minimum_ * (known - positive)) return LARGEST;
    const auto measure = [&](double scale) { return measured(sample.data(), SAMPLE, scale); };
    return solve(measure, wanted, minimum_, start);
  }

  void bracket(double* low, double* middle, double* high) const {
    std::vector<T> sample(SAMPLE);
    std::vector<uint32_t> place(SAMPLE);
    kernels().words(0, 0, 0, 0, 0, STREAM_SAMPLE, SAMPLE / 64, place.data());
    Split counts{};
    for (int64_t i = 0; i < SAMPLE; ++i) {
      sample[i] = scores_[static_cast<int64_t>((place[i] * static_cast<uint64_t>(n_ >> 8)) >> 24)];
      const bool known = std::isfinite(sample[i]);
      counts.known += known;
      counts.positive += known && (power_ == Power::kZero || sample[i] > 0);
    }
    const double share = static_cast<double>(SAMPLE) / static_cast<double>(n_);
    const double target = count_ * share - static_cast<double>(SAMPLE - counts.known);
    const double ratio = std::min(std::max(count_ / static_cast<double>(n_), 0.0), 1.0);
    const double width = 3.0 * std::sqrt(ratio * (1.0 - ratio) * static_cast<double>(SAMPLE)) + 1.0;
    *middle = sample_scale(sample, counts, target, 1.0);
    *low = sample_scale(sample, counts, target - width, *middle);
    *high = sample_scale(sample, counts, target + width, *middle);
  }

  // One pass: counts, what is certain between `low` and `high`, and the others aside unless there are more than `most`.
  void split(double low, double high, int64_t most) {
    std::vector<Split> blocks(num_sum_blocks(n_));
    std::vector<std::vector<T>> open(num_chunks(n_));
    std::atomic<int64_t> num_open{0};
    std::atomic<bool> full{false};
    const Cuts<T> cuts = cuts_of<T>(power_, low, high, minimum_);
    for_sum_blocks(n_, [&](int64_t block, int64_t first, int64_t size) {
      uint64_t bits[SUM_BLOCK / 64];
      const int64_t count = split_block(scores_ + first, size, power_, cuts, bits, &blocks[block]);
      if (count == 0 || num_open.fetch_add(count, std::memory_order_relaxed) + count > most) return;
      std::vector<T>& to = open[first / CHUNK];
      try {
        to.reserve(to.size() + static_cast<size_t>(count));
      } catch (const std::bad_alloc&) {  // must not leave the parallel region
        full.store(true, std::memory_order_relaxed);
        return;
      }
      for (int64_t word = 0; 64 * word < size; ++word) {
        for (uint64_t rest = bits[word]; rest != 0; rest &= rest - 1) {
          to.push_back(scores_[first + 64 * word + __builtin_ctzll(rest)]);
        }
      }
    });
    STD_TORCH_CHECK(!full.load(), "inclusion_budget: out of memory");
    std::vector<double> sums(blocks.size());
    base_ = Split{};
    for (size_t block = 0; block < blocks.size(); ++block) {
      base_.known += blocks[block].known;
      base_.positive += blocks[block].positive;
      base_.sure.low += blocks[block].sure.low;
      base_.sure.high += blocks[block].sure.high;
      sums[block] = blocks[block].sure.middle;
    }
    base_.sure.middle = tree_sum(sums);
    crowded_ = num_open.load() > most;
    if (crowded_) return;
    aside_.reserve(static_cast<size_t>(num_open.load()));
    for (const std::vector<T>& part : open) aside_.insert(aside_.end(), part.begin(), part.end());
  }

  const T* scores_;
  int64_t n_;
  Power power_;
  double count_, minimum_;
  Split base_{};
  std::vector<T> aside_;
  bool crowded_ = false;
  int64_t num_kept_ = 0;
};

}  // namespace
}  // namespace stprune
