// select: indices of the k largest keys of every row, ascending. topk: the same with their values, and largest first if
// asked.
#include <exception>
#include <mutex>
#include <numeric>
#include <tuple>

#include "cpu/order.h"
#include "cpu/sort.h"

namespace stprune {
namespace {

// Rows at least this long are worked on one after another, each on all threads; shorter ones side by side.
constexpr int64_t LONG_ROW = 8 * CHUNK;
// Keys a task has at least.
constexpr int64_t TASK_KEYS = 1 << 14;

template <typename Body>
void for_rows(int64_t rows, int64_t n, const Body& body) {
  if (rows == 1 || n >= LONG_ROW) {
    for (int64_t row = 0; row < rows; ++row) body(row);
    return;
  }
  // An exception must not leave the parallel region.
  std::exception_ptr error;
  std::mutex mutex;
  torch::stable::parallel_for(0, rows, std::max<int64_t>(1, TASK_KEYS / n), [&](int64_t begin, int64_t end) {
    try {
      for (int64_t row = begin; row < end; ++row) body(row);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      error = std::current_exception();
    }
  });
  if (error) std::rethrow_exception(error);
}

template <typename Source>
void select_row(const Source& source, int64_t k, int64_t* out /* [k] */) {
  if (k < source.n) {
    select_largest(source, k, k, out);
    return;
  }
  for_chunks(num_chunks(source.n), [&](int64_t chunk) {
    int64_t* to = out + chunk * CHUNK;
    std::iota(to, to + chunk_size(source.n, chunk), chunk * CHUNK);
  });
}

template <typename Source, typename Stored>
void topk_row(const Source& source, const Stored* keys /* [n] */, int64_t k, bool sorted, Stored* values /* [k] */,
              int64_t* indices /* [k] */) {
  select_row(source, k, indices);
  if (sorted) sort_by_key(source, k, indices);
  for (int64_t i = 0; i < k; ++i) values[i] = keys[indices[i]];
}

int64_t row_size(const Tensor& keys) { return keys.size(keys.dim() - 1); }

// Calls body(keys in memory, source of a row) with the types that belong to the dtype.
template <typename Body>
void with_keys(const Tensor& keys, const char* op, const Body& body) {
  const int64_t n = row_size(keys);
  const void* data = keys.const_data_ptr();
  switch (keys.scalar_type()) {
    case ScalarType::Float:
      return body(static_cast<const float*>(data), [n](const float* row) { return StoredKeys<float>{row, n}; });
    case ScalarType::Double:
      return body(static_cast<const double*>(data), [n](const double* row) { return StoredKeys<double>{row, n}; });
    case ScalarType::Half:
      return body(static_cast<const uint16_t*>(data),
                  [n](const uint16_t* row) { return NarrowKeys<&Kernels::widen_f16>{row, n}; });
    case ScalarType::BFloat16:
      return body(static_cast<const uint16_t*>(data),
                  [n](const uint16_t* row) { return NarrowKeys<&Kernels::widen_bf16>{row, n}; });
    default:
      STD_TORCH_CHECK(false, op, ": unsupported dtype");
  }
}

void check_keys(const Tensor& keys, int64_t k, const char* op) {
  STD_TORCH_CHECK(keys.dim() >= 1 && keys.is_contiguous(), op, ": keys must be contiguous rows");
  STD_TORCH_CHECK(k >= 0 && k <= row_size(keys), op, ": k must lie in [0, ", row_size(keys), "], got ", k);
}

std::vector<int64_t> shape_of(const Tensor& keys, int64_t k) {
  std::vector<int64_t> shape;
  for (int64_t d = 0; d + 1 < keys.dim(); ++d) shape.push_back(keys.size(d));
  shape.push_back(k);
  return shape;
}

Tensor select(const Tensor& keys, int64_t k, const std::optional<Tensor>& buffer) {
  check_keys(keys, k, "select");
  Output out(buffer, keys, ScalarType::Long, "select", "out");
  int64_t* to = out.take<int64_t>(shape_of(keys, k));
  const int64_t n = row_size(keys);
  if (k == 0 || keys.numel() == 0) return out.result();
  with_keys(keys, "select", [&](const auto* from, const auto& source) {
    for_rows(keys.numel() / n, n, [&](int64_t row) { select_row(source(from + row * n), k, to + row * k); });
  });
  return out.result();
}

std::tuple<Tensor, Tensor> topk(const Tensor& keys, int64_t k, bool sorted, const std::optional<Tensor>& value_buffer,
                                const std::optional<Tensor>& index_buffer) {
  check_keys(keys, k, "topk");
  Output values(value_buffer, keys, keys.scalar_type(), "topk", "out values");
  Output indices(index_buffer, keys, ScalarType::Long, "topk", "out indices");
  void* value_to = values.take<void>(shape_of(keys, k));
  int64_t* index_to = indices.take<int64_t>(shape_of(keys, k));
  const int64_t n = row_size(keys);
  if (k == 0 || keys.numel() == 0) return {values.result(), indices.result()};
  with_keys(keys, "topk", [&](const auto* from, const auto& source) {
    using Stored = std::remove_cvref_t<decltype(*from)>;
    for_rows(keys.numel() / n, n, [&](int64_t row) {
      topk_row(source(from + row * n), from + row * n, k, sorted, static_cast<Stored*>(value_to) + row * k,
               index_to + row * k);
    });
  });
  return {values.result(), indices.result()};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) {
  m.impl("select", TORCH_BOX(&select));
  m.impl("topk", TORCH_BOX(&topk));
}

}  // namespace stprune
