// draw_nodes: for each window the nodes with the smallest random words, a function of (seed, epoch, window).
#include "cuda/collective.h"
#include "cuda/launchers.h"

namespace stprune {
namespace {

// Words of a window that are kept in shared memory (40 KiB, which leaves three blocks a processor); of more nodes they
// are made again in every pass.
constexpr int MOST_WORDS = 10240;
constexpr int NODE_BINS = 256;

// One window at a time: the threshold by four digits of 8 bits, then the nodes below it and the first that equal it.
struct DrawNodes {
  static constexpr int THREADS = 256;
  static constexpr int EACH = 4;  // consecutive nodes a thread decides on at a time
  struct Shared {
    SharedArray<uint32_t, MOST_WORDS> words;
    Histogram<NODE_BINS> histogram;
    RankShared rank;
    SharedArray<uint32_t, WARP> warps;
  };
  const int64_t* index;  // [rows]
  int64_t rows, num_nodes, count;
  PhiloxKey key;
  uint32_t epoch;
  int64_t* out;  // [rows, count]

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared& shared) const {
    for (int64_t row = block.index(); row < rows; row += block.count()) draw(block, shared, row);
  }

  STPRUNE_DEVICE PhiloxWords words_of(int64_t window, int64_t counter) const {
    return philox(key, static_cast<uint32_t>(counter), static_cast<uint32_t>(window), epoch,
                  STREAM_NODES | static_cast<uint32_t>(window >> 32) << 8);
  }

  STPRUNE_DEVICE void draw(Block<THREADS>& block, Shared& shared, int64_t row) const {
    const int64_t window = index[row], counters = 16 * blocks_of(num_nodes, 64);
    const bool stored = num_nodes <= MOST_WORDS;
    // Word j of counter c belongs to this node: see philox_counter.
    const auto node_of = [](int64_t c, int j) { return 64 * (c >> 4) + 16 * j + (c & 15); };
    if (stored) {
      block.phase([&](int t) {
        for (int64_t c = t; c < counters; c += THREADS) {
          const PhiloxWords words = words_of(window, c);
          for (int j = 0; j < 4; ++j) {
            if (node_of(c, j) < num_nodes) shared.words[static_cast<int>(node_of(c, j))] = words.word[j];
          }
        }
      });
    }
    // The complements' order is the words' from the end: the count-th largest complement is the threshold.
    uint32_t prefix = 0;
    int64_t rank = count;
    for (int shift = 24; shift >= 0; shift -= 8) {
      clear(block, shared.histogram);
      const uint32_t known = shift == 24 ? 0 : ~0u << (shift + 8);
      block.phase([&](int t) {
        for (int64_t c = t; c < counters; c += THREADS) {
          PhiloxWords words;
          if (!stored) words = words_of(window, c);
          for (int j = 0; j < 4; ++j) {
            const int64_t node = node_of(c, j);
            if (node >= num_nodes) break;
            const uint32_t code =
                ~(stored ? static_cast<uint32_t>(shared.words[static_cast<int>(node)]) : words.word[j]);
            if ((code & known) == prefix) shared.histogram.add((code >> shift) & (NODE_BINS - 1), 1u);
          }
        }
      });
      const int64_t bin = bin_of_rank<NODE_BINS>(
          block, shared.rank, [&](int b) { return static_cast<int64_t>(shared.histogram[b]); }, rank);
      prefix |= static_cast<uint32_t>(bin) << shift;
    }
    // `rank` of the words that equal the threshold are taken.
    const uint32_t threshold = ~prefix;
    int64_t below = 0, equal = 0;
    for (int64_t first = 0; first < num_nodes; first += THREADS * EACH) {
      PerThread<uint32_t> is_below, is_equal, before;
      block.own([&](int t) {
        is_below[t] = is_equal[t] = 0;
        for (int i = 0; i < EACH; ++i) {
          const int64_t node = first + t * EACH + i;
          if (node >= num_nodes) break;
          uint32_t word;
          if (stored) {
            word = shared.words[static_cast<int>(node)];
          } else {
            word = words_of(window, static_cast<int64_t>(philox_counter(node))).word[(node >> 4) & 3];
          }
          is_below[t] |= static_cast<uint32_t>(word < threshold) << i;
          is_equal[t] |= static_cast<uint32_t>(word == threshold) << i;
        }
        // At most 1,024 of each: two counts in one number.
        before[t] = static_cast<uint32_t>(popcount(is_below[t]) | popcount(is_equal[t]) << 16);
      });
      const uint32_t all = exclusive_scan(block, shared.warps, before);
      block.own([&](int t) {
        int64_t ties = equal + (before[t] >> 16);
        int64_t place = row * count + below + (before[t] & 0xFFFFu) + least(ties, rank);
        for (int i = 0; i < EACH; ++i) {
          const bool tie = (is_equal[t] >> i & 1) != 0, taken = tie && ties < rank;
          ties += tie;
          if (taken || (is_below[t] >> i & 1) != 0) out[place++] = first + t * EACH + i;
        }
      });
      below += all & 0xFFFFu;
      equal += all >> 16;
    }
    block.sync();
  }
};

}  // namespace
}  // namespace stprune

using namespace stprune;

extern "C" int stprune_cuda_draw_nodes(const int64_t* index, int64_t rows, int64_t num_nodes, int64_t count,
                                       int64_t seed, int64_t epoch, int64_t* out, void* stream) {
  const DrawNodes kernel{index, rows, num_nodes, count, philox_key(seed), static_cast<uint32_t>(epoch), out};
  return launch(kernel, least(rows, 1 << 20), stream);
}
