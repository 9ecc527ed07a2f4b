// What the fused loss, its backward and the statistics of nodes share: arguments, their checks, and the layout of the
// data.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <type_traits>
#include <vector>

#include "check.h"
#include "cpu/residual_kernels.h"

namespace stprune {
namespace {

// Entries per thread below which starting a thread costs more than it saves.
constexpr int64_t GRAIN = 16384;

// One tensor [B, T, ...] whose further dimensions fold into columns.
struct Operand {
  char* data = nullptr;
  ScalarType dtype = ScalarType::Byte;
  int64_t size = 1;              // bytes of an entry
  int64_t sample = 0, step = 0;  // entries from one to the next
  bool rows = true;              // columns lie side by side
  std::vector<int64_t> offset;   // [F] of each column; empty where they lie side by side

  char* at(int64_t sample_index, int64_t step_index) const {
    return data + (sample_index * sample + step_index * step) * size;
  }
};

struct ResidualArguments {
  const char* op;
  const Tensor& prediction;
  const Tensor& target;
  const std::optional<Tensor>& mask;
  const std::optional<Tensor>& affine;         // [5 or 7, 1 or B, F] A
  const std::optional<Tensor>& horizon;        // [T] A
  const std::optional<Tensor>& column_weight;  // [B, F] A
  std::optional<double> null_value;
  double null_tolerance;
  int64_t loss;
  double parameter;
};

struct Problem {
  Operand prediction, target, mask;
  bool has_mask;
  int64_t samples, steps, nodes;
  bool has_null;
  double null_low, null_high;
  Loss loss;
  double parameter;
  Keep keep;
  bool wide;            // the accumulator is double
  const void* affine;   // A [rows, 1 or B, F], or null
  int64_t affine_step;  // from one of its rows to the next
  int64_t affine_sample, affine_rows;
  const void* horizon;        // A [T], or null
  const void* column_weight;  // A [B, F], or null
  bool direct;                // kernels may read the tensors themselves
  Storage storage;

  double horizon_at(int64_t step) const {
    if (horizon == nullptr) return 1.0;
    return wide ? static_cast<const double*>(horizon)[step]
                : static_cast<double>(static_cast<const float*>(horizon)[step]);
  }
};

inline bool is_floating(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16 ||
         dtype == ScalarType::Half;
}

inline Operand operand(const Tensor& tensor, int64_t nodes) {
  Operand out;
  out.data = static_cast<char*>(const_cast<void*>(tensor.const_data_ptr()));
  out.dtype = tensor.scalar_type();
  out.size = tensor.element_size();
  out.sample = tensor.stride(0);
  out.step = tensor.stride(1);
  int64_t side_by_side = 1;
  for (int64_t d = tensor.dim() - 1; d >= 2; --d) {
    if (tensor.size(d) != 1 && tensor.stride(d) != side_by_side) out.rows = false;
    side_by_side *= tensor.size(d);
  }
  if (out.rows || tensor.numel() == 0) return out;
  out.offset.assign(static_cast<size_t>(nodes), 0);
  int64_t below = 1;
  for (int64_t d = tensor.dim() - 1; d >= 2; --d) {
    for (int64_t j = 0; j < nodes; ++j)
      out.offset[static_cast<size_t>(j)] += j / below % tensor.size(d) * tensor.stride(d);
    below *= tensor.size(d);
  }
  return out;
}

inline double rounded_null(double value, ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return static_cast<double>(static_cast<float>(value));
    case ScalarType::BFloat16:
      return static_cast<double>(static_cast<float>(c10::BFloat16(static_cast<float>(value))));
    case ScalarType::Half:
      return static_cast<double>(static_cast<float>(c10::Half(static_cast<float>(value))));
    default:
      return value;
  }
}

inline Problem make_problem(const ResidualArguments& a) {
  const Tensor& p = a.prediction;
  STD_TORCH_CHECK(p.dim() >= 2, a.op, ": prediction must have two dimensions or more, got ", p.dim());
  const auto check_like = [&](const Tensor& tensor, const char* name) {
    bool same = tensor.dim() == p.dim();
    for (int64_t d = 0; same && d < p.dim(); ++d) same = tensor.size(d) == p.size(d);
    STD_TORCH_CHECK(same, a.op, ": ", name, " must have the prediction's shape");
  };
  check_like(a.target, "target");
  STD_TORCH_CHECK(is_floating(p.scalar_type()) && is_floating(a.target.scalar_type()), a.op, ": unsupported dtype");
  Problem out;
  out.samples = p.size(0);
  out.steps = p.size(1);
  out.nodes = 1;
  for (int64_t d = 2; d < p.dim(); ++d) out.nodes *= p.size(d);
  out.wide = p.scalar_type() == ScalarType::Double;
  STD_TORCH_CHECK(out.wide == (a.target.scalar_type() == ScalarType::Double), a.op, ": target has an unexpected dtype");
  out.prediction = operand(p, out.nodes);
  out.target = operand(a.target, out.nodes);
  out.has_mask = a.mask.has_value();
  if (out.has_mask) {
    check_like(*a.mask, "mask");
    check_dtype(*a.mask, ScalarType::Bool, a.op, "mask");
    out.mask = operand(*a.mask, out.nodes);
  }
  out.has_null = a.null_value.has_value();
  const double null = rounded_null(a.null_value.value_or(0.0), a.target.scalar_type());
  // No number lies between the bounds of NaN.
  constexpr double INFINITE = std::numeric_limits<double>::infinity();
  out.null_low = null == null ? null - a.null_tolerance : INFINITE;
  out.null_high = null == null ? null + a.null_tolerance : -INFINITE;
  STD_TORCH_CHECK(a.loss >= 0 && a.loss < NUM_LOSSES, a.op, ": loss must be a code in [0, ", NUM_LOSSES - 1, "], got ",
                  a.loss);
  out.loss = static_cast<Loss>(a.loss);
  out.parameter = a.parameter;
  out.keep = out.has_mask ? Keep::kMask : out.has_null ? Keep::kNull : Keep::kAll;
  const ScalarType accumulator = out.wide ? ScalarType::Double : ScalarType::Float;
  out.affine = out.horizon = out.column_weight = nullptr;
  out.affine_rows = out.affine_step = out.affine_sample = 0;
  if (a.affine.has_value()) {
    const Tensor& affine = *a.affine;
    check_dtype(affine, accumulator, a.op, "affine");
    STD_TORCH_CHECK(affine.is_contiguous() && affine.dim() == 3 &&
                        (affine.size(0) == MAP_ROWS || affine.size(0) == MAP_ROWS + BOUND_ROWS) &&
                        (affine.size(1) == 1 || affine.size(1) == out.samples) && affine.size(2) == out.nodes,
                    a.op, ": affine must be contiguous [5 or 7, 1 or B, F]");
    out.affine = affine.const_data_ptr();
    out.affine_rows = affine.size(0);
    out.affine_step = affine.size(1) * out.nodes;
    out.affine_sample = affine.size(1) == 1 ? 0 : out.nodes;
  }
  if (a.horizon.has_value()) {
    check_vector(*a.horizon, a.op, "horizon");
    check_dtype(*a.horizon, accumulator, a.op, "horizon");
    STD_TORCH_CHECK(a.horizon->numel() == out.steps, a.op, ": horizon must have one weight per step");
    out.horizon = a.horizon->const_data_ptr();
  }
  if (a.column_weight.has_value()) {
    const Tensor& weight = *a.column_weight;
    check_dtype(weight, accumulator, a.op, "column_weight");
    STD_TORCH_CHECK(
        weight.is_contiguous() && weight.dim() == 2 && weight.size(0) == out.samples && weight.size(1) == out.nodes,
        a.op, ": column_weight must be contiguous [B, F]");
    out.column_weight = weight.const_data_ptr();
  }
  out.direct = out.prediction.dtype == out.target.dtype && out.prediction.rows && out.target.rows &&
               (!out.has_mask || out.mask.rows) && out.prediction.dtype != ScalarType::Half &&
               !(out.prediction.dtype == ScalarType::BFloat16 && out.affine != nullptr);
  out.storage =
      out.wide ? Storage::kDouble
               : (out.direct && out.prediction.dtype == ScalarType::BFloat16 ? Storage::kBFloat16 : Storage::kFloat);
  return out;
}

// Makes a direct problem an indirect one, whose kernels read copies in float.
inline void make_indirect(Problem& problem) {
  problem.direct = false;
  problem.storage = problem.wide ? Storage::kDouble : Storage::kFloat;
}

// Calls body with a null pointer of the operand's type.
template <typename Body>
void with_type(ScalarType dtype, Body body) {
  switch (dtype) {
    case ScalarType::Float:
      return body(static_cast<float*>(nullptr));
    case ScalarType::Double:
      return body(static_cast<double*>(nullptr));
    case ScalarType::BFloat16:
      return body(static_cast<c10::BFloat16*>(nullptr));
    case ScalarType::Half:
      return body(static_cast<c10::Half*>(nullptr));
    default:
      return body(static_cast<uint8_t*>(nullptr));
  }
}

// Visits columns [first, first + width) of steps [from, from + steps) of a sample: body(entry, row, column).
template <typename T, typename Body>
inline void for_entries(const Operand& o, int64_t sample, int64_t from, int64_t steps, int64_t first, int64_t width,
                        const Body& body) {
  T* data = reinterpret_cast<T*>(o.at(sample, from));
  if (o.rows) {
    for (int64_t t = 0; t < steps; ++t) {
      for (int64_t j = 0; j < width; ++j) body(data[t * o.step + first + j], t, j);
    }
    return;
  }
  const int64_t* offset = o.offset.data() + first;
  if (o.step == 1) {  // steps lie side by side
    for (int64_t j = 0; j < width; ++j) {
      for (int64_t t = 0; t < steps; ++t) body(data[t + offset[j]], t, j);
    }
    return;
  }
  for (int64_t t = 0; t < steps; ++t) {
    for (int64_t j = 0; j < width; ++j) body(data[t * o.step + offset[j]], t, j);
  }
}

// A copy of such columns, SEGMENT entries from row to row.
template <typename A>
void copy_in(const Operand& o, int64_t sample, int64_t from, int64_t steps, int64_t first, int64_t width, A* out) {
  with_type(o.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for_entries<T>(o, sample, from, steps, first, width,
                   [&](const T& entry, int64_t t, int64_t j) { out[t * SEGMENT + j] = static_cast<A>(entry); });
  });
}

template <typename A>
void copy_out(const A* in, const Operand& o, int64_t sample, int64_t from, int64_t steps, int64_t first,
              int64_t width) {
  with_type(o.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for_entries<T>(o, sample, from, steps, first, width,
                   [&](T& entry, int64_t t, int64_t j) { entry = static_cast<T>(in[t * SEGMENT + j]); });
  });
}

// Copies of some columns of one sample, for tensors that the kernels cannot read themselves.
template <typename A>
struct Copies {
  Copies() = default;
  Copies(const Problem& problem, int64_t steps)
      : prediction(static_cast<size_t>(steps * SEGMENT)),
        target(static_cast<size_t>(steps * SEGMENT)),
        mask(problem.has_mask ? static_cast<size_t>(steps * SEGMENT) : 0),
        affine(problem.affine != nullptr ? static_cast<size_t>(problem.affine_rows * SEGMENT) : 0),
        column_weight(problem.column_weight != nullptr ? static_cast<size_t>(SEGMENT) : 0) {}

  void fill(const Problem& problem, int64_t sample, int64_t from, int64_t steps, int64_t first, int64_t width) {
    copy_in(problem.prediction, sample, from, steps, first, width, prediction.data());
    copy_in(problem.target, sample, from, steps, first, width, target.data());
    if (problem.has_mask) copy_in(problem.mask, sample, from, steps, first, width, mask.data());
    for (int64_t row = 0; row < problem.affine_rows; ++row) {
      const A* source =
          static_cast<const A*>(problem.affine) + row * problem.affine_step + sample * problem.affine_sample + first;
      std::copy(source, source + width, affine.data() + row * SEGMENT);
    }
    if (problem.column_weight != nullptr) {
      const A* source = static_cast<const A*>(problem.column_weight) + sample * problem.nodes + first;
      std::copy(source, source + width, column_weight.data());
    }
  }

  std::vector<A> prediction, target;  // [steps, SEGMENT]
  std::vector<uint8_t> mask;          // likewise
  std::vector<A> affine;              // [rows, SEGMENT]
  std::vector<A> column_weight;       // [SEGMENT]
};

}  // namespace
}  // namespace stprune
