// The kernels of the selection engine under ThreadSanitizer, on std::thread: torch's thread pools are not instrumented
// and would be reported for races that are none. .ci/sanitize.sh builds and runs it.
//
// torch's headers are used, its library is not: parallel_for is the one below, and nothing else of torch is called.
#include "check.h"

// Kernels are called by name, not registered.
#undef STABLE_TORCH_LIBRARY_IMPL
#define STPRUNE_JOIN_(a, b) a##b
#define STPRUNE_JOIN(a, b) STPRUNE_JOIN_(a, b)
#define STABLE_TORCH_LIBRARY_IMPL(library, key, m) \
  template <typename Library>                      \
  [[maybe_unused]] void STPRUNE_JOIN(registered_, __COUNTER__)(Library & m)

#include <cstdio>
#include <thread>

#include "cpu/draw.cpp"
#include "cpu/draw_threshold.cpp"
#include "cpu/draw_weighted.cpp"
#include "cpu/plan_budget.cpp"
#include "cpu/select.cpp"
#include "cpu/shuffle.cpp"

namespace {

int num_threads = 1;
thread_local bool inside = false;

}  // namespace

// Ranges of `grain` indices, taken by whichever thread is free, in no order.
extern "C" AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t grain, ParallelFunc f, void* context) {
  if (inside || num_threads == 1) {
    f(begin, end, context);
    return AOTI_TORCH_SUCCESS;
  }
  std::atomic<int64_t> next{begin};
  std::vector<std::thread> workers;
  for (int i = 0; i < num_threads; ++i) {
    workers.emplace_back([&] {
      inside = true;
      for (int64_t first = next.fetch_add(grain); first < end; first = next.fetch_add(grain)) {
        f(first, std::min(end, first + grain), context);
      }
    });
  }
  for (std::thread& worker : workers) worker.join();
  return AOTI_TORCH_SUCCESS;
}

namespace stprune {
namespace {

using Ids = std::vector<int64_t>;

struct Results {
  std::vector<Ids> ids;
  std::vector<std::vector<float>> values;

  bool operator==(const Results&) const = default;
};

Results run_all(const std::vector<float>& keys) {
  const int64_t n = static_cast<int64_t>(keys.size()), k = n / 3;
  Results out;
  const auto ids = [&](int64_t size) -> int64_t* { return out.ids.emplace_back(size).data(); };
  const auto values = [&](int64_t size) -> float* { return out.values.emplace_back(size).data(); };
  const StoredKeys<float> source{keys.data(), n};

  select_row(source, k, ids(k));
  radix_threshold(source, k);
  topk_row(source, keys.data(), k, true, values(k), ids(k));
  // Rows side by side, with a selection inside each.
  const int64_t rows = 20, size = n / rows;
  int64_t* row_ids = ids(rows * 9);
  for_rows(rows, size,
           [&](int64_t row) { select_row(StoredKeys<float>{keys.data() + row * size, size}, 9, row_ids + row * 9); });

  std::vector<double> chance(keys.size());
  double sum = 0.0;
  for (size_t i = 0; i < keys.size(); ++i) sum += chance[i] = std::min(1.0, std::abs(static_cast<double>(keys[i])));
  const int64_t count = std::llround(sum);
  draw_systematic(chance.data(), Systematic{n, count, philox_key(1), 2}, ids(count));
  const Bernoulli bernoulli(chance.data(), n, 1, 2);
  bernoulli.write(ids(bernoulli.total()));

  std::vector<float> weights(keys.size());
  for (size_t i = 0; i < keys.size(); ++i) weights[i] = std::abs(keys[i]) + 0.01f;
  for (const bool race : {false, true}) {
    draw_weighted_kernel(weights.data(), n, k, 1, 2, race, ids(k), values(race ? 0 : k));
  }
  for (const bool exact : {false, true}) {
    const Drawn drawn(weights.data(), n, Draw{0.5, philox_key(1), 2}, exact);
    drawn.write(ids(drawn.total()), values(drawn.total()));
  }
  std::vector<uint8_t> labels(keys.size());
  std::vector<int64_t> sizes(3);
  for (size_t i = 0; i < keys.size(); ++i) ++sizes[labels[i] = i % 3];
  const Planned<float> plan(weights.data(), n, Power::kRoot, k, 0.01, philox_key(1), 2);
  plan.write(ids(plan.num_kept()), values(plan.num_kept()));
  std::vector<uint8_t> members(plan.num_kept());
  plan.write(labels.data(), Sizes{sizes.data(), 3}, ids(plan.num_kept()), values(plan.num_kept()), members.data());
  shuffle_kernel(keys.data(), n, 1, 2, values(n));
  return out;
}

}  // namespace
}  // namespace stprune

int main() {
  // Distinct keys, keys with many ties, and equal ones: each takes another way through a selection.
  for (const uint32_t levels : {1u << 30, 7u, 1u}) {
    std::vector<float> keys(150'001);
    uint32_t state = 1;
    for (float& key : keys) {
      state = state * 1664525u + 1013904223u;
      key = static_cast<float>((state >> 2) % levels) / static_cast<float>(levels);
    }
    num_threads = 1;
    const stprune::Results expected = stprune::run_all(keys);
    for (const int count : {2, 3, 8}) {
      num_threads = count;
      if (!(stprune::run_all(keys) == expected)) {
        std::printf("%d threads give another result\n", count);
        return 1;
      }
    }
  }
  std::puts("no race, and the same results for 1, 2, 3 and 8 threads");
  return 0;
}
