// Registration of shuffle and permute for CUDA.
#include "cuda/glue.h"

namespace stprune {
namespace {

constexpr int64_t LONGEST = int64_t{1} << 40;

void permute(Tensor out, int64_t n, int64_t start, int64_t seed, int64_t epoch, int64_t stream) {
  check_vector(out, "permute", "out");
  check_dtype(out, ScalarType::Long, "permute", "out");
  const int64_t count = out.numel();
  STD_TORCH_CHECK(n <= LONGEST && start >= 0 && start + count <= n, "permute: the stretch must lie in [0, ", n, "]");
  const OnDevice on(out);
  check_launch(stprune_cuda_permute(n, start, count, seed, epoch, stream, out.mutable_data_ptr<int64_t>(), on.stream()),
               "permute");
}

Tensor shuffle(const Tensor& indices, int64_t seed, int64_t epoch, const std::optional<Tensor>& buffer) {
  check_vector(indices, "shuffle", "indices");
  const int64_t n = indices.numel(), size = static_cast<int64_t>(indices.element_size());
  STD_TORCH_CHECK(n <= LONGEST, "shuffle: indices must have at most 2^40 elements");
  STD_TORCH_CHECK(size == 1 || size == 2 || size == 4 || size == 8 || size == 16, "shuffle: unsupported dtype");
  const OnDevice on(indices);
  Output out(buffer, indices, indices.scalar_type(), "shuffle", "out");
  check_launch(stprune_cuda_shuffle(indices.const_data_ptr(), n, static_cast<int>(size), seed, epoch,
                                    out.take<void>({n}), on.stream()),
               "shuffle");
  return out.result();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CUDA, m) {
  m.impl("permute", TORCH_BOX(&permute));
  m.impl("shuffle", TORCH_BOX(&shuffle));
}

}  // namespace stprune
