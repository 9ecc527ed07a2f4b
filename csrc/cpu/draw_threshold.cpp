// draw_threshold: what is at or above the mean is kept with weight 1, of the rest a share with weight 1 / share (eq.
// 6). One pass for the mean, one for marks and counts, one that writes indices and weights.
#include <tuple>

#include "cpu/blocks.h"
#include "cpu/permute.h"

namespace stprune {
namespace {

constexpr double TWO_32 = 0x1p32;

inline int64_t mark_below(const float* x, int64_t n, float t, uint64_t* bits) {
  return plan_kernels().below_f32(x, n, t, bits);
}
inline int64_t mark_below(const double* x, int64_t n, double t, uint64_t* bits) {
  return plan_kernels().below_f64(x, n, t, bits);
}

inline int64_t keep_below(const PhiloxCounter& at, const float* x, int64_t n, float t, uint64_t limit, uint64_t* below,
                          uint64_t* kept) {
  return kernels().keep_below_f32(&at, x, n, t, limit, below, kept);
}
inline int64_t keep_below(const PhiloxCounter& at, const double* x, int64_t n, double t, uint64_t limit,
                          uint64_t* below, uint64_t* kept) {
  return kernels().keep_below_f64(&at, x, n, t, limit, below, kept);
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
  const uint64_t limit = static_cast<uint64_t>(std::ceil(draw.keep * TWO_32));
  for_chunks(num_chunks(marks.n), [&](int64_t chunk) {
    const int64_t first = chunk * CHUNK;
    marks.counts[chunk] =
        keep_below(words_from(draw.key, draw.epoch, STREAM_DRAW, first), scores + first, chunk_size(marks.n, chunk),
                   threshold, limit, marks.below_of(chunk), marks.kept_of(chunk));
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
    head = static_cast<double>(word) < draw.keep * static_cast<double>(pool) * TWO_32;
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

// The marks of a draw, and what writes their indices and weights.
class Drawn {
 public:
  template <typename T>
  Drawn(const T* scores /* [n] */, int64_t n, const Draw& draw, bool exact_count)
      : words_(num_chunks(n) * CHUNK_WORDS),
        scratch_(2 * words_, "draw_threshold"),
        weight_(1.0f / static_cast<float>(draw.keep)) {
    uint64_t* bits = scratch_.data();
    marks_ = {n, bits, bits + words_, std::vector<int64_t>(num_chunks(n)), std::vector<int64_t>(num_chunks(n))};
    const T threshold = static_cast<T>(mean_of(finite_stats_of(scores, n)));
    if (exact_count) {
      mark_exact(scores, threshold, draw, marks_);
    } else {
      mark_bernoulli(scores, threshold, draw, marks_);
    }
    total_ = scan(marks_.counts, marks_.offsets);
  }

  int64_t total() const { return total_; }

  void write(int64_t* indices /* [total] */, float* weights /* [total] */) const {
    for_chunks(num_chunks(marks_.n), [&](int64_t chunk) {
      const int64_t size = (chunk_size(marks_.n, chunk) + 63) / 64;
      const int64_t offset = marks_.offsets[chunk], count = marks_.counts[chunk];
      kernels().emit(marks_.kept_of(chunk), size, chunk * CHUNK, indices + offset, count);
      plan_kernels().emit_weights(marks_.kept_of(chunk), marks_.below_of(chunk), size, weight_, weights + offset,
                                  count);
    });
  }

 private:
  int64_t words_;
  Workspace<uint64_t> scratch_;
  float weight_;
  Marks marks_{};
  int64_t total_ = 0;
};

Drawn drawn(const Tensor& scores, double keep, bool exact_count, int64_t seed, int64_t epoch) {
  check_vector(scores, "draw_threshold", "scores");
  const ScalarType dtype = scores.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, "draw_threshold: unsupported dtype");
  STD_TORCH_CHECK(keep >= 0.0 && keep <= 1.0, "draw_threshold: keep must lie in [0, 1]");
  STD_TORCH_CHECK(scores.numel() <= int64_t{1} << 40, "draw_threshold: scores must have at most 2^40 elements");
  const Draw draw{keep, philox_key(seed), static_cast<uint32_t>(epoch)};
  const int64_t n = scores.numel();
  if (dtype == ScalarType::Float) return Drawn(scores.const_data_ptr<float>(), n, draw, exact_count);
  return Drawn(scores.const_data_ptr<double>(), n, draw, exact_count);
}

// Indices, weights and how many they are.
std::tuple<Tensor, Tensor, Tensor> draw_threshold(const Tensor& scores, double keep, bool exact_count, int64_t seed,
                                                  int64_t epoch, const std::optional<Tensor>& index_buffer,
                                                  const std::optional<Tensor>& weight_buffer) {
  const char* op = "draw_threshold";
  Output indices(index_buffer, scores, ScalarType::Long, op, "out indices");
  Output weights(weight_buffer, scores, ScalarType::Float, op, "out weights");
  const Drawn found = drawn(scores, keep, exact_count, seed, epoch);
  Tensor size = new_host_vector(op, 1, ScalarType::Long);
  const int64_t total = *size.mutable_data_ptr<int64_t>() = found.total();
  if (indices.fits(total) && weights.fits(total)) {
    int64_t* index_to = indices.take<int64_t>({total});
    found.write(index_to, weights.take<float>({total}));
  }
  return {indices.result(), weights.result(), size};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) { m.impl("draw_threshold", TORCH_BOX(&draw_threshold)); }

}  // namespace stprune
