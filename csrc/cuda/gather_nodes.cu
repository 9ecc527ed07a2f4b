// gather_nodes: the drawn nodes of every sample, and the sum of gradients back onto them.
#include "cuda/launchers.h"
#include "cuda/narrow.h"

namespace stprune {
namespace {

struct Wide {
  uint64_t parts[2];
};

// Work is cut into pieces of 1,024 consecutive units of the output; dividing by the size of a row tells where they are.
constexpr int PIECE_THREADS = 256;
constexpr int PIECE = 4 * PIECE_THREADS;

// Calls body(row, place) for a block's units of an output of `rows` rows of `size` < 2^31 units.
template <class F>
STPRUNE_DEVICE void for_units(Block<PIECE_THREADS>& block, int64_t rows, int64_t size, F body) {
  const int64_t start = block.index() * PIECE, first_row = start / size;
  const uint32_t offset = static_cast<uint32_t>(start - first_row * size), width = static_cast<uint32_t>(size);
  block.own([&](int t) {
    for (int i = 0; i < PIECE / PIECE_THREADS; ++i) {
      const uint32_t place = offset + static_cast<uint32_t>(i * PIECE_THREADS + t);
      const int64_t row = first_row + place / width;
      if (row < rows) body(row, place % width);
    }
  });
}

// Copies runs of `units` units: out[row, j] = x[sample, outer, node[sample, j]].
template <class Unit>
struct GatherNodes {
  static constexpr int THREADS = PIECE_THREADS;
  struct Shared {};
  const char* x;
  const int64_t* node;  // [samples, m]
  int64_t rows, outer, num_nodes, m, units, sample_stride, outer_stride;
  Unit* out;  // [rows, m, units]

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared&) const {
    for_units(block, rows, m * units, [&](int64_t row, uint32_t place) {
      const uint32_t width = static_cast<uint32_t>(units), j = width == 1 ? place : place / width;
      const int64_t sample = row / outer, index = node[sample * m + j];
      STPRUNE_DEVICE_CHECK(index >= 0 && index < num_nodes, "gather_nodes: node must lie in [0, num_nodes)");
      const char* source = x + sample * sample_stride + (row - sample * outer) * outer_stride;
      out[row * m * units + place] = reinterpret_cast<const Unit*>(source)[index * units + (place - j * width)];
    });
  }
};

template <class Unit>
int gather(const void* x, const int64_t* node, int64_t samples, int64_t outer, int64_t num_nodes, int64_t m,
           int64_t run, int64_t sample_stride, int64_t outer_stride, void* out, void* stream) {
  const int64_t units = run / static_cast<int64_t>(sizeof(Unit));
  const GatherNodes<Unit> kernel{
      static_cast<const char*>(x), node, samples * outer, outer, num_nodes, m, units, sample_stride, outer_stride,
      static_cast<Unit*>(out)};
  return launch(kernel, blocks_of(samples * outer * m * units, PIECE), stream);
}

// The backward turns `node` round: for every node of a sample the first place that names it, and for every place the
// next one with the same node. So each output element adds up its gradients alone, in the order of `node`.
struct Places {
  int32_t* first;    // [samples, num_nodes], MOST where a node is not named
  int32_t* next;     // [samples, m], MOST at the end
  int32_t* repeats;  // [samples], 0 or 1
};
constexpr int32_t NOWHERE = 0x7FFFFFFF;

// One block a sample.
struct FirstPlaces {
  static constexpr int THREADS = 1024;
  struct Shared {};
  const int64_t* node;  // [samples, m]
  int64_t num_nodes, m;
  Places places;

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared&) const {
    const int64_t row = block.index();
    const int64_t* nodes = node + row * m;
    int32_t *first = places.first + row * num_nodes, *next = places.next + row * m;
    block.phase([&](int t) {
      for (int64_t i = t; i < num_nodes; i += THREADS) first[i] = NOWHERE;
    });
    block.phase([&](int t) {
      for (int64_t j = t; j < m; j += THREADS) {
        STPRUNE_DEVICE_CHECK(nodes[j] >= 0 && nodes[j] < num_nodes, "gather_nodes: node must lie in [0, num_nodes)");
        global_min(first + nodes[j], static_cast<int32_t>(j));
        next[j] = NOWHERE;
      }
    });
    PerThread<bool> repeats;
    block.own([&](int t) {
      repeats[t] = false;
      for (int64_t j = t; j < m; j += THREADS) repeats[t] = repeats[t] || first[nodes[j]] != static_cast<int32_t>(j);
    });
    const bool any = block.any(repeats);
    block.own([&](int t) {
      if (t == 0) places.repeats[row] = any;
    });
  }
};

// Rows without repeats, which is what draw_nodes makes, have no next places; others look for them in the rest of the
// row, with the whole device.
struct NextPlaces {
  static constexpr int THREADS = PIECE_THREADS;
  struct Shared {};
  const int64_t* node;
  int64_t samples, m;
  Places places;

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared&) const {
    for_units(block, samples, m, [&](int64_t row, uint32_t place) {
      if (places.repeats[row] == 0) return;
      const int64_t* nodes = node + row * m;
      int64_t next = place + 1;
      while (next < m && nodes[next] != nodes[place]) ++next;
      if (next < m) places.next[row * m + place] = static_cast<int32_t>(next);
    });
  }
};

template <class T>
struct AddUp {
  static constexpr int THREADS = PIECE_THREADS;
  struct Shared {};
  const T* grad;  // [rows, m, inner]
  int64_t rows, outer, num_nodes, m, inner;
  Places places;
  T* out;  // [rows, num_nodes, inner]

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared&) const {
    for_units(block, rows, num_nodes * inner, [&](int64_t row, uint32_t place) {
      const uint32_t width = static_cast<uint32_t>(inner), index = width == 1 ? place : place / width;
      const int64_t sample = row / outer, channel = place - index * width;
      decltype(widened(T{})) sum = 0;
      for (int32_t j = places.first[sample * num_nodes + index]; j != NOWHERE; j = places.next[sample * m + j]) {
        sum += widened(grad[(row * m + j) * inner + channel]);
      }
      out[row * num_nodes * inner + place] = Narrowed<T>::of(sum);
    });
  }
};

Places places_in(int64_t samples, int64_t num_nodes, int64_t m, char* memory, int64_t* bytes) {
  Places places{};
  const int64_t first = samples * num_nodes, next = samples * m;
  *bytes = 4 * (first + next + samples);
  if (memory == nullptr) return places;
  places.first = reinterpret_cast<int32_t*>(memory);
  places.next = places.first + first;
  places.repeats = places.next + next;
  return places;
}

template <class T>
int add_up(const void* grad, const Places& places, int64_t samples, int64_t outer, int64_t num_nodes, int64_t m,
           int64_t inner, void* out, void* stream) {
  const int64_t rows = samples * outer;
  const AddUp<T> kernel{static_cast<const T*>(grad), rows, outer, num_nodes, m, inner, places, static_cast<T*>(out)};
  return launch(kernel, blocks_of(rows * num_nodes * inner, PIECE), stream);
}

}  // namespace
}  // namespace stprune

using namespace stprune;

extern "C" {

int stprune_cuda_gather_nodes(const void* x, const int64_t* node, int64_t samples, int64_t outer, int64_t num_nodes,
                              int64_t m, int64_t run, int64_t sample_stride, int64_t outer_stride, void* out,
                              void* stream) {
  // The widest unit that every address is a multiple of.
  const uint64_t common = reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(out) |
                          static_cast<uint64_t>(run) | static_cast<uint64_t>(sample_stride) |
                          static_cast<uint64_t>(outer_stride);
  const auto go = common % 16 == 0  ? &gather<Wide>
                  : common % 8 == 0 ? &gather<uint64_t>
                  : common % 4 == 0 ? &gather<uint32_t>
                  : common % 2 == 0 ? &gather<uint16_t>
                                    : &gather<uint8_t>;
  return go(x, node, samples, outer, num_nodes, m, run, sample_stride, outer_stride, out, stream);
}

int64_t stprune_cuda_gather_nodes_backward_scratch(int64_t samples, int64_t num_nodes, int64_t m) {
  int64_t bytes = 0;
  places_in(samples, num_nodes, m, nullptr, &bytes);
  return bytes;
}

int stprune_cuda_gather_nodes_backward(int kind, const void* grad, const int64_t* node, int64_t samples, int64_t outer,
                                       int64_t num_nodes, int64_t m, int64_t inner, void* scratch, void* out,
                                       void* stream) {
  int64_t bytes = 0;
  const Places places = places_in(samples, num_nodes, m, static_cast<char*>(scratch), &bytes);
  const int64_t pieces = blocks_of(samples * m, PIECE);
  STPRUNE_TRY(launch(FirstPlaces{node, num_nodes, m, places}, samples, stream));
  STPRUNE_TRY(launch(NextPlaces{node, samples, m, places}, pieces, stream));
  const auto go = kind == 0   ? &add_up<float>
                  : kind == 1 ? &add_up<double>
                  : kind == 2 ? &add_up<Bfloat16>
                              : &add_up<Float16>;
  return go(grad, places, samples, outer, num_nodes, m, inner, out, stream);
}
}
