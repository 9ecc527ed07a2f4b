// table_update: takes the scores of a batch into the table.
#include "cpu/table_update.h"

namespace stprune {
namespace {

void table_update(Tensor scores, Tensor marks, std::optional<Tensor> variance, Tensor count, const Tensor& index,
                  const Tensor& values, double beta, bool counted) {
  const char* op = "table_update";
  const ScoreTable table = score_table(op, scores, marks, variance, count);
  check_vector(index, op, "index");
  check_dtype(index, ScalarType::Long, op, "index");
  check_vector(values, op, "values");
  check_dtype(values, ScalarType::Float, op, "values");
  STD_TORCH_CHECK(values.numel() == index.numel(), op, ": values must have the shape of index");
  const ScoredBatch batch{index.const_data_ptr<int64_t>(), values.const_data_ptr<float>(), index.numel(),
                          static_cast<float>(beta), static_cast<float>(1.0 - beta)};
  check_ids(op, batch.index, batch.size, table.n);
  table_update_kernel(table, batch, op);
  if (counted) table.count[0] += batch.size;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) { m.impl("table_update", TORCH_BOX(&table_update)); }

}  // namespace stprune
