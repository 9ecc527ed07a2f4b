// draw_weighted: weighted sampling without replacement. The keys are functions of (seed, epoch, index) and the weight;
// they are recomputed wherever they are needed and never stored.
#include "cuda/launchers.h"
#include "cuda/select.h"

namespace stprune {
namespace {

// Horvitz-Thompson weights of priority sampling: max(1, tau / w), tau = 1 / the key after the last kept. Without such a
// key (`code` is null, or that of an item of weight 0) all are certain and weigh 1.
struct WeightSink {
  const float* weights;
  const uint32_t* code;
  int64_t* indices;
  float* out;
  double tau;

  STPRUNE_DEVICE void begin() {
    const float threshold = code == nullptr ? float_of(0x7F800000u) : weighted_key(*code);
    // A threshold that underflowed to zero would make the weights infinite.
    tau =
        threshold < float_of(0x7F800000u) ? 1.0 / (threshold > 0.0f ? static_cast<double>(threshold) : 0x1p-149) : 0.0;
  }
  STPRUNE_DEVICE void operator()(int64_t place, int64_t index) const {
    indices[place] = index;
    const double weight = tau > 0.0 ? tau / static_cast<double>(weights[index]) : 1.0;
    out[place] = static_cast<float>(weight > 1.0 ? weight : 1.0);
  }
};

template <bool RACE>
int draw(const WeightedKeys<RACE>& keys, int64_t n, int64_t k, void* scratch, int64_t* indices, float* out,
         void* stream) {
  if (k == 0) return 0;
  if constexpr (RACE) {
    if (k == n) return emit_all(n, IndexSink{indices}, stream);
  } else {
    if (k == n) return emit_all(n, WeightSink{keys.weights, nullptr, indices, out, 0.0}, stream);
  }
  Scratch memory{static_cast<char*>(scratch)};
  const SelectMemory<uint32_t> select = select_memory<uint32_t>(n, memory);
  if constexpr (RACE) {
    return select_largest(keys, n, k + 1, k, select, IndexSink{indices}, stream);
  } else {
    const WeightSink sink{keys.weights, &select.state->range.base, indices, out, 0.0};
    return select_largest(keys, n, k + 1, k, select, sink, stream);
  }
}

}  // namespace
}  // namespace stprune

using namespace stprune;

extern "C" {

int64_t stprune_cuda_draw_weighted_scratch(int64_t n) {
  Scratch scratch{nullptr};
  select_memory<uint32_t>(n, scratch);
  return scratch.used;
}

int stprune_cuda_draw_weighted(const float* weights, int64_t n, int64_t k, int64_t seed, int64_t epoch, int race,
                               void* scratch, int64_t* indices, float* out_weights, void* stream) {
  const PhiloxKey key = philox_key(seed);
  const uint32_t low_epoch = static_cast<uint32_t>(epoch);
  return race ? draw(WeightedKeys<true>{weights, key, low_epoch}, n, k, scratch, indices, out_weights, stream)
              : draw(WeightedKeys<false>{weights, key, low_epoch}, n, k, scratch, indices, out_weights, stream);
}
}
