// finite_stats: sum, number, least and largest of the finite entries of a vector in one pass, the same for any number
// of threads.
#include "cpu/blocks.h"

namespace stprune {
namespace {

Tensor finite_stats(const Tensor& values) {
  check_vector(values, "finite_stats", "values");
  const ScalarType dtype = values.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, "finite_stats: unsupported dtype");
  const BlockStats stats = dtype == ScalarType::Float
                               ? finite_stats_of(values.const_data_ptr<float>(), values.numel())
                               : finite_stats_of(values.const_data_ptr<double>(), values.numel());
  Tensor out = torch::stable::new_empty(values, {4}, ScalarType::Double);
  double* to = out.mutable_data_ptr<double>();
  to[0] = stats.sum;
  to[1] = static_cast<double>(stats.count);
  to[2] = stats.least;
  to[3] = stats.largest;
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) { m.impl("finite_stats", TORCH_BOX(&finite_stats)); }

}  // namespace stprune
