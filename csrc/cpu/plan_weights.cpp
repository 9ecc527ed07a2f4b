// inverse_at: Horvitz-Thompson weights of kept samples. stratum_totals and scale_by_stratum: their calibration (eq.
// 10). Totals are summed in parts and lanes that depend on the sizes alone (stprune/reference/plan_weights.py).
#include <bit>
#include <tuple>

#include "cpu/order.h"

namespace stprune {
namespace {

constexpr int64_t MOST_PARTS = 64;
constexpr int64_t MOST_TOTALS = 1 << 20;
constexpr int64_t LANES = 4;
// Elements staged at a time, so that the arithmetic behind a gather runs on whole registers.
constexpr int64_t STAGE = 256;

// Calls body(first, size) for stretches of at most STAGE of [0, n), in parallel; true when every call returned true.
template <typename Body>
bool for_stages(int64_t n, const Body& body) {
  std::atomic<bool> good{true};
  for_chunks(num_chunks(n), [&](int64_t chunk) {
    const int64_t end = chunk * CHUNK + chunk_size(n, chunk);
    for (int64_t first = chunk * CHUNK; first < end; first += STAGE) {
      if (!body(first, std::min(STAGE, end - first))) good.store(false, std::memory_order_relaxed);
    }
  });
  return good.load();
}

template <typename T>
bool inverse_kernel(const Tensor& probability, const Tensor& indices, Tensor& out) {
  const T* p = probability.const_data_ptr<T>();
  const uint64_t n = static_cast<uint64_t>(probability.numel());
  const int64_t* index = indices.const_data_ptr<int64_t>();
  float* to = out.mutable_data_ptr<float>();
  return for_stages(indices.numel(), [&](int64_t first, int64_t size) {
    T drawn[STAGE];
    for (int64_t i = 0; i < size; ++i) {
      if (static_cast<uint64_t>(index[first + i]) >= n) return false;
      drawn[i] = p[index[first + i]];
    }
    for (int64_t i = 0; i < size; ++i) to[first + i] = static_cast<float>(T{1} / drawn[i]);
    return true;
  });
}

Tensor inverse_at(const Tensor& probability, const Tensor& indices) {
  check_vector(probability, "inverse_at", "probability");
  check_vector(indices, "inverse_at", "indices");
  check_dtype(indices, ScalarType::Long, "inverse_at", "indices");
  const ScalarType dtype = probability.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, "inverse_at: unsupported dtype");
  Tensor out = new_output(probability, indices.numel(), ScalarType::Float);
  const bool good = dtype == ScalarType::Float ? inverse_kernel<float>(probability, indices, out)
                                               : inverse_kernel<double>(probability, indices, out);
  STD_TORCH_CHECK(good, "inverse_at: indices must lie in [0, n)");
  return out;
}

// A total weight and, as one addition does for both, how many it is of.
typedef double Total __attribute__((vector_size(16)));

// Labels, and a power of two that bounds the places they may ask for.
struct Labels {
  const int64_t* of;  // [n]
  int64_t num_strata, places;
};

// What a part of the samples adds to every stratum, in LANES each: equal neighbours do not wait for each other.
struct Part {
  int64_t* sizes;  // [places * LANES]
  Total* totals;   // [places * LANES]
};

// The samples [first, stop) and the kept ones among them, which begin at j. Returns the next j, or -1 for a label or an
// index out of its range.
int64_t add_chunk(const Labels& labels, const int64_t* index, const float* weight, int64_t kept, int64_t first,
                  int64_t stop, int64_t j, const Part& part, int32_t* member) {
  const int64_t* label = labels.of;
  uint64_t seen = 0;
  for (int64_t i = first; i < stop; ++i) seen |= static_cast<uint64_t>(label[i]);
  if (seen >= static_cast<uint64_t>(labels.places)) return -1;
  int64_t i = first;
  for (; i + LANES <= stop; i += LANES) {
    for (int64_t lane = 0; lane < LANES; ++lane) ++part.sizes[label[i + lane] * LANES + lane];
  }
  for (; i < stop; ++i) ++part.sizes[label[i] * LANES];
  const int64_t end = std::lower_bound(index + j, index + kept, stop) - index;
  for (; j < end; ++j) {
    // Of ascending indices none lies outside.
    if (static_cast<uint64_t>(index[j] - first) >= static_cast<uint64_t>(stop - first)) return -1;
    const int64_t stratum = label[index[j]];
    member[j] = static_cast<int32_t>(stratum);
    part.totals[stratum * LANES + j % LANES] += Total{static_cast<double>(weight[j]), 1.0};
  }
  return j;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> stratum_totals(const Tensor& strata, const Tensor& indices,
                                                          const Tensor& weights, int64_t num_strata) {
  const char* op = "stratum_totals";
  check_vector(strata, op, "strata");
  check_vector(indices, op, "indices");
  check_vector(weights, op, "weights");
  check_dtype(strata, ScalarType::Long, op, "strata");
  check_dtype(indices, ScalarType::Long, op, "indices");
  check_dtype(weights, ScalarType::Float, op, "weights");
  STD_TORCH_CHECK(weights.numel() == indices.numel(), op, ": weights and indices must have one size");
  STD_TORCH_CHECK(num_strata >= 0 && num_strata <= std::numeric_limits<int32_t>::max(), op,
                  ": num_strata must lie in [0, 2^31 - 1]");
  const int64_t n = strata.numel(), kept = indices.numel();
  const Labels labels{strata.const_data_ptr<int64_t>(), num_strata,
                      static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(std::max<int64_t>(1, num_strata))))};
  const int64_t* index = indices.const_data_ptr<int64_t>();
  const float* weight = weights.const_data_ptr<float>();
  Tensor members = new_output(strata, kept, ScalarType::Int);
  int32_t* member = members.mutable_data_ptr<int32_t>();

  const int64_t chunks = num_chunks(n);
  const int64_t most =
      std::max<int64_t>(1, std::min({MOST_PARTS, chunks, MOST_TOTALS / std::max<int64_t>(1, num_strata)}));
  const int64_t part_size = (chunks + most - 1) / most * CHUNK;
  const int64_t parts = part_size == 0 ? 0 : (n + part_size - 1) / part_size;
  const int64_t width = labels.places * LANES;
  std::vector<int64_t> counts(parts * width);
  std::vector<Total> sums(parts * width);
  std::atomic<int64_t> done{0};
  for_chunks(parts, [&](int64_t number) {
    const int64_t begin = number * part_size, end = std::min(n, begin + part_size);
    const Part part{counts.data() + number * width, sums.data() + number * width};
    const int64_t start = std::lower_bound(index, index + kept, begin) - index;
    int64_t j = start;
    for (int64_t first = begin; first < end && j >= 0; first += CHUNK) {
      j = add_chunk(labels, index, weight, kept, first, std::min(end, first + CHUNK), j, part, member);
    }
    if (j >= 0) done.fetch_add(j - start, std::memory_order_relaxed);
    if (j < 0) done.store(std::numeric_limits<int64_t>::min() / 2);
  });
  const char* rule = ": strata must lie in [0, num_strata), indices ascend in [0, n)";
  STD_TORCH_CHECK(done.load() == kept, op, rule);

  Tensor size_out = torch::stable::new_empty(strata, {num_strata}, ScalarType::Long);
  Tensor kept_out = torch::stable::new_empty(strata, {num_strata}, ScalarType::Long);
  Tensor total_out = torch::stable::new_empty(strata, {num_strata}, ScalarType::Double);
  int64_t *size_to = size_out.mutable_data_ptr<int64_t>(), *kept_to = kept_out.mutable_data_ptr<int64_t>();
  double* total_to = total_out.mutable_data_ptr<double>();
  for (int64_t stratum = 0; stratum < labels.places; ++stratum) {
    int64_t size = 0;
    Total total{};
    for (int64_t number = 0; number < parts; ++number) {
      const int64_t* c = counts.data() + number * width + stratum * LANES;
      const Total* t = sums.data() + number * width + stratum * LANES;
      size += c[0] + c[1] + c[2] + c[3];
      total += (t[0] + t[1]) + (t[2] + t[3]);
    }
    if (stratum >= num_strata) {
      STD_TORCH_CHECK(size == 0, op, rule);
      continue;
    }
    size_to[stratum] = size;
    kept_to[stratum] = static_cast<int64_t>(total[1]);
    total_to[stratum] = total[0];
  }
  return {size_out, kept_out, total_out, members};
}

void scale_by_stratum(Tensor weights, const Tensor& members, const Tensor& factor) {
  const char* op = "scale_by_stratum";
  check_vector(weights, op, "weights");
  check_vector(members, op, "members");
  check_vector(factor, op, "factor");
  check_dtype(weights, ScalarType::Float, op, "weights");
  check_dtype(members, ScalarType::Int, op, "members");
  check_dtype(factor, ScalarType::Double, op, "factor");
  STD_TORCH_CHECK(weights.numel() == members.numel(), op, ": weights and members must have one size");
  float* weight = weights.mutable_data_ptr<float>();
  const int32_t* member = members.const_data_ptr<int32_t>();
  const double* by = factor.const_data_ptr<double>();
  const uint64_t num_strata = static_cast<uint64_t>(factor.numel());
  // Nothing is changed when a label is wrong.
  const bool good = for_stages(members.numel(), [&](int64_t first, int64_t size) {
    bool right = true;
    for (int64_t i = first; i < first + size; ++i) right &= static_cast<uint64_t>(member[i]) < num_strata;
    return right;
  });
  STD_TORCH_CHECK(good, op, ": members must lie in [0, ", factor.numel(), ")");
  for_stages(members.numel(), [&](int64_t first, int64_t size) {
    double factors[STAGE];
    for (int64_t i = 0; i < size; ++i) factors[i] = by[member[first + i]];
    for (int64_t i = 0; i < size; ++i) {
      weight[first + i] = static_cast<float>(static_cast<double>(weight[first + i]) * factors[i]);
    }
    return true;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) {
  m.impl("inverse_at", TORCH_BOX(&inverse_at));
  m.impl("stratum_totals", TORCH_BOX(&stratum_totals));
  m.impl("scale_by_stratum", TORCH_BOX(&scale_by_stratum));
}

}  // namespace stprune
