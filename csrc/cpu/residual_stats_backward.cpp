// residual_stats_backward: gradient of sum_b grad_loss[b] * loss[b] with respect to the prediction.
#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>

#include "cpu/residual.h"

namespace stprune {
namespace {

// Entries converted and written together; two buffers of this many stay in the first-level cache.
constexpr int64_t kBlock = 1024;

template <Loss kLoss, bool kNull, bool kMask, typename A>
void slopes(const A* prediction, const A* target, const uint8_t* mask, int64_t n, A null_value, A delta, A scale,
            A* out) {
  for (int64_t j = 0; j < n; ++j) {
    const A e = prediction[j] - target[j];
    A slope;
    if constexpr (kLoss == Loss::kMae) slope = (e > 0 ? scale : A(0)) - (e < 0 ? scale : A(0));
    if constexpr (kLoss == Loss::kMse) slope = scale * (A(2) * e);
    if constexpr (kLoss == Loss::kHuber) {
      const A low = e < -delta ? -delta : e;  // a NaN stays
      slope = scale * (low > delta ? delta : low);
    }
    if constexpr (kNull) slope = (target[j] == target[j]) & (target[j] != null_value) ? slope : A(0);
    if constexpr (kMask) slope = mask[j] != 0 ? slope : A(0);
    out[j] = slope;
  }
}

template <typename A>
using Slopes = void (*)(const A*, const A*, const uint8_t*, int64_t, A, A, A, A*);

template <Loss kLoss, typename A>
Slopes<A> slopes_masked(bool null, bool mask) {
  if (null) return mask ? &slopes<kLoss, true, true, A> : &slopes<kLoss, true, false, A>;
  return mask ? &slopes<kLoss, false, true, A> : &slopes<kLoss, false, false, A>;
}

template <typename A>
Slopes<A> slopes_for(Loss loss, bool null, bool mask) {
  switch (loss) {
    case Loss::kMae:
      return slopes_masked<Loss::kMae, A>(null, mask);
    case Loss::kMse:
      return slopes_masked<Loss::kMse, A>(null, mask);
    default:
      return slopes_masked<Loss::kHuber, A>(null, mask);
  }
}

template <typename A, typename T>
void residual_stats_backward_kernel(const Grid<T>& grid, const A* grad_loss /* [B] */, const int64_t* count /* [B] */,
                                    T* out /* [B, T, F] */) {
  const int64_t size = grid.steps * grid.nodes, blocks = (size + kBlock - 1) / kBlock;
  const Slopes<A> kernel = slopes_for<A>(grid.loss, grid.has_null, grid.mask != nullptr);
  const A null_value = static_cast<A>(static_cast<T>(grid.null_value)), delta = static_cast<A>(grid.delta);
  torch::stable::parallel_for(0, grid.samples * blocks, kGrain / kBlock, [&](int64_t begin, int64_t end) {
    A prediction[kBlock], target[kBlock], slope[kBlock];
    for (int64_t i = begin; i < end; ++i) {
      const int64_t sample = i / blocks, first = i % blocks * kBlock, n = std::min(kBlock, size - first);
      const int64_t offset = sample * size + first;
      const double entries = static_cast<double>(std::max<int64_t>(count[sample], 1));
      A* destination = slope;
      if constexpr (std::is_same_v<A, T>) destination = out + offset;
      kernel(widened(grid.prediction + offset, n, prediction), widened(grid.target + offset, n, target),
             grid.mask == nullptr ? nullptr : grid.mask + offset, n, null_value, delta,
             static_cast<A>(static_cast<double>(grad_loss[sample]) / entries), destination);
      if constexpr (!std::is_same_v<A, T>) {
        for (int64_t j = 0; j < n; ++j) out[offset + j] = static_cast<T>(slope[j]);
      }
    }
  });
}

template <typename T>
Tensor launch(const Tensor& grad_loss, const Tensor& prediction, const Tensor& target,
              const ResidualArguments& arguments, const Tensor& count) {
  using A = std::conditional_t<std::is_same_v<T, double>, double, float>;
  check_dtype(grad_loss, std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float, arguments.op, "grad_loss");
  Tensor out = torch::stable::empty_like(prediction);
  residual_stats_backward_kernel<A>(make_grid<T>(prediction, target, arguments), grad_loss.const_data_ptr<A>(),
                                    count.const_data_ptr<int64_t>(), static_cast<T*>(out.mutable_data_ptr()));
  return out;
}

Tensor residual_stats_backward(const Tensor& grad_loss, const Tensor& prediction, const Tensor& target,
                               const std::optional<Tensor>& mask, std::optional<double> null_value,
                               const std::string& loss, double huber_delta, const Tensor& count) {
  const ResidualArguments arguments{"residual_stats_backward", mask, null_value, loss, huber_delta};
  check_residual(prediction, target, arguments);
  check_vector(grad_loss, arguments.op, "grad_loss");
  check_vector(count, arguments.op, "count");
  check_dtype(count, ScalarType::Long, arguments.op, "count");
  STD_TORCH_CHECK(grad_loss.numel() == prediction.size(0) && count.numel() == prediction.size(0), arguments.op,
                  ": grad_loss and count must have one value per sample");
  switch (prediction.scalar_type()) {
    case ScalarType::Float:
      return launch<float>(grad_loss, prediction, target, arguments, count);
    case ScalarType::Double:
      return launch<double>(grad_loss, prediction, target, arguments, count);
    case ScalarType::BFloat16:
      return launch<c10::BFloat16>(grad_loss, prediction, target, arguments, count);
    default:
      return launch<c10::Half>(grad_loss, prediction, target, arguments, count);
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) { m.impl("residual_stats_backward", TORCH_BOX(&residual_stats_backward)); }

}  // namespace stprune
