// residual_stats: per-sample loss, spatial and temporal spread of |prediction - target| and number of entries (eq.
// 1-3), in one pass over both.
//
// Bits do not depend on the thread count or on the width of the machine's vectors: every sum runs over a fixed number
// of lanes, in tiles of a fixed width, and tiles are added in order.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/residual.h"
#include "cpu/residual_row.h"

namespace stprune {
namespace {

// Columns of one tile: sums and counts of so many stay in the second-level cache, and rows are still read in runs long
// enough for the memory. Wider grids are cut into equal tiles of whole segments.
constexpr int64_t kTile = 8192;
// Columns added in the input's precision before a row's sum goes into a double: 32 values per lane.
constexpr int64_t kSegment = 512;
// Rows added in the input's precision before the column sums go into a double.
constexpr int64_t kRows = 32;

template <typename A>
struct TileScratch {
  TileScratch(int64_t width, bool tall)
      : sum(width), count(width), total(tall ? width : 0), entries(tall ? width : 0) {}

  std::vector<A> sum;            // of |e| per column, over up to kRows rows
  std::vector<Int<A>> count;     // entries per column, over up to kRows rows
  std::vector<double> total;     // of |e| per column, over all rows; used when there are more than kRows
  std::vector<int64_t> entries;  // per column, over all rows; likewise
};

// Sums to means; -1 where there are no entries. `entries` stands for every count if positive.
template <typename S, typename C, typename A>
void node_means(const S* sum, const C* count, int64_t entries, int64_t width, A* mean) {
  if (entries > 0) {
    const S divisor = static_cast<S>(entries);
    for (int64_t j = 0; j < width; ++j) mean[j] = static_cast<A>(sum[j] / divisor);
    return;
  }
  for (int64_t j = 0; j < width; ++j) {
    // Divided first and chosen afterwards: a division under a condition keeps the loop from being vectorised.
    const S quotient = sum[j] / static_cast<S>(count[j] > 0 ? count[j] : C(1));
    mean[j] = count[j] > 0 ? static_cast<A>(quotient) : A(-1);
  }
}

// Node means of one tile of one sample (-1 marks a node without entries; a mean of |e| is never negative), and the
// tile's row totals.
template <typename A, typename T>
void accumulate_tile(const Grid<T>& grid, int64_t sample, int64_t first, int64_t width, TileScratch<A>& scratch,
                     A* node_mean /* [F] */, RowTotal* rows /* [T] */) {
  const AddRow<A> add = add_row_for<A>(grid.loss, grid.has_null, grid.mask != nullptr);
  const int64_t entries = grid.has_null || grid.mask != nullptr ? 0 : grid.steps;
  const bool tall = grid.steps > kRows;
  // The null value is compared in the data's dtype.
  const Options<A> options{static_cast<A>(static_cast<T>(grid.null_value)), static_cast<A>(grid.delta)};
  A* sum = scratch.sum.data();
  Int<A>* count = scratch.count.data();
  std::fill(scratch.sum.begin(), scratch.sum.end(), A(0));
  std::fill(scratch.count.begin(), scratch.count.end(), Int<A>(0));
  std::fill(scratch.total.begin(), scratch.total.end(), 0.0);
  std::fill(scratch.entries.begin(), scratch.entries.end(), int64_t{0});
  alignas(64) A prediction_buffer[kSegment], target_buffer[kSegment];
  alignas(64) Int<A> keep[kSegment];

  for (int64_t t = 0; t < grid.steps; ++t) {
    RowTotal row;
    for (int64_t j = 0; j < width; j += kSegment) {
      const int64_t n = std::min(kSegment, width - j), offset = (sample * grid.steps + t) * grid.nodes + first + j;
      if (grid.mask != nullptr) {
        for (int64_t i = 0; i < n; ++i) keep[i] = -static_cast<Int<A>>(grid.mask[offset + i] != 0);
      }
      row += add(widened(grid.prediction + offset, n, prediction_buffer),
                 widened(grid.target + offset, n, target_buffer), keep, n, options, sum + j, count + j);
    }
    rows[t] = row;
    if (tall && ((t + 1) % kRows == 0 || t + 1 == grid.steps)) {
      for (int64_t j = 0; j < width; ++j) {
        scratch.total[j] += sum[j];
        scratch.entries[j] += count[j];
        sum[j] = 0;
        count[j] = 0;
      }
    }
  }
  if (tall) {
    node_means(scratch.total.data(), scratch.entries.data(), entries, width, node_mean + first);
  } else {
    node_means(sum, count, entries, width, node_mean + first);
  }
}

// Population standard deviation of the means that are not -1.
template <typename A>
double spread(const A* mean, int64_t n) {
  using Vector = typename Simd<double>::Vector;
  using Mask = typename Simd<double>::Mask;
  using Source __attribute__((vector_size(kVectorBytes * sizeof(A) / sizeof(double)))) = A;
  constexpr int64_t step = kVectorBytes / sizeof(double), lanes = kLanes<double>;
  A rest[lanes];
  std::fill(rest, rest + lanes, A(-1));
  const int64_t whole = n - n % lanes;
  std::copy(mean + whole, mean + n, rest);
  const auto for_each = [&](const auto& add) {
    for (int64_t j = 0; j < n; j += lanes) {
      const A* block = j < whole ? mean + j : rest;
      for (int v = 0; v < kVectors; ++v) {
        Source narrow;
        load(narrow, block + v * step);
        const Vector wide = __builtin_convertvector(narrow, Vector);
        add(v, wide, wide != -1.0);
      }
    }
  };
  Vector sum[kVectors] = {}, square[kVectors] = {};
  Mask present[kVectors] = {};
  for_each([&](int v, const Vector& value, const Mask& kept) {
    sum[v] += std::bit_cast<Vector>(std::bit_cast<Mask>(value) & kept);
    present[v] -= kept;
  });
  const int64_t groups = lane_total<int64_t, int64_t>(present);
  if (groups == 0) return 0.0;
  const double centre = lane_total<double, double>(sum) / static_cast<double>(groups);
  for_each([&](int v, const Vector& value, const Mask& kept) {
    const Vector deviation = std::bit_cast<Vector>(std::bit_cast<Mask>(value - centre) & kept);
    square[v] += deviation * deviation;
  });
  return std::sqrt(lane_total<double, double>(square) / static_cast<double>(groups));
}

template <typename A>
struct Outputs {
  A* loss;         // [B]
  A* spatial;      // [B]
  A* temporal;     // [B]
  int64_t* count;  // [B]
};

template <typename A>
void finish(int64_t sample, int64_t steps, int64_t nodes, Loss loss, const A* node_mean, const RowTotal* rows,
            double* row_mean /* [T] scratch */, const Outputs<A>& out) {
  double total = 0.0;
  int64_t count = 0;
  for (int64_t t = 0; t < steps; ++t) {
    total += loss == Loss::kMae ? rows[t].sum : rows[t].loss;
    count += rows[t].count;
    row_mean[t] = rows[t].count > 0 ? rows[t].sum / static_cast<double>(rows[t].count) : -1.0;
  }
  out.loss[sample] = count > 0 ? static_cast<A>(total / static_cast<double>(count)) : A(0);
  out.spatial[sample] = static_cast<A>(spread(node_mean, nodes));
  out.temporal[sample] = static_cast<A>(spread(row_mean, steps));
  out.count[sample] = count;
}

// What one part of the work needs: a group of samples, or one tile of one sample.
template <typename A>
struct Part {
  TileScratch<A> tile;
  std::vector<RowTotal> rows;  // [T], of one tile
};

// What one sample needs while it is worked on.
template <typename A>
struct SampleScratch {
  std::vector<A> node_mean;      // [F]
  std::vector<RowTotal> rows;    // [T], of all tiles
  std::vector<double> row_mean;  // [T]
};

template <typename A, typename T>
void residual_stats_kernel(const Grid<T>& grid, const Outputs<A>& out) {
  const int64_t steps = grid.steps, nodes = grid.nodes, samples = grid.samples;
  const int64_t tiles = std::max<int64_t>(1, (nodes + kTile - 1) / kTile);
  const int64_t segments = (nodes + kSegment - 1) / kSegment;
  const int64_t width = (segments + tiles - 1) / tiles * kSegment;
  const int64_t threads =
      std::max<int64_t>(1, std::min<int64_t>(torch::stable::get_num_threads(), samples * steps * nodes / kGrain));
  // Fewer samples than threads: the tiles of a sample run in parallel. Their row totals are added in order either way.
  const bool by_tile = samples < threads && tiles > 1;
  const int64_t parts = by_tile ? samples * tiles : std::min(threads, samples);
  const int64_t padded = (std::min(width, nodes) + kLanes<A> - 1) / kLanes<A> * kLanes<A>;
  const TileScratch<A> tile(padded, steps > kRows);
  std::vector<Part<A>> part(parts, Part<A>{tile, std::vector<RowTotal>(steps)});
  std::vector<SampleScratch<A>> scratch(
      by_tile ? samples : parts,
      SampleScratch<A>{std::vector<A>(nodes), std::vector<RowTotal>(steps), std::vector<double>(steps)});
  const auto accumulate = [&](int64_t sample, int64_t first, Part<A>& p, SampleScratch<A>& s) {
    accumulate_tile(grid, sample, first, std::min(width, nodes - first), p.tile, s.node_mean.data(), p.rows.data());
  };
  const auto add_rows = [&](const Part<A>& p, SampleScratch<A>& s) {
    for (int64_t t = 0; t < steps; ++t) s.rows[t] += p.rows[t];
  };
  const auto complete = [&](int64_t sample, SampleScratch<A>& s) {
    finish(sample, steps, nodes, grid.loss, s.node_mean.data(), s.rows.data(), s.row_mean.data(), out);
  };

  if (by_tile) {
    torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) accumulate(i / tiles, i % tiles * width, part[i], scratch[i / tiles]);
    });
    for (int64_t i = 0; i < parts; ++i) add_rows(part[i], scratch[i / tiles]);
    for (int64_t sample = 0; sample < samples; ++sample) complete(sample, scratch[sample]);
    return;
  }
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t sample = i * samples / parts; sample < (i + 1) * samples / parts; ++sample) {
        std::fill(scratch[i].rows.begin(), scratch[i].rows.end(), RowTotal{});
        for (int64_t first = 0; first < nodes; first += width) {
          accumulate(sample, first, part[i], scratch[i]);
          add_rows(part[i], scratch[i]);
        }
        complete(sample, scratch[i]);
      }
    }
  });
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor, Tensor> launch(const Tensor& prediction, const Tensor& target,
                                                  const ResidualArguments& arguments) {
  using A = std::conditional_t<std::is_same_v<T, double>, double, float>;
  Grid<T> grid = make_grid<T>(prediction, target, arguments);
  const auto dtype = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;
  const auto output = [&](ScalarType type) { return torch::stable::new_empty(prediction, {grid.samples}, type); };
  Tensor loss = output(dtype), spatial = output(dtype), temporal = output(dtype), count = output(ScalarType::Long);
  Outputs<A> out{loss.template mutable_data_ptr<A>(), spatial.template mutable_data_ptr<A>(),
                 temporal.template mutable_data_ptr<A>(), count.template mutable_data_ptr<int64_t>()};
  if (grid.nodes == 1) {
    // Series of one node: rows of one entry would leave the lanes empty. Steps and nodes change places.
    std::swap(grid.steps, grid.nodes);
    std::swap(out.spatial, out.temporal);
  }
  residual_stats_kernel<A>(grid, out);
  return {loss, spatial, temporal, count};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> residual_stats(const Tensor& prediction, const Tensor& target,
                                                          const std::optional<Tensor>& mask,
                                                          std::optional<double> null_value, const std::string& loss,
                                                          double huber_delta) {
  const ResidualArguments arguments{"residual_stats", mask, null_value, loss, huber_delta};
  check_residual(prediction, target, arguments);
  switch (prediction.scalar_type()) {
    case ScalarType::Float:
      return launch<float>(prediction, target, arguments);
    case ScalarType::Double:
      return launch<double>(prediction, target, arguments);
    case ScalarType::BFloat16:
      return launch<c10::BFloat16>(prediction, target, arguments);
    default:
      return launch<c10::Half>(prediction, target, arguments);
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) { m.impl("residual_stats", TORCH_BOX(&residual_stats)); }

}  // namespace stprune
