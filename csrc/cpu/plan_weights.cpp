// inverse_at: Horvitz-Thompson weights of kept samples. compact_strata, calibrate and scale_by_stratum: their
// calibration (eq. 10).
#include <tuple>

#include "cpu/blocks.h"
#include "cpu/strata.h"

namespace stprune {
namespace {

// Labels are counted at once below this; where one is not, a second pass counts them.
constexpr int64_t FEW_STRATA = 256;
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

// Counts labels below `places`, a power of two, and copies them; larger ones are counted and copied as anything.
// Returns the union of all labels' bits.
template <typename Label>
uint64_t count_labels(const int64_t* label, int64_t n, int64_t places, Label* to, std::vector<int64_t>& counts) {
  const int64_t chunks = num_chunks(n), most = std::max<int64_t>(1, std::min(MOST_PARTS, MOST_TOTALS / places));
  const int64_t part_size = (chunks + most - 1) / most * CHUNK;
  const int64_t parts = part_size == 0 ? 0 : (n + part_size - 1) / part_size;
  const int64_t width = places * TOTAL_LANES, mask = places - 1;
  // Equal neighbours go to other lanes, so that they do not wait for each other.
  std::vector<uint32_t> lanes(parts * width);
  std::vector<uint64_t> seen(parts);
  for_chunks(parts, [&](int64_t part) {
    uint32_t* count = lanes.data() + part * width;
    const int64_t begin = part * part_size, end = std::min(n, begin + part_size);
    uint64_t bits = 0;
    // A stage at a time: bytes that are written may alias anything, which would hold up the counting.
    for (int64_t first = begin; first < end; first += STAGE) {
      const int64_t size = std::min(STAGE, end - first);
      Label copy[STAGE];
      for (int64_t i = 0; i < size; ++i) {
        bits |= static_cast<uint64_t>(label[first + i]);
        copy[i] = static_cast<Label>(label[first + i]);
      }
      int64_t i = 0;
      for (; i + TOTAL_LANES <= size; i += TOTAL_LANES) {
        for (int64_t lane = 0; lane < TOTAL_LANES; ++lane) ++count[(copy[i + lane] & mask) * TOTAL_LANES + lane];
      }
      for (; i < size; ++i) ++count[(copy[i] & mask) * TOTAL_LANES];
      std::copy(copy, copy + size, to + first);
    }
    seen[part] = bits;
  });
  counts.assign(places, 0);
  uint64_t all = 0;
  for (int64_t part = 0; part < parts; ++part) {
    all |= seen[part];
    for (int64_t at = 0; at < width; ++at) counts[at / TOTAL_LANES] += lanes[part * width + at];
  }
  return all;
}

// The labels in as few bytes as hold them, and how many samples have each: one pass where uint8 holds them.
std::tuple<Tensor, Tensor> compact_strata(const Tensor& strata) {
  const char* op = "compact_strata";
  check_vector(strata, op, "strata");
  check_dtype(strata, ScalarType::Long, op, "strata");
  const int64_t n = strata.numel();
  STD_TORCH_CHECK(n < int64_t{1} << 37, op, ": strata must have fewer than 2^37 elements");
  const int64_t* label = strata.const_data_ptr<int64_t>();
  std::vector<int64_t> counts;
  Tensor labels = new_output(strata, n, ScalarType::Byte);
  const uint64_t seen = count_labels(label, n, FEW_STRATA, labels.mutable_data_ptr<uint8_t>(), counts);
  STD_TORCH_CHECK(seen < uint64_t{1} << 31, op, ": strata must lie in [0, 2^31)");
  if (seen >= static_cast<uint64_t>(FEW_STRATA)) {
    labels = new_output(strata, n, ScalarType::Int);
    count_labels(label, n, static_cast<int64_t>(std::bit_ceil(seen + 1)), labels.mutable_data_ptr<int32_t>(), counts);
  }
  while (!counts.empty() && counts.back() == 0) counts.pop_back();
  Tensor sizes = torch::stable::new_empty(strata, {static_cast<int64_t>(counts.size())}, ScalarType::Long);
  std::copy(counts.begin(), counts.end(), sizes.mutable_data_ptr<int64_t>());
  return {labels, sizes};
}

void calibrate(Tensor weights, const Tensor& indices, const Tensor& strata, const Tensor& sizes) {
  const char* op = "calibrate";
  check_vector(strata, op, "strata");
  check_vector(indices, op, "indices");
  check_vector(weights, op, "weights");
  check_vector(sizes, op, "sizes");
  check_dtype(indices, ScalarType::Long, op, "indices");
  check_dtype(weights, ScalarType::Float, op, "weights");
  check_dtype(sizes, ScalarType::Long, op, "sizes");
  STD_TORCH_CHECK(weights.numel() == indices.numel(), op, ": weights and indices must have one size");
  STD_TORCH_CHECK(sizes.numel() <= std::numeric_limits<int32_t>::max(), op, ": sizes must have fewer than 2^31");
  const int64_t kept = indices.numel();
  const int64_t* index = indices.const_data_ptr<int64_t>();
  float* weight = weights.mutable_data_ptr<float>();
  StratumTotals totals(strata.numel(), sizes.numel());
  std::atomic<bool> good{true};
  std::atomic<int64_t> done{0};
  with_labels(strata, op, [&]<typename Label>(const Label* label) {
    const Workspace<Label> members(kept, op);
    Label* member = members.data();
    for_chunks(totals.parts(), [&](int64_t part) {
      const int64_t begin = totals.begin(part), end = totals.end(part);
      const int64_t start = std::lower_bound(index, index + kept, begin) - index;
      const int64_t stop = std::lower_bound(index + start, index + kept, end) - index;
      // Of ascending indices none lies outside.
      bool inside = true;
      for (int64_t j = start; j < stop; ++j) inside &= index[j] >= begin && index[j] < end;
      if (!inside || !totals.add(part, label, index + start, weight + start, start, stop - start, member + start)) {
        good.store(false, std::memory_order_relaxed);
      }
      done.fetch_add(stop - start, std::memory_order_relaxed);
    });
    // Nothing is changed when something is wrong.
    STD_TORCH_CHECK(good.load() && done.load() == kept && totals.in_range(), op,
                    ": strata must lie in [0, num_strata), indices ascend in [0, n)");
    const std::vector<double> factor = stratum_factors(totals, {sizes.const_data_ptr<int64_t>(), sizes.numel()});
    for_stages(kept, [&](int64_t first, int64_t size) {
      scale_weights(weight + first, member + first, size, factor.data());
      return true;
    });
  });
}

void scale_by_stratum(Tensor weights, const Tensor& members, const Tensor& factor) {
  const char* op = "scale_by_stratum";
  check_vector(weights, op, "weights");
  check_vector(members, op, "members");
  check_vector(factor, op, "factor");
  check_dtype(weights, ScalarType::Float, op, "weights");
  check_dtype(factor, ScalarType::Double, op, "factor");
  STD_TORCH_CHECK(weights.numel() == members.numel(), op, ": weights and members must have one size");
  float* weight = weights.mutable_data_ptr<float>();
  const double* by = factor.const_data_ptr<double>();
  const uint64_t num_strata = static_cast<uint64_t>(factor.numel());
  with_labels(members, op, [&](const auto* member) {
    // Nothing is changed when a label is wrong.
    const bool good = for_stages(members.numel(), [&](int64_t first, int64_t size) {
      bool right = true;
      for (int64_t i = first; i < first + size; ++i) right &= static_cast<uint64_t>(member[i]) < num_strata;
      return right;
    });
    STD_TORCH_CHECK(good, op, ": members must lie in [0, ", factor.numel(), ")");
    for_stages(members.numel(), [&](int64_t first, int64_t size) {
      scale_weights(weight + first, member + first, size, by);
      return true;
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) {
  m.impl("inverse_at", TORCH_BOX(&inverse_at));
  m.impl("compact_strata", TORCH_BOX(&compact_strata));
  m.impl("calibrate", TORCH_BOX(&calibrate));
  m.impl("scale_by_stratum", TORCH_BOX(&scale_by_stratum));
}

}  // namespace stprune
