// table_update: takes the scores of a batch into the table.
#include "cpu/table_update.h"

namespace stprune {
namespace {

void table_update(std::optional<Tensor> scores, std::optional<Tensor> marks, std::optional<Tensor> variance,
                  Tensor count, const Tensor& index, const Tensor& values, const std::optional<Tensor>& entries,
                  const std::optional<Tensor>& weight, double beta, bool trained) {
  const char* op = "table_update";
  const ScoreTable table = score_table(op, scores, marks, variance, count, scores.has_value() ? scores->numel() : 0);
  const int64_t size = index.numel();
  check_vector(index, op, "index");
  check_dtype(index, ScalarType::Long, op, "index");
  check_vector(values, op, "values");
  check_dtype(values, ScalarType::Float, op, "values");
  STD_TORCH_CHECK(values.numel() == size, op, ": values must have the shape of index");
  if (entries.has_value()) {
    check_vector(*entries, op, "entries");
    check_dtype(*entries, ScalarType::Long, op, "entries");
    STD_TORCH_CHECK(entries->numel() == size, op, ": entries must have the shape of index");
  }
  const int64_t* ids = index.const_data_ptr<int64_t>();
  if (table.scores != nullptr) check_ids(op, ids, size, table.n);
  if (weight.has_value()) {
    check_vector(*weight, op, "weight");
    check_dtype(*weight, ScalarType::Float, op, "weight");
    STD_TORCH_CHECK(weight->numel() == size, op, ": weight must have the shape of index");
    const float* w = weight->const_data_ptr<float>();
    for (int64_t i = 0; i < size; ++i) {
      STD_TORCH_CHECK(!std::isnan(w[i]), op, ": index must hold ids of the plan, got ", ids[i]);
    }
  }
  table_update_kernel(
      table,
      scored_batch(ids, values.const_data_ptr<float>(),
                   entries.has_value() ? entries->const_data_ptr<int64_t>() : nullptr, size, beta, trained),
      op);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) { m.impl("table_update", TORCH_BOX(&table_update)); }

}  // namespace stprune
