// The inner loops of window_stats, compiled once per instruction set (window_stats.inc); every set gives the same bits.
//
// Windows of W rows are grouped by the multiple of W their first row follows. All windows of a group share one row, the
// last of the group's own W rows (the pivot); a window is a suffix of those rows and a prefix of the W rows behind
// them. Sums over suffixes and prefixes are only ever added, never subtracted from running totals, and values are
// centred on the last valid one at or before the pivot, which every window with anything valid up to the pivot holds
// (the others are centred on their own first value). So (mean - centre)^2 is at most n times the variance whatever the
// data, the variance is right to about n^2 units of double precision, and constant windows give exact zeros.
#pragma once

#include <stdint.h>

namespace stprune {

// Columns of a tile: a cache line of float32.
constexpr int64_t WINDOW_TILE = 16;
// Sums over nodes are kept in this many lanes, column i in lane i % 8.
constexpr int64_t WINDOW_LANES = 8;
// Tiles copied at a time: rows are read in runs long enough for the memory.
constexpr int64_t WINDOW_TILES = 8;
// Columns whose sums are added up without a break; partial sums of spans are added in order.
constexpr int64_t WINDOW_SPAN = 4096;
// Rows of one block of moments.
constexpr int64_t MOMENT_ROWS = 1024;
// Arrays of [W, TILE] a tile works in: sums over suffixes and prefixes.
constexpr int64_t WINDOW_SCRATCH = 12;

// The order of the results, in sums over nodes and per node. The last two of the sums count nodes and entries.
enum WindowStat { MEAN, VARIANCE, TREND, AUTOCORRELATION, DRIFT, NUM_NODES, NUM_DRIFTS, NUM_VALID, NUM_WINDOW_SUMS };
constexpr int64_t MISSING = 5;  // per node, in the place of NUM_NODES
constexpr int64_t NUM_WINDOW_STATS = 6;

// One tile of one group.
struct WindowGroup {
  const double* current;         // [W, TILE] rows up to the pivot
  const double* next;            // [W, TILE] rows behind it
  const double* inverse_std;     // [TILE] 0 where the node is constant or a padding
  const double* centre;          // [W] mean position of the rows of window r, counted from the pivot
  const double* inverse_spread;  // [W] 1 / sum of squared distances from it
  int64_t length, history;       // W, and how many of its rows are history
  int64_t first, last, stride;   // windows first, first + stride, ... < last begin that many rows into the group
  double* scratch;               // [WINDOW_SCRATCH, W, TILE]
  double* sums;                  // [windows, NUM_WINDOW_SUMS, LANES] of the first window, or null
  float* nodes;                  // [NUM_WINDOW_STATS][windows][columns], or null
  int64_t stat_stride, window_stride;
  int64_t columns;  // of the tile that exist
};

// The first and the last row of a block with a missing or infinite entry; rows and -1 where there is none.
struct Gaps {
  int64_t first, last;
};

// Two kernels, by what the window itself lacks and never by its surroundings, so that its bits are its own.
struct WindowKernels {
  // Copies tiles side by side, widened to double, with NaN for null, each to its own [length, TILE]; padding is left
  // alone. Finds the rows with a missing or infinite entry of each tile.
  void (*copy_f32)(const float* from, int64_t row_stride, int64_t rows, int64_t columns, float null_value, double* to,
                   int64_t length, Gaps* gaps);
  void (*copy_f64)(const double* from, int64_t row_stride, int64_t rows, int64_t columns, double null_value, double* to,
                   int64_t length, Gaps* gaps);
  // Windows without a missing entry in the tile. Padding holds zeros.
  void (*complete)(const WindowGroup& group);
  // Any windows. Missing entries and padding hold NaN.
  void (*gappy)(const WindowGroup& group);
  // count, centre, sum and sum of squares about the centre of every column, [4, columns] each `out_stride` apart.
  void (*moments_f32)(const float* from, int64_t row_stride, int64_t rows, int64_t columns, float null_value,
                      double* out, int64_t out_stride);
  void (*moments_f64)(const double* from, int64_t row_stride, int64_t rows, int64_t columns, double null_value,
                      double* out, int64_t out_stride);
};

// Those of kernels().
const WindowKernels& window_kernels();

}  // namespace stprune
