// node_stats: loss, spread over channels, spread over steps and number of entries of every node of a window by itself.
#include <cmath>
#include <tuple>

#include "cpu/residual.h"

namespace stprune {
namespace {

template <typename A>
struct NodeOutputs {
  A* loss;         // [B, N]
  A* spatial;      // [B, N]
  A* temporal;     // [B, N]
  int64_t* count;  // [B, N]
};

template <Loss LOSS, typename A>
double term_of(A e, A u, A t, A parameter) {
  const double wide = static_cast<double>(u), p = static_cast<double>(parameter);
  if constexpr (LOSS == Loss::kMse) return wide * wide;
  if constexpr (LOSS == Loss::kHuber) return u <= parameter ? 0.5 * wide * wide : p * (wide - 0.5 * p);
  if constexpr (LOSS == Loss::kMape) return wide / std::abs(static_cast<double>(t));
  if constexpr (LOSS == Loss::kQuantile) return wide * (e < 0 ? p : 1.0 - p);
  return wide;
}

// Population standard deviation of sums over counts; groups without entries are left out.
double spread(const double* sum, const int64_t* count, int64_t n) {
  double total = 0.0, square = 0.0;
  int64_t groups = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (count[i] == 0) continue;
    total += sum[i] / static_cast<double>(count[i]);
    ++groups;
  }
  if (groups == 0) return 0.0;
  const double centre = total / static_cast<double>(groups);
  for (int64_t i = 0; i < n; ++i) {
    if (count[i] == 0) continue;
    const double deviation = sum[i] / static_cast<double>(count[i]) - centre;
    square += deviation * deviation;
  }
  return std::sqrt(square / static_cast<double>(groups));
}

template <typename A>
struct Scratch {
  explicit Scratch(const Problem& problem)
      : copies(problem, problem.steps),
        kept(static_cast<size_t>(problem.steps * SEGMENT)),
        step_sum(static_cast<size_t>(problem.steps)),
        step_count(step_sum.size()) {}

  Copies<A> copies;
  std::vector<uint8_t> kept;  // [T, SEGMENT]
  std::vector<double> step_sum;
  std::vector<int64_t> step_count;
};

// The columns [first, first + width), whole nodes, of one sample.
template <Loss LOSS, typename A>
void run_segment(const Problem& problem, int64_t channels, int64_t sample, int64_t first, int64_t width,
                 Scratch<A>& scratch, const NodeOutputs<A>& out) {
  scratch.copies.fill(problem, sample, 0, problem.steps, first, width);
  const A low = static_cast<A>(problem.null_low), high = static_cast<A>(problem.null_high);
  const A parameter = static_cast<A>(problem.parameter);
  double sum[SEGMENT] = {}, loss[SEGMENT] = {}, square[SEGMENT] = {};
  int64_t count[SEGMENT] = {};
  for (int64_t t = 0; t < problem.steps; ++t) {
    A* error = scratch.copies.prediction.data() + t * SEGMENT;  // becomes |e|
    const A* target = scratch.copies.target.data() + t * SEGMENT;
    const uint8_t* mask = problem.has_mask ? scratch.copies.mask.data() + t * SEGMENT : nullptr;
    uint8_t* kept = scratch.kept.data() + t * SEGMENT;
    for (int64_t j = 0; j < width; ++j) {
      const A y = target[j], e = error[j] - y;
      bool here = !problem.has_null || ((y < low) | (y > high));
      if (mask != nullptr) here = here && mask[j] != 0;
      if (LOSS == Loss::kMape) here = here && !(std::abs(y) < parameter);
      const A u = here ? std::abs(e) : A(0);
      error[j] = u;
      kept[j] = here;
      count[j] += here;
      sum[j] += static_cast<double>(u);
      loss[j] += here ? term_of<LOSS>(e, u, y, parameter) : 0.0;
    }
  }
  const int64_t nodes = width / channels, offset = sample * (problem.nodes / channels) + first / channels;
  if (channels == 1) {
    for (int64_t t = 0; t < problem.steps; ++t) {
      const A* u = scratch.copies.prediction.data() + t * SEGMENT;
      const uint8_t* kept = scratch.kept.data() + t * SEGMENT;
      for (int64_t j = 0; j < width; ++j) {
        const double deviation =
            static_cast<double>(u[j]) - sum[j] / static_cast<double>(std::max<int64_t>(count[j], 1));
        square[j] += kept[j] ? deviation * deviation : 0.0;
      }
    }
  }
  for (int64_t node = 0; node < nodes; ++node) {
    double total = 0.0, temporal = 0.0, spatial = 0.0;
    int64_t entries = 0;
    for (int64_t c = node * channels; c < (node + 1) * channels; ++c) {
      total += loss[c];
      entries += count[c];
    }
    const double divisor = static_cast<double>(std::max<int64_t>(entries, 1));
    if (channels == 1) {
      temporal = std::sqrt(square[node] / divisor);
    } else {
      for (int64_t t = 0; t < problem.steps; ++t) {
        double step = 0.0;
        int64_t of_step = 0;
        for (int64_t c = node * channels; c < (node + 1) * channels; ++c) {
          step += static_cast<double>(scratch.copies.prediction[static_cast<size_t>(t * SEGMENT + c)]);
          of_step += scratch.kept[static_cast<size_t>(t * SEGMENT + c)];
        }
        scratch.step_sum[static_cast<size_t>(t)] = step;
        scratch.step_count[static_cast<size_t>(t)] = of_step;
      }
      temporal = spread(scratch.step_sum.data(), scratch.step_count.data(), problem.steps);
      spatial = spread(sum + node * channels, count + node * channels, channels);
    }
    out.loss[offset + node] = static_cast<A>(total / divisor);
    out.spatial[offset + node] = static_cast<A>(spatial);
    out.temporal[offset + node] = static_cast<A>(temporal);
    out.count[offset + node] = entries;
  }
}

template <typename A>
using RunSegment = void (*)(const Problem&, int64_t, int64_t, int64_t, int64_t, Scratch<A>&, const NodeOutputs<A>&);

template <typename A>
std::tuple<Tensor, Tensor, Tensor, Tensor> launch(const Problem& problem, const Tensor& prediction) {
  const int64_t channels = prediction.size(prediction.dim() - 1);
  STD_TORCH_CHECK(channels >= 1 && channels <= SEGMENT, "node_stats: channels must lie in [1, ", SEGMENT, "], got ",
                  channels);
  std::vector<int64_t> shape{problem.samples};
  for (int64_t d = 2; d + 1 < prediction.dim(); ++d) shape.push_back(prediction.size(d));
  const auto output = [&](ScalarType dtype) { return torch::stable::new_empty(prediction, shape, dtype); };
  const auto dtype = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;
  Tensor loss = output(dtype), spatial = output(dtype), temporal = output(dtype), count = output(ScalarType::Long);
  const NodeOutputs<A> out{loss.template mutable_data_ptr<A>(), spatial.template mutable_data_ptr<A>(),
                           temporal.template mutable_data_ptr<A>(), count.template mutable_data_ptr<int64_t>()};
  constexpr RunSegment<A> RUN[NUM_LOSSES] = {run_segment<Loss::kMae, A>, run_segment<Loss::kMse, A>,
                                             run_segment<Loss::kHuber, A>, run_segment<Loss::kMape, A>,
                                             run_segment<Loss::kQuantile, A>};
  const auto run = RUN[static_cast<int>(problem.loss)];
  const int64_t step = SEGMENT / channels * channels, segments = (problem.nodes + step - 1) / step;
  const int64_t grain =
      std::max<int64_t>(1, GRAIN / std::max<int64_t>(1, problem.steps * std::min(step, problem.nodes)));
  torch::stable::parallel_for(0, problem.samples * segments, grain, [&](int64_t begin, int64_t end) {
    Scratch<A> scratch(problem);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % segments * step;
      run(problem, channels, i / segments, first, std::min(step, problem.nodes - first), scratch, out);
    }
  });
  return {loss, spatial, temporal, count};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> node_stats(const Tensor& prediction, const Tensor& target,
                                                      const std::optional<Tensor>& mask,
                                                      std::optional<double> null_value, double null_tolerance,
                                                      int64_t loss, double parameter) {
  const std::optional<Tensor> none;
  STD_TORCH_CHECK(prediction.dim() >= 3, "node_stats: prediction must be [B, T, nodes ..., C], got ", prediction.dim(),
                  " dimensions");
  const Problem problem = make_problem(
      {"node_stats", prediction, target, mask, none, none, none, null_value, null_tolerance, loss, parameter});
  return problem.wide ? launch<double>(problem, prediction) : launch<float>(problem, prediction);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) { m.impl("node_stats", TORCH_BOX(&node_stats)); }

}  // namespace stprune
