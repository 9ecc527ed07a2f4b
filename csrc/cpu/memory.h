// Output memory.
#pragma once

#include <cstdint>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "check.h"

namespace stprune {
namespace {

constexpr int64_t HUGE_PAGE = int64_t{2} << 20;

// A vector of torch's allocator. Fresh memory of this size comes in pages of 4 KiB, whose first touch costs more than
// the kernels that fill them (0.5 ns a byte on a virtual machine: 20 ms for 5 * 10^6 indices); on request it comes in
// pages of 2 MiB. Only advice: it changes no content and may be refused.
inline Tensor new_output(const Tensor& like, int64_t size, ScalarType dtype) {
  Tensor out = torch::stable::new_empty(like, {size}, dtype);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uint64_t bytes = static_cast<uint64_t>(size) * static_cast<uint64_t>(out.element_size());
  if (bytes >= 2 * HUGE_PAGE) {
    const uint64_t begin = (reinterpret_cast<uint64_t>(out.data_ptr()) + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    const uint64_t end = (reinterpret_cast<uint64_t>(out.data_ptr()) + bytes) / HUGE_PAGE * HUGE_PAGE;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
  }
#endif
  return out;
}

}  // namespace
}  // namespace stprune
