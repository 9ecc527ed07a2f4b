// A tile of a window: some of its nodes, through all its rows, from the series to the output.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#if defined(STPRUNE_X86)
#include <immintrin.h>
#endif
#include <torch/headeronly/util/Half.h>

#include "cpu/kernels.h"

namespace stprune {
namespace {

// Values of a tile's row: the buffers of a tile (five in the worst case) stay in the first-level cache.
constexpr int64_t kTile = 1024;
// Values of a tile over all its rows where rows do not lie one behind the other in the output: what is written again
// and again, one value of each cache line at a time, stays in the first-level cache too.
constexpr int64_t kScatter = 4096;
template <typename A>
struct Table {
  const A* data = nullptr;  // [num_nodes, num_channels] or, if single, one value; null: there is none
  bool single = false;
};

template <typename In, typename A>
struct Source {
  const In* data;              // [time, num_nodes, num_channels]
  int64_t row, node, channel;  // strides in elements
  int64_t num_nodes, num_channels;
  const int64_t* start;  // [windows]
  const int64_t* drawn;  // [windows, m], or null: all nodes
  int64_t m;             // nodes in the output
  Table<A> scale, offset;
  bool has_missing;
  int64_t missing;
};

// x or y.
template <typename A, typename Out>
struct Part {
  int64_t first, steps;     // rows of a window
  const int64_t* channels;  // [num_channels], or null: all of the series
  int64_t num_channels;
  Table<A> mean, std;
  bool has_fill;
  A fill;
  const Out* features;  // [time, num_features]
  int64_t num_features;
  Out* out;                             // [windows, steps, m, num_channels + num_features]
  int64_t window, step, node, channel;  // strides in elements
  bool source_run;                      // a row's values lie one behind the other in the series
  bool out_run;                         // and in the output
  int64_t tile;                         // nodes in a tile
  int64_t tiles;                        // tiles in a window
};

// Nodes [first, first + count) and channels [channel, channel + width) of a part.
struct Tile {
  int64_t first, count, channel, width;
  const int64_t* drawn;  // [m] of this window, or null
};

// to[i * width + c] = from(node, channel), where that is at from[node * node_stride + channel * channel_stride].
template <typename T>
void collect(const T* from, int64_t node_stride, int64_t channel_stride, const Tile& tile, const int64_t* channels,
             T* to) {
  const int64_t* drawn = tile.drawn == nullptr ? nullptr : tile.drawn + tile.first;
  from += tile.drawn == nullptr ? tile.first * node_stride : 0;
  const auto values = [&](int64_t i) { return from + (drawn == nullptr ? i : drawn[i]) * node_stride; };
  if (tile.width == 1) {
    from += (channels == nullptr ? tile.channel : channels[tile.channel]) * channel_stride;
    for (int64_t i = 0; i < tile.count; ++i) to[i] = *values(i);
    return;
  }
  if (channels == nullptr) {
    from += tile.channel * channel_stride;
    for (int64_t i = 0; i < tile.count; ++i) {
      const T* node = values(i);
      for (int64_t c = 0; c < tile.width; ++c) *to++ = node[c * channel_stride];
    }
    return;
  }
  for (int64_t i = 0; i < tile.count; ++i) {
    const T* node = values(i);
    for (int64_t c = 0; c < tile.width; ++c) *to++ = node[channels[tile.channel + c] * channel_stride];
  }
}

// The tile's entries of a table, one behind the other.
template <typename A>
const A* expand(const Table<A>& table, const Tile& tile, const int64_t* channels, int64_t num_channels, bool run,
                A* buffer) {
  if (table.data == nullptr) return nullptr;
  if (table.single) {
    std::fill(buffer, buffer + tile.count * tile.width, table.data[0]);
    return buffer;
  }
  if (run) return table.data + tile.first * num_channels;
  collect(table.data, num_channels, int64_t{1}, tile, channels, buffer);
  return buffer;
}

template <typename From, typename To>
void convert(const From* from, int64_t n, To* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<To>(from[i]);
}

#if defined(STPRUNE_X86)
// Half precision in software takes some 10 ns a value; the instructions for it give the same bits.
inline bool has_half() { return kernels().isa > 0 && __builtin_cpu_supports("f16c"); }

__attribute__((target("avx,f16c"))) inline int64_t widen_blocks(const c10::Half* from, int64_t n, float* to) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
  }
  return i;
}

__attribute__((target("avx,f16c"))) inline int64_t narrow_blocks(const float* from, int64_t n, c10::Half* to) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), halves);
  }
  return i;
}

inline void convert(const c10::Half* from, int64_t n, float* to) {
  const int64_t done = has_half() ? widen_blocks(from, n, to) : 0;
  convert<c10::Half, float>(from + done, n - done, to + done);
}

inline void convert(const float* from, int64_t n, c10::Half* to) {
  const int64_t done = has_half() ? narrow_blocks(from, n, to) : 0;
  convert<float, c10::Half>(from + done, n - done, to + done);
}
#endif

template <typename A>
struct Arithmetic {
  const A *scale, *offset, *mean, *std;  // [n] or null
};

// One row of a tile from the series' numbers to the output's. Each step rounds once, as in the reference.
template <typename In, typename A, typename Out>
void compute(const In* raw, int64_t n, const Source<In, A>& source, const Part<A, Out>& part,
             const Arithmetic<A>& tables, A* values /* [n] */, Out* out /* [n] */) {
  const A* current = values;
  if constexpr (std::is_same_v<In, A>) {
    current = raw;
  } else {
    convert(raw, n, values);
    if (tables.scale != nullptr) {
      for (int64_t i = 0; i < n; ++i) values[i] *= tables.scale[i];
    }
    if (tables.offset != nullptr) {
      for (int64_t i = 0; i < n; ++i) values[i] += tables.offset[i];
    }
    if constexpr (std::is_same_v<In, int16_t>) {
      if (source.has_missing) {
        const In missing = static_cast<In>(source.missing);
        for (int64_t i = 0; i < n; ++i) {
          values[i] = raw[i] == missing ? std::numeric_limits<A>::quiet_NaN() : values[i];
        }
      }
    }
  }
  A* result = values;
  if constexpr (std::is_same_v<A, Out>) result = out;
  if (tables.mean != nullptr) {
    const A *mean = tables.mean, *std = tables.std;
    for (int64_t i = 0; i < n; ++i) result[i] = (current[i] - mean[i]) / std[i];
    current = result;
  }
  if (part.has_fill) {
    for (int64_t i = 0; i < n; ++i) result[i] = std::isnan(current[i]) ? part.fill : current[i];
    current = result;
  }
  if constexpr (std::is_same_v<A, Out>) {
    if (current != out) std::copy(current, current + n, out);
  } else {
    convert(current, n, out);
  }
}

// out[i * node + c * channel] = from[i * width + c].
template <typename Out>
void scatter(const Out* from, const Tile& tile, int64_t node, int64_t channel, Out* out) {
  if (tile.width == 1) {
    for (int64_t i = 0; i < tile.count; ++i) out[i * node] = from[i];
    return;
  }
  for (int64_t i = 0; i < tile.count; ++i) {
    for (int64_t c = 0; c < tile.width; ++c) out[i * node + c * channel] = from[i * tile.width + c];
  }
}

// Whole rows, or whole windows where rows adjoin, when nothing is computed and nothing moves within a row.
template <typename T>
void copy_rows(const T* from, int64_t row, int64_t steps, int64_t length, T* out, int64_t step) {
  const bool adjoin = row == length && step == length;
  const int64_t runs = adjoin ? 1 : steps;
  const size_t bytes = static_cast<size_t>(adjoin ? steps * length : length) * sizeof(T);
  for (int64_t t = 0; t < runs; ++t) std::memcpy(out + t * step, from + t * row, bytes);
}

template <typename In, typename A, typename Out>
void gather_tile(const Source<In, A>& source, const Part<A, Out>& part, int64_t window, int64_t number) {
  // Equal types of bits, not of numbers: see copy() below.
  constexpr bool kCopies = std::is_same_v<In, Out> && std::is_unsigned_v<In>;
  const int64_t first_row = source.start[window] + part.first;
  Tile tile{number * part.tile, 0, 0, 0, source.drawn == nullptr ? nullptr : source.drawn + window * source.m};
  tile.count = std::min(part.tile, source.m - tile.first);
  const In* rows = source.data + first_row * source.row;
  Out* out = part.out + window * part.window + tile.first * part.node;
  if constexpr (kCopies) {
    if (part.source_run && part.out_run) {
      copy_rows(rows + tile.first * source.node, source.row, part.steps, tile.count * part.num_channels, out,
                part.step);
      return;
    }
  }
  A values[kTile], scale[kTile], offset[kTile], mean[kTile], std[kTile];
  In raw_buffer[kTile];
  Out out_buffer[kTile];
  for (tile.channel = 0; tile.channel < part.num_channels; tile.channel += tile.width) {
    tile.width = std::min(part.num_channels - tile.channel, kTile / tile.count);
    const int64_t n = tile.count * tile.width;
    Arithmetic<A> tables{};
    if constexpr (!kCopies) {
      const auto entries = [&](const Table<A>& table, A* buffer) {
        const bool run = part.channels == nullptr && source.drawn == nullptr && tile.width == source.num_channels;
        return expand(table, tile, part.channels, source.num_channels, run, buffer);
      };
      tables = {entries(source.scale, scale), entries(source.offset, offset), entries(part.mean, mean),
                entries(part.std, std)};
    }
    for (int64_t t = 0; t < part.steps; ++t) {
      const In* raw = rows + t * source.row;
      if (part.source_run && tile.width == part.num_channels) {
        raw += tile.first * source.node;
      } else {
        collect(raw, source.node, source.channel, tile, part.channels, raw_buffer);
        raw = raw_buffer;
      }
      Out* place = out + t * part.step + tile.channel * part.channel;
      const bool direct = part.out_run && tile.width == part.num_channels;
      if constexpr (kCopies) {
        if (direct) {
          std::memcpy(place, raw, static_cast<size_t>(n) * sizeof(Out));
        } else {
          scatter(raw, tile, part.node, part.channel, place);
        }
      } else {
        Out* result = direct ? place : out_buffer;
        compute(raw, n, source, part, tables, values, result);
        if (!direct) scatter(result, tile, part.node, part.channel, place);
      }
    }
  }
  for (int64_t t = 0; t < part.steps && part.num_features > 0; ++t) {
    const Out* features = part.features + (first_row + t) * part.num_features;
    Out* place = out + t * part.step + part.num_channels * part.channel;
    for (int64_t i = 0; i < tile.count; ++i) {
      for (int64_t f = 0; f < part.num_features; ++f) place[i * part.node + f * part.channel] = features[f];
    }
  }
}

}  // namespace
}  // namespace stprune
