// pruned_loss_backward: gradient of the weighted batch loss, and of the losses of the samples, in one pass.
#include <tuple>

#include "cpu/memory.h"
#include "cpu/residual.h"

namespace stprune {
namespace {

// Entries of a flat piece: 32 KiB of each float tensor.
constexpr int64_t PIECE = 8192;

// A tensor of the layout of `like`, whose entries are still to be written.
Tensor new_gradient(const char* op, const Tensor& like) {
  constexpr int64_t DIMS = 8;
  if (like.dim() > DIMS || !like.is_contiguous()) {
    Tensor out = torch::stable::empty_like(like);
    advise_huge_pages(out.mutable_data_ptr(), out.numel() * static_cast<int64_t>(out.element_size()));
    return out;
  }
  int64_t sizes[DIMS], strides[DIMS];
  for (int64_t d = 0; d < like.dim(); ++d) {
    sizes[d] = like.size(d);
    strides[d] = like.stride(d);
  }
  Tensor out = new_host_tensor(op, like.dim(), sizes, strides, like.scalar_type());
  advise_huge_pages(out.mutable_data_ptr(), out.numel() * static_cast<int64_t>(out.element_size()));
  return out;
}

// What the slopes of a sample's entries are multiplied by.
struct Coefficient {
  double value = 0.0;  // share of the batch loss's gradient, which the columns' weights multiply
  double loss = 0.0;   // share of the gradient of the sample's own loss
};

struct Gradients {
  Operand prediction;
  Operand target;  // without data where it is not asked for
};

// The tensors' entries lie in the same order, side by side, within every sample.
bool is_flat(const Tensor& like, const Tensor& tensor) {
  int64_t total = 1;
  for (int64_t d = 1; d < like.dim(); ++d) {
    if (like.size(d) != 1 && like.stride(d) != tensor.stride(d)) return false;
    total += (like.size(d) - 1) * tensor.stride(d);
  }
  return total * like.size(0) == like.numel();
}

ResidualRow row_of(const Problem& problem, double coefficient) {
  ResidualRow row{};
  row.has_null = problem.has_null;
  row.bounds = problem.affine_rows > MAP_ROWS;
  row.null_low = problem.null_low;
  row.null_high = problem.null_high;
  row.parameter = problem.parameter;
  row.coefficient = coefficient;
  return row;
}

template <typename A>
void backward_kernel(const Problem& problem, bool flat, const Coefficient* coefficient /* [B] */,
                     const Gradients& out) {
  const auto kernel = residual_kernels().slopes[static_cast<int>(problem.storage)][static_cast<int>(problem.loss)]
                                               [static_cast<int>(problem.keep)][problem.affine != nullptr];
  const int64_t size = problem.steps * problem.nodes;
  if (size == 0 || problem.samples == 0) return;
  const auto at = [](const Operand& o, int64_t sample, int64_t offset) {
    return o.data + (sample * o.sample + offset) * o.size;
  };
  if (flat) {
    const int64_t pieces = (size + PIECE - 1) / PIECE;
    const int64_t grain = std::max<int64_t>(1, GRAIN / std::min(size, PIECE));
    torch::stable::parallel_for(0, problem.samples * pieces, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t sample = i / pieces, first = i % pieces * PIECE;
        ResidualRow row = row_of(problem, coefficient[sample].value + coefficient[sample].loss);
        row.width = std::min(PIECE, size - first);
        row.prediction = at(problem.prediction, sample, first);
        row.target = at(problem.target, sample, first);
        if (problem.has_mask) row.mask = reinterpret_cast<const uint8_t*>(at(problem.mask, sample, first));
        row.grad_prediction = at(out.prediction, sample, first);
        if (out.target.data != nullptr) row.grad_target = at(out.target, sample, first);
        kernel(row);
      }
    });
    return;
  }
  // Columns of a few steps at a time, through copies where the tensors cannot be read or written themselves.
  const int64_t segments = (problem.nodes + SEGMENT - 1) / SEGMENT, deep = std::min<int64_t>(problem.steps, ROWS);
  const int64_t blocks = (problem.steps + ROWS - 1) / ROWS, parts = segments * blocks;
  const int64_t grain = std::max<int64_t>(1, GRAIN / (deep * std::min(problem.nodes, SEGMENT)));
  torch::stable::parallel_for(0, problem.samples * parts, grain, [&](int64_t begin, int64_t end) {
    Copies<A> copies;
    std::vector<A> grad_prediction, grad_target, scale(problem.column_weight == nullptr ? 0 : SEGMENT);
    if (!problem.direct) {
      copies = Copies<A>(problem, deep);
      grad_prediction.resize(static_cast<size_t>(deep * SEGMENT));
      if (out.target.data != nullptr) grad_target.resize(grad_prediction.size());
    }
    for (int64_t i = begin; i < end; ++i) {
      const int64_t sample = i / parts, first = i % parts / blocks * SEGMENT, from = i % blocks * ROWS;
      const int64_t width = std::min(SEGMENT, problem.nodes - first), steps = std::min(ROWS, problem.steps - from);
      if (!problem.direct) copies.fill(problem, sample, from, steps, first, width);
      for (int64_t t = 0; t < steps; ++t) {
        const Coefficient c = coefficient[sample];
        const double horizon = problem.horizon_at(from + t);
        ResidualRow row = row_of(problem, (c.value + c.loss) * horizon);
        if (problem.column_weight != nullptr) {
          const A* weight = static_cast<const A*>(problem.column_weight) + sample * problem.nodes + first;
          for (int64_t j = 0; (t == 0 || problem.horizon != nullptr) && j < width; ++j) {
            scale[static_cast<size_t>(j)] =
                static_cast<A>((c.value * static_cast<double>(weight[j]) + c.loss) * horizon);
          }
          row.scale = scale.data();
        }
        row.width = width;
        if (problem.direct) {
          const auto here = [&](const Operand& o) { return o.at(sample, from + t) + first * o.size; };
          row.prediction = here(problem.prediction);
          row.target = here(problem.target);
          if (problem.has_mask) row.mask = reinterpret_cast<const uint8_t*>(here(problem.mask));
          if (problem.affine != nullptr) {
            row.affine = static_cast<const A*>(problem.affine) + sample * problem.affine_sample + first;
            row.affine_step = problem.affine_step;
          }
          row.grad_prediction = here(out.prediction);
          if (out.target.data != nullptr) row.grad_target = here(out.target);
        } else {
          row.prediction = copies.prediction.data() + t * SEGMENT;
          row.target = copies.target.data() + t * SEGMENT;
          row.mask = problem.has_mask ? copies.mask.data() + t * SEGMENT : nullptr;
          row.affine = copies.affine.data();
          row.affine_step = SEGMENT;
          row.grad_prediction = grad_prediction.data() + t * SEGMENT;
          if (out.target.data != nullptr) row.grad_target = grad_target.data() + t * SEGMENT;
        }
        kernel(row);
      }
      if (!problem.direct) {
        copy_out(grad_prediction.data(), out.prediction, sample, from, steps, first, width);
        if (out.target.data != nullptr) copy_out(grad_target.data(), out.target, sample, from, steps, first, width);
      }
    }
  });
}

template <typename A>
std::vector<Coefficient> coefficients(const char* op, const Problem& problem, const std::optional<Tensor>& grad_value,
                                      const std::optional<Tensor>& grad_loss, const std::optional<Tensor>& weight,
                                      const Tensor& count) {
  const auto dtype = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;
  const auto values = [&](const std::optional<Tensor>& tensor, const char* name, int64_t size) -> const A* {
    if (!tensor.has_value()) return nullptr;
    check_dtype(*tensor, dtype, op, name);
    STD_TORCH_CHECK(tensor->numel() == size && tensor->is_contiguous(), op, ": ", name, " has an unexpected shape");
    return tensor->template const_data_ptr<A>();
  };
  check_vector(count, op, "count");
  check_dtype(count, ScalarType::Long, op, "count");
  STD_TORCH_CHECK(count.numel() == problem.samples + 1, op, ": count must have one value per sample and their sum");
  const A* of_value = values(grad_value, "grad_value", 1);
  const A* of_loss = values(grad_loss, "grad_loss", problem.samples);
  const A* w = values(weight, "weight", problem.samples);
  // Samples of one column: its weight is one of the sample.
  const A* single_weight = problem.nodes == 1 ? static_cast<const A*>(problem.column_weight) : nullptr;
  const int64_t* entries = count.const_data_ptr<int64_t>();
  const int64_t total = entries[problem.samples];
  std::vector<Coefficient> out(static_cast<size_t>(problem.samples));
  for (int64_t b = 0; b < problem.samples; ++b) {
    Coefficient& c = out[static_cast<size_t>(b)];
    if (of_value != nullptr) {
      c.value = static_cast<double>(*of_value) / static_cast<double>(std::max<int64_t>(total, 1));
      if (w != nullptr) c.value *= static_cast<double>(w[b]);
      if (single_weight != nullptr) c.value *= static_cast<double>(single_weight[b]);
    }
    if (of_loss != nullptr)
      c.loss = static_cast<double>(of_loss[b]) / static_cast<double>(std::max<int64_t>(entries[b], 1));
  }
  return out;
}

// Gradients of prediction and, if asked for, of target (else empty).
std::tuple<Tensor, Tensor> pruned_loss_backward(
    const std::optional<Tensor>& grad_value, const std::optional<Tensor>& grad_loss, const Tensor& prediction,
    const Tensor& target, const std::optional<Tensor>& mask, const std::optional<Tensor>& weight,
    const std::optional<Tensor>& affine, const std::optional<Tensor>& horizon,
    const std::optional<Tensor>& column_weight, std::optional<double> null_value, double null_tolerance, int64_t loss,
    double parameter, const Tensor& count, bool target_too) {
  const char* op = "pruned_loss_backward";
  const ResidualArguments arguments{op,         prediction,     target, mask,     affine, horizon, column_weight,
                                    null_value, null_tolerance, loss,   parameter};
  Problem problem = make_problem(arguments);
  const std::vector<Coefficient> coefficient =
      problem.wide ? coefficients<double>(op, problem, grad_value, grad_loss, weight, count)
                   : coefficients<float>(op, problem, grad_value, grad_loss, weight, count);
  if (problem.nodes == 1) problem.column_weight = nullptr;
  Tensor to_prediction = new_gradient(op, prediction);
  Tensor to_target = target_too ? new_gradient(op, target) : new_host_vector(op, 0, target.scalar_type());
  Gradients out{operand(to_prediction, problem.nodes), target_too ? operand(to_target, problem.nodes) : Operand{}};
  const bool same_dtype =
      problem.prediction.dtype == problem.target.dtype && problem.prediction.dtype != ScalarType::Half;
  const bool flat = same_dtype && problem.affine == nullptr && problem.horizon == nullptr &&
                    problem.column_weight == nullptr && is_flat(to_prediction, prediction) &&
                    is_flat(to_prediction, target) && (!problem.has_mask || is_flat(to_prediction, *arguments.mask)) &&
                    is_flat(to_prediction, to_prediction) && (!target_too || is_flat(to_prediction, to_target));
  if (flat) {
    problem.storage = problem.wide                                       ? Storage::kDouble
                      : problem.prediction.dtype == ScalarType::BFloat16 ? Storage::kBFloat16
                                                                         : Storage::kFloat;
  } else if (!out.prediction.rows || (target_too && !out.target.rows)) {
    make_indirect(problem);
  }
  if (problem.wide) {
    backward_kernel<double>(problem, flat, coefficient.data(), out);
  } else {
    backward_kernel<float>(problem, flat, coefficient.data(), out);
  }
  return {to_prediction, to_target};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) { m.impl("pruned_loss_backward", TORCH_BOX(&pruned_loss_backward)); }

}  // namespace stprune
