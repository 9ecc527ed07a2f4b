// The fused loss's pass over a batch, shared by the op that gives all statistics and by the one that does a step of
// training.
//
// Bits do not depend on the thread count or on the instruction set: every sum runs over a fixed number of lanes, in
// tiles of a fixed width, and tiles and samples are added in order.
#pragma once

#include <cmath>
#include <limits>

#include "cpu/residual.h"

namespace stprune {
namespace {

// Columns one thread takes at a time where there are fewer samples than threads; a multiple of SEGMENT.
constexpr int64_t TILE = 4096;

template <typename A>
struct SampleOutputs {
  A* loss;         // [B]
  A* statistics;   // [3, B]: spatial, temporal, score
  int64_t* count;  // [B + 1]: of every sample, and their sum
  double* sum;     // [B] of the loss's terms, times the columns' weights where there are any
  A* column_mean;  // [B, F] or null
};

// What a thread needs while it works on a tile.
template <typename A>
struct TileScratch {
  explicit TileScratch(const Problem& problem)
      : row_sum(static_cast<size_t>(problem.steps * UNIT_BYTES) / sizeof(A)),
        row_loss(problem.loss == Loss::kMae ? 0 : row_sum.size()),
        row_weighted(problem.column_weight == nullptr ? 0 : row_sum.size()),
        row_count(static_cast<size_t>(problem.steps)) {
    if (!problem.direct) copies = Copies<A>(problem, problem.steps);
  }

  std::vector<A> row_sum, row_loss, row_weighted;
  std::vector<int64_t> row_count;
  Copies<A> copies;
};

// What one sample needs while it is worked on.
template <typename A>
struct SampleScratch {
  explicit SampleScratch(const Problem& problem)
      : node_mean(static_cast<size_t>(problem.nodes)), row_mean(static_cast<size_t>(problem.steps)) {}

  std::vector<A> node_mean;
  std::vector<double> row_mean;
};

// Columns [first, first + width) of a sample: their means, and the totals of their rows added to `rows`.
template <typename A>
void run_tile(const Problem& problem, int64_t sample, int64_t first, int64_t width, TileScratch<A>& scratch,
              A* node_mean /* [F] */, RowTotal* rows /* [T] */) {
  const auto kernel = residual_kernels().tile[static_cast<int>(problem.storage)][static_cast<int>(
      problem.loss)][static_cast<int>(problem.keep)][problem.affine != nullptr][problem.column_weight != nullptr];
  ResidualTile tile;
  tile.steps = problem.steps;
  tile.has_null = problem.has_null;
  tile.null_low = problem.null_low;
  tile.null_high = problem.null_high;
  tile.parameter = problem.parameter;
  tile.row_sum = scratch.row_sum.data();
  tile.row_loss = scratch.row_loss.data();
  tile.row_weighted = scratch.row_weighted.data();
  tile.row_count = scratch.row_count.data();
  tile.rows = rows;
  tile.affine = tile.column_weight = nullptr;
  tile.affine_step = 0;
  tile.bounds = problem.affine_rows > MAP_ROWS;
  tile.mask = nullptr;
  tile.mask_step = 0;
  if (problem.direct) {
    const auto column = [&](const Operand& o) { return o.at(sample, 0) + first * o.size; };
    tile.prediction = column(problem.prediction);
    tile.target = column(problem.target);
    tile.prediction_step = problem.prediction.step;
    tile.target_step = problem.target.step;
    if (problem.has_mask) {
      tile.mask = reinterpret_cast<const uint8_t*>(column(problem.mask));
      tile.mask_step = problem.mask.step;
    }
    if (problem.affine != nullptr) {
      tile.affine = static_cast<const A*>(problem.affine) + sample * problem.affine_sample + first;
      tile.affine_step = problem.affine_step;
    }
    if (problem.column_weight != nullptr) {
      tile.column_weight = static_cast<const A*>(problem.column_weight) + sample * problem.nodes + first;
    }
    tile.overlap = true;
    tile.width = width;
    tile.node_mean = node_mean + first;
    kernel(tile);
    return;
  }
  Copies<A>& copies = scratch.copies;
  tile.prediction = copies.prediction.data();
  tile.target = copies.target.data();
  tile.mask = copies.mask.data();
  tile.affine = copies.affine.data();
  tile.prediction_step = tile.target_step = tile.mask_step = tile.affine_step = SEGMENT;
  tile.overlap = problem.nodes * static_cast<int64_t>(sizeof(A)) >= UNIT_BYTES;
  for (int64_t at = first; at < first + width; at += SEGMENT) {
    tile.width = std::min(SEGMENT, first + width - at);
    // A last piece narrower than the lanes is read together with the columns before it, as without copies.
    const int64_t before =
        tile.overlap ? std::max<int64_t>(0, UNIT_BYTES / static_cast<int64_t>(sizeof(A)) - tile.width) : 0;
    copies.fill(problem, sample, 0, problem.steps, at - before, tile.width + before);
    tile.prediction = copies.prediction.data() + before;
    tile.target = copies.target.data() + before;
    tile.mask = copies.mask.data() + before;
    tile.affine = copies.affine.data() + before;
    if (problem.column_weight != nullptr) tile.column_weight = copies.column_weight.data() + before;
    tile.node_mean = node_mean + at;
    kernel(tile);
  }
}

double spread(const float* mean, int64_t n) { return residual_kernels().spread_f32(mean, n); }
double spread(const double* mean, int64_t n) { return residual_kernels().spread_f64(mean, n); }

// What the spreads count for in a sample's score.
struct SpreadWeights {
  double spatial, temporal;
};

template <typename A>
void finish(const Problem& problem, int64_t sample, const SpreadWeights& weights,
            const A* single_weight /* [B] or null */, bool swapped, const RowTotal* rows, SampleScratch<A>& scratch,
            const SampleOutputs<A>& out) {
  double total = 0.0, weighted = 0.0;
  int64_t count = 0;
  for (int64_t t = 0; t < problem.steps; ++t) {
    const double row = problem.loss == Loss::kMae ? rows[t].sum : rows[t].loss;
    total += problem.horizon == nullptr ? row : problem.horizon_at(t) * row;
    if (problem.column_weight != nullptr) {
      weighted += problem.horizon == nullptr ? rows[t].weighted : problem.horizon_at(t) * rows[t].weighted;
    }
    count += rows[t].count;
    scratch.row_mean[static_cast<size_t>(t)] =
        rows[t].count > 0 ? rows[t].sum / static_cast<double>(rows[t].count) : -1.0;
  }
  const double loss = count > 0 ? total / static_cast<double>(count) : 0.0;
  double spatial = spread(scratch.node_mean.data(), problem.nodes);
  double temporal = spread(scratch.row_mean.data(), problem.steps);
  if (swapped) std::swap(spatial, temporal);
  double score = loss;
  // A weight of 0 leaves its term out: 0 * inf would turn an infinite loss into NaN.
  if (weights.spatial > 0.0) score += weights.spatial * spatial;
  if (weights.temporal > 0.0) score += weights.temporal * temporal;
  out.loss[sample] = static_cast<A>(loss);
  out.statistics[sample] = static_cast<A>(spatial);
  out.statistics[problem.samples + sample] = static_cast<A>(temporal);
  out.statistics[2 * problem.samples + sample] = static_cast<A>(score);
  out.count[sample] = count;
  if (problem.column_weight != nullptr) total = weighted;
  if (single_weight != nullptr) total *= static_cast<double>(single_weight[sample]);
  out.sum[sample] = count > 0 ? total : 0.0;
  if (out.column_mean == nullptr) return;
  // Where steps and nodes have changed places the only row is the only column.
  const int64_t columns = swapped ? 1 : problem.nodes;
  for (int64_t j = 0; j < columns; ++j) {
    const A mean = swapped ? static_cast<A>(scratch.row_mean[0]) : scratch.node_mean[static_cast<size_t>(j)];
    out.column_mean[sample * columns + j] = mean == A(-1) ? std::numeric_limits<A>::quiet_NaN() : mean;
  }
}

template <typename A>
void pruned_loss_kernel(const Problem& problem, const SpreadWeights& weights, const A* single_weight, bool swapped,
                        const SampleOutputs<A>& out) {
  const int64_t steps = problem.steps, nodes = problem.nodes, samples = problem.samples;
  const int64_t tiles = std::max<int64_t>(1, (nodes + TILE - 1) / TILE);
  const int64_t threads =
      std::max<int64_t>(1, std::min<int64_t>(torch::stable::get_num_threads(), samples * steps * nodes / GRAIN));
  const auto width_of = [&](int64_t tile) { return std::min(TILE, nodes - tile * TILE); };
  if (samples < threads && tiles > 1) {
    // Fewer samples than threads: their tiles run in parallel, and are added in order as below.
    const int64_t parts = samples * tiles;
    std::vector<RowTotal> rows(static_cast<size_t>(parts * steps));
    std::vector<SampleScratch<A>> scratch(static_cast<size_t>(samples), SampleScratch<A>(problem));
    torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      TileScratch<A> tile(problem);
      for (int64_t i = begin; i < end; ++i) {
        run_tile(problem, i / tiles, i % tiles * TILE, width_of(i % tiles), tile,
                 scratch[static_cast<size_t>(i / tiles)].node_mean.data(), rows.data() + i * steps);
      }
    });
    for (int64_t sample = 0; sample < samples; ++sample) {
      RowTotal* total = rows.data() + sample * tiles * steps;
      for (int64_t i = steps; i < tiles * steps; ++i) {
        total[i % steps].sum += total[i].sum;
        total[i % steps].loss += total[i].loss;
        total[i % steps].weighted += total[i].weighted;
        total[i % steps].count += total[i].count;
      }
      finish(problem, sample, weights, single_weight, swapped, total, scratch[static_cast<size_t>(sample)], out);
    }
    return;
  }
  torch::stable::parallel_for(
      0, samples, (samples + threads - 1) / std::max<int64_t>(threads, 1), [&](int64_t begin, int64_t end) {
        TileScratch<A> tile(problem);
        SampleScratch<A> scratch(problem);
        std::vector<RowTotal> rows(static_cast<size_t>(steps)), total(rows.size());
        for (int64_t sample = begin; sample < end; ++sample) {
          for (int64_t i = 0; i < tiles; ++i) {
            std::vector<RowTotal>& into = i == 0 ? total : rows;
            std::fill(into.begin(), into.end(), RowTotal{});
            run_tile(problem, sample, i * TILE, width_of(i), tile, scratch.node_mean.data(), into.data());
            for (size_t t = 0; i > 0 && t < rows.size(); ++t) {
              total[t].sum += rows[t].sum;
              total[t].loss += rows[t].loss;
              total[t].weighted += rows[t].weighted;
              total[t].count += rows[t].count;
            }
          }
          finish(problem, sample, weights, single_weight, swapped, total.data(), scratch, out);
        }
      });
}

// Runs the pass and gives the batch loss; `problem` is laid out anew for it.
template <typename A>
A run_pruned_loss(Problem& problem, const A* weight /* [B] or null */, const SpreadWeights& weights,
                  const SampleOutputs<A>& out) {
  bool swapped = false;
  const A* single_weight = nullptr;
  if (problem.nodes == 1 && problem.affine == nullptr && problem.horizon == nullptr) {
    // Series of one node: rows of one entry would leave the lanes empty. Steps and nodes change places.
    swapped = true;
    std::swap(problem.steps, problem.nodes);
    single_weight = static_cast<const A*>(problem.column_weight);
    problem.column_weight = nullptr;
    for (Operand* o : {&problem.prediction, &problem.target, &problem.mask}) {
      const int64_t step = o->step;
      o->step = 0;
      o->rows = step == 1 || problem.nodes == 1;
      o->offset.clear();
      for (int64_t j = 0; !o->rows && j < problem.nodes; ++j) o->offset.push_back(j * step);
      if (!o->rows) make_indirect(problem);
    }
  }
  // Whole units of lanes are read where a row has as many columns.
  if (problem.nodes * static_cast<int64_t>(sizeof(A)) < UNIT_BYTES) make_indirect(problem);
  pruned_loss_kernel<A>(problem, weights, single_weight, swapped, out);
  double total = 0.0;
  int64_t entries = 0;
  for (int64_t b = 0; b < problem.samples; ++b) {
    total += weight == nullptr ? out.sum[b] : static_cast<double>(weight[b]) * out.sum[b];
    entries += out.count[b];
  }
  out.count[problem.samples] = entries;
  return static_cast<A>(total / static_cast<double>(std::max<int64_t>(entries, 1)));
}

}  // namespace
}  // namespace stprune
