// draw_threshold: what is at or above the mean is kept with weight 1, of the rest a share with weight 1 / share (eq.
// 6). One pass for the mean, one for marks and counts, one that writes indices and weights.
#include <tuple>

#include "cpu/blocks.h"
#include "cpu/permute.h"

namespace stprune {
namespace {

// Words made at a time: 8 KiB stay in L1.
constexpr int64_t WORD_BLOCK = 2048;
constexpr double ONE = 0x1p32;

inline int64_t mark_below(const float* x, int64_t n, float t, uint64_t* bits) {
  return plan_kernels().below_f32(x, n, t, bits);
}
inline int64_t mark_below(const double* x, int64_t n, double t, uint64_t* bits) {
  return plan_kernels().below_f64(x, n, t, bits);
}

struct Draw {
  double keep;
  PhiloxKey key;
  uint32_t epoch;
};

// Marks of a vector of n elements.
struct Marks {
  int64_t n;
  uint64_t* below;               // [words]
  uint64_t* kept;                // [words]
  std::vector<int64_t> counts;   // kept, by chunk
  std::vector<int64_t> offsets;  // kept before each chunk

  uint64_t* below_of(int64_t chunk) const { return below + chunk * CHUNK_WORDS; }
  uint64_t* kept_of(int64_t chunk) const { return kept + chunk * CHUNK_WORDS; }
};

inline int64_t scan(const std::vector<int64_t>& counts, std::vector<int64_t>& offsets) {
  int64_t total = 0;
  for (size_t chunk = 0; chunk < counts.size(); ++chunk) {
    offsets[chunk] = total;
    total += counts[chunk];
  }
  return total;
}

// Each element below is kept when its word is below keep * 2^32.
template <typename T>
void mark_bernoulli(const T* scores, T threshold, const Draw& draw, Marks& marks) {
  // word < x for a whole word is word < ceil(x).
  const uint64_t limit = static_cast<uint64_t>(std::ceil(draw.keep * ONE));
  for_chunks(num_chunks(marks.n), [&](int64_t chunk) {
    uint32_t words[WORD_BLOCK];
    const int64_t end = chunk * CHUNK + chunk_size(marks.n, chunk);
    for (int64_t first = chunk * CHUNK; first < end; first += WORD_BLOCK) {
      const int64_t size = std::min(WORD_BLOCK, end - first);
      const uint64_t c = philox_counter(first);
      mark_below(scores + first, size, threshold, marks.below + first / 64);
      kernels().words(draw.key.low, draw.key.high, static_cast<uint32_t>(c), static_cast<uint32_t>(c >> 32), draw.epoch,
                      STREAM_DRAW, (size + 63) / 64, words);
      marks.counts[chunk] +=
          plan_kernels().keep_words(marks.below + first / 64, words, size, limit, marks.kept + first / 64);
    }
  });
}

// Of the pool of all elements below, int(keep * pool) are kept: the head of its permutation. An element asks for its
// place in the order, so nothing is scattered and chunks are independent.
template <typename T>
void mark_exact(const T* scores, T threshold, const Draw& draw, Marks& marks) {
  const int64_t chunks = num_chunks(marks.n);
  std::vector<int64_t> sizes(chunks), ranks(chunks);
  for_chunks(chunks, [&](int64_t chunk) {
    sizes[chunk] = mark_below(scores + chunk * CHUNK, chunk_size(marks.n, chunk), threshold, marks.below_of(chunk));
  });
  const int64_t pool = scan(sizes, ranks);
  int64_t head = static_cast<int64_t>(draw.keep * static_cast<double>(pool));
  if (head == 0 && pool > 0) {
    const uint32_t word = philox_word_at(draw.key, draw.epoch, STREAM_DRAW, 0);
    head = static_cast<double>(word) < draw.keep * static_cast<double>(pool) * ONE;
  }
  const bool small = pool < PERMUTATION_SMALL;
  uint64_t few[PERMUTATION_SMALL / 64] = {};
  Permutation permutation{};
  if (small) {
    int64_t order[PERMUTATION_SMALL];
    permute_small(pool, draw.key, draw.epoch, STREAM_SHUFFLE, 0, order);
    for (int64_t i = 0; i < head; ++i) few[order[i] / 64] |= uint64_t{1} << (order[i] % 64);
  } else {
    permutation = make_permutation(pool, draw.key, draw.epoch, STREAM_SHUFFLE, 0);
  }
  for_chunks(chunks, [&](int64_t chunk) {
    uint64_t chosen[CHUNK_WORDS + 1] = {};
    const int64_t first = ranks[chunk];
    if (!small) {
      plan_kernels().in_head(&permutation, first, sizes[chunk], head, chosen);
    } else {
      for (int64_t i = 0; i < sizes[chunk]; ++i) {
        chosen[i / 64] |= (few[(first + i) / 64] >> ((first + i) % 64) & 1) << (i % 64);
      }
    }
    marks.counts[chunk] =
        plan_kernels().keep_chosen(marks.below_of(chunk), chosen, chunk_size(marks.n, chunk), marks.kept_of(chunk));
  });
}

template <typename T>
std::tuple<Tensor, Tensor> draw_kernel(const Tensor& scores, const Draw& draw, bool exact_count) {
  const T* x = scores.const_data_ptr<T>();
  const int64_t n = scores.numel(), words = num_chunks(n) * CHUNK_WORDS;
  const T threshold = static_cast<T>(mean_of(finite_stats_of(x, n)));
  Tensor scratch = new_output(scores, 2 * words, ScalarType::Long);
  uint64_t* bits = reinterpret_cast<uint64_t*>(scratch.mutable_data_ptr<int64_t>());
  Marks marks{n, bits, bits + words, std::vector<int64_t>(num_chunks(n)), std::vector<int64_t>(num_chunks(n))};
  if (exact_count) {
    mark_exact(x, threshold, draw, marks);
  } else {
    mark_bernoulli(x, threshold, draw, marks);
  }
  const int64_t total = scan(marks.counts, marks.offsets);
  Tensor indices = new_output(scores, total, ScalarType::Long);
  Tensor weights = new_output(scores, total, ScalarType::Float);
  int64_t* index = indices.mutable_data_ptr<int64_t>();
  float* weight = weights.mutable_data_ptr<float>();
  const float other = 1.0f / static_cast<float>(draw.keep);
  for_chunks(num_chunks(n), [&](int64_t chunk) {
    const int64_t size = (chunk_size(n, chunk) + 63) / 64, offset = marks.offsets[chunk], count = marks.counts[chunk];
    kernels().emit(marks.kept_of(chunk), size, chunk * CHUNK, index + offset, count);
    plan_kernels().emit_weights(marks.kept_of(chunk), marks.below_of(chunk), size, other, weight + offset, count);
  });
  return {indices, weights};
}

std::tuple<Tensor, Tensor> draw_threshold(const Tensor& scores, double keep, bool exact_count, int64_t seed,
                                          int64_t epoch) {
  check_vector(scores, "draw_threshold", "scores");
  STD_TORCH_CHECK(keep >= 0.0 && keep <= 1.0, "draw_threshold: keep must lie in [0, 1]");
  STD_TORCH_CHECK(scores.numel() <= int64_t{1} << 40, "draw_threshold: scores must have at most 2^40 elements");
  const Draw draw{keep, philox_key(seed), static_cast<uint32_t>(epoch)};
  switch (scores.scalar_type()) {
    case ScalarType::Float:
      return draw_kernel<float>(scores, draw, exact_count);
    case ScalarType::Double:
      return draw_kernel<double>(scores, draw, exact_count);
    default:
      STD_TORCH_CHECK(false, "draw_threshold: unsupported dtype");
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) { m.impl("draw_threshold", TORCH_BOX(&draw_threshold)); }

}  // namespace stprune
