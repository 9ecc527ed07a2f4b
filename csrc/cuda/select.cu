// select: indices of the k largest keys, ascending. topk: the same with their values, and largest first if asked.
#include "cuda/launchers.h"
#include "cuda/select.h"
#include "cuda/sort.h"

namespace stprune {
namespace {

template <class Key>
struct ValueSink {
  const Key* keys;
  Key* values;
  int64_t* indices;

  STPRUNE_DEVICE void begin() {}
  STPRUNE_DEVICE void operator()(int64_t place, int64_t index) const {
    values[place] = keys[index];
    indices[place] = index;
  }
};

// Pairs to be sorted: the complement of a code rises where the code falls.
template <class Key>
struct PairSink {
  using Code = typename CodeOf<Key>::Code;
  const Key* keys;
  Pairs<Code> pairs;

  STPRUNE_DEVICE void begin() {}
  STPRUNE_DEVICE void operator()(int64_t place, int64_t index) const {
    pairs.codes[place] = ~key_code(keys[index]);
    pairs.indices[place] = index;
  }
};

template <class Key>
struct GatherValues {
  static constexpr int THREADS = 256;
  struct Shared {};
  const Key* keys;
  const int64_t* from;  // [k]
  int64_t k;
  Key* values;
  int64_t* indices;

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared&) const {
    block.own([&](int t) {
      const int64_t i = block.index() * THREADS + t;
      if (i >= k) return;
      indices[i] = from[i];
      values[i] = keys[from[i]];
    });
  }
};

template <class Key, class Sink>
int select_keys(const Key* keys, int64_t n, int64_t k, Scratch& scratch, const Sink& sink, void* stream) {
  if (k == 0) return 0;
  if (k == n) return emit_all(n, sink, stream);
  const auto memory = select_memory<typename CodeOf<Key>::Code>(n, scratch);
  return select_largest(StoredKeys<Key>{keys}, n, k, k, memory, sink, stream);
}

template <class Key>
int64_t scratch_bytes(int64_t n, int64_t k, bool sorted) {
  using Code = typename CodeOf<Key>::Code;
  Scratch scratch{nullptr};
  if (k == 0) return 0;
  if (sorted) sort_memory<Code>(k, scratch);
  if (k < n) select_memory<Code>(n, scratch);
  return scratch.used;
}

template <class Key>
int topk(const Key* keys, int64_t n, int64_t k, bool sorted, void* memory, Key* values, int64_t* indices,
         void* stream) {
  using Code = typename CodeOf<Key>::Code;
  Scratch scratch{static_cast<char*>(memory)};
  if (k == 0) return 0;
  if (!sorted) return select_keys(keys, n, k, scratch, ValueSink<Key>{keys, values, indices}, stream);
  const SortMemory<Code> sort = sort_memory<Code>(k, scratch);
  STPRUNE_TRY(select_keys(keys, n, k, scratch, PairSink<Key>{keys, sort.pairs}, stream));
  STPRUNE_TRY(sort_pairs_by_code(k, sort, stream));
  const GatherValues<Key> gather{keys, sort.pairs.indices, k, values, indices};
  return launch(gather, blocks_of(k, GatherValues<Key>::THREADS), stream);
}

}  // namespace
}  // namespace stprune

using namespace stprune;

extern "C" {

const char* stprune_cuda_error(int error) { return error_text(error); }

int64_t stprune_cuda_select_scratch(int wide, int64_t n, int64_t k) {
  return wide ? scratch_bytes<double>(n, k, false) : scratch_bytes<float>(n, k, false);
}

int stprune_cuda_select(int wide, const void* keys, int64_t n, int64_t k, void* scratch, int64_t* out, void* stream) {
  Scratch memory{static_cast<char*>(scratch)};
  const IndexSink sink{out};
  return wide ? select_keys(static_cast<const double*>(keys), n, k, memory, sink, stream)
              : select_keys(static_cast<const float*>(keys), n, k, memory, sink, stream);
}

int64_t stprune_cuda_topk_scratch(int wide, int64_t n, int64_t k, int sorted) {
  return wide ? scratch_bytes<double>(n, k, sorted != 0) : scratch_bytes<float>(n, k, sorted != 0);
}

int stprune_cuda_topk(int wide, const void* keys, int64_t n, int64_t k, int sorted, void* scratch, void* values,
                      int64_t* indices, void* stream) {
  return wide ? topk(static_cast<const double*>(keys), n, k, sorted != 0, scratch, static_cast<double*>(values),
                     indices, stream)
              : topk(static_cast<const float*>(keys), n, k, sorted != 0, scratch, static_cast<float*>(values), indices,
                     stream);
}
}
