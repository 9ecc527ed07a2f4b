// The words kernels are written in: one source that nvcc compiles for the device and any C++ compiler for the host.
//
// A kernel is a struct with THREADS, a struct Shared and `operator()(block, shared)`. What its threads do stands in
// phases, lambdas over the thread number t:
//     block.phase([&](int t) { ... });   // ends with a barrier
//     block.own([&](int t) { ... });     // no barrier: touches nothing that another thread touches before the next one
// Values that outlive a phase are PerThread (a register on the device), what threads share is a SharedArray, and warps
// talk through ballot, shuffles and match_any, which every thread of the block calls. Code outside of phases does the
// same in all threads. On the host (emulate.h) the phases are loops, and the shared arrays report races, reads of what
// nobody wrote and indices out of range: the kernels' logic is tested on machines without a GPU.
//
// A kernel whose work comes in rounds, each of which follows from what the one before found, is launched once
// (launch_rounds): all blocks run `operator()(block, shared, round)`, then one block `settle(block, shared, round)`, as
// long as `go_on()` tells. What blocks know of another round lies in global memory. So a loop that the data decides on
// takes the whole device, and the host neither waits nor guesses how long it is.
#pragma once

#include <stdint.h>

#include "philox.h"

namespace stprune {
namespace {

constexpr int WARP = 32;
constexpr uint32_t ALL_LANES = 0xFFFFFFFFu;

STPRUNE_HOST_DEVICE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
STPRUNE_HOST_DEVICE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
STPRUNE_HOST_DEVICE int64_t blocks_of(int64_t n, int64_t size) { return (n + size - 1) / size; }
STPRUNE_HOST_DEVICE uint32_t lanes_below(int t) { return (1u << (t & (WARP - 1))) - 1; }

}  // namespace
}  // namespace stprune

#if !defined(__CUDACC__)
#include "cuda/emulate.h"
#else

// Broken promises of a caller (a node id out of range, say) stop the device, in release builds too, and the message
// says of which op and argument: "gather_nodes: node must lie in [0, num_nodes)".
#undef NDEBUG
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cassert>

#define STPRUNE_DEVICE __device__ __forceinline__
#define STPRUNE_DEVICE_CHECK(condition, rule) assert((condition) && rule)

namespace stprune {
namespace {

STPRUNE_DEVICE int popcount(uint32_t x) { return __popc(x); }
STPRUNE_DEVICE int leading_zeros(uint64_t x) { return __clzll(static_cast<int64_t>(x)); }
STPRUNE_DEVICE int first_bit(uint32_t x) { return __ffs(static_cast<int>(x)) - 1; }
STPRUNE_DEVICE int last_bit(uint32_t x) { return 31 - __clz(static_cast<int>(x)); }
STPRUNE_DEVICE uint64_t high_product(uint64_t a, uint64_t b) { return __umul64hi(a, b); }
STPRUNE_DEVICE float square_root(float x) { return __fsqrt_rn(x); }
STPRUNE_DEVICE double square_root(double x) { return __dsqrt_rn(x); }
STPRUNE_DEVICE uint32_t bits_of(float x) { return __float_as_uint(x); }
STPRUNE_DEVICE uint64_t bits_of(double x) { return static_cast<uint64_t>(__double_as_longlong(x)); }
STPRUNE_DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }
STPRUNE_DEVICE double double_of(uint64_t bits) { return __longlong_as_double(static_cast<int64_t>(bits)); }

STPRUNE_DEVICE void global_add(uint64_t* to, uint64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(value));
}
STPRUNE_DEVICE void global_min(uint64_t* to, uint64_t value) {
  atomicMin(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(value));
}
STPRUNE_DEVICE void global_min(int32_t* to, int32_t value) { atomicMin(to, value); }

// An element of an op's input. The host's version counts them.
template <class T>
STPRUNE_DEVICE T input(const T* from, int64_t i) {
  return from[i];
}

template <class T>
struct PerThread {
  T value;
  STPRUNE_DEVICE T& operator[](int) { return value; }
  STPRUNE_DEVICE const T& operator[](int) const { return value; }
};

template <class T, int N>
struct SharedArray {
  T cells[N];
  STPRUNE_DEVICE T& operator[](int i) { return cells[i]; }
  STPRUNE_DEVICE void add(int i, T value) { atomicAdd(&cells[i], value); }
  STPRUNE_DEVICE void merge(int i, T bits) { atomicOr(&cells[i], bits); }
};

template <int COUNT>
struct Block {
  static constexpr int THREADS = COUNT;

  STPRUNE_DEVICE int64_t index() const { return blockIdx.x; }
  STPRUNE_DEVICE int64_t count() const { return gridDim.x; }
  STPRUNE_DEVICE void sync() { __syncthreads(); }

  template <class F>
  STPRUNE_DEVICE void own(F f) {
    f(static_cast<int>(threadIdx.x));
  }
  template <class F>
  STPRUNE_DEVICE void phase(F f) {
    f(static_cast<int>(threadIdx.x));
    __syncthreads();
  }

  // Whether it holds in any thread of the block; a barrier.
  STPRUNE_DEVICE bool any(const PerThread<bool>& x) { return __syncthreads_or(x.value) != 0; }
  // The lanes of the warp in which it holds.
  STPRUNE_DEVICE PerThread<uint32_t> ballot(const PerThread<bool>& x) { return {__ballot_sync(ALL_LANES, x.value)}; }
  // The lanes of the warp that hold the same value.
  STPRUNE_DEVICE PerThread<uint32_t> match_any(const PerThread<uint32_t>& x) {
    return {__match_any_sync(ALL_LANES, x.value)};
  }
  // The value of the lane `distance` before; the own one in the first lanes.
  template <class T>
  STPRUNE_DEVICE PerThread<T> shuffle_up(const PerThread<T>& x, int distance) {
    return {__shfl_up_sync(ALL_LANES, x.value, distance)};
  }
  template <class T>
  STPRUNE_DEVICE PerThread<T> shuffle_xor(const PerThread<T>& x, int mask) {
    return {__shfl_xor_sync(ALL_LANES, x.value, mask)};
  }
  // The value of a lane that each thread names.
  template <class T>
  STPRUNE_DEVICE PerThread<T> shuffle(const PerThread<T>& x, const PerThread<int>& lane) {
    return {__shfl_sync(ALL_LANES, x.value, lane.value)};
  }
};

template <class Kernel>
__global__ void __launch_bounds__(Kernel::THREADS) run(const Kernel kernel) {
  __shared__ typename Kernel::Shared shared;
  Block<Kernel::THREADS> block;
  kernel(block, shared);
}

// Launches a kernel on the stream; a CUDA error code, 0 when all went well. The current device is the stream's.
template <class Kernel>
int launch(const Kernel& kernel, int64_t blocks, void* stream) {
  if (blocks <= 0) return 0;
  if (blocks > 0x7FFFFFFF) return cudaErrorInvalidConfiguration;
  void* arguments[] = {const_cast<Kernel*>(&kernel)};
  return cudaLaunchKernel(reinterpret_cast<const void*>(&run<Kernel>), dim3(static_cast<unsigned>(blocks)),
                          dim3(Kernel::THREADS), arguments, 0, static_cast<cudaStream_t>(stream));
}

// One block a processor: it may have all registers, where the compiler would rather spill some for a second block.
template <class Kernel>
__global__ void __launch_bounds__(Kernel::THREADS, 1) run_rounds(const Kernel kernel) {
  __shared__ typename Kernel::Shared shared;
  Block<Kernel::THREADS> block;
  const auto grid = cooperative_groups::this_grid();
  int round = 0;
  do {
    kernel(block, shared, round);
    grid.sync();
    if (blockIdx.x == 0) kernel.settle(block, shared, round);
    grid.sync();
    ++round;
  } while (kernel.go_on());
}

// Multiprocessors of the current device.
inline int multiprocessors(int64_t* count) {
  int device = 0, found = 0;
  int error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&found, cudaDevAttrMultiProcessorCount, device);
  *count = found;
  return error;
}

// Launches a kernel of rounds on at most one block a processor: blocks that wait for each other must all be there,
// which a cooperative launch promises. It is captured in graphs like any other.
template <class Kernel>
int launch_rounds(const Kernel& kernel, int64_t blocks, void* stream) {
  int64_t processors = 0;
  const int error = multiprocessors(&processors);
  if (error != cudaSuccess) return error;
  void* arguments[] = {const_cast<Kernel*>(&kernel)};
  return cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(&run_rounds<Kernel>),
                                     dim3(static_cast<unsigned>(most(1, least(blocks, processors)))),
                                     dim3(Kernel::THREADS), arguments, 0, static_cast<cudaStream_t>(stream));
}

// Copies numbers to the host and waits for them.
template <class T>
int read_back(T* host, const T* device, int64_t count, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  const size_t bytes = static_cast<size_t>(count) * sizeof(T);
  const int error = cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, on);
  return error != cudaSuccess ? error : cudaStreamSynchronize(on);
}

inline const char* error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace
}  // namespace stprune

#endif

// Returns the error of a call that failed.
#define STPRUNE_TRY(call)                         \
  do {                                            \
    const int stprune_error = (call);             \
    if (stprune_error != 0) return stprune_error; \
  } while (0)
