// draw: samples with given inclusion probabilities, independently (Bernoulli) or exactly `count` of them (systematic).
#include "cuda/chosen.h"
#include "cuda/launchers.h"
#include "cuda/systematic.h"

namespace stprune {
namespace {

// Index i is kept when its random word is below p_i * 2^32.
template <class T>
struct Bernoulli {
  static constexpr int THREADS = CHUNK_THREADS;
  using Shared = MarkShared;
  const T* probability;  // [n]
  int64_t n;
  PhiloxKey key;
  uint32_t epoch;
  MarkMemory memory;

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared& shared) const {
    const auto choose = [&](const Four<T>& p, int64_t first, int lane) {
      const PhiloxWords words = tile_words(key, epoch, STREAM_DRAW, first, lane);
      uint32_t kept = 0;
      // A probability of 0 is never drawn, so the padding is not either.
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        kept |= static_cast<uint32_t>(static_cast<double>(words.word[j]) < static_cast<double>(p.item[j]) * 0x1p32)
                << j;
      }
      return kept;
    };
    memory.write(block, shared.warps, marks_of(block, probability, n, choose));
  }
};

template <class T>
int bernoulli_mark(const T* probability, int64_t n, int64_t seed, int64_t epoch, void* scratch, int64_t* drawn,
                   void* stream) {
  Scratch parts{static_cast<char*>(scratch)};
  const MarkMemory memory = mark_memory(n, parts);
  const Bernoulli<T> kernel{probability, n, philox_key(seed), static_cast<uint32_t>(epoch), memory};
  STPRUNE_TRY(launch(kernel, blocks_of(n, CHUNK_KEYS), stream));
  return count_marks(n, memory, drawn, stream);
}

template <class T>
int systematic(const T* probability, int64_t n, int64_t count, int64_t seed, int64_t epoch, void* scratch, int64_t* out,
               void* stream) {
  Scratch parts{static_cast<char*>(scratch)};
  const SystematicMemory memory = systematic_memory(n, parts);
  // The door asks for 0.5 and what rounding adds.
  return draw_systematic(Stored<T>{probability}, n, {count, nullptr}, ONE / 4 * 3, philox_key(seed),
                         static_cast<uint32_t>(epoch), memory, DrawnSink{out}, stream);
}

}  // namespace
}  // namespace stprune

using namespace stprune;

extern "C" {

int64_t stprune_cuda_bernoulli_scratch(int64_t n) {
  Scratch scratch{nullptr};
  mark_memory(n, scratch);
  return scratch.used;
}

int stprune_cuda_bernoulli_mark(int wide, const void* probability, int64_t n, int64_t seed, int64_t epoch,
                                void* scratch, int64_t* drawn, void* stream) {
  return wide ? bernoulli_mark(static_cast<const double*>(probability), n, seed, epoch, scratch, drawn, stream)
              : bernoulli_mark(static_cast<const float*>(probability), n, seed, epoch, scratch, drawn, stream);
}

int stprune_cuda_bernoulli_emit(int64_t n, void* scratch, int64_t* out, void* stream) {
  Scratch parts{static_cast<char*>(scratch)};
  return emit_marks(n, mark_memory(n, parts), out, stream);
}

int64_t stprune_cuda_systematic_scratch(int64_t n) {
  Scratch scratch{nullptr};
  systematic_memory(n, scratch);
  return scratch.used;
}

int stprune_cuda_systematic(int wide, const void* probability, int64_t n, int64_t count, int64_t seed, int64_t epoch,
                            void* scratch, int64_t* out, void* stream) {
  return wide ? systematic(static_cast<const double*>(probability), n, count, seed, epoch, scratch, out, stream)
              : systematic(static_cast<const float*>(probability), n, count, seed, epoch, scratch, out, stream);
}
}
