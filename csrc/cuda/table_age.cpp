// Registration of table_age and count_nonfinite for CUDA.
#include "cuda/glue.h"

namespace stprune {
namespace {

void check_on_device(const Tensor& scores, const Tensor& marks, const char* op) {
  check_table(scores, marks, op);
  check_same_device(marks, scores, op, "marks");
}

void table_age(Tensor scores, Tensor marks, std::optional<double> mean, double keep) {
  check_on_device(scores, marks, "table_age");
  const OnDevice on(scores);
  check_launch(stprune_cuda_table_age(scores.mutable_data_ptr<float>(), marks.mutable_data_ptr<uint8_t>(),
                                      scores.numel(), mean.has_value(), mean.value_or(0.0), keep, on.stream()),
               "table_age");
}

Tensor count_nonfinite(const Tensor& scores, const Tensor& marks) {
  check_on_device(scores, marks, "count_nonfinite");
  const int64_t n = scores.numel();
  const OnDevice on(scores);
  Tensor out = torch::stable::new_empty(scores, {1}, ScalarType::Long);
  const Tensor scratch = scratch_like(scores, stprune_cuda_count_nonfinite_scratch(n));
  check_launch(stprune_cuda_count_nonfinite(scores.const_data_ptr<float>(), marks.const_data_ptr<uint8_t>(), n,
                                            scratch.mutable_data_ptr(), out.mutable_data_ptr<int64_t>(), on.stream()),
               "count_nonfinite");
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CUDA, m) {
  m.impl("table_age", TORCH_BOX(&table_age));
  m.impl("count_nonfinite", TORCH_BOX(&count_nonfinite));
}

}  // namespace stprune
