// What residual_stats and its backward share: arguments, their checks, and access to the data.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>

#include "check.h"

namespace stprune {
namespace {

enum class Loss { kMae, kMse, kHuber };

// Entries per thread below which starting a thread costs more than it saves.
constexpr int64_t kGrain = 16384;

struct ResidualArguments {
  const char* op;
  const std::optional<Tensor>& mask;
  std::optional<double> null_value;
  const std::string& loss;
  double delta;
};

// A row segment in the accumulator's type: the input itself, or a copy in `buffer`.
template <typename A, typename T>
inline const A* widened(const T* source, int64_t width, A* buffer) {
  if constexpr (std::is_same_v<A, T>) {
    return source;
  } else {
    for (int64_t j = 0; j < width; ++j) buffer[j] = static_cast<A>(source[j]);
    return buffer;
  }
}

template <typename T>
struct Grid {
  const T* prediction;  // [B, T, F]
  const T* target;      // [B, T, F]
  const uint8_t* mask;  // [B, T, F] bool, or null
  int64_t samples, steps, nodes;
  bool has_null;
  double null_value;
  Loss loss;
  double delta;
};

inline Loss parse_loss(const ResidualArguments& arguments) {
  if (arguments.loss == "mae") return Loss::kMae;
  if (arguments.loss == "mse") return Loss::kMse;
  STD_TORCH_CHECK(arguments.loss == "huber", arguments.op, ": unknown loss ", arguments.loss);
  return Loss::kHuber;
}

inline void check_residual(const Tensor& prediction, const Tensor& target, const ResidualArguments& arguments) {
  const char* op = arguments.op;
  STD_TORCH_CHECK(prediction.dim() == 3, op, ": prediction must have three dimensions, got ", prediction.dim());
  const auto check_like = [&](const Tensor& tensor, const char* name) {
    STD_TORCH_CHECK(tensor.is_contiguous(), op, ": ", name, " must be contiguous");
    STD_TORCH_CHECK(tensor.dim() == 3 && tensor.size(0) == prediction.size(0) && tensor.size(1) == prediction.size(1) &&
                        tensor.size(2) == prediction.size(2),
                    op, ": ", name, " must have the prediction's shape");
  };
  check_like(prediction, "prediction");
  check_like(target, "target");
  check_dtype(target, prediction.scalar_type(), op, "target");
  if (arguments.mask.has_value()) {
    check_like(*arguments.mask, "mask");
    check_dtype(*arguments.mask, ScalarType::Bool, op, "mask");
  }
  const ScalarType dtype = prediction.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16 ||
                      dtype == ScalarType::Half,
                  op, ": unsupported dtype");
}

template <typename T>
Grid<T> make_grid(const Tensor& prediction, const Tensor& target, const ResidualArguments& arguments) {
  return Grid<T>{static_cast<const T*>(prediction.const_data_ptr()),
                 static_cast<const T*>(target.const_data_ptr()),
                 arguments.mask.has_value() ? static_cast<const uint8_t*>(arguments.mask->const_data_ptr()) : nullptr,
                 prediction.size(0),
                 prediction.size(1),
                 prediction.size(2),
                 arguments.null_value.has_value(),
                 arguments.null_value.value_or(0.0),
                 parse_loss(arguments),
                 arguments.delta};
}

}  // namespace
}  // namespace stprune
