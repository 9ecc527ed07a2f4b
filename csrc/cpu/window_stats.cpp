// window_stats: six statistics of every window of a series; see window_stats.h for how they are summed. node_moments:
// what the nodes' deviations are made of.
//
// Panels of windows and spans of columns are shared out among threads. A window's result depends on its own rows, on
// its start modulo its length and on nothing else, so no cut of the series changes a bit.
#include "cpu/window_stats.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "check.h"
#include "cpu/aligned.h"

namespace stprune {
namespace {

// Windows of a panel: their sums over nodes (512 bytes each) and the rows they span stay in the second-level cache.
constexpr int64_t PANEL = 96;
constexpr int64_t PANEL_GROUPS = 4;      // of long windows: each panel copies one group more than it has
constexpr int64_t READ_AHEAD = 1 << 19;  // bytes of a panel that are read in their order before they are worked on
constexpr int64_t LONGEST_WINDOW = 1 << 16;

void copy(const float* from, int64_t stride, int64_t rows, int64_t columns, float null_value, double* to,
          int64_t length, Gaps* gaps) {
  window_kernels().copy_f32(from, stride, rows, columns, null_value, to, length, gaps);
}
void copy(const double* from, int64_t stride, int64_t rows, int64_t columns, double null_value, double* to,
          int64_t length, Gaps* gaps) {
  window_kernels().copy_f64(from, stride, rows, columns, null_value, to, length, gaps);
}
void moments(const float* from, int64_t stride, int64_t rows, int64_t columns, float null_value, double* out,
             int64_t out_stride) {
  window_kernels().moments_f32(from, stride, rows, columns, null_value, out, out_stride);
}
void moments(const double* from, int64_t stride, int64_t rows, int64_t columns, double null_value, double* out,
             int64_t out_stride) {
  window_kernels().moments_f64(from, stride, rows, columns, null_value, out, out_stride);
}

// Calls body(slot, item) for every item; a slot is one of `slots` workspaces, used by one thread at a time.
template <typename Body>
void for_items(int64_t items, int64_t slots, const Body& body) {
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, slots, 1, [&](int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot) {
      for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;) body(slot, item);
    }
  });
}

template <typename T>
struct Series {
  const T* data;
  int64_t rows, columns, row_stride;
  T null_value;  // NaN where there is none
};

template <typename T>
Series<T> make_series(const Tensor& series, std::optional<double> null_value) {
  return {series.const_data_ptr<T>(), series.size(0), series.size(1), series.stride(0),
          null_value ? static_cast<T>(*null_value) : std::numeric_limits<T>::quiet_NaN()};
}

struct Shape {
  int64_t history, length, stride, phase, windows, groups, panel_groups;
  std::vector<double> centre, inverse_spread;  // [length]

  int64_t group_of(int64_t window) const { return (phase + window * stride) / length; }
  // First window that begins in group g or later.
  int64_t first_window(int64_t g) const {
    return std::clamp<int64_t>((g * length - phase + stride - 1) / stride, 0, windows);
  }
};

Shape make_shape(int64_t rows, int64_t history, int64_t horizon, int64_t stride, int64_t phase) {
  const int64_t length = history + horizon, windows = rows < length ? 0 : (rows - length) / stride + 1;
  Shape shape{history, length, stride, phase, windows, 0, 1, {}, {}};
  shape.groups = windows == 0 ? 0 : shape.group_of(windows - 1) + 1;
  // Several panels for each thread, so that none waits for long at the end.
  const int64_t shared = shape.groups / (4 * torch::stable::get_num_threads());
  shape.panel_groups = std::max(PANEL / length, std::clamp<int64_t>(shared, 1, PANEL_GROUPS));
  shape.centre.resize(length);
  shape.inverse_spread.resize(length);
  for (int64_t r = 0; r < length; ++r) {
    // As the kernel for series with gaps counts them: positions and their squares are whole numbers.
    int64_t position = 0, square = 0;
    for (int64_t j = r - (length - 1); j <= r; ++j) {
      position += j;
      square += j * j;
    }
    shape.centre[r] = static_cast<double>(position) * (1.0 / static_cast<double>(length));
    const double spread = static_cast<double>(square) - static_cast<double>(position) * shape.centre[r];
    shape.inverse_spread[r] = length > 1 ? 1.0 / spread : 0.0;
  }
  return shape;
}

// Tiles copied at a time: their two blocks of rows stay in the second-level cache.
int64_t tiles_of(int64_t length) { return std::clamp<int64_t>(2400 / length, 1, WINDOW_TILES); }

// A block of [length] rows of some tiles, and their rows with gaps.
struct Block {
  double* values;  // [tiles, length, TILE]
  int64_t number = -1;
  Gaps gaps[WINDOW_TILES] = {};
};

struct Workspace {
  Workspace(int64_t length, int64_t panel_windows, bool per_node)
      : blocks(2 * tiles_of(length) * length * WINDOW_TILE),
        scratch(WINDOW_SCRATCH * length * WINDOW_TILE),
        sums(per_node ? 0 : panel_windows * NUM_WINDOW_SUMS * WINDOW_LANES),
        counts(per_node ? 0 : panel_windows * 3) {}

  Aligned blocks, scratch, sums;
  std::vector<int64_t> counts;  // [windows, 3] nodes, drifts and entries of complete tiles
};

template <typename T>
void fill(const Series<T>& series, const Shape& shape, int64_t number, int64_t column, int64_t columns, Block& block) {
  if (block.number == number) return;
  const int64_t base = number * shape.length - shape.phase;
  const int64_t first = std::max<int64_t>(0, -base), last = std::min(shape.length, series.rows - base);
  block.number = number;
  copy(series.data + (base + first) * series.row_stride + column, series.row_stride, std::max<int64_t>(0, last - first),
       columns, series.null_value, block.values + first * WINDOW_TILE, shape.length, block.gaps);
  for (Gaps& gaps : block.gaps) {
    gaps.first += first;
    if (gaps.last >= 0) gaps.last += first;
  }
}

void pad(double* values, int64_t length, int64_t columns, double with) {
  for (int64_t r = 0; r < length; ++r)
    std::fill(values + r * WINDOW_TILE + columns, values + (r + 1) * WINDOW_TILE, with);
}

bool has_infinity(const double* values, int64_t first, int64_t last, int64_t columns) {
  for (int64_t r = first; r < last; ++r) {
    for (int64_t i = 0; i < columns; ++i) {
      if (std::isinf(values[r * WINDOW_TILE + i])) return true;
    }
  }
  return false;
}

// Windows [begin, end) of a series; where their results go.
struct Panel {
  const Shape& shape;
  Workspace& work;
  int64_t begin, end;
  float* nodes;      // of all windows, or null
  int64_t node_row;  // values of one window
  // Adds what complete tiles hold to the counts of windows [from, to).
  void count(int64_t from, int64_t to, int64_t present, int64_t measurable) const {
    for (int64_t i = from; i < to && nodes == nullptr; ++i) {
      int64_t* counts = work.counts.data() + 3 * (i - begin);
      counts[0] += present;
      counts[1] += measurable;
      counts[2] += present * shape.length;
    }
  }
};

// What the tiles without any gap hold, counted once for all windows of a group.
struct Whole {
  int64_t present, measurable;
};

// Windows [window, stop) of group g for one tile. Returns whether a valid entry is infinite.
bool run_tile(const Panel& panel, int64_t window, int64_t stop, int64_t g, double* current, double* next,
              const Gaps& current_gaps, const Gaps& next_gaps, int64_t column, int64_t columns,
              const double* inverse_std, Whole& whole) {
  const Shape& shape = panel.shape;
  const int64_t length = shape.length, base = g * length - shape.phase;
  int64_t measurable = 0;
  for (int64_t i = 0; i < WINDOW_TILE; ++i) measurable += inverse_std[i] > 0.0;
  WindowGroup group{};
  group.current = current;
  group.next = next;
  group.inverse_std = inverse_std;
  group.centre = shape.centre.data();
  group.inverse_spread = shape.inverse_spread.data();
  group.length = length;
  group.history = shape.history;
  group.stride = shape.stride;
  group.scratch = panel.work.scratch.data();
  group.window_stride = panel.node_row;
  group.stat_stride = shape.windows * panel.node_row;
  group.columns = columns;
  // Windows [from, to); `from` is one of them.
  const auto run = [&](int64_t from, int64_t to, bool gappy) {
    if (from >= to) return;
    if (columns < WINDOW_TILE) {
      const double with = gappy ? std::numeric_limits<double>::quiet_NaN() : 0.0;
      pad(current, length, columns, with);
      pad(next, length, columns, with);
    }
    group.first = from * shape.stride - base;
    group.last = (to - 1) * shape.stride - base + 1;
    group.nodes = panel.nodes == nullptr ? nullptr : panel.nodes + from * panel.node_row + column;
    group.sums = panel.work.sums.data() + (from - panel.begin) * NUM_WINDOW_SUMS * WINDOW_LANES;
    if (gappy) {
      window_kernels().gappy(group);
      return;
    }
    window_kernels().complete(group);
    if (from == window && to == stop) {
      whole.present += columns;
      whole.measurable += measurable;
    } else {
      panel.count(from, to, columns, measurable);
    }
  };
  const int64_t first_row = window * shape.stride - base, last_row = (stop - 1) * shape.stride - base;
  const bool left_gap = current_gaps.last >= first_row, right_gap = next_gaps.last >= 0 && next_gaps.first < last_row;
  if (!left_gap && !right_gap) {
    run(window, stop, false);
    return false;
  }
  // Complete windows begin behind the last gap of this block (rows before the series are negative) and end before the
  // first of the next.
  const auto behind = [&](int64_t row) { return row < 0 ? 0 : row / shape.stride + 1; };
  const int64_t from = left_gap ? std::clamp(behind(base + current_gaps.last), window, stop) : window;
  const int64_t to = right_gap ? std::clamp(behind(base + next_gaps.first), from, stop) : stop;
  run(window, from, true);
  run(from, to, false);
  run(to, stop, true);
  return has_infinity(current, first_row, length, columns) || has_infinity(next, 0, last_row, columns);
}

// Touches the panel's rows in their order: the strips that tiles are copied in take twice as long from memory.
template <typename T>
void read_ahead(const Series<T>& series, const Panel& panel, int64_t left, int64_t right) {
  const Shape& shape = panel.shape;
  const int64_t first = panel.begin * shape.stride, last = (panel.end - 1) * shape.stride + shape.length;
  if ((last - first) * (right - left) * static_cast<int64_t>(sizeof(T)) > READ_AHEAD) return;
  for (int64_t r = first; r < last; ++r) {
    const T* row = series.data + r * series.row_stride;
    for (int64_t i = left; i < right; i += 64 / static_cast<int64_t>(sizeof(T))) {
      static_cast<void>(*static_cast<const volatile T*>(row + i));
    }
  }
}

// Windows [panel.begin, panel.end) of columns [left, right); either the sums [windows, NUM_WINDOW_SUMS] over the
// columns or the values of each. Returns whether a valid entry is infinite.
template <typename T>
bool run_panel(const Series<T>& series, const Panel& panel, const double* inverse_std, int64_t left, int64_t right,
               double* sums) {
  const Shape& shape = panel.shape;
  Workspace& work = panel.work;
  const int64_t plane = shape.length * WINDOW_TILE, tiles = tiles_of(shape.length), begin = panel.begin;
  read_ahead(series, panel, left, right);
  work.sums.clear();
  std::fill(work.counts.begin(), work.counts.end(), int64_t{0});
  bool infinite = false;
  for (int64_t column = left; column < right; column += tiles * WINDOW_TILE) {
    const int64_t columns = std::min(tiles * WINDOW_TILE, right - column);
    double padded_std[WINDOW_TILES * WINDOW_TILE] = {};
    // Without a horizon there is no drift.
    if (shape.length > shape.history) std::copy(inverse_std + column, inverse_std + column + columns, padded_std);
    Block current{work.blocks.data()}, next{work.blocks.data() + tiles * plane};
    for (int64_t window = begin; window < panel.end;) {
      const int64_t g = shape.group_of(window), stop = std::min(panel.end, shape.first_window(g + 1));
      if (next.number == g) std::swap(current, next);
      fill(series, shape, g, column, columns, current);
      if ((stop - 1) * shape.stride > g * shape.length - shape.phase) {
        fill(series, shape, g + 1, column, columns, next);
      }
      Whole whole{};
      for (int64_t tile = 0; tile * WINDOW_TILE < columns; ++tile) {
        const int64_t first = tile * WINDOW_TILE;
        infinite |= run_tile(panel, window, stop, g, current.values + tile * plane, next.values + tile * plane,
                             current.gaps[tile], next.gaps[tile], column + first,
                             std::min(WINDOW_TILE, columns - first), padded_std + first, whole);
      }
      panel.count(window, stop, whole.present, whole.measurable);
      window = stop;
    }
  }
  for (int64_t i = 0; i < panel.end - begin && panel.nodes == nullptr; ++i) {
    for (int64_t stat = 0; stat < NUM_WINDOW_SUMS; ++stat) {
      const double* lanes = work.sums.data() + (i * NUM_WINDOW_SUMS + stat) * WINDOW_LANES;
      double total = 0.0;
      for (int64_t l = 0; l < WINDOW_LANES; ++l) total += lanes[l];
      if (stat >= NUM_NODES) total += static_cast<double>(work.counts[3 * i + stat - NUM_NODES]);
      sums[(begin + i) * NUM_WINDOW_SUMS + stat] = total;
    }
  }
  return infinite;
}

template <typename T>
bool run(const Series<T>& series, const Shape& shape, const double* inverse_std, double* sums, float* nodes) {
  const int64_t panels = (shape.groups + shape.panel_groups - 1) / shape.panel_groups;
  const int64_t spans = (series.columns + WINDOW_SPAN - 1) / WINDOW_SPAN, items = panels * spans;
  const int64_t panel_windows = (shape.panel_groups * shape.length + shape.stride - 1) / shape.stride;
  const int64_t slots = std::min<int64_t>(items, torch::stable::get_num_threads());
  // Allocated here: nothing may throw inside parallel_for.
  std::vector<Workspace> work;
  for (int64_t i = 0; i < slots; ++i) work.emplace_back(shape.length, panel_windows, nodes != nullptr);
  std::atomic<bool> infinite{false};
  for_items(items, slots, [&](int64_t slot, int64_t item) {
    const int64_t panel = item / spans, span = item % spans;
    const int64_t begin = shape.first_window(panel * shape.panel_groups);
    const int64_t end = shape.first_window((panel + 1) * shape.panel_groups);
    const int64_t left = span * WINDOW_SPAN, right = std::min(series.columns, left + WINDOW_SPAN);
    if (begin >= end) return;
    double* to = sums == nullptr ? nullptr : sums + span * shape.windows * NUM_WINDOW_SUMS;
    const Panel part{shape, work[slot], begin, end, nodes, series.columns};
    if (run_panel(series, part, inverse_std, left, right, to)) infinite = true;
  });
  return infinite;
}

void check_series(const Tensor& series, const char* op) {
  STD_TORCH_CHECK(series.dim() == 2, op, ": series must have two dimensions, got ", series.dim());
  STD_TORCH_CHECK(series.size(1) <= 1 || series.stride(1) == 1, op, ": columns of series must be contiguous");
  STD_TORCH_CHECK(series.scalar_type() == ScalarType::Float || series.scalar_type() == ScalarType::Double, op,
                  ": series must be float32 or float64");
}

std::tuple<Tensor, Tensor> window_stats(const Tensor& series, int64_t history, int64_t horizon, int64_t stride,
                                        int64_t phase, std::optional<double> null_value, const Tensor& inverse_std,
                                        bool per_node) {
  check_series(series, "window_stats");
  check_vector(inverse_std, "window_stats", "inverse_std");
  check_dtype(inverse_std, ScalarType::Double, "window_stats", "inverse_std");
  const int64_t columns = series.size(1);
  STD_TORCH_CHECK(inverse_std.numel() == columns, "window_stats: inverse_std must have one entry a column");
  STD_TORCH_CHECK(history >= 1 && horizon >= 0 && stride >= 1 && history <= LONGEST_WINDOW &&
                      horizon <= LONGEST_WINDOW - history && phase >= 0 && phase < history + horizon,
                  "window_stats: history, horizon, stride or phase is out of range");
  const Shape shape = make_shape(series.size(0), history, horizon, stride, phase);
  const int64_t spans = (columns + WINDOW_SPAN - 1) / WINDOW_SPAN;
  Tensor out = per_node
                   ? torch::stable::new_empty(series, {NUM_WINDOW_STATS, shape.windows, columns}, ScalarType::Float)
                   : torch::stable::new_empty(series, {spans, shape.windows, NUM_WINDOW_SUMS}, ScalarType::Double);
  Tensor infinite = torch::stable::new_empty(series, {1}, ScalarType::Bool);
  *infinite.mutable_data_ptr<bool>() = false;
  if (out.numel() == 0) return {out, infinite};
  double* sums = per_node ? nullptr : out.mutable_data_ptr<double>();
  float* nodes = per_node ? out.mutable_data_ptr<float>() : nullptr;
  const double* scale = inverse_std.const_data_ptr<double>();
  *infinite.mutable_data_ptr<bool>() = series.scalar_type() == ScalarType::Float
                                           ? run(make_series<float>(series, null_value), shape, scale, sums, nodes)
                                           : run(make_series<double>(series, null_value), shape, scale, sums, nodes);
  return {out, infinite};
}

template <typename T>
void run_moments(const Series<T>& series, double* out) {
  const int64_t blocks = (series.rows + MOMENT_ROWS - 1) / MOMENT_ROWS;
  const int64_t spans = (series.columns + WINDOW_SPAN - 1) / WINDOW_SPAN;
  for_items(blocks * spans, std::min<int64_t>(blocks * spans, torch::stable::get_num_threads()),
            [&](int64_t, int64_t item) {
              const int64_t row = item / spans * MOMENT_ROWS, left = item % spans * WINDOW_SPAN;
              moments(series.data + row * series.row_stride + left, series.row_stride,
                      std::min(MOMENT_ROWS, series.rows - row), std::min(WINDOW_SPAN, series.columns - left),
                      series.null_value, out + item / spans * 4 * series.columns + left, series.columns);
            });
}

Tensor node_moments(const Tensor& series, std::optional<double> null_value) {
  check_series(series, "node_moments");
  const int64_t blocks = (series.size(0) + MOMENT_ROWS - 1) / MOMENT_ROWS;
  Tensor out = torch::stable::new_empty(series, {blocks, 4, series.size(1)}, ScalarType::Double);
  if (out.numel() == 0) return out;
  if (series.scalar_type() == ScalarType::Float) {
    run_moments(make_series<float>(series, null_value), out.mutable_data_ptr<double>());
  } else {
    run_moments(make_series<double>(series, null_value), out.mutable_data_ptr<double>());
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) {
  m.impl("window_stats", TORCH_BOX(&window_stats));
  m.impl("node_moments", TORCH_BOX(&node_moments));
}

}  // namespace stprune
