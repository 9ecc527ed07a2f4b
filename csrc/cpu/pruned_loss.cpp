// pruned_loss: the weighted loss of a batch and, per sample, loss, spatial and temporal spread of |prediction -
// target|, score and number of entries (eq. 1-4, 13), in one pass over both.
// pruned_step: what a step of training does, in one call: looks the samples' weights up in the plan, computes that
// loss, and takes the scores into the table. A small batch costs less than the calls of several ops.
#include "cpu/pruned_loss.h"

#include <tuple>

#include "cpu/memory.h"
#include "cpu/plan_lookup.h"
#include "cpu/table_update.h"

namespace stprune {
namespace {

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
using Step = std::tuple<Tensor, Tensor, Tensor, Tensor>;

template <typename A>
constexpr ScalarType DTYPE = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;

// What both ops give back, and where the pass writes it.
template <typename A>
struct Results {
  Results(const char* op, const Problem& problem, bool column_means)
      : value(new_host_scalar(op, DTYPE<A>)),
        count(new_host_vector(op, problem.samples + 1, ScalarType::Long)),
        column_mean(new_column_means(op, problem, column_means)),
        sum(static_cast<size_t>(problem.samples)) {}

  SampleOutputs<A> outputs(A* loss, A* statistics) {
    A* means = column_mean.dim() == 2 ? column_mean.template mutable_data_ptr<A>() : nullptr;
    return {loss, statistics, count.template mutable_data_ptr<int64_t>(), sum.data(), means};
  }

  static Tensor new_column_means(const char* op, const Problem& problem, bool wanted) {
    const int64_t sizes[2] = {problem.samples, problem.nodes}, strides[2] = {problem.nodes, 1};
    return wanted ? new_host_tensor(op, 2, sizes, strides, DTYPE<A>) : new_host_vector(op, 0, DTYPE<A>);
  }

  Tensor value, count, column_mean;
  std::vector<double> sum;
};

template <typename A>
Outputs launch_loss(const ResidualArguments& arguments, const std::optional<Tensor>& weight,
                    const SpreadWeights& weights, bool column_means) {
  const char* op = arguments.op;
  Problem problem = make_problem(arguments);
  const int64_t samples = problem.samples;
  if (weight.has_value()) {
    check_vector(*weight, op, "weight");
    check_dtype(*weight, DTYPE<A>, op, "weight");
    STD_TORCH_CHECK(weight->numel() == samples, op, ": weight must have one value per sample");
  }
  Tensor loss = new_host_vector(op, samples, DTYPE<A>);
  const int64_t sizes[2] = {3, samples}, strides[2] = {samples, 1};
  Tensor statistics = new_host_tensor(op, 2, sizes, strides, DTYPE<A>);
  Results<A> results(op, problem, column_means);
  const A* w = weight.has_value() ? weight->const_data_ptr<A>() : nullptr;
  *results.value.template mutable_data_ptr<A>() = run_pruned_loss<A>(
      problem, w, weights,
      results.outputs(loss.template mutable_data_ptr<A>(), statistics.template mutable_data_ptr<A>()));
  return {results.value, loss, statistics, results.count, results.column_mean};
}

template <typename A>
Step launch_step(const ResidualArguments& arguments, const SpreadWeights& weights, const Tensor& index,
                 const PlanTable& plan, const ScoreTable& table, double beta, bool column_means) {
  const char* op = arguments.op;
  Problem problem = make_problem(arguments);
  const int64_t samples = problem.samples;
  const ScalarType of_prediction = arguments.prediction.scalar_type(), of_target = arguments.target.scalar_type();
  STD_TORCH_CHECK(
      of_prediction == of_target || (of_target == ScalarType::Float &&
                                     (of_prediction == ScalarType::BFloat16 || of_prediction == ScalarType::Half)),
      op, ": target has an unexpected dtype");
  check_vector(index, op, "index");
  check_dtype(index, ScalarType::Long, op, "index");
  STD_TORCH_CHECK(index.numel() == samples, op, ": index must have one id per sample");
  const int64_t* ids = index.const_data_ptr<int64_t>();
  check_ids(op, ids, samples, plan.num_samples);
  // On their way while the loss is computed.
  for (int64_t b = 0; table.scores != nullptr && b < samples; ++b) prefetch_entry(table, ids[b]);
  Tensor weight = new_host_vector(op, samples, DTYPE<A>);
  A* w = weight.template mutable_data_ptr<A>();
  look_up(op, plan, ids, samples, w);
  Results<A> results(op, problem, column_means);
  std::vector<A> of_samples(static_cast<size_t>(4 * samples));
  const SampleOutputs<A> out = results.outputs(of_samples.data(), of_samples.data() + samples);
  *results.value.template mutable_data_ptr<A>() = run_pruned_loss<A>(problem, w, weights, out);
  const A* scores = out.statistics + 2 * samples;
  std::vector<float> narrowed;
  const float* values;
  if constexpr (std::is_same_v<A, float>) {
    values = scores;
  } else {
    narrowed.assign(scores, scores + samples);
    values = narrowed.data();
  }
  table_update_kernel(table, scored_batch(ids, values, out.count, samples, beta, true), op);
  return {results.value, weight, results.count, results.column_mean};
}

Outputs pruned_loss(const Tensor& prediction, const Tensor& target, const std::optional<Tensor>& mask,
                    const std::optional<Tensor>& weight, const std::optional<Tensor>& affine,
                    const std::optional<Tensor>& horizon, const std::optional<Tensor>& column_weight,
                    std::optional<double> null_value, double null_tolerance, int64_t loss, double parameter,
                    double spatial, double temporal, bool column_means) {
  const ResidualArguments arguments{"pruned_loss", prediction, target,         mask, affine,   horizon,
                                    column_weight, null_value, null_tolerance, loss, parameter};
  const SpreadWeights weights{spatial, temporal};
  return prediction.scalar_type() == ScalarType::Double ? launch_loss<double>(arguments, weight, weights, column_means)
                                                        : launch_loss<float>(arguments, weight, weights, column_means);
}

Step pruned_step(const Tensor& prediction, const Tensor& target, const std::optional<Tensor>& mask,
                 const std::optional<Tensor>& affine, const std::optional<Tensor>& horizon,
                 const std::optional<Tensor>& column_weight, const Tensor& index, const std::optional<Tensor>& plan_ids,
                 const Tensor& plan_weights, const std::optional<Tensor>& mean_weight, int64_t num_samples,
                 std::optional<Tensor> scores, std::optional<Tensor> marks, std::optional<Tensor> variance,
                 Tensor count, double beta, std::optional<double> null_value, double null_tolerance, int64_t loss,
                 double parameter, double spatial, double temporal, bool column_means) {
  const char* op = "pruned_step";
  const ResidualArguments arguments{op,         prediction,     target, mask,     affine, horizon, column_weight,
                                    null_value, null_tolerance, loss,   parameter};
  const SpreadWeights weights{spatial, temporal};
  const PlanTable plan = plan_table(op, plan_ids, plan_weights, mean_weight, num_samples);
  const ScoreTable table = score_table(op, scores, marks, variance, count, num_samples);
  return prediction.scalar_type() == ScalarType::Double
             ? launch_step<double>(arguments, weights, index, plan, table, beta, column_means)
             : launch_step<float>(arguments, weights, index, plan, table, beta, column_means);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) {
  m.impl("pruned_loss", TORCH_BOX(&pruned_loss));
  m.impl("pruned_step", TORCH_BOX(&pruned_step));
}

}  // namespace stprune
