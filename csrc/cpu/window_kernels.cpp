// Bodies of the kernels declared in window_stats.h, compiled once per instruction set; see lanes.h for the rule on
// headers.
#include "cpu/lanes.h"
#include "cpu/window_stats.h"

namespace stprune {
namespace {

typedef int64_t I64 __attribute__((vector_size(VECTOR_BYTES)));

constexpr double TINY = 2.2250738585072014e-308;
constexpr int64_t TILE = WINDOW_TILE;
// Two vectors, half a tile apart, at a time: enough to hide latencies, and all state stays in registers.
constexpr int UNITS = static_cast<int>(WINDOW_LANES) / LANES_64;

STPRUNE_INLINE F64 at_least(F64 a, double low) { return a > low ? a : F64{} + low; }
// a >= 0, but TINY for 0, so that 0 / 0 is 0.
STPRUNE_INLINE F64 positive(F64 a) {
#if STPRUNE_ISA == 2
  // As integers: additions keep the units busy that would compare doubles.
  return (F64)_mm512_max_epi64((__m512i)a, (__m512i)(F64{} + TINY));
#else
  return at_least(a, TINY);
#endif
}
STPRUNE_INLINE F64 magnitude(F64 a) { return (F64)((I64)a & 0x7FFFFFFFFFFFFFFFll); }
STPRUNE_INLINE F64 masked(F64 a, I64 mask) { return (F64)((I64)a & mask); }
STPRUNE_INLINE F64 one_if(I64 mask) { return masked(F64{} + 1.0, mask); }

// Copies a row of a tile, NaN for null. Returns whether something is missing or infinite.
template <typename T>
STPRUNE_INLINE bool copy_gappy_row(const T* row, int64_t columns, T null_value, double* to) {
  if (columns < TILE) {
    bool gap = false;
    for (int64_t i = 0; i < columns; ++i) {
      const double v = static_cast<double>(row[i]);
      const bool is_null = row[i] == null_value;
      gap |= is_null || !(v * 0.0 == 0.0);
      to[i] = is_null ? __builtin_nan("") : v;
    }
    return gap;
  }
  const F64 null = F64{} + static_cast<double>(null_value), nan = F64{} + __builtin_nan("");
  uint64_t sound = ~uint64_t{0};
#pragma GCC unroll 8
  for (int i = 0; i < TILE; i += LANES_64) {
    const F64 v = load_f64(row + i), shown = v == null ? nan : v;
    sound &= equal(shown * 0.0, F64{});
    store(to + i, shown);
  }
  return sound != (uint64_t{1} << LANES_64) - 1;
}

// Row by row, where something is missing or infinite or the tile is not full.
template <typename T>
STPRUNE_INLINE Gaps copy_gappy(const T* from, int64_t row_stride, int64_t rows, int64_t columns, T null_value,
                               double* to) {
  Gaps gaps = {rows, -1};
  for (int64_t r = 0; r < rows; ++r) {
    if (!copy_gappy_row(from + r * row_stride, columns, null_value, to + r * TILE)) continue;
    if (gaps.first == rows) gaps.first = r;
    gaps.last = r;
  }
  return gaps;
}

template <typename T>
STPRUNE_INLINE void copy(const T* from, int64_t row_stride, int64_t rows, int64_t columns, T null_value, double* to,
                         int64_t length, Gaps* gaps) {
  using Vector = typename Lanes<T>::Vector;
  using Mask = decltype(Vector{} == Vector{});
  // Rows that are asked for ahead: no hardware prefetcher follows rows that are far apart.
  constexpr int64_t AHEAD = 16;
  const int64_t tiles = (columns + TILE - 1) / TILE, full = columns / TILE;
  const bool has_null = null_value == null_value;
  const Vector null = Vector{} + null_value;
  Mask unsound[WINDOW_TILES] = {};
  for (int64_t r = 0; r < rows; ++r) {
    const T* row = from + r * row_stride;
    for (int64_t tile = 0; tile < full; ++tile, row += TILE) {
      double* out = to + (tile * length + r) * TILE;
      __builtin_prefetch(row + AHEAD * row_stride);
#pragma GCC unroll 8
      for (int i = 0; i < TILE; i += Lanes<T>::COUNT) {
        const Vector x = load<Vector>(row + i);
        // x - x is +0 where x is finite, else NaN.
        unsound[tile] |= (Mask)(x - x);
        if (has_null) unsound[tile] |= x == null;
      }
#pragma GCC unroll 8
      for (int i = 0; i < TILE; i += LANES_64) store(out + i, load_f64(row + i));
    }
  }
  for (int64_t tile = 0; tile < tiles; ++tile) {
    gaps[tile] = {rows, -1};
    bool sound = tile < full;
    for (int i = 0; i < Lanes<T>::COUNT; ++i) sound &= unsound[tile][i] == 0;
    if (sound) continue;
    const int64_t width = columns - tile * TILE < TILE ? columns - tile * TILE : TILE;
    gaps[tile] = copy_gappy(from + tile * TILE, row_stride, rows, width, null_value, to + tile * length * TILE);
  }
}

void copy_f32(const float* from, int64_t row_stride, int64_t rows, int64_t columns, float null_value, double* to,
              int64_t length, Gaps* gaps) {
  copy(from, row_stride, rows, columns, null_value, to, length, gaps);
}

void copy_f64(const double* from, int64_t row_stride, int64_t rows, int64_t columns, double null_value, double* to,
              int64_t length, Gaps* gaps) {
  copy(from, row_stride, rows, columns, null_value, to, length, gaps);
}

STPRUNE_INLINE void add_to(double* sums, int stat, int64_t lane, F64 value) {
  double* to = sums + stat * WINDOW_LANES + lane;
  store(to, load<F64>(to) + value);
}

STPRUNE_INLINE void store_nodes(float* to, int64_t offset, int64_t columns, F64 value) {
  if (offset + LANES_64 <= columns) {
    store_float(to + offset, value);
    return;
  }
  for (int64_t l = 0; l < columns - offset && l < LANES_64; ++l) to[offset + l] = static_cast<float>(value[l]);
}

template <bool NODES>
STPRUNE_INLINE void complete_tile(const WindowGroup& g) {
  // Copied out of the group: a store of doubles might change what is read through a reference.
  const int64_t w = g.length, plane = w * TILE, first = g.first, last = g.last, cut = g.history * TILE;
  const double *current = g.current, *next = g.next, *centre_of = g.centre, *spread_of = g.inverse_spread;
  // The sum of a suffix at row r, minus that of a prefix at row w + r: the sum over the history is a difference of two.
  double* total = g.scratch;
  double *square = total + 2 * plane, *product = square + plane, *moment = product + plane;  // moments of half a tile
  const double inverse_length = 1.0 / static_cast<double>(w), pairs = static_cast<double>(w - 1);
  // The deviations of neighbours add up to the sum times 2 - pairs / length, less the two ends.
  const double neighbours = 2.0 - pairs * inverse_length;
  const double inverse_horizon = w > g.history ? 1.0 / static_cast<double>(w - g.history) : 0.0;
  const double inverse_parts = inverse_horizon + 1.0 / static_cast<double>(g.history);
#pragma GCC unroll 1
  for (int unit = 0; unit < UNITS; ++unit) {
    const int64_t lane = unit * LANES_64, offset[2] = {lane, lane + WINDOW_LANES};
    F64 c[2], s[2] = {}, s2[2] = {}, p[2] = {}, d[2] = {}, q = {}, own_q[2] = {}, inverse_std[2];
    for (int h = 0; h < 2; ++h) {
      c[h] = load<F64>(current + (w - 1) * TILE + offset[h]);
      inverse_std[h] = load<F64>(g.inverse_std + offset[h]);
    }
    const F64 centres = c[0] + c[1];
    for (int64_t r = w - 1; r >= first; --r) {
      const double position = static_cast<double>(r - (w - 1));
      const int64_t row = r * TILE;
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        const int64_t at = row + offset[h];
        const F64 value = load<F64>(current + at) - c[h];
        s[h] += value;
        s2[h] += value * value;
        p[h] += value * d[h];
        d[h] = value;
        store(total + at, s[h]);
        store(square + at, s2[h]);
        store(product + at, p[h]);
        if (NODES) {
          own_q[h] += value * position;
          store(moment + at, own_q[h]);
        }
      }
      // Linear statistics are those of the sum of both halves.
      if (!NODES) {
        q += (d[0] + d[1]) * position;
        store(moment + r * WINDOW_LANES + lane, q);
      }
    }
    q = F64{};
    for (int h = 0; h < 2; ++h) {
      s[h] = s2[h] = p[h] = d[h] = own_q[h] = F64{};
      store(total + plane + offset[h], F64{});
    }
    double* sums = g.sums;
    float* nodes = g.nodes;
    int64_t wanted = first;
    for (int64_t r = 0; r < last; ++r) {
      const int64_t row = r * TILE;
      if (r == wanted) {
        const double centre = centre_of[r], inverse_spread = spread_of[r];
        F64 sum[2], deviation[2], autocorrelation[2], drift[2];
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) {
          const int64_t at = row + offset[h];
          const F64 left = load<F64>(total + at);
          sum[h] = left - s[h];
          const F64 past = left - load<F64>(total + at + cut);
          const F64 mean = sum[h] * inverse_length;
          deviation[h] = (load<F64>(square + at) + s2[h]) - sum[h] * mean;
          const F64 ends = (load<F64>(current + at) - c[h]) + d[h];
          const F64 covariance = (load<F64>(product + at) + p[h]) - mean * (sum[h] * neighbours - ends);
          autocorrelation[h] = covariance / positive(deviation[h]);
          drift[h] = magnitude(sum[h] * inverse_horizon - past * inverse_parts) * inverse_std[h];
        }
        if (NODES) {
          for (int h = 0; h < 2; ++h) {
            const F64 moments = load<F64>(moment + row + offset[h]) + own_q[h];
            const F64 shown = inverse_std[h] > 0.0 ? drift[h] : F64{} + __builtin_nan("");
            store_nodes(nodes + MEAN * g.stat_stride, offset[h], g.columns, c[h] + sum[h] * inverse_length);
            store_nodes(nodes + VARIANCE * g.stat_stride, offset[h], g.columns, deviation[h] * inverse_length);
            store_nodes(nodes + TREND * g.stat_stride, offset[h], g.columns,
                        (moments - sum[h] * centre) * inverse_spread);
            store_nodes(nodes + AUTOCORRELATION * g.stat_stride, offset[h], g.columns, autocorrelation[h]);
            store_nodes(nodes + DRIFT * g.stat_stride, offset[h], g.columns, shown);
            store_nodes(nodes + MISSING * g.stat_stride, offset[h], g.columns, F64{});
          }
          nodes += g.window_stride;
        } else {
          const F64 both = sum[0] + sum[1], moments = load<F64>(moment + r * WINDOW_LANES + lane) + q;
          add_to(sums, MEAN, lane, centres + both * inverse_length);
          add_to(sums, VARIANCE, lane, (deviation[0] + deviation[1]) * inverse_length);
          add_to(sums, TREND, lane, (moments - both * centre) * inverse_spread);
          add_to(sums, AUTOCORRELATION, lane, autocorrelation[0] + autocorrelation[1]);
          add_to(sums, DRIFT, lane, drift[0] + drift[1]);
          sums += NUM_WINDOW_SUMS * WINDOW_LANES;
        }
        wanted += g.stride;
      }
      if (r + 1 == last) break;
      const double position = static_cast<double>(r + 1);
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        const int64_t at = row + offset[h];
        const F64 value = load<F64>(next + at) - c[h];
        s[h] -= value;
        s2[h] += value * value;
        p[h] += value * d[h];
        d[h] = value;
        store(total + plane + at + TILE, s[h]);
        if (NODES) own_q[h] += value * position;
      }
      if (!NODES) q += (d[0] + d[1]) * position;
    }
  }
}

void complete(const WindowGroup& group) {
  if (group.nodes != nullptr) {
    complete_tile<true>(group);
  } else {
    complete_tile<false>(group);
  }
}

// What a suffix or prefix adds up, about one centre.
struct Sums {
  F64 sum, square, moment, product, edges;
  // `edges` holds entries beside a gap, once for each gap: what the sum over pairs of neighbours lacks.
  F64 previous;

  STPRUNE_INLINE void add(F64 value, F64 position, I64 after_gap, I64 before_gap) {
    edges += masked(value, after_gap);
    edges += masked(previous, before_gap);
    sum += value;
    square += value * value;
    moment += value * position;
    product += value * previous;
    previous = value;
  }
};

struct Counts {
  F64 entries, position, square, pairs;
  I64 previous;  // whether the row before was valid

  STPRUNE_INLINE void add(I64 valid, double at) {
    entries += one_if(valid);
    position += masked(F64{} + at, valid);
    square += masked(F64{} + at * at, valid);
    pairs += one_if(valid & previous);
    previous = valid;
  }
};

// As complete_tile, with entries missing: counts beside the sums, and a second centre.
template <bool NODES>
STPRUNE_INLINE void gappy_tile(const WindowGroup& g) {
  const int64_t w = g.length, plane = w * TILE;
  double* total = g.scratch;            // 2 planes, see complete_tile
  double* entries = total + 2 * plane;  // 2 planes, likewise
  double *square = entries + 2 * plane, *moment = square + plane, *product = moment + plane, *edges = product + plane;
  double *position_sum = edges + plane, *position_square = position_sum + plane, *pair_count = position_square + plane;
  double* own_total = pair_count + plane;  // of prefixes about their own centre
  const double length = static_cast<double>(w);
  const F64 nan = F64{} + __builtin_nan("");
#pragma GCC unroll 1
  for (int unit = 0; unit < UNITS; ++unit) {
    for (int h = 0; h < 2; ++h) {
      const int64_t lane = unit * LANES_64, offset = lane + h * WINDOW_LANES;
      const F64 inverse_std = load<F64>(g.inverse_std + offset);
      F64 c = {}, own_c = {};
      I64 found = {}, own_found = {};
      Sums left = {};
      Counts count = {};
      for (int64_t r = w - 1; r >= g.first; --r) {
        const int64_t at = r * TILE + offset;
        const double position = static_cast<double>(r - (w - 1));
        const F64 x = load<F64>(g.current + at);
        const I64 valid = x == x;
        c = (valid & ~found) ? x : c;
        found |= valid;
        const I64 inside = r == w - 1 ? I64{} : I64{} - 1;
        left.add(masked(x - c, valid), F64{} + position, valid & ~count.previous & inside,
                 ~valid & count.previous & inside);
        count.add(valid, position);
        store(total + at, left.sum);
        store(square + at, left.square);
        store(moment + at, left.moment);
        store(product + at, left.product);
        store(edges + at, left.edges);
        store(entries + at, count.entries);
        store(position_sum + at, count.position);
        store(position_square + at, count.square);
        store(pair_count + at, count.pairs);
      }
      store(total + plane + offset, F64{});
      store(own_total + offset, F64{});
      store(entries + plane + offset, F64{});
      // A prefix about the group's centre, and about its own for windows without a valid entry up to the pivot.
      Sums right = {}, own = {};
      Counts more = {};
      const F64 pivot = load<F64>(g.current + (w - 1) * TILE + offset);
      more.previous = pivot == pivot;
      double* sums = g.sums;
      float* nodes = g.nodes;
      int64_t wanted = g.first;
      for (int64_t r = 0; r < g.last; ++r) {
        if (r == wanted) {
          const int64_t at = r * TILE + offset, cut = at + g.history * TILE;
          const F64 left_entries = load<F64>(entries + at);
          const I64 shared = left_entries > 0.0;
          const F64 n = left_entries + more.entries;
          const F64 inverse_n = 1.0 / at_least(n, 1.0);
          const F64 left_sum = load<F64>(total + at);
          const F64 sum = shared ? left_sum - (F64{} - right.sum) : own.sum;
          F64 past = left_sum - load<F64>(total + cut);
          // Without a valid entry up to the pivot, the history is the prefix that ends at the cut, or empty.
          const F64 own_past = r + g.history > w ? load<F64>(own_total + cut - plane) : F64{};
          past = shared ? past : own_past;
          const F64 mean = sum * inverse_n;
          const F64 squares = shared ? load<F64>(square + at) + right.square : own.square;
          const F64 deviation = at_least(squares - sum * mean, 0.0);
          const F64 x = load<F64>(g.current + at);
          const F64 first = masked(x - c, x == x);
          const F64 ends =
              shared ? (first + right.previous) + (load<F64>(edges + at) + right.edges) : own.previous + own.edges;
          const F64 pairs = load<F64>(pair_count + at) + more.pairs;
          const F64 products = shared ? load<F64>(product + at) + right.product : own.product;
          const F64 covariance = products - mean * (((sum + sum) - ends) - mean * pairs);
          const F64 positions = load<F64>(position_sum + at) + more.position;
          const F64 centre = positions * inverse_n;
          const F64 spread = (load<F64>(position_square + at) + more.square) - positions * centre;
          const F64 moments = shared ? load<F64>(moment + at) + right.moment : own.moment;
          const F64 past_entries = left_entries - load<F64>(entries + cut);
          const F64 future_entries = n - past_entries;
          const I64 present = n > 0.0;
          const I64 several = n > 1.0;
          const I64 drifts = (past_entries > 0.0) & (future_entries > 0.0) & (inverse_std > 0.0);
          const F64 future = (sum - past) * (1.0 / at_least(future_entries, 1.0));
          const F64 gap = magnitude(future - past * (1.0 / at_least(past_entries, 1.0))) * inverse_std;
          F64 value[5];
          value[MEAN] = masked((shared ? c : own_c) + mean, present);
          value[VARIANCE] = masked(deviation * inverse_n, present);
          value[TREND] = masked((moments - sum * centre) * (1.0 / (several ? spread : F64{} + 1.0)), several);
          value[AUTOCORRELATION] = masked(covariance / at_least(deviation, TINY), present);
          value[DRIFT] = masked(gap, drifts);
          if (NODES) {
            for (int stat = 0; stat < 5; ++stat) {
              const F64 shown = (stat == DRIFT ? drifts : present) ? value[stat] : nan;
              store_nodes(nodes + stat * g.stat_stride, offset, g.columns, shown);
            }
            store_nodes(nodes + MISSING * g.stat_stride, offset, g.columns, (length - n) / length);
            nodes += g.window_stride;
          } else {
            for (int stat = 0; stat < 5; ++stat) add_to(sums, stat, lane, value[stat]);
            add_to(sums, NUM_NODES, lane, one_if(present));
            add_to(sums, NUM_DRIFTS, lane, one_if(drifts));
            add_to(sums, NUM_VALID, lane, n);
            sums += NUM_WINDOW_SUMS * WINDOW_LANES;
          }
          wanted += g.stride;
        }
        if (r + 1 == g.last) break;
        const int64_t at = r * TILE + offset;
        const double position = static_cast<double>(r + 1);
        const F64 x = load<F64>(g.next + at);
        const I64 valid = x == x;
        own_c = (valid & ~own_found) ? x : own_c;
        own_found |= valid;
        const I64 after_gap = valid & ~more.previous, before_gap = ~valid & more.previous;
        right.add(masked(x - c, valid), F64{} + position, after_gap, before_gap);
        own.add(masked(x - own_c, valid), F64{} + position, after_gap, before_gap);
        more.add(valid, position);
        store(total + plane + at + TILE, F64{} - right.sum);
        if (r + 1 < w) store(own_total + at + TILE, own.sum);
        store(entries + plane + at + TILE, F64{} - more.entries);
      }
    }
  }
}

void gappy(const WindowGroup& group) {
  if (group.nodes != nullptr) {
    gappy_tile<true>(group);
  } else {
    gappy_tile<false>(group);
  }
}

// Columns and rows of a step of `moments`: a few rows are read side by side as streams, which the prefetchers follow,
// and a vector's sums stay in registers through them.
constexpr int64_t MOMENT_TILE = 16;
constexpr int64_t MOMENT_STEP = 16;
static_assert(MOMENT_ROWS % MOMENT_STEP == 0, "blocks are whole steps");

// count, centre, sum and sum of squares of MOMENT_TILE columns.
struct Moments {
  double *count, *centre, *sum, *square;
};

// A step without a missing entry, all of its columns with a centre. Returns whether it was one; nothing changed if not.
template <typename T>
STPRUNE_INLINE bool add_sound_rows(const T* from, int64_t row_stride, T null_value, const Moments& to) {
  const F64 centre = load<F64>(to.centre), null = F64{} + static_cast<double>(null_value);
  const bool has_null = null_value == null_value;
  F64 sum = load<F64>(to.sum), square = load<F64>(to.square);
  uint64_t nulls = 0;
#pragma GCC unroll 16
  for (int64_t r = 0; r < MOMENT_STEP; ++r) {
    const F64 x = load_f64(from + r * row_stride);
    if (has_null) nulls |= equal(x, null);
    const F64 value = x - centre;
    sum += value;
    square += value * value;
  }
  // NaN, also as the centre, has come through.
  if ((equal(sum, sum) & ~nulls) != (uint64_t{1} << LANES_64) - 1) return false;
  store(to.count, load<F64>(to.count) + static_cast<double>(MOMENT_STEP));
  store(to.sum, sum);
  store(to.square, square);
  return true;
}

template <typename T>
STPRUNE_INLINE void add_rows(const T* from, int64_t row_stride, int64_t rows, T null_value, const Moments& to) {
  const F64 null = F64{} + static_cast<double>(null_value);
  F64 count = load<F64>(to.count), centre = load<F64>(to.centre), sum = load<F64>(to.sum),
      square = load<F64>(to.square);
  for (int64_t r = 0; r < rows; ++r) {
    const F64 x = load_f64(from + r * row_stride);
    const I64 valid = (x == x) & (x != null);
    centre = (valid & (centre != centre)) ? x : centre;
    const F64 value = masked(x - centre, valid);
    count += one_if(valid);
    sum += value;
    square += value * value;
  }
  store(to.count, count);
  store(to.centre, centre);
  store(to.sum, sum);
  store(to.square, square);
}

// Up to MOMENT_STEP rows of up to MOMENT_TILE columns, the same bits on either way.
template <typename T>
STPRUNE_INLINE void add_step(const T* from, int64_t row_stride, int64_t rows, int64_t columns, T null_value,
                             const Moments& to) {
  if (columns < MOMENT_TILE) {
    T padded[MOMENT_STEP * MOMENT_TILE] = {};
    double state[4][MOMENT_TILE] = {};
    const Moments part{state[0], state[1], state[2], state[3]};
    const auto move = [&](const Moments& source, const Moments& target) {
      for (int64_t i = 0; i < columns; ++i) {
        target.count[i] = source.count[i];
        target.centre[i] = source.centre[i];
        target.sum[i] = source.sum[i];
        target.square[i] = source.square[i];
      }
    };
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < columns; ++i) padded[r * MOMENT_TILE + i] = from[r * row_stride + i];
    }
    move(to, part);
    for (int64_t i = 0; i < MOMENT_TILE; i += LANES_64) {
      add_rows(padded + i, MOMENT_TILE, rows, null_value,
               {part.count + i, part.centre + i, part.sum + i, part.square + i});
    }
    move(part, to);
    return;
  }
#pragma GCC unroll 1
  for (int64_t i = 0; i < MOMENT_TILE; i += LANES_64) {
    const Moments part{to.count + i, to.centre + i, to.sum + i, to.square + i};
    if (rows < MOMENT_STEP || !add_sound_rows(from + i, row_stride, null_value, part)) {
      add_rows(from + i, row_stride, rows, null_value, part);
    }
  }
}

template <typename T>
STPRUNE_INLINE void moments(const T* from, int64_t row_stride, int64_t rows, int64_t columns, T null_value, double* out,
                            int64_t out_stride) {
  const Moments all{out, out + out_stride, out + 2 * out_stride, out + 3 * out_stride};
  for (int64_t i = 0; i < columns; ++i) {
    all.count[i] = all.sum[i] = all.square[i] = 0.0;
    all.centre[i] = __builtin_nan("");
  }
  for (int64_t row = 0; row < rows; row += MOMENT_STEP) {
    const int64_t height = rows - row < MOMENT_STEP ? rows - row : MOMENT_STEP;
    for (int64_t column = 0; column < columns; column += MOMENT_TILE) {
      const int64_t width = columns - column < MOMENT_TILE ? columns - column : MOMENT_TILE;
      add_step(from + row * row_stride + column, row_stride, height, width, null_value,
               {all.count + column, all.centre + column, all.sum + column, all.square + column});
    }
  }
}

void moments_f32(const float* from, int64_t row_stride, int64_t rows, int64_t columns, float null_value, double* out,
                 int64_t out_stride) {
  moments(from, row_stride, rows, columns, null_value, out, out_stride);
}

void moments_f64(const double* from, int64_t row_stride, int64_t rows, int64_t columns, double null_value, double* out,
                 int64_t out_stride) {
  moments(from, row_stride, rows, columns, null_value, out, out_stride);
}

}  // namespace

const WindowKernels STPRUNE_SET::window_table = {&copy_f32, &copy_f64, &complete, &gappy, &moments_f32, &moments_f64};

}  // namespace stprune
