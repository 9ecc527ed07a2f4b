// Our selection kernels against the vendor's header-only algorithms (CUB), on the same keys in one process:
//     nvcc -O3 -std=c++17 --fmad=false -arch=native -Icsrc benchmarks/cuda_library.cu -o build/cuda_library
//     build/cuda_library [largest power of ten]
// One JSON row a contender: median of 20 runs by device events, taking turns, after two warm-up runs. "one read" sums
// the keys by cub::DeviceReduce. CUB has no ordered selection of the k largest: its rows are the parts one would build
// from, each beside ours for the same job: the sort, the compaction of marks (their words given), the prefix sum over
// the chunks, the prefix sum in a block. Where ours is not the faster one it goes, and what that would take out of
// csrc/cuda is: sort.h (the sort, 190 lines); ScanChunks, list_bits and EmitChunks of compact.h (110 lines, and a pass
// more to turn marks of ties into marks); exclusive_scan of collective.h (25 lines). The host's test of the kernels
// (csrc/cuda/emulate.h) needs a stand-in for whatever takes their place. DeviceTopK is no rival: it keeps no order, and
// CUDA 13.0's has races.
#include <thrust/iterator/counting_iterator.h>
#include <thrust/iterator/transform_iterator.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cub/cub.cuh>
#include <functional>
#include <string>
#include <vector>

#include "cuda/select.h"
#include "cuda/sort.h"

namespace stprune::benchmark {

void check(int error) {
  if (error == 0) return;
  std::fprintf(stderr, "CUDA error: %s\n", error_text(error));
  std::exit(1);
}

template <class T>
T* device_array(int64_t count) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, static_cast<size_t>(count) * sizeof(T)));
  return static_cast<T*>(memory);
}

__global__ void fill(float* keys, int64_t n, int kind) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= n) return;
  // Sums of four words are bell-shaped; kind 1 is all equal, kind 2 rises.
  const PhiloxWords words = philox({1, 2}, static_cast<uint32_t>(i), static_cast<uint32_t>(i >> 32), 0, 0);
  float sum = 0.0f;
  for (int w = 0; w < 4; ++w) sum += static_cast<float>(words.word[w]) * 0x1p-32f;
  keys[i] = kind == 1 ? 0.5f : kind == 2 ? static_cast<float>(i) : sum;
}

struct Above {
  const float* keys;
  float threshold;
  __device__ bool operator()(int64_t i) const { return keys[i] > threshold; }
};

// Whether the marks of our selection name an index.
struct Marked {
  const uint32_t* marks;
  __device__ bool operator()(int64_t i) const { return (marks[i >> 5] >> (i & 31) & 1u) != 0; }
};

struct CertainOf {
  __device__ int64_t operator()(uint32_t packed) const { return certain_of(packed); }
};

// Prefix sums of tiles of 1,024 words, many a block, by our function and by CUB's.
constexpr int SCANNED = 1024;
struct OurScan {
  static constexpr int THREADS = SCANNED;
  struct Shared {
    SharedArray<uint32_t, WARP> warps;
  };
  const uint32_t* from;
  uint32_t* to;
  int64_t tiles;

  __device__ void operator()(Block<THREADS>& block, Shared& shared) const {
    for (int64_t tile = block.index(); tile < tiles; tile += block.count()) {
      PerThread<uint32_t> value;
      block.own([&](int t) { value[t] = from[tile * THREADS + t]; });
      exclusive_scan(block, shared.warps, value);
      block.own([&](int t) { to[tile * THREADS + t] = value[t]; });
    }
  }
};
__global__ void __launch_bounds__(SCANNED) cub_scan(const uint32_t* from, uint32_t* to, int64_t tiles) {
  using Scan = cub::BlockScan<uint32_t, SCANNED, cub::BLOCK_SCAN_WARP_SCANS>;
  __shared__ typename Scan::TempStorage shared;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    uint32_t value = from[tile * SCANNED + threadIdx.x];
    Scan(shared).ExclusiveSum(value, value);
    to[tile * SCANNED + threadIdx.x] = value;
    __syncthreads();
  }
}

struct Contender {
  std::string name;
  std::function<int()> run;
};

void race(const char* keys_name, int64_t n, const std::vector<Contender>& contenders) {
  constexpr int WARM = 2, RUNS = 20;
  std::vector<std::vector<float>> times(contenders.size());
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  for (int turn = 0; turn < WARM + RUNS; ++turn) {
    for (size_t c = 0; c < contenders.size(); ++c) {
      float milliseconds = 0.0f;
      check(cudaEventRecord(begin, nullptr));
      check(contenders[c].run());
      check(cudaEventRecord(end, nullptr));
      check(cudaEventSynchronize(end));
      check(cudaEventElapsedTime(&milliseconds, begin, end));
      if (turn >= WARM) times[c].push_back(milliseconds);
    }
  }
  for (size_t c = 0; c < contenders.size(); ++c) {
    std::sort(times[c].begin(), times[c].end());
    std::printf(
        "{\"keys\": \"%s\", \"n\": %lld, \"contender\": \"%s\", \"median_ms\": %.5f, \"p20_ms\": %.5f, \"p80_ms\": "
        "%.5f}\n",
        keys_name, static_cast<long long>(n), contenders[c].name.c_str(), times[c][RUNS / 2], times[c][RUNS / 5],
        times[c][RUNS - 1 - RUNS / 5]);
  }
  check(cudaEventDestroy(begin));
  check(cudaEventDestroy(end));
}

void compare(int64_t n, const char* keys_name, int kind) {
  const int64_t k = n / 2, few = std::min<int64_t>(10'000, n / 10);
  float* keys = device_array<float>(n);
  fill<<<static_cast<unsigned>(blocks_of(n, 256)), 256>>>(keys, n, kind);
  check(cudaGetLastError());
  int64_t* indices = device_array<int64_t>(n);

  Scratch counting{nullptr};
  select_memory<uint32_t>(n, counting);
  Scratch scratch{device_array<char>(counting.used)};
  const SelectMemory<uint32_t> memory = select_memory<uint32_t>(n, scratch);
  const StoredKeys<float> stored{keys};
  const IndexSink sink{indices};

  counting.used = 0;
  sort_memory<uint32_t>(n, counting);
  Scratch sorting{device_array<char>(counting.used)};
  const SortMemory<uint32_t> sort = sort_memory<uint32_t>(n, sorting);

  float *sum = device_array<float>(1), *sorted_keys = device_array<float>(n);
  int64_t* selected = device_array<int64_t>(1);
  uint32_t* sorted_codes = device_array<uint32_t>(n);
  const auto from_zero = thrust::counting_iterator<int64_t>(0);
  const Above above{keys, kind == 2 ? static_cast<float>(n / 2) : 2.0f};
  // What a selection of every other key leaves: marks and the chunks' counts.
  check(select_largest(stored, n, k, k, memory, sink, nullptr));
  const Marked marked{memory.certain};
  const int64_t chunks = blocks_of(n, CHUNK_KEYS), tiles = n / SCANNED;
  const EmitChunks<IndexSink> emit{memory.certain, nullptr, nullptr, memory.places, sink};
  const auto counts = thrust::make_transform_iterator(memory.counts, CertainOf{});
  int64_t processors = 0;
  check(multiprocessors(&processors));
  const unsigned resident = static_cast<unsigned>(2 * processors);
  // CUB's temporary memory: asked for with a null pointer, then kept.
  size_t reduce_bytes = 0, select_bytes = 0, keys_bytes = 0, pairs_bytes = 0, marked_bytes = 0, scan_bytes = 0;
  check(cub::DeviceSelect::If(nullptr, marked_bytes, from_zero, indices, selected, n, marked));
  check(cub::DeviceScan::ExclusiveSum(nullptr, scan_bytes, counts, memory.places.certain, chunks));
  check(cub::DeviceReduce::Sum(nullptr, reduce_bytes, keys, sum, n));
  check(cub::DeviceSelect::If(nullptr, select_bytes, from_zero, indices, selected, n, above));
  check(cub::DeviceRadixSort::SortKeys(nullptr, keys_bytes, keys, sorted_keys, n));
  check(cub::DeviceRadixSort::SortPairs(nullptr, pairs_bytes, sort.pairs.codes, sorted_codes, sort.pairs.indices,
                                        indices, n));
  void* temporary = device_array<char>(
      static_cast<int64_t>(std::max({reduce_bytes, select_bytes, keys_bytes, pairs_bytes, marked_bytes, scan_bytes})));
  check(cudaMemset(sort.pairs.codes, 0x5A, static_cast<size_t>(n) * sizeof(uint32_t)));

  race(keys_name, n,
       {{"one read (cub::DeviceReduce)",
         [&] { return int(cub::DeviceReduce::Sum(temporary, reduce_bytes, keys, sum, n)); }},
        {"select k=n/2", [&] { return select_largest(stored, n, k, k, memory, sink, nullptr); }},
        {"select k=n/10", [&] { return select_largest(stored, n, n / 10, n / 10, memory, sink, nullptr); }},
        {"select few", [&] { return select_largest(stored, n, few, few, memory, sink, nullptr); }},
        {"cub::DeviceSelect::If, threshold given",
         [&] { return int(cub::DeviceSelect::If(temporary, select_bytes, from_zero, indices, selected, n, above)); }},
        {"cub::DeviceRadixSort::SortKeys",
         [&] { return int(cub::DeviceRadixSort::SortKeys(temporary, keys_bytes, keys, sorted_keys, n)); }},
        {"compaction of marks",
         [&] {
           const int error = launch(ScanChunks{memory.counts, chunks, memory.places}, 1, nullptr);
           return error != 0 ? error : launch(emit, chunks, nullptr);
         }},
        {"cub::DeviceSelect::If, marks given",
         [&] { return int(cub::DeviceSelect::If(temporary, marked_bytes, from_zero, indices, selected, n, marked)); }},
        {"prefix sum of the chunks",
         [&] { return launch(ScanChunks{memory.counts, chunks, memory.places}, 1, nullptr); }},
        {"cub::DeviceScan::ExclusiveSum of the chunks",
         [&] {
           return int(cub::DeviceScan::ExclusiveSum(temporary, scan_bytes, counts, memory.places.certain, chunks));
         }},
        {"prefix sums of blocks",
         [&] { return launch(OurScan{sort.pairs.codes, sorted_codes, tiles}, resident, nullptr); }},
        {"cub::BlockScan",
         [&] {
           cub_scan<<<resident, SCANNED>>>(sort.pairs.codes, sorted_codes, tiles);
           return int(cudaGetLastError());
         }},
        {"sort of n pairs", [&] { return sort_pairs_by_code(n, sort, nullptr); }},
        {"cub::DeviceRadixSort::SortPairs", [&] {
           return int(cub::DeviceRadixSort::SortPairs(temporary, pairs_bytes, sort.pairs.codes, sorted_codes,
                                                      sort.pairs.indices, indices, n));
         }}});
  for (void* part : {static_cast<void*>(keys), static_cast<void*>(indices), static_cast<void*>(scratch.base),
                     static_cast<void*>(sorting.base), static_cast<void*>(sum), static_cast<void*>(sorted_keys),
                     static_cast<void*>(selected), static_cast<void*>(sorted_codes), temporary}) {
    check(cudaFree(part));
  }
}

}  // namespace stprune::benchmark

int main(int count, char** arguments) {
  const int largest = count > 1 ? std::atoi(arguments[1]) : 8;
  int64_t n = 10'000;
  for (int power = 5; power <= largest; ++power) {
    n *= 10;
    stprune::benchmark::compare(n, "bell", 0);
  }
  stprune::benchmark::compare(n, "all_equal", 1);
  stprune::benchmark::compare(n, "rising", 2);
  return 0;
}
