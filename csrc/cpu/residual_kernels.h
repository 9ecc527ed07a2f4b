// The inner loops of the fused loss, compiled once per instruction set beside those of kernels.h and under the same
// rules. Every set gives the same bits: sums run over 64 bytes of lanes, whatever the width of a vector, in the same
// order.
#pragma once

#include <stdint.h>

namespace stprune {

// In the order of LOSSES in stprune/reference/pruned_loss.py, whose places are the codes in the schemas.
enum class Loss { kMae, kMse, kHuber, kMape, kQuantile };
constexpr int NUM_LOSSES = 5;

// Which entries count: all; those whose target is there; those the mask keeps and whose target is there.
enum class Keep { kAll, kNull, kMask };
constexpr int NUM_KEEPS = 3;

// Storage of prediction and target that kernels read themselves; others come as copies in float.
enum class Storage { kFloat, kDouble, kBFloat16 };
constexpr int NUM_STORAGES = 3;

// Bytes of lanes a sum runs over.
constexpr int64_t UNIT_BYTES = 64;
// Columns whose row sums are added in the input's precision before they go into a double: 32 values per float lane.
constexpr int64_t SEGMENT = 512;
// Rows added in the input's precision before the column sums go into a double.
constexpr int64_t ROWS = 32;
// Rows of an affine tensor: prediction * [0] + [1], target * [2] + [3], their difference * [4]. Of a normalised target
// also the bounds [5] and [6], between which one means missing.
constexpr int64_t MAP_ROWS = 5, BOUND_ROWS = 2;

struct RowTotal {
  double sum = 0.0;       // of |e|
  double loss = 0.0;      // of the loss's terms; unused for the MAE
  double weighted = 0.0;  // of the loss's terms times the columns' weights; unused without these
  int64_t count = 0;
};

// Some columns of one sample. A is double for double storage, else float.
struct ResidualTile {
  const void* prediction;  // first column of the first step
  const void* target;
  const uint8_t* mask;
  int64_t prediction_step, target_step, mask_step;  // entries from one step to the next
  int64_t steps, width;
  bool overlap;               // whether UNIT_BYTES of lanes may be read before the end of a row; else behind its end
  const void* affine;         // A, first column, or null
  int64_t affine_step;        // entries from one of its rows to the next
  bool bounds;                // whether `affine` has rows that say which targets are missing
  const void* column_weight;  // A, first column, or null
  bool has_null;
  double null_low, null_high;  // targets in between are missing
  double parameter;            // of the loss
  void* row_sum;               // A [steps][lanes] scratch
  void* row_loss;              // A [steps][lanes] scratch
  void* row_weighted;          // A [steps][lanes] scratch, with column_weight only
  int64_t* row_count;          // [steps] scratch
  void* node_mean;             // A [width] out: -1 where a column has no entries (a mean of |e| is never negative)
  RowTotal* rows;              // [steps] out: added to
};

// Some entries of one row.
struct ResidualRow {
  const void* prediction;
  const void* target;
  const uint8_t* mask;
  int64_t width;
  const void* affine;
  int64_t affine_step;
  bool bounds;
  bool has_null;
  double null_low, null_high;
  double parameter;
  double coefficient;     // what the slope of the loss is multiplied by
  const void* scale;      // A [width], what it is multiplied by instead, entry by entry; or null
  void* grad_prediction;  // storage's type
  void* grad_target;      // storage's type, or null
};

struct ResidualKernels {
  // [storage][loss][keep][affine]; null for bfloat16 with affine. Tiles also by [with column_weight].
  void (*tile[NUM_STORAGES][NUM_LOSSES][NUM_KEEPS][2][2])(const ResidualTile&);
  void (*slopes[NUM_STORAGES][NUM_LOSSES][NUM_KEEPS][2])(const ResidualRow&);
  // Population standard deviation of the means that are not -1.
  double (*spread_f32)(const float* mean, int64_t n);
  double (*spread_f64)(const double* mean, int64_t n);
};

// Those of kernels().
const ResidualKernels& residual_kernels();

}  // namespace stprune
