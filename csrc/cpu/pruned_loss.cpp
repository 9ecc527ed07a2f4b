// pruned_loss: the weighted loss of a batch and, per sample, loss, spatial and temporal spread of |prediction -
// target|, score and number of entries (eq. 1-4, 13), in one pass over both.
#include "cpu/pruned_loss.h"

#include <tuple>

namespace stprune {
namespace {

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

template <typename A>
Outputs launch(const ResidualArguments& arguments, const std::optional<Tensor>& weight, const Score& weights,
               bool columns) {
  Problem problem = make_problem(arguments);
  const Tensor& prediction = arguments.prediction;
  const int64_t samples = problem.samples;
  const auto dtype = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;
  if (weight.has_value()) {
    check_vector(*weight, arguments.op, "weight");
    check_dtype(*weight, dtype, arguments.op, "weight");
    STD_TORCH_CHECK(weight->numel() == samples, arguments.op, ": weight must have one value per sample");
  }
  Tensor value = torch::stable::new_empty(prediction, {}, dtype);
  Tensor loss = torch::stable::new_empty(prediction, {samples}, dtype);
  Tensor rest = torch::stable::new_empty(prediction, {3, samples}, dtype);
  Tensor count = torch::stable::new_empty(prediction, {samples}, ScalarType::Long);
  Tensor column_mean = columns ? torch::stable::new_empty(prediction, {samples, problem.nodes}, dtype)
                               : torch::stable::new_empty(prediction, {0}, dtype);
  std::vector<double> sum(static_cast<size_t>(samples));
  const SampleOutputs<A> out{loss.template mutable_data_ptr<A>(), rest.template mutable_data_ptr<A>(),
                             count.template mutable_data_ptr<int64_t>(), sum.data(),
                             columns ? column_mean.template mutable_data_ptr<A>() : nullptr};
  const A* w = weight.has_value() ? weight->const_data_ptr<A>() : nullptr;
  *value.template mutable_data_ptr<A>() = run_pruned_loss<A>(problem, w, weights, out);
  return {value, loss, rest, count, column_mean};
}

Outputs pruned_loss(const Tensor& prediction, const Tensor& target, const std::optional<Tensor>& mask,
                    const std::optional<Tensor>& weight, const std::optional<Tensor>& affine,
                    const std::optional<Tensor>& horizon, const std::optional<Tensor>& column_weight,
                    std::optional<double> null_value, const std::string& loss, double parameter, double spatial,
                    double temporal, bool columns) {
  const ResidualArguments arguments{"pruned_loss", prediction,    target,     mask, affine,
                                    horizon,       column_weight, null_value, loss, parameter};
  const Score weights{spatial, temporal};
  return prediction.scalar_type() == ScalarType::Double ? launch<double>(arguments, weight, weights, columns)
                                                        : launch<float>(arguments, weight, weights, columns);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) { m.impl("pruned_loss", TORCH_BOX(&pruned_loss)); }

}  // namespace stprune
