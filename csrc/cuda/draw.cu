// draw: samples with given inclusion probabilities, independently (Bernoulli) or exactly `count` of them (systematic).
#include "cuda/bernoulli.h"
#include "cuda/launchers.h"
#include "cuda/systematic.h"

namespace stprune {
namespace {

template <class T>
int bernoulli_mark(const T* probability, int64_t n, int64_t seed, int64_t epoch, void* scratch, int64_t* drawn,
                   void* stream) {
  Scratch parts{static_cast<char*>(scratch)};
  const BernoulliMemory memory = bernoulli_memory(n, parts);
  const int64_t chunks = blocks_of(n, CHUNK_KEYS);
  STPRUNE_TRY(launch(
      BernoulliMark<T>{probability, n, philox_key(seed), static_cast<uint32_t>(epoch), memory.marks, memory.counts},
      chunks, stream));
  STPRUNE_TRY(launch(ScanChunks{memory.counts, chunks, memory.places}, 1, stream));
  return read_back(drawn, memory.places.certain + chunks, 1, stream);
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
  bernoulli_memory(n, scratch);
  return scratch.used;
}

int stprune_cuda_bernoulli_mark(int wide, const void* probability, int64_t n, int64_t seed, int64_t epoch,
                                void* scratch, int64_t* drawn, void* stream) {
  return wide ? bernoulli_mark(static_cast<const double*>(probability), n, seed, epoch, scratch, drawn, stream)
              : bernoulli_mark(static_cast<const float*>(probability), n, seed, epoch, scratch, drawn, stream);
}

int stprune_cuda_bernoulli_emit(int64_t n, void* scratch, int64_t* out, void* stream) {
  Scratch parts{static_cast<char*>(scratch)};
  const BernoulliMemory memory = bernoulli_memory(n, parts);
  const EmitChunks<IndexSink> emit{memory.marks, nullptr, nullptr, memory.places, IndexSink{out}};
  return launch(emit, blocks_of(n, CHUNK_KEYS), stream);
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
