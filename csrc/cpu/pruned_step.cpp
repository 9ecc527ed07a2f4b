// pruned_step: what PrunedLoss does in a step of training, in one call: looks the samples' weights up in the plan, runs
// the fused loss, and takes the scores into the table. A small batch costs less than the calls of several ops.
#include <tuple>

#include "cpu/memory.h"
#include "cpu/plan_lookup.h"
#include "cpu/pruned_loss.h"
#include "cpu/table_update.h"

namespace stprune {
namespace {

using Step = std::tuple<Tensor, Tensor, Tensor>;

template <typename A>
Step launch(const ResidualArguments& arguments, const Score& weights, const Tensor& index, const PlanTable& plan,
            const ScoreTable& table, double beta) {
  Problem problem = make_problem(arguments);
  const int64_t samples = problem.samples;
  const char* op = arguments.op;
  const ScalarType of_prediction = arguments.prediction.scalar_type(), of_target = arguments.target.scalar_type();
  STD_TORCH_CHECK(
      of_prediction == of_target || (of_target == ScalarType::Float &&
                                     (of_prediction == ScalarType::BFloat16 || of_prediction == ScalarType::Half)),
      op, ": target has an unexpected dtype");
  check_vector(index, op, "index");
  check_dtype(index, ScalarType::Long, op, "index");
  STD_TORCH_CHECK(index.numel() == samples, op, ": index must have one id per sample");
  const int64_t* ids = index.const_data_ptr<int64_t>();
  check_ids(op, ids, samples, table.n);
  // On their way while the loss is computed.
  for (int64_t b = 0; b < samples; ++b) prefetch_entry(table, ids[b]);
  const auto dtype = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;
  Tensor value = new_host_scalar(op, dtype);
  Tensor weight = new_host_vector(op, samples, dtype);
  Tensor count = new_host_vector(op, samples, ScalarType::Long);
  A* w = weight.template mutable_data_ptr<A>();
  look_up(op, plan, ids, samples, w);
  std::vector<A> statistics(static_cast<size_t>(4 * samples));
  std::vector<double> sum(static_cast<size_t>(samples));
  const SampleOutputs<A> out{statistics.data(), statistics.data() + samples, count.template mutable_data_ptr<int64_t>(),
                             sum.data(), nullptr};
  *value.template mutable_data_ptr<A>() = run_pruned_loss<A>(problem, w, weights, out);
  const A* scores = out.rest + 2 * samples;
  std::vector<float> narrowed;
  const float* values;
  if constexpr (std::is_same_v<A, float>) {
    values = scores;
  } else {
    narrowed.assign(scores, scores + samples);
    values = narrowed.data();
  }
  table_update_kernel(table,
                      ScoredBatch{ids, values, samples, static_cast<float>(beta), static_cast<float>(1.0 - beta)}, op);
  table.count[0] += samples;
  return {value, weight, count};
}

Step pruned_step(const Tensor& prediction, const Tensor& target, const std::optional<Tensor>& mask,
                 const std::optional<Tensor>& affine, const std::optional<Tensor>& horizon, const Tensor& index,
                 const Tensor& plan_ids, const Tensor& plan_weights, bool full,
                 const std::optional<Tensor>& mean_weight, Tensor scores, Tensor marks, std::optional<Tensor> variance,
                 Tensor count, double beta, std::optional<double> null_value, const std::string& loss, double parameter,
                 double spatial, double temporal) {
  const char* op = "pruned_step";
  const std::optional<Tensor> nothing;
  const ResidualArguments arguments{op,      prediction, target,     mask, affine,
                                    horizon, nothing,    null_value, loss, parameter};
  const Score weights{spatial, temporal};
  const PlanTable plan = plan_table(op, plan_ids, plan_weights, full, mean_weight);
  const ScoreTable table = score_table(op, scores, marks, variance, count);
  return prediction.scalar_type() == ScalarType::Double ? launch<double>(arguments, weights, index, plan, table, beta)
                                                        : launch<float>(arguments, weights, index, plan, table, beta);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) { m.impl("pruned_step", TORCH_BOX(&pruned_step)); }

}  // namespace stprune
