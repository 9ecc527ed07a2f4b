// Output memory and scratch.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <exception>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "output.h"

namespace stprune {
namespace {

constexpr int64_t HUGE_PAGE = int64_t{2} << 20;

// Fresh memory of this size comes in pages of 4 KiB, whose first touch costs more than the kernels that fill them (0.5
// ns a byte on a virtual machine: 20 ms for 5 * 10^6 indices); on request it comes in pages of 2 MiB. Only advice: it
// changes no content and may be refused.
inline void advise_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (bytes < 2 * HUGE_PAGE) return;
  const uint64_t address = reinterpret_cast<uint64_t>(memory);
  const uint64_t begin = (address + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
  const uint64_t end = (address + static_cast<uint64_t>(bytes)) / HUGE_PAGE * HUGE_PAGE;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// A tensor of torch's allocator, whose own word for a failure does not cross the stable ABI.
inline Tensor allocate(const Tensor& like, Shape sizes, ScalarType dtype) {
  try {
    return torch::stable::new_empty(like, sizes, dtype);
  } catch (const std::exception&) {
    STD_TORCH_CHECK(false, "stprune: out of memory for a result");
  }
}

inline Tensor new_shaped(const Tensor& like, Shape sizes, ScalarType dtype) {
  Tensor out = allocate(like, sizes, dtype);
  advise_huge_pages(out.data_ptr(), out.numel() * static_cast<int64_t>(out.element_size()));
  return out;
}

using Output = OutputOf<&new_shaped>;

inline Tensor new_output(const Tensor& like, int64_t size, ScalarType dtype) { return new_shaped(like, {size}, dtype); }

// A tensor on the host, without the dispatcher's way (1 us) to it.
inline Tensor new_host_tensor(const char* op, int64_t dim, const int64_t* sizes, const int64_t* strides,
                              ScalarType dtype) {
  const int32_t code = dtype == ScalarType::Double     ? aoti_torch_dtype_float64()
                       : dtype == ScalarType::Long     ? aoti_torch_dtype_int64()
                       : dtype == ScalarType::BFloat16 ? aoti_torch_dtype_bfloat16()
                       : dtype == ScalarType::Half     ? aoti_torch_dtype_float16()
                                                       : aoti_torch_dtype_float32();
  AtenTensorHandle handle = nullptr;
  STD_TORCH_CHECK(aoti_torch_empty_strided(dim, sizes, strides, code, aoti_torch_device_type_cpu(), 0, &handle) == 0,
                  op, ": out of memory for a result");
  return Tensor(handle);
}

inline Tensor new_host_vector(const char* op, int64_t size, ScalarType dtype) {
  const int64_t stride = 1;
  return new_host_tensor(op, 1, &size, &stride, dtype);
}

inline Tensor new_host_scalar(const char* op, ScalarType dtype) {
  return new_host_tensor(op, 0, nullptr, nullptr, dtype);
}

// Uninitialised scratch that lives as long as the call. A mapping or a heap's end goes back to the system with every
// call and comes back page by page (1.25 MB: 0.4 ms in pages of 4 KiB, 0.06 ms in one of 2 MiB), so scratch of a good
// part of a huge page gets whole ones.
template <typename T>
class Workspace {
 public:
  Workspace(int64_t size, const char* op) : data_(static_cast<T*>(take(size * static_cast<int64_t>(sizeof(T))))) {
    STD_TORCH_CHECK(data_ != nullptr || size == 0, op, ": out of memory");
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace() { std::free(data_); }
  T* data() const { return data_; }

 private:
  static void* take(int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (bytes >= HUGE_PAGE / 4) {
      const size_t whole = static_cast<size_t>((bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
      void* memory = std::aligned_alloc(HUGE_PAGE, whole);
      if (memory != nullptr) madvise(memory, whole, MADV_HUGEPAGE);
      return memory;
    }
#endif
    return std::malloc(static_cast<size_t>(bytes));
  }

  T* data_;
};

}  // namespace
}  // namespace stprune
