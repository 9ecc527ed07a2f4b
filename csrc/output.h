// Where an op's result goes: to the front of a buffer that the caller gave, or to a new tensor.
#pragma once

#include <optional>

#include "check.h"

namespace stprune {
namespace {

using Shape = torch::headeronly::IntHeaderOnlyArrayRef;

// Allocate: makes a new tensor on the device of another.
template <Tensor (*Allocate)(const Tensor& like, Shape shape, ScalarType dtype)>
class OutputOf {
 public:
  OutputOf(const std::optional<Tensor>& buffer, const Tensor& like, ScalarType dtype, const char* op, const char* name)
      : like_(like), dtype_(dtype), buffer_(buffer), op_(op), name_(name) {
    if (!buffer_) return;
    check_vector(*buffer_, op, name);
    check_dtype(*buffer_, dtype, op, name);
    STD_TORCH_CHECK(buffer_->is_cuda() == like.is_cuda() && buffer_->get_device_index() == like.get_device_index(), op,
                    ": ", name, " must be on the device of the input");
  }

  // Whether there is room for so many elements. An op that learns the size of its result in the end writes nothing
  // where there is none, and the Python function raises the error.
  bool fits(int64_t size) const { return !buffer_ || size <= buffer_->numel(); }

  // The memory for a result of this shape.
  template <typename T>
  T* take(Shape shape) {
    if (!buffer_) {
      fresh_ = Allocate(like_, shape, dtype_);
      return static_cast<T*>(fresh_->mutable_data_ptr());
    }
    int64_t size = 1;
    for (const int64_t extent : shape) size *= extent;
    STD_TORCH_CHECK(fits(size), op_, ": ", name_, " must have at least ", size, " elements, got ", buffer_->numel());
    return static_cast<T*>(buffer_->mutable_data_ptr());
  }

  // What the op returns: the new tensor; an empty one where the caller gave a buffer.
  Tensor result() const { return fresh_ ? *fresh_ : Allocate(like_, {0}, dtype_); }

 private:
  const Tensor& like_;
  ScalarType dtype_;
  std::optional<Tensor> buffer_, fresh_;
  const char *op_, *name_;
};

}  // namespace
}  // namespace stprune
