// The device: the memory that kernels may use, and who touched it last.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace {

// Who touched a byte last. A launch's number makes older records harmless.
struct Touch {
  uint32_t launch = 0, block = 0, clock = 0, barriers = 0, warp_barriers = 0;
  int32_t thread = 0;
  bool atomic = false;
};
struct Shadow {
  Touch read, write;
  bool known = false;
};

struct Memory {
  uint64_t begin, size;
  bool known;  // all of it may be read
  std::vector<Shadow> shadow;
};

struct Gpu {
  uint64_t seed = 0;
  int64_t processors = 3;
  uint32_t launch = 0;
  int64_t launches = 0, waits = 0;
  // Bytes of memory that launches read and write, each byte once a launch: what a GPU with large caches moves at least.
  int64_t bytes_read = 0, bytes_written = 0;
  std::string error;
  std::map<uint64_t, Memory> memories;  // by their ends
};
Gpu gpu;

// Memory of an older tensor that overlaps is forgotten.
void allow(const void* begin, int64_t size, bool known) {
  if (size <= 0) return;
  const auto first = reinterpret_cast<uint64_t>(begin), last = first + static_cast<uint64_t>(size);
  auto other = gpu.memories.upper_bound(first);
  while (other != gpu.memories.end() && other->second.begin < last) other = gpu.memories.erase(other);
  gpu.memories.emplace(last, Memory{first, static_cast<uint64_t>(size), known, {}});
}

}  // namespace
