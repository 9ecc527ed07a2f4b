// One row of a tile: sums of |e|, of the loss term and of the entries that count, per column and for the row. The inner
// loop of residual_stats, on explicit vectors: 64 bytes of lanes whatever the instruction set, so that every build adds
// in the same order.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>

#include "cpu/residual.h"

namespace stprune {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// Accumulator types: A sums, Int counts. 64 bytes of lanes always, in as many vectors as the instruction set needs.
template <typename A>
struct Simd;
template <>
struct Simd<float> {
  using Int = int32_t;
  using Vector __attribute__((vector_size(kVectorBytes))) = float;
  using Mask __attribute__((vector_size(kVectorBytes))) = int32_t;
};
template <>
struct Simd<double> {
  using Int = int64_t;
  using Vector __attribute__((vector_size(kVectorBytes))) = double;
  using Mask __attribute__((vector_size(kVectorBytes))) = int64_t;
};
template <typename A>
using Int = typename Simd<A>::Int;
template <typename A>
constexpr int64_t kLanes = 64 / sizeof(A);
constexpr int kVectors = 64 / kVectorBytes;

template <typename A>
struct Options {
  A null_value;
  A delta;
};

struct RowTotal {
  double sum = 0.0;   // of |e|
  double loss = 0.0;  // of e^2 or of the Huber term; unused for the MAE
  int64_t count = 0;

  RowTotal& operator+=(const RowTotal& other) {
    sum += other.sum;
    loss += other.loss;
    count += other.count;
    return *this;
  }
};

template <typename S, typename V>
inline void load(V& vector, const S* source) {
  std::memcpy(&vector, source, sizeof(V));
}

template <typename S, typename V>
inline void store(S* destination, const V& vector) {
  std::memcpy(destination, &vector, sizeof(V));
}

// Sum of the lanes, pairwise.
template <typename Out, typename A, typename V>
inline Out lane_total(const V* vectors) {
  constexpr int64_t lanes = 64 / sizeof(A);
  A values[lanes];
  std::memcpy(values, vectors, sizeof(values));
  Out sums[lanes];
  for (int64_t l = 0; l < lanes; ++l) sums[l] = static_cast<Out>(values[l]);
  for (int64_t half = lanes / 2; half > 0; half /= 2) {
    for (int64_t l = 0; l < half; ++l) sums[l] += sums[l + half];
  }
  return sums[0];
}

// Adds one row of a tile to the column sums and counts, and returns the row's totals. Columns are padded to whole
// lanes.
template <Loss kLoss, bool kNull, bool kMask, typename A>
RowTotal add_row(const A* prediction, const A* target, const Int<A>* keep, int64_t width, const Options<A>& options,
                 A* column_sum, Int<A>* column_count) {
  using Vector = typename Simd<A>::Vector;
  using Mask = typename Simd<A>::Mask;
  constexpr int64_t step = kVectorBytes / sizeof(A);
  Vector row_sum[kVectors] = {}, row_loss[kVectors] = {};
  Mask row_count[kVectors] = {};

  auto add_vector = [&](int v, const A* p, const A* t, const Int<A>* k, A* sum, Int<A>* count)
                        __attribute__((always_inline)) {
                          Vector pv, tv, sv;
                          load(pv, p);
                          load(tv, t);
                          load(sv, sum);
                          constexpr Int<A> magnitude = std::numeric_limits<Int<A>>::max();
                          Mask bits = std::bit_cast<Mask>(pv - tv) & magnitude;  // |e|
                          if constexpr (kNull || kMask) {
                            Mask kept, cv;
                            if constexpr (kMask) load(kept, k);
                            if constexpr (kNull) {
                              const Mask present = (tv == tv) & (tv != options.null_value);
                              if constexpr (kMask) {
                                kept &= present;
                              } else {
                                kept = present;
                              }
                            }
                            bits &= kept;  // a removed entry is +0, whatever the prediction holds there
                            load(cv, count);
                            store(count, cv - kept);
                            row_count[v] -= kept;
                          }
                          const Vector u = std::bit_cast<Vector>(bits);
                          store(sum, sv + u);
                          row_sum[v] += u;
                          if constexpr (kLoss == Loss::kMse) row_loss[v] += u * u;
                          if constexpr (kLoss == Loss::kHuber) {
                            const Vector near = A(0.5) * u * u, far = options.delta * (u - A(0.5) * options.delta);
                            row_loss[v] += u <= options.delta ? near : far;
                          }
                        };

  int64_t j = 0;
  for (; j + kLanes<A> <= width; j += kLanes<A>) {
    for (int v = 0; v < kVectors; ++v) {
      const int64_t i = j + v * step;
      add_vector(v, prediction + i, target + i, keep + i, column_sum + i, column_count + i);
    }
  }
  for (int v = 0; j < width; ++v, j += step) {
    if (j + step <= width) {
      add_vector(v, prediction + j, target + j, keep + j, column_sum + j, column_count + j);
      continue;
    }
    // The rest of the row, padded with entries that add nothing: |0 - 0| or a removed one.
    A p[step] = {}, t[step];
    Int<A> k[step] = {};
    for (int64_t i = 0; i < step; ++i) {
      const bool inside = j + i < width;
      p[i] = inside ? prediction[j + i] : A(0);
      t[i] = inside ? target[j + i] : (kNull ? std::numeric_limits<A>::quiet_NaN() : A(0));
      if constexpr (kMask) k[i] = inside ? keep[j + i] : Int<A>(0);
    }
    add_vector(v, p, t, k, column_sum + j, column_count + j);
  }

  RowTotal row;
  row.sum = lane_total<double, A>(row_sum);
  if constexpr (kLoss != Loss::kMae) row.loss = lane_total<double, A>(row_loss);
  row.count = width;
  if constexpr (kNull || kMask) row.count = lane_total<int64_t, Int<A>>(row_count);
  return row;
}

template <typename A>
using AddRow = RowTotal (*)(const A*, const A*, const Int<A>*, int64_t, const Options<A>&, A*, Int<A>*);

template <Loss kLoss, typename A>
AddRow<A> add_row_masked(bool null, bool mask) {
  if (null) return mask ? &add_row<kLoss, true, true, A> : &add_row<kLoss, true, false, A>;
  return mask ? &add_row<kLoss, false, true, A> : &add_row<kLoss, false, false, A>;
}

template <typename A>
AddRow<A> add_row_for(Loss loss, bool null, bool mask) {
  switch (loss) {
    case Loss::kMae:
      return add_row_masked<Loss::kMae, A>(null, mask);
    case Loss::kMse:
      return add_row_masked<Loss::kMse, A>(null, mask);
    default:
      return add_row_masked<Loss::kHuber, A>(null, mask);
  }
}

}  // namespace
}  // namespace stprune
