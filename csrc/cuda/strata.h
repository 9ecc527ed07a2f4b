// Weights that give each stratum its true share (eq. 10), with the bits of stprune/reference/plan_weights.py: the
// samples are cut into parts, and the j-th kept sample adds to lane j % 4 of its stratum in the part it lies in, in the
// order of j.
#pragma once

#include "cuda/finite_stats.h"

namespace stprune {
namespace {

constexpr int64_t PART_CHUNK = 1 << 14;
constexpr int64_t MOST_PARTS = 64;
constexpr int64_t MOST_TOTALS = 1 << 20;
constexpr int TOTAL_LANES = 4;
constexpr int64_t MIN_STRATUM = 30;
constexpr uint32_t NO_STRATUM = 0xFFFFFFFFu;

// Labels [n] of 1 byte (uint8) or 4 (int32), and how many samples have each, [num].
struct Strata {
  int label_bytes;
  const void* labels;
  int64_t n;
  const int64_t* sizes;
  int64_t num;
};

struct StrataMemory {
  int64_t part_size, parts;
  int64_t* more;     // whether another round follows
  double* sums;      // [parts * 4 * num] of every part, lane and stratum
  uint32_t* counts;  // the same: of one lane 2^32 samples would not fit into memory
  double* totals;    // [num]
  int64_t* kept;     // [num]
  int64_t* group;    // [num] of every stratum
  double* factors;   // [num] of every group
};

inline StrataMemory strata_memory(int64_t n, int64_t num, Scratch& scratch) {
  const int64_t chunks = blocks_of(n, PART_CHUNK);
  const int64_t most_parts = most(1, least(least(MOST_PARTS, chunks), MOST_TOTALS / most(1, num)));
  StrataMemory memory;
  memory.part_size = most(1, blocks_of(chunks, most_parts)) * PART_CHUNK;
  memory.parts = most(1, blocks_of(n, memory.part_size));
  memory.more = scratch.take<int64_t>(1);
  memory.sums = scratch.take<double>(memory.parts * TOTAL_LANES * num);
  memory.counts = scratch.take<uint32_t>(memory.parts * TOTAL_LANES * num);
  memory.totals = scratch.take<double>(num);
  memory.kept = scratch.take<int64_t>(num);
  memory.group = scratch.take<int64_t>(num);
  memory.factors = scratch.take<double>(num);
  return memory;
}

// What the weights of each stratum are multiplied by. Round 0 adds up parts, a block each and a warp a lane, round 1
// strata; then one thread merges small strata with their neighbours, one after the other.
template <class Label>
struct StratumFactors {
  static constexpr int THREADS = TOTAL_LANES * WARP;
  static constexpr int EACH = 8;  // loads of a thread that are in flight together
  struct Shared {
    SharedArray<float, EACH * THREADS> weights;
  };
  const float* weights;    // [kept]
  const int64_t* indices;  // [kept], ascending
  Size kept;
  const Label* labels;  // [n]
  int64_t n;
  const int64_t* sizes;  // [num]
  int64_t num;
  StrataMemory memory;

  STPRUNE_DEVICE bool go_on() const { return *memory.more != 0; }

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared& shared, int round) const {
    if (round == 0) {
      for (int64_t part = block.index(); part < memory.parts; part += block.count()) add_part(block, shared, part);
      return;
    }
    block.own([&](int t) {
      for (int64_t stratum = block.index() * THREADS + t; stratum < num; stratum += block.count() * THREADS) {
        double total = 0.0;
        int64_t members = 0;
        for (int64_t part = 0; part < memory.parts; ++part) {
          const int64_t at = part * TOTAL_LANES * num + stratum;
          const double* sum = memory.sums + at;
          total += (sum[0] + sum[num]) + (sum[2 * num] + sum[3 * num]);
          for (int lane = 0; lane < TOTAL_LANES; ++lane) members += memory.counts[at + lane * num];
        }
        memory.totals[stratum] = total;
        memory.kept[stratum] = members;
      }
    });
  }

  STPRUNE_DEVICE void add_part(Block<THREADS>& block, Shared& shared, int64_t part) const {
    const int64_t begin = part * memory.part_size, end = least(n, begin + memory.part_size), all = kept.get();
    const int64_t start = first_from(all, begin), stop = first_from(all, end), place = part * TOTAL_LANES * num;
    block.phase([&](int t) {
      for (int64_t i = t; i < TOTAL_LANES * num; i += THREADS) {
        memory.sums[place + i] = 0.0;
        memory.counts[place + i] = 0;
      }
    });
    for (int64_t first = start / TOTAL_LANES * TOTAL_LANES; first < stop; first += EACH * THREADS) {
      PerThread<uint32_t> stratum[EACH];
      block.phase([&](int t) {
        int64_t index[EACH];
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
          const int64_t j = sample(first, i, t);
          index[i] = j >= start && j < stop ? indices[j] : -1;
        }
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
          stratum[i][t] = NO_STRATUM;
          if (index[i] == -1) continue;
          STPRUNE_DEVICE_CHECK(index[i] >= begin && index[i] < end, "calibrate: indices must ascend in [0, n)");
          stratum[i][t] = static_cast<uint32_t>(labels[index[i]]);
          STPRUNE_DEVICE_CHECK(stratum[i][t] < num, "calibrate: strata must lie in [0, num_strata)");
          shared.weights[i * THREADS + t] = weights[sample(first, i, t)];
        }
      });
      for (int i = 0; i < EACH; ++i) {
        const PerThread<uint32_t> same = block.match_any(stratum[i]);
        // The first of a warp's samples of a stratum adds all of them, so that they come one after the other.
        block.phase([&](int t) {
          if (stratum[i][t] == NO_STRATUM || (same[t] & lanes_below(t)) != 0) return;
          const int64_t at = place + t / WARP * num + stratum[i][t];
          double sum = memory.sums[at];
          for (uint32_t rest = same[t]; rest != 0; rest &= rest - 1) {
            sum += static_cast<double>(shared.weights[i * THREADS + t / WARP * WARP + first_bit(rest)]);
          }
          memory.sums[at] = sum;
          memory.counts[at] += static_cast<uint32_t>(popcount(same[t]));
        });
      }
    }
  }

  // Which kept sample a thread has in a step: a warp those of its lane.
  STPRUNE_DEVICE int64_t sample(int64_t first, int step, int t) const {
    return first + step * THREADS + (t & (WARP - 1)) * TOTAL_LANES + t / WARP;
  }

  // How many of the indices lie below a bound.
  STPRUNE_DEVICE int64_t first_from(int64_t size, int64_t bound) const {
    int64_t low = 0;
    for (int64_t high = size; low < high;) {
      const int64_t middle = low + (high - low) / 2;
      if (indices[middle] < bound) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }

  STPRUNE_DEVICE void settle(Block<THREADS>& block, Shared&, int round) const {
    block.own([&](int t) {
      if (t != 0) return;
      *memory.more = round == 0;
      if (round > 0) merge();
    });
  }

  STPRUNE_DEVICE void merge() const {
    int64_t groups = 0, members = 0, left = 0;
    double size = 0.0, total = 0.0, last_size = 0.0, last_total = 0.0;
    for (int64_t stratum = 0; stratum < num; ++stratum) {
      memory.group[stratum] = groups;
      members += memory.kept[stratum];
      size += static_cast<double>(sizes[stratum]);
      total += memory.totals[stratum];
      if (members < MIN_STRATUM && (groups > 0 || stratum + 1 < num)) continue;
      memory.factors[groups++] = size / total;
      last_size = size;
      last_total = total;
      left = stratum + 1;
      members = 0;
      size = total = 0.0;
    }
    // What is left over at the end joins the last complete group.
    for (int64_t stratum = left; stratum < num; ++stratum) {
      memory.group[stratum] = groups - 1;
      last_size += static_cast<double>(sizes[stratum]);
      last_total += memory.totals[stratum];
    }
    if (left < num) memory.factors[groups - 1] = last_size / last_total;
  }
};

template <class Label>
struct ScaleWeights {
  static constexpr int THREADS = 256;
  static constexpr int EACH = 4;
  struct Shared {};
  float* weights;          // [kept]
  const int64_t* indices;  // [kept]
  Size kept;
  const Label* labels;  // [n]
  int64_t n, num;
  StrataMemory memory;

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared&) const {
    const int64_t all = kept.get();
    block.own([&](int t) {
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        const int64_t j = (block.index() * EACH + i) * THREADS + t;
        if (j >= all) continue;
        // Of indices that do not ascend some were not looked at before.
        STPRUNE_DEVICE_CHECK(indices[j] >= 0 && indices[j] < n, "calibrate: indices must ascend in [0, n)");
        const uint32_t stratum = static_cast<uint32_t>(labels[indices[j]]);
        STPRUNE_DEVICE_CHECK(stratum < num, "calibrate: strata must lie in [0, num_strata)");
        const double factor = memory.factors[memory.group[stratum]];
        weights[j] = static_cast<float>(static_cast<double>(weights[j]) * factor);
      }
    });
  }
};

template <class Label>
int calibrate_by(float* weights, const int64_t* indices, Size kept, const Strata& strata, const StrataMemory& memory,
                 void* stream) {
  using Factors = StratumFactors<Label>;
  using Scale = ScaleWeights<Label>;
  const Label* labels = static_cast<const Label*>(strata.labels);
  STPRUNE_TRY(launch_rounds(Factors{weights, indices, kept, labels, strata.n, strata.sizes, strata.num, memory},
                            most(memory.parts, blocks_of(strata.num, Factors::THREADS)), stream));
  return launch(Scale{weights, indices, kept, labels, strata.n, strata.num, memory},
                blocks_of(kept.most, Scale::THREADS * Scale::EACH), stream);
}

// Scales the weights so that those of every stratum add up to its size; waits for nothing.
inline int calibrate(float* weights, const int64_t* indices, Size kept, const Strata& strata,
                     const StrataMemory& memory, void* stream) {
  return strata.label_bytes == 1 ? calibrate_by<uint8_t>(weights, indices, kept, strata, memory, stream)
                                 : calibrate_by<int32_t>(weights, indices, kept, strata, memory, stream);
}

}  // namespace
}  // namespace stprune
