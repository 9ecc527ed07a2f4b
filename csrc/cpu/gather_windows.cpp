// gather_windows: history and horizon of the given windows, cut from a [time, node, channel] series, decoded,
// normalised and laid out in one pass.
//
// Work is cut into tiles of nodes of one window; every tile writes its own part of the output, so the thread count
// changes nothing. There is one path for all instruction sets: copies are memcpy's, and a division takes as long per
// element in narrow vectors as in wide ones.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <type_traits>
#include <vector>

#include "check.h"
#include "cpu/window_tile.h"

namespace stprune {
namespace {

// Bytes per thread below which starting a thread costs more than it saves; copies are sooner done.
constexpr int64_t kGrainBytes = 1 << 18;
constexpr int64_t kCopyGrainBytes = 1 << 20;

struct Inputs {
  const Tensor &series, &start;
  const std::optional<Tensor>&node, &mean, &std, &scale, &offset;
  std::optional<int64_t> missing;
  std::optional<double> fill;
  const std::optional<Tensor>& features;
  const std::vector<int64_t>& channels;
  bool normalize_target, parallel;
  const Tensor &x, &y;
};

template <typename A>
Table<A> table(const std::optional<Tensor>& tensor) {
  if (!tensor.has_value()) return {};
  return {static_cast<const A*>(tensor->const_data_ptr()), tensor->numel() == 1};
}

template <typename In, typename A, typename Out>
Part<A, Out> make_part(const Inputs& in, const Source<In, A>& source, const Tensor& out, int64_t first) {
  Part<A, Out> part{};
  const bool is_x = first == 0;
  const int64_t all = source.num_channels;
  part.first = first;
  part.steps = out.size(1);
  part.num_channels = is_x ? all : static_cast<int64_t>(in.channels.size());
  bool every = part.num_channels == all;
  for (int64_t c = 0; every && !is_x && c < all; ++c) every = in.channels[c] == c;
  part.channels = every ? nullptr : in.channels.data();
  if (is_x || in.normalize_target) {
    part.mean = table<A>(in.mean);
    part.std = table<A>(in.std);
  }
  part.has_fill = is_x && in.fill.has_value();
  part.fill = part.has_fill ? static_cast<A>(*in.fill) : A(0);
  if (is_x && in.features.has_value()) {
    part.features = static_cast<const Out*>(in.features->const_data_ptr());
    part.num_features = in.features->size(1);
  }
  part.out = static_cast<Out*>(out.mutable_data_ptr());
  part.window = out.stride(0);
  part.step = out.stride(1);
  part.node = out.stride(2);
  part.channel = out.stride(3);
  part.source_run = every && source.drawn == nullptr && (all == 1 || source.channel == 1) &&
                    (source.num_nodes == 1 || source.node == all);
  part.out_run = part.num_features == 0 && (part.num_channels == 1 || part.channel == 1) &&
                 (source.m == 1 || part.node == part.num_channels);
  const int64_t width = std::min(kTile, part.num_channels);
  int64_t nodes = kTile / width;
  // Rows that interleave in the output: a smaller tile, but at least a cache line of the series.
  if (!part.out_run) nodes = std::min(nodes, std::max<int64_t>(16, kScatter / (width * part.steps)));
  if (std::is_unsigned_v<A> && part.source_run && part.out_run) nodes = source.m;  // no buffers
  part.tile = std::max<int64_t>(1, std::min(nodes, source.m));
  part.tiles = (source.m + part.tile - 1) / part.tile;
  return part;
}

template <typename In, typename A, typename Out>
void gather(const Inputs& in) {
  Source<In, A> source{};
  source.data = static_cast<const In*>(in.series.const_data_ptr());
  source.row = in.series.stride(0);
  source.node = in.series.stride(1);
  source.channel = in.series.stride(2);
  source.num_nodes = in.series.size(1);
  source.num_channels = in.series.size(2);
  source.start = in.start.const_data_ptr<int64_t>();
  source.drawn = in.node.has_value() ? in.node->const_data_ptr<int64_t>() : nullptr;
  source.m = in.x.size(2);
  source.scale = table<A>(in.scale);
  source.offset = table<A>(in.offset);
  source.has_missing = in.missing.has_value();
  source.missing = in.missing.value_or(0);
  const Part<A, Out> x = make_part<In, A, Out>(in, source, in.x, 0);
  const Part<A, Out> y = make_part<In, A, Out>(in, source, in.y, in.x.size(1));
  const int64_t a_window = x.tiles + y.tiles, items = in.start.numel() * a_window;
  if (items == 0) return;
  const int64_t bytes = (in.x.numel() + in.y.numel()) * static_cast<int64_t>(sizeof(Out)) / items;
  const int64_t least = std::is_unsigned_v<In> ? kCopyGrainBytes : kGrainBytes;
  const int64_t grain = in.parallel ? std::max<int64_t>(1, least / std::max<int64_t>(1, bytes)) : items;
  torch::stable::parallel_for(0, items, grain, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t number = item % a_window;
      if (number < x.tiles) {
        gather_tile(source, x, item / a_window, number);
      } else {
        gather_tile(source, y, item / a_window, number - x.tiles);
      }
    }
  });
}

// Where nothing is computed numbers are bits: a NaN keeps its payload.
void copy(const Inputs& in) {
  switch (in.series.element_size()) {
    case 2:
      return gather<uint16_t, uint16_t, uint16_t>(in);
    case 4:
      return gather<uint32_t, uint32_t, uint32_t>(in);
    default:
      return gather<uint64_t, uint64_t, uint64_t>(in);
  }
}

void check_ids(const Tensor& ids, int64_t high, const char* argument) {
  check_dtype(ids, ScalarType::Long, "gather_windows", argument);
  STD_TORCH_CHECK(ids.is_contiguous(), "gather_windows: ", argument, " must be contiguous");
  const int64_t* id = ids.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < ids.numel(); ++i) {
    STD_TORCH_CHECK(id[i] >= 0 && id[i] <= high, "gather_windows: ", argument, " must lie in [0, ", high, "], got ",
                    id[i]);
  }
}

void check_table(const std::optional<Tensor>& tensor, ScalarType dtype, const Tensor& series, const char* argument) {
  if (!tensor.has_value()) return;
  check_dtype(*tensor, dtype, "gather_windows", argument);
  STD_TORCH_CHECK(
      tensor->is_contiguous() && (tensor->numel() == 1 || tensor->numel() == series.size(1) * series.size(2)),
      "gather_windows: ", argument, " must be contiguous with one value, or one for each node and channel");
}

void check_inputs(const Inputs& in, ScalarType wide) {
  constexpr const char* op = "gather_windows";
  STD_TORCH_CHECK(in.series.dim() == 3 && in.x.dim() == 4 && in.y.dim() == 4, op,
                  ": series must have three dimensions, x and y four");
  const int64_t windows = in.start.numel(), nodes = in.node.has_value() ? in.node->size(1) : in.series.size(1);
  const int64_t features = in.features.has_value() ? in.features->size(1) : 0;
  for (const Tensor* out : {&in.x, &in.y}) {
    STD_TORCH_CHECK(out->size(0) == windows && out->size(1) >= 1 && out->size(2) == nodes, op,
                    ": x and y must be [windows, steps, nodes, channels]");
  }
  STD_TORCH_CHECK(in.x.scalar_type() == in.y.scalar_type(), op, ": x and y must have one dtype");
  STD_TORCH_CHECK(in.x.size(3) == in.series.size(2) + features, op, ": x must have a channel for each of the series");
  STD_TORCH_CHECK(in.y.size(3) == static_cast<int64_t>(in.channels.size()), op, ": y must have the target channels");
  for (const int64_t channel : in.channels) {
    STD_TORCH_CHECK(channel >= 0 && channel < in.series.size(2), op, ": channels must lie in the series");
  }
  if (in.features.has_value()) {
    check_dtype(*in.features, in.x.scalar_type(), op, "time_features");
    STD_TORCH_CHECK(
        in.features->dim() == 2 && in.features->is_contiguous() && in.features->size(0) == in.series.size(0), op,
        ": time_features must be contiguous with a row for each of the series");
  }
  check_table(in.mean, wide, in.series, "mean");
  check_table(in.std, wide, in.series, "std");
  check_table(in.scale, wide, in.series, "scale");
  check_table(in.offset, wide, in.series, "offset");
  STD_TORCH_CHECK(in.mean.has_value() == in.std.has_value(), op, ": mean and std must come together");
  STD_TORCH_CHECK(in.start.dim() == 1, op, ": start must have one dimension");
  check_ids(in.start, in.series.size(0) - in.x.size(1) - in.y.size(1), "start");
  if (in.node.has_value()) {
    STD_TORCH_CHECK(in.node->dim() == 2 && in.node->size(0) == windows, op, ": node must have shape [B, m]");
    check_ids(*in.node, in.series.size(1) - 1, "node");
  }
}

void gather_windows(Tensor series, Tensor start, std::optional<Tensor> node, std::optional<Tensor> mean,
                    std::optional<Tensor> std, std::optional<Tensor> scale, std::optional<Tensor> offset,
                    std::optional<int64_t> missing, std::optional<double> fill, std::optional<Tensor> time_features,
                    std::vector<int64_t> channels, bool normalize_target, bool parallel, Tensor x, Tensor y) {
  const Inputs in{series,           start,    node, mean, std, scale, offset, missing, fill, time_features, channels,
                  normalize_target, parallel, x,    y};
  const ScalarType from = series.scalar_type(), to = x.scalar_type();
  check_inputs(in, from == ScalarType::Double ? ScalarType::Double : ScalarType::Float);
  const bool computes = mean.has_value() || scale.has_value() || offset.has_value() || fill.has_value();
  if (from == to && !computes) return copy(in);
  const bool narrow = to != ScalarType::Float;
  STD_TORCH_CHECK(from == to || !narrow, "gather_windows: x must have the dtype of series or be float32");
  switch (from) {
    case ScalarType::Float:
      return gather<float, float, float>(in);
    case ScalarType::Double:
      return narrow ? gather<double, double, double>(in) : gather<double, double, float>(in);
    case ScalarType::Half:
      return narrow ? gather<c10::Half, float, c10::Half>(in) : gather<c10::Half, float, float>(in);
    case ScalarType::BFloat16:
      return narrow ? gather<c10::BFloat16, float, c10::BFloat16>(in) : gather<c10::BFloat16, float, float>(in);
    case ScalarType::Short:
      STD_TORCH_CHECK(!narrow, "gather_windows: x must be float32 for an int16 series");
      return gather<int16_t, float, float>(in);
    default:
      STD_TORCH_CHECK(false, "gather_windows: unsupported dtype");
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) { m.impl("gather_windows", TORCH_BOX(&gather_windows)); }

}  // namespace stprune
