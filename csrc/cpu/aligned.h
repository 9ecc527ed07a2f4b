// Memory for wide loads and stores.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace stprune {

// [n] doubles at the beginning of a cache line: wide loads and stores that straddle two take twice as long.
class Aligned {
 public:
  explicit Aligned(int64_t n) : memory_(n + LINE - 1), begin_(0) {
    while (reinterpret_cast<uintptr_t>(memory_.data() + begin_) % (LINE * sizeof(double)) != 0) ++begin_;
  }
  Aligned(Aligned&&) = default;  // moves the memory, not its contents
  double* data() { return memory_.data() + begin_; }
  void clear() { std::fill(memory_.begin(), memory_.end(), 0.0); }

 private:
  static constexpr int64_t LINE = 8;
  std::vector<double> memory_;
  int64_t begin_;
};

}  // namespace stprune
