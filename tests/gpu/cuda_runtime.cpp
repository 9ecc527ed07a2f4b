// The functions of CUDA's runtime that nvcc's host code calls, over simulator.cpp: the library's own launchers run on
// the simulated GPU, with their grids, arguments and copies. Calls run at once; there is one device and every stream is
// the same.
#include <cstdint>
#include <cstring>
#include <map>
#include <string>

extern "C" {

int gpu_launch(const char*, const uint32_t*, const uint32_t*, int64_t, void* const*, int64_t, int);
const char* gpu_error();
int64_t gpu_processors();
void gpu_count_wait();
void gpu_written(const void*, int64_t);

struct Dim3 {
  uint32_t x, y, z;
};

static std::map<const void*, std::string>& names() {
  static std::map<const void*, std::string> all;
  return all;
}
constexpr int FAILED = 719, INVALID_VALUE = 1, MULTIPROCESSORS = 16;

void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, void*, void*, void*, void*, int*) {
  names()[host] = name;
}
int __cudaPopCallConfiguration(Dim3*, Dim3*, size_t*, void*) { return INVALID_VALUE; }
int __cudaGetKernel(const void** kernel, const void* host) {
  *kernel = host;
  return 0;
}

static int launch(const void* host, Dim3 grid, Dim3 shape, void** arguments, size_t dynamic, int together) {
  const uint32_t blocks[] = {grid.x, grid.y, grid.z}, threads[] = {shape.x, shape.y, shape.z};
  return gpu_launch(names()[host].c_str(), blocks, threads, static_cast<int64_t>(dynamic), arguments, -1, together) == 0
             ? 0
             : FAILED;
}
int cudaLaunchKernel(const void* host, Dim3 grid, Dim3 shape, void** arguments, size_t dynamic, void*) {
  return launch(host, grid, shape, arguments, dynamic, 0);
}
int __cudaLaunchKernel(const void* host, Dim3 grid, Dim3 shape, void** arguments, size_t dynamic, void*) {
  return launch(host, grid, shape, arguments, dynamic, 0);
}
int cudaLaunchCooperativeKernel(const void* host, Dim3 grid, Dim3 shape, void** arguments, size_t dynamic, void*) {
  return launch(host, grid, shape, arguments, dynamic, 1);
}
int cudaMemcpyAsync(void* to, const void* from, size_t size, int, void*) {
  std::memcpy(to, from, size);
  gpu_written(to, static_cast<int64_t>(size));
  return 0;
}
int cudaStreamSynchronize(void*) {
  gpu_count_wait();
  return 0;
}
int cudaGetDevice(int* device) {
  *device = 0;
  return 0;
}
int cudaDeviceGetAttribute(int* value, int attribute, int) {
  if (attribute != MULTIPROCESSORS) return INVALID_VALUE;
  *value = static_cast<int>(gpu_processors());
  return 0;
}
const char* cudaGetErrorString(int) { return gpu_error(); }
}
