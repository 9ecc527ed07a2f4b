// shuffle: a counter-based random order of the given elements. permute: a stretch of that order, with nothing stored.
#include "cuda/launchers.h"
#include "cuda/permute.h"

namespace stprune {
namespace {

struct Wide {
  uint64_t parts[2];
};

// What becomes of position -> image: the image itself, or the element there.
struct ImageSink {
  int64_t* out;
  STPRUNE_DEVICE void operator()(int64_t i, int64_t image) const { out[i] = image; }
};
template <class Element>
struct ElementSink {
  const Element* from;
  Element* out;
  STPRUNE_DEVICE void operator()(int64_t i, int64_t image) const { out[i] = from[image]; }
};

template <class Sink>
struct Permute {
  static constexpr int THREADS = 256;
  static constexpr int EACH = 4;
  struct Shared {};
  Permutation permutation;
  int64_t start, count;
  Sink sink;

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared&) const {
    block.own([&](int t) {
      int64_t images[EACH];
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        const int64_t position = (block.index() * EACH + i) * THREADS + t;
        images[i] = position < count ? permutation_at(permutation, start + position) : 0;
      }
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        const int64_t position = (block.index() * EACH + i) * THREADS + t;
        if (position < count) sink(position, images[i]);
      }
    });
  }
};

template <class Sink>
struct PermuteFew {
  static constexpr int THREADS = 256;
  struct Shared {
    SmallShared small;
  };
  int64_t n, start, count;
  PhiloxKey key;
  uint32_t epoch, stream;
  Sink sink;

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared& shared) const {
    permute_small(block, shared.small, static_cast<int>(n), key, epoch, stream, 0);
    block.own([&](int t) {
      for (int64_t i = t; i < count; i += THREADS) sink(i, shared.small.items[start + i]);
    });
  }
};

template <class Sink>
int permute(int64_t n, int64_t start, int64_t count, int64_t seed, int64_t epoch, int64_t stream_number, Sink sink,
            void* stream) {
  if (count == 0) return 0;
  const PhiloxKey key = philox_key(seed);
  const uint32_t low_epoch = static_cast<uint32_t>(epoch), number = static_cast<uint32_t>(stream_number);
  if (n < PERMUTATION_SMALL) {
    return launch(PermuteFew<Sink>{n, start, count, key, low_epoch, number, sink}, 1, stream);
  }
  using Kernel = Permute<Sink>;
  const Kernel kernel{make_permutation(n, key, low_epoch, number, 0), start, count, sink};
  return launch(kernel, blocks_of(count, Kernel::THREADS * Kernel::EACH), stream);
}

template <class Element>
int shuffle(const void* from, int64_t n, int64_t seed, int64_t epoch, void* out, void* stream) {
  const ElementSink<Element> sink{static_cast<const Element*>(from), static_cast<Element*>(out)};
  return permute(n, 0, n, seed, epoch, STREAM_SHUFFLE, sink, stream);
}

}  // namespace
}  // namespace stprune

using namespace stprune;

extern "C" {

int stprune_cuda_permute(int64_t n, int64_t start, int64_t count, int64_t seed, int64_t epoch, int64_t stream_number,
                         int64_t* out, void* stream) {
  return permute(n, start, count, seed, epoch, stream_number, ImageSink{out}, stream);
}

int stprune_cuda_shuffle(const void* from, int64_t n, int size, int64_t seed, int64_t epoch, void* out, void* stream) {
  switch (size) {
    case 1:
      return shuffle<uint8_t>(from, n, seed, epoch, out, stream);
    case 2:
      return shuffle<uint16_t>(from, n, seed, epoch, out, stream);
    case 4:
      return shuffle<uint32_t>(from, n, seed, epoch, out, stream);
    case 8:
      return shuffle<uint64_t>(from, n, seed, epoch, out, stream);
    default:
      return shuffle<Wide>(from, n, seed, epoch, out, stream);
  }
}
}
