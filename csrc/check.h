// Checks that launchers repeat because reading out of bounds would follow; everything a user can get wrong is checked
// in stprune/ops with a better message.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

namespace stprune {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_vector(const Tensor& tensor, const char* op, const char* argument) {
  STD_TORCH_CHECK(tensor.dim() == 1, op, ": ", argument, " must be one-dimensional, got ", tensor.dim(), " dimensions");
  STD_TORCH_CHECK(tensor.is_contiguous(), op, ": ", argument, " must be contiguous");
}

inline void check_dtype(const Tensor& tensor, ScalarType dtype, const char* op, const char* argument) {
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, op, ": ", argument, " has an unexpected dtype");
}

// A score table's columns: scores [n] float32, marks [n] uint8.
inline void check_table(const Tensor& scores, const Tensor& marks, const char* op) {
  check_vector(scores, op, "scores");
  check_vector(marks, op, "marks");
  check_dtype(scores, ScalarType::Float, op, "scores");
  check_dtype(marks, ScalarType::Byte, op, "marks");
  STD_TORCH_CHECK(scores.numel() == marks.numel(), op, ": scores and marks must have one size");
}

}  // namespace stprune
