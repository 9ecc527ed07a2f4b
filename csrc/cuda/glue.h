// What registrations of CUDA kernels share: the device and stream to launch on, scratch memory, and errors.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "cuda/launchers.h"
#include "output.h"

namespace stprune {
namespace {

// Makes the tensor's device the current one for its lifetime, and holds that device's current stream.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream_));
  }
  void* stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
};

inline Tensor new_on_device(const Tensor& like, Shape shape, ScalarType dtype) {
  return torch::stable::new_empty(like, shape, dtype);
}

using Output = OutputOf<&new_on_device>;

// [1] int64 on the host.
inline Tensor new_size(int64_t size) {
  Tensor out = torch::stable::empty({1}, ScalarType::Long);
  *out.mutable_data_ptr<int64_t>() = size;
  return out;
}

// From torch's allocator, so that it belongs to the stream and to a captured graph.
inline Tensor scratch_like(const Tensor& tensor, int64_t bytes) {
  return torch::stable::new_empty(tensor, {bytes}, ScalarType::Byte);
}

inline void check_launch(int error, const char* op) {
  STD_TORCH_CHECK(error == 0, op, ": CUDA error: ", stprune_cuda_error(error));
}

inline bool is_float64(const Tensor& tensor, const char* op, const char* argument) {
  const ScalarType dtype = tensor.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, op, ": ", argument,
                  " must be float32 or float64");
  return dtype == ScalarType::Double;
}

inline void check_same_device(const Tensor& tensor, const Tensor& data, const char* op, const char* argument) {
  STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device_index() == data.get_device_index(), op, ": ", argument,
                  " must be on the device of its data");
}

// Strata [n] and how many samples have each label, on the device of `data`. Returns the bytes of a label.
inline int check_strata(const Tensor& strata, const Tensor& sizes, const Tensor& data, const char* op) {
  check_vector(strata, op, "strata");
  check_vector(sizes, op, "sizes");
  check_dtype(sizes, ScalarType::Long, op, "sizes");
  check_same_device(strata, data, op, "strata");
  check_same_device(sizes, data, op, "sizes");
  STD_TORCH_CHECK(sizes.numel() < int64_t{1} << 31, op, ": sizes must have fewer than 2^31 elements");
  const bool narrow = strata.scalar_type() == ScalarType::Byte;
  STD_TORCH_CHECK(narrow || strata.scalar_type() == ScalarType::Int, op, ": strata must be uint8 or int32");
  return narrow ? 1 : 4;
}

}  // namespace
}  // namespace stprune
