// plan_budget: the kept samples of the budget rule and their weights (eq. 7 and 10). Probabilities are never stored:
// they are made of the scores, block by block, where they are asked for. One pass finds the constant, one adds up the
// probabilities, one draws; with strata one more scales the kept weights.
#include <optional>
#include <tuple>

#include "cpu/budget.h"
#include "cpu/strata.h"
#include "cpu/systematic.h"

namespace stprune {
namespace {

static_assert(SUM_BLOCK == SYSTEMATIC_BLOCK);

// Probabilities made of scores.
template <typename T>
struct OfScores {
  using Element = float;
  const T* scores;  // [n]
  Power power;
  Scale found;

  const float* block(int64_t first, int64_t size, float* room) const {
    write_block(scores + first, size, power, found.scale, found.minimum, room);
    return room;
  }
};

template <typename T>
class Planned {
 public:
  Planned(const T* scores /* [n] */, int64_t n, Power power, int64_t count, double minimum, PhiloxKey key,
          uint32_t epoch)
      : n_(n), budget_(scores, n, power, static_cast<double>(count), minimum) {
    const Scale found = budget_.find();
    source_ = {scores, power, found};
    drawn_ = {n_, budget_.num_kept(), key, epoch};
  }

  int64_t num_kept() const { return drawn_.count; }

  // The kept samples and their weights, [num_kept] each. Returns the mean of the weights.
  double write(int64_t* indices, float* weights) const {
    const auto draw = drawn();
    for_chunks(drawn_.blocks(), [&](int64_t block) { write_block_of(draw, block, indices, weights); });
    return mean_of(finite_stats_of(weights, num_kept()));
  }

  // The same with weights that add up to each stratum's size.  labels [n], members [num_kept] scratch
  template <typename Label>
  double write(const Label* labels, Sizes strata, int64_t* indices, float* weights, Label* members) const {
    const auto draw = drawn();
    StratumTotals totals(n_, strata.num);
    std::atomic<bool> good{true};
    for_chunks(totals.parts(), [&](int64_t part) {
      for (int64_t first = totals.begin(part); first < totals.end(part); first += SYSTEMATIC_BLOCK) {
        const int64_t block = first / SYSTEMATIC_BLOCK, place = draw.place_of(block);
        write_block_of(draw, block, indices, weights);
        if (!totals.add(part, labels, indices + place, weights + place, place, draw.place_of(block + 1) - place,
                        members + place)) {
          good.store(false, std::memory_order_relaxed);
          return;
        }
      }
    });
    STD_TORCH_CHECK(good.load() && totals.in_range(), "plan_budget: strata must lie in [0, num_strata)");
    const std::vector<double> factor = stratum_factors(totals, strata);
    std::vector<BlockStats> blocks(num_sum_blocks(num_kept()));
    for_sum_blocks(num_kept(), [&](int64_t block, int64_t first, int64_t size) {
      scale_weights(weights + first, members + first, size, factor.data());
      block_stats(weights + first, size, &blocks[block]);
    });
    return mean_of(stats_of(blocks));
  }

 private:
  SystematicDraw<OfScores<T>> drawn() const {
    SystematicDraw<OfScores<T>> draw(source_, drawn_);
    STD_TORCH_CHECK(draw.spread(), "plan_budget: the probabilities must add up to a whole number");
    return draw;
  }

  void write_block_of(const SystematicDraw<OfScores<T>>& draw, int64_t block, int64_t* indices, float* weights) const {
    float p[SYSTEMATIC_BLOCK];
    uint64_t bits[SYSTEMATIC_BLOCK / 64];
    const int64_t first = block * SYSTEMATIC_BLOCK, size = drawn_.size_of(block), num_words = (size + 63) / 64;
    const int64_t place = draw.place_of(block), count = draw.place_of(block + 1) - place;
    source_.block(first, size, p);
    draw.mark(block, p, bits);
    kernels().emit(bits, num_words, first, indices + place, count);
    plan_kernels().emit_inverse(p, bits, num_words, weights + place, count);
  }

  int64_t n_;
  Budget<T> budget_;
  OfScores<T> source_{};
  Systematic drawn_{};
};

struct Arguments {
  const Tensor& scores;
  double alpha;
  int64_t count;
  double minimum;
  const std::optional<Tensor>&strata, &sizes;
  int64_t seed, epoch;
};

Arguments checked(const Tensor& scores, double alpha, int64_t count, double minimum,
                  const std::optional<Tensor>& strata, const std::optional<Tensor>& sizes, int64_t seed,
                  int64_t epoch) {
  const char* op = "plan_budget";
  check_vector(scores, op, "scores");
  const ScalarType dtype = scores.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, op, ": unsupported dtype");
  STD_TORCH_CHECK(alpha == 0.0 || alpha == 0.5 || alpha == 1.0, op, ": alpha must be 0, 0.5 or 1");
  // The sum of the fixed-point probabilities must fit into 63 bits.
  STD_TORCH_CHECK(scores.numel() >= 1 && scores.numel() <= int64_t{1} << 30, op,
                  ": scores must have 1 to 2^30 elements");
  STD_TORCH_CHECK(count >= 0 && count <= scores.numel(), op, ": count must lie in [0, n]");
  STD_TORCH_CHECK(strata.has_value() == sizes.has_value(), op, ": strata and sizes belong together");
  if (strata.has_value()) {
    check_vector(*strata, op, "strata");
    check_vector(*sizes, op, "sizes");
    check_dtype(*sizes, ScalarType::Long, op, "sizes");
    STD_TORCH_CHECK(strata->numel() == scores.numel(), op, ": strata must have one label for each score");
    STD_TORCH_CHECK(sizes->numel() <= std::numeric_limits<int32_t>::max(), op, ": sizes must have fewer than 2^31");
  }
  return {scores, alpha, count, minimum, strata, sizes, seed, epoch};
}

// Calls body(a plan of the scores' type).
template <typename Body>
void with_plan(const Arguments& given, const Body& body) {
  const Power power = given.alpha == 0.5 ? Power::kRoot : given.alpha == 1.0 ? Power::kOne : Power::kZero;
  const PhiloxKey key = philox_key(given.seed);
  const uint32_t epoch = static_cast<uint32_t>(given.epoch);
  if (given.scores.scalar_type() == ScalarType::Float) {
    body(Planned<float>(given.scores.const_data_ptr<float>(), given.scores.numel(), power, given.count, given.minimum,
                        key, epoch));
  } else {
    body(Planned<double>(given.scores.const_data_ptr<double>(), given.scores.numel(), power, given.count, given.minimum,
                         key, epoch));
  }
}

template <typename T>
double write_plan(const Planned<T>& plan, const Arguments& given, int64_t* indices, float* weights, void* scratch) {
  if (!given.strata.has_value()) return plan.write(indices, weights);
  const Sizes sizes{given.sizes->const_data_ptr<int64_t>(), given.sizes->numel()};
  double mean = 0.0;
  with_labels(*given.strata, "plan_budget", [&]<typename Label>(const Label* labels) {
    mean = plan.write(labels, sizes, indices, weights, static_cast<Label*>(scratch));
  });
  return mean;
}

// The kept samples, their weights, and how many they are and the mean weight.
std::tuple<Tensor, Tensor, Tensor> plan_budget(const Tensor& scores, double alpha, int64_t count, double minimum,
                                               const std::optional<Tensor>& strata, const std::optional<Tensor>& sizes,
                                               int64_t seed, int64_t epoch, const std::optional<Tensor>& index_buffer,
                                               const std::optional<Tensor>& weight_buffer,
                                               const std::optional<Tensor>& scratch) {
  const char* op = "plan_budget";
  const Arguments given = checked(scores, alpha, count, minimum, strata, sizes, seed, epoch);
  Output indices(index_buffer, scores, ScalarType::Long, op, "out indices");
  Output weights(weight_buffer, scores, ScalarType::Float, op, "out weights");
  STD_TORCH_CHECK(scratch.has_value() == index_buffer.has_value(), op, ": out must have all buffers or none");
  if (scratch.has_value()) {
    check_vector(*scratch, op, "out scratch");
    check_dtype(*scratch, ScalarType::Int, op, "out scratch");
  }
  Tensor totals = new_host_vector(op, 2, ScalarType::Double);
  double* to = totals.mutable_data_ptr<double>();
  with_plan(given, [&](const auto& plan) {
    const int64_t kept = plan.num_kept();
    to[0] = static_cast<double>(kept);
    to[1] = std::numeric_limits<double>::quiet_NaN();
    if (!indices.fits(kept) || !weights.fits(kept) || (scratch.has_value() && kept > scratch->numel())) return;
    int64_t* index_to = indices.take<int64_t>({kept});
    float* weight_to = weights.take<float>({kept});
    const Workspace<int32_t> members(strata.has_value() && !scratch.has_value() ? kept : 0, op);
    void* members_to = scratch.has_value() ? scratch->mutable_data_ptr() : members.data();
    to[1] = write_plan(plan, given, index_to, weight_to, members_to);
  });
  return {indices.result(), weights.result(), totals};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) { m.impl("plan_budget", TORCH_BOX(&plan_budget)); }

}  // namespace stprune
