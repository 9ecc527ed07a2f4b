// Loading this library registers every CPU kernel of stprune with torch's dispatcher; each op registers itself in its
// own file with STABLE_TORCH_LIBRARY_IMPL. Schemas, fake kernels and autograd live in Python (stprune/ops), so this file
// only has to report which build was loaded.
#include <cstdint>

extern "C" __attribute__((visibility("default"))) int64_t stprune_abi_version() {
  // Raised whenever the schema of an op changes; stprune/_load.py refuses a library built for another version.
  return 1;
}
