// keep_pairs: the scores of a batch's drawn nodes, kept until their epoch ends.
#include "check.h"

namespace stprune {
namespace {

void keep_pairs(const Tensor& index, const Tensor& node, const Tensor& scores, Tensor kept_node, Tensor kept_score,
                Tensor fresh) {
  const char* op = "keep_pairs";
  check_vector(index, op, "index");
  check_dtype(index, ScalarType::Long, op, "index");
  check_vector(fresh, op, "fresh");
  check_dtype(fresh, ScalarType::Bool, op, "fresh");
  check_dtype(node, ScalarType::Long, op, "node");
  check_dtype(scores, ScalarType::Float, op, "scores");
  check_dtype(kept_node, ScalarType::Int, op, "kept_node");
  check_dtype(kept_score, ScalarType::Float, op, "kept_score");
  STD_TORCH_CHECK(kept_node.dim() == 2 && kept_node.size(1) > 0, op, ": kept_node must be [windows, drawn nodes]");
  const int64_t windows = fresh.numel(), count = kept_node.size(1);
  const auto fits = [&](const Tensor& tensor, int64_t rows) {
    return tensor.dim() == 2 && tensor.size(0) == rows && tensor.size(1) == count && tensor.is_contiguous();
  };
  STD_TORCH_CHECK(
      fits(kept_node, windows) && fits(kept_score, windows) && fits(node, index.numel()) && fits(scores, index.numel()),
      op, ": node and scores must be contiguous rows as those that are kept");
  const int64_t *id = index.const_data_ptr<int64_t>(), *from = node.const_data_ptr<int64_t>();
  const float* score = scores.const_data_ptr<float>();
  int32_t* to = kept_node.mutable_data_ptr<int32_t>();
  float* score_to = kept_score.mutable_data_ptr<float>();
  bool* mark = fresh.mutable_data_ptr<bool>();
  // Backwards: of equal windows the last one writes first, and the others find its nodes.
  for (int64_t row = index.numel() - 1; row >= 0; --row) {
    if (id[row] < 0 || id[row] >= windows || to[id[row] * count] != 0) continue;
    for (int64_t i = 0; i < count; ++i) {
      to[id[row] * count + i] = static_cast<int32_t>(from[row * count + i] + 1);
      score_to[id[row] * count + i] = score[row * count + i];
    }
    mark[id[row]] = true;
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) { m.impl("keep_pairs", TORCH_BOX(&keep_pairs)); }

}  // namespace stprune
