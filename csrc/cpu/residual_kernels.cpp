// Bodies of the kernels declared in residual_kernels.h, compiled once per instruction set; see lanes.h for the rule on
// headers. Columns are taken a few vectors at a time through all steps, so that their sums stay in registers.
#include "cpu/residual_kernels.h"

#include "cpu/lanes.h"

namespace stprune {
namespace {

typedef int64_t I64 __attribute__((vector_size(VECTOR_BYTES)));
// Half a vector's bytes: what as many bfloat16 as a vector has float lanes take.
typedef uint16_t U16 __attribute__((vector_size(VECTOR_BYTES / 2)));

constexpr int PARTS = UNIT_BYTES / VECTOR_BYTES;
template <typename A>
constexpr int UNIT = UNIT_BYTES / sizeof(A);
// Units whose sums fit into the registers; no result depends on it.
constexpr int WIDE = STPRUNE_ISA == 2 ? 4 : STPRUNE_ISA == 1 ? 2 : 1;
// Blocks ahead that are sent for from the second-level cache.
constexpr int AHEAD = 2;

struct BFloat16 {
  uint16_t bits;
};

// V values, I lanes as integers, M which lanes count.
template <typename A>
struct Types;
#if STPRUNE_ISA == 2
template <>
struct Types<float> {
  using V = F32;
  using I = I32;
  using M = __mmask16;
};
template <>
struct Types<double> {
  using V = F64;
  using I = I64;
  using M = __mmask8;
};
// Neither NaN nor the null value, which may be NaN itself.
STPRUNE_INLINE __mmask16 present(F32 t, F32 null) {
  return _mm512_mask_cmp_ps_mask(_mm512_cmp_ps_mask((__m512)t, (__m512)t, _CMP_ORD_Q), (__m512)t, (__m512)null,
                                 _CMP_NEQ_UQ);
}
STPRUNE_INLINE __mmask8 present(F64 t, F64 null) {
  return _mm512_mask_cmp_pd_mask(_mm512_cmp_pd_mask((__m512d)t, (__m512d)t, _CMP_ORD_Q), (__m512d)t, (__m512d)null,
                                 _CMP_NEQ_UQ);
}
STPRUNE_INLINE __mmask16 not_less(F32 a, F32 b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_NLT_UQ); }
STPRUNE_INLINE __mmask8 not_less(F64 a, F64 b) { return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_NLT_UQ); }
STPRUNE_INLINE F32 only(__mmask16 m, F32 v) { return (F32)_mm512_maskz_mov_ps(m, (__m512)v); }
STPRUNE_INLINE F64 only(__mmask8 m, F64 v) { return (F64)_mm512_maskz_mov_pd(m, (__m512d)v); }
STPRUNE_INLINE I32 counted(I32 count, __mmask16 m) {
  return (I32)_mm512_mask_sub_epi32((__m512i)count, m, (__m512i)count, _mm512_set1_epi32(-1));
}
STPRUNE_INLINE I64 counted(I64 count, __mmask8 m) {
  return (I64)_mm512_mask_sub_epi64((__m512i)count, m, (__m512i)count, _mm512_set1_epi64(-1));
}
STPRUNE_INLINE int64_t number(__mmask16 m, F32) { return __builtin_popcount(m); }
STPRUNE_INLINE int64_t number(__mmask8 m, F64) { return __builtin_popcount(m); }
STPRUNE_INLINE void load_keep(__mmask16& m, const uint8_t* from) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  m = _mm_test_epi8_mask(bytes, bytes);
}
STPRUNE_INLINE void load_keep(__mmask8& m, const uint8_t* from) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  m = static_cast<__mmask8>(_mm_test_epi8_mask(bytes, bytes));
}
template <typename M>
STPRUNE_INLINE M everywhere(bool yes) {
  return static_cast<M>(yes ? -1 : 0);
}
// Lanes [begin, end) of a vector.
template <typename A, typename M>
STPRUNE_INLINE M lane_range(int64_t begin, int64_t end) {
  M m = 0;
  for (int i = 0; i < UNIT<A>; ++i) m = static_cast<M>(m | (i >= begin && i < end ? 1 << i : 0));
  return m;
}
#else
template <>
struct Types<float> {
  using V = F32;
  using I = I32;
  using M = I32;
};
template <>
struct Types<double> {
  using V = F64;
  using I = I64;
  using M = I64;
};
STPRUNE_INLINE I32 present(F32 t, F32 null) { return (t == t) & (t != null); }
STPRUNE_INLINE I64 present(F64 t, F64 null) { return (t == t) & (t != null); }
STPRUNE_INLINE I32 not_less(F32 a, F32 b) { return ~(a < b); }
STPRUNE_INLINE I64 not_less(F64 a, F64 b) { return ~(a < b); }
STPRUNE_INLINE F32 only(I32 m, F32 v) { return (F32)((I32)v & m); }
STPRUNE_INLINE F64 only(I64 m, F64 v) { return (F64)((I64)v & m); }
template <typename I>
STPRUNE_INLINE I counted(I count, I m) {
  return count - m;
}
// Lanes of a mask, all ones or zeros each.
STPRUNE_INLINE int64_t number(I32 m, F32) { return __builtin_popcountll(equal((U32)m, U32{} - 1u)); }
STPRUNE_INLINE int64_t number(I64 m, F64) { return __builtin_popcountll(equal((U32)m, U32{} - 1u)) / 2; }
// Bytes widen to lanes here by hand: not every level of optimisation makes vectors of a loop over bytes.
STPRUNE_INLINE void load_keep(I32& m, const uint8_t* from) {
#if STPRUNE_ISA == 1
  m = (I32)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))) != 0;
#else
  for (int i = 0; i < LANES_32; ++i) m[i] = from[i];
  m = m != 0;
#endif
}
STPRUNE_INLINE void load_keep(I64& m, const uint8_t* from) {
#if STPRUNE_ISA == 1
  uint32_t bytes;
  __builtin_memcpy(&bytes, from, sizeof bytes);
  m = (I64)_mm256_cvtepu8_epi64(_mm_cvtsi32_si128(static_cast<int>(bytes))) != 0;
#else
  for (int i = 0; i < LANES_64; ++i) m[i] = from[i];
  m = m != 0;
#endif
}
template <typename M>
STPRUNE_INLINE M everywhere(bool yes) {
  return M{} - static_cast<int>(yes);
}
template <typename A, typename M>
STPRUNE_INLINE M lane_range(int64_t begin, int64_t end) {
  M m = {};
  for (unsigned i = 0; i < sizeof(M) / sizeof(m[0]); ++i) m[i] = i >= begin && i < end ? -1 : 0;
  return m;
}
#endif

STPRUNE_INLINE F32 read(const float* from) { return load<F32>(from); }
STPRUNE_INLINE F64 read(const double* from) { return load<F64>(from); }
STPRUNE_INLINE F32 read(const BFloat16* from) { return (F32)(__builtin_convertvector(load<U16>(from), U32) << 16); }
STPRUNE_INLINE void write(float* to, F32 v) { store(to, v); }
STPRUNE_INLINE void write(double* to, F64 v) { store(to, v); }
// Rounded to nearest, half to even; every NaN becomes the quiet one.
STPRUNE_INLINE void write(BFloat16* to, F32 v) {
  const U32 bits = (U32)v;
  const U32 rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const U32 nan = (U32)(v != v);
  store(to, __builtin_convertvector((rounded & ~nan) | (nan & 0x7FC0u), U16));
}

STPRUNE_INLINE F32 magnitude(F32 v) { return (F32)((I32)v & 0x7FFFFFFF); }
STPRUNE_INLINE F64 magnitude(F64 v) { return (F64)((I64)v & 0x7FFFFFFFFFFFFFFF); }

// The sum of a vector's lanes: the upper half to the lower half until one is left.
STPRUNE_INLINE double halved(F64 v) {
#if STPRUNE_ISA == 2
  const __m256d four = _mm256_add_pd(_mm512_castpd512_pd256((__m512d)v), _mm512_extractf64x4_pd((__m512d)v, 1));
#elif STPRUNE_ISA == 1
  const __m256d four = (__m256d)v;
#endif
#if STPRUNE_ISA > 0
  const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
  return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
#else
  return v[0] + v[1];
#endif
}

// Sum of one unit's lanes in double: the upper half to the lower half until one is left.
template <typename A>
STPRUNE_INLINE double lane_total(const A* lanes) {
  constexpr int vectors = UNIT<A> / LANES_64;
  F64 sums[vectors];
#pragma GCC unroll 8
  for (int i = 0; i < vectors; ++i) sums[i] = load_f64(lanes + i * LANES_64);
#pragma GCC unroll 8
  for (int half = vectors / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return halved(sums[0]);
}

// Loss of |e| = u, already 0 where it does not count.
template <Loss LOSS, typename V, typename A>
STPRUNE_INLINE V term_of(V e, V u, V t, A parameter) {
  if constexpr (LOSS == Loss::kMse) return u * u;
  if constexpr (LOSS == Loss::kHuber) {
    const V near = A(0.5) * u * u, far = parameter * (u - A(0.5) * parameter);
    return u <= parameter ? near : far;
  }
  if constexpr (LOSS == Loss::kMape) return u / magnitude(t);
  if constexpr (LOSS == Loss::kQuantile) return u * (e < A(0) ? V{} + parameter : V{} + (A(1) - parameter));
  return u;
}

// What follows ROWS rows of a sample of more: their sums of columns go into doubles. Apart from `columns`, as it is the
// same for every loss, and each copy costs the compiler as much as the loop over the rows.
template <bool ANY, int N, typename A, typename Count>
__attribute__((noinline)) void add_rows(const A* sum, const Count* count, double* total, int64_t* entries) {
  for (int i = 0; i < N; ++i) total[i] += static_cast<double>(sum[i]);
  for (int i = 0; ANY && i < N; ++i) entries[i] += count[i];
}

// Their means, where all columns have `steps` entries or as many as counted.
template <bool ANY, int N, typename A>
__attribute__((noinline)) void mean_of_rows(const double* total, const int64_t* entries, int64_t steps, A* means) {
  for (int i = 0; i < N; ++i) {
    const int64_t number = ANY ? entries[i] : steps;
    means[i] = number > 0 ? static_cast<A>(total[i] / static_cast<double>(number)) : A(-1);
  }
}

// Columns [at, at + U units) through all steps: adds to the sums of the rows and gives the means of the columns.
template <Loss LOSS, Keep KEEP, bool AFFINE, bool SOME, int U, typename A, typename S>
STPRUNE_INLINE void columns(const ResidualTile& tile, int64_t at, const typename Types<A>::M* lanes, A* means) {
  using V = typename Types<A>::V;
  using I = typename Types<A>::I;
  using M = typename Types<A>::M;
  constexpr bool ANY = KEEP != Keep::kAll || LOSS == Loss::kMape || SOME;
  constexpr int N = U * PARTS, STEP = UNIT<A> / PARTS;
  // A branch that is always the same, instead of twice as many instances.
  const bool weighted = tile.column_weight != nullptr;
  const S* prediction = static_cast<const S*>(tile.prediction) + at;
  const S* target = static_cast<const S*>(tile.target) + at;
  const uint8_t* mask = KEEP == Keep::kMask ? tile.mask + at : nullptr;
  const V null = V{} + static_cast<A>(tile.null_value);
  const A parameter = static_cast<A>(tile.parameter);
  const M always = everywhere<M>(!tile.has_null);
  V affine[AFFINE ? AFFINE_ROWS * N : 1];
  if constexpr (AFFINE) {
    const A* from = static_cast<const A*>(tile.affine) + at;
#pragma GCC unroll 16
    for (int row = 0; row < AFFINE_ROWS; ++row) {
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) affine[row * N + i] = load<V>(from + row * tile.affine_step + i * STEP);
    }
  }
  double total[U * UNIT<A>];
  int64_t entries[U * UNIT<A>];
  const bool tall = tile.steps > ROWS;
  if (tall) {
    __builtin_memset(total, 0, sizeof total);
    __builtin_memset(entries, 0, sizeof entries);
  }
  for (int64_t first = 0; first < tile.steps; first += ROWS) {
    const int64_t last = first + ROWS < tile.steps ? first + ROWS : tile.steps;
    V sum[N] = {};
    I count[N] = {};
    for (int64_t step = first; step < last; ++step) {
      const S* p_row = prediction + step * tile.prediction_step;
      const S* t_row = target + step * tile.target_step;
      A* row_sum = static_cast<A*>(tile.row_sum) + step * UNIT<A>;
      A* row_loss = static_cast<A*>(tile.row_loss) + step * UNIT<A>;
      A* row_weighted = static_cast<A*>(tile.row_weighted) + step * UNIT<A>;
      V r_sum[PARTS], r_loss[PARTS], r_weighted[PARTS] = {};
#pragma GCC unroll 16
      for (int v = 0; v < PARTS; ++v) r_sum[v] = load<V>(row_sum + v * STEP);
      if constexpr (LOSS != Loss::kMae) {
#pragma GCC unroll 16
        for (int v = 0; v < PARTS; ++v) r_loss[v] = load<V>(row_loss + v * STEP);
      }
      if (weighted) {
#pragma GCC unroll 16
        for (int v = 0; v < PARTS; ++v) r_weighted[v] = load<V>(row_weighted + v * STEP);
      }
      int64_t kept_in_row = 0;
      if constexpr (!SOME) {
        // The rows are as many streams of short runs, which the hardware does not follow by itself.
#pragma GCC unroll 16
        for (int line = 0; line < U * UNIT<A> * static_cast<int>(sizeof(S)); line += 64) {
          __builtin_prefetch(reinterpret_cast<const char*>(p_row + AHEAD * U * UNIT<A>) + line);
          __builtin_prefetch(reinterpret_cast<const char*>(t_row + AHEAD * U * UNIT<A>) + line);
        }
      }
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) {
        V p = read(p_row + i * STEP), t = read(t_row + i * STEP);
        M kept{};
        if constexpr (KEEP == Keep::kNull) {
          kept = AFFINE ? static_cast<M>(present(t, null) | always) : present(t, null);
        }
        if constexpr (KEEP == Keep::kMask) {
          load_keep(kept, mask + step * tile.mask_step + i * STEP);
          kept = static_cast<M>(kept & (present(t, null) | always));
        }
        if constexpr (KEEP == Keep::kAll && ANY) kept = everywhere<M>(true);
        if constexpr (SOME) kept = static_cast<M>(kept & lanes[i]);
        V e;
        if constexpr (AFFINE) {
          p = p * affine[i] + affine[N + i];
          t = t * affine[2 * N + i] + affine[3 * N + i];
          e = (p - t) * affine[4 * N + i];
        } else {
          e = p - t;
        }
        if constexpr (LOSS == Loss::kMape) kept = static_cast<M>(kept & not_less(magnitude(t), V{} + parameter));
        V u = magnitude(e);
        if constexpr (ANY) {
          u = only(kept, u);  // a removed entry is +0, whatever stands there
          count[i] = counted(count[i], kept);
          kept_in_row += number(kept, V{});
        }
        sum[i] += u;
        r_sum[i % PARTS] += u;
        V term = u;
        if constexpr (LOSS != Loss::kMae) {
          term = term_of<LOSS>(e, u, t, parameter);
          if constexpr (LOSS == Loss::kMape) term = only(kept, term);
          r_loss[i % PARTS] += term;
        }
        if (weighted) {
          const V part = term * load<V>(static_cast<const A*>(tile.column_weight) + at + i * STEP);
          r_weighted[i % PARTS] += ANY ? only(kept, part) : part;
        }
      }
#pragma GCC unroll 16
      for (int v = 0; v < PARTS; ++v) store(row_sum + v * STEP, r_sum[v]);
      if constexpr (LOSS != Loss::kMae) {
#pragma GCC unroll 16
        for (int v = 0; v < PARTS; ++v) store(row_loss + v * STEP, r_loss[v]);
      }
      if (weighted) {
#pragma GCC unroll 16
        for (int v = 0; v < PARTS; ++v) store(row_weighted + v * STEP, r_weighted[v]);
      }
      if constexpr (ANY) tile.row_count[step] += kept_in_row;
    }
    if (!tall) {
      const V steps = V{} + static_cast<A>(tile.steps);
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) {
        if constexpr (ANY) {
          const V number_of = __builtin_convertvector(count[i], V);
          const V mean = sum[i] / (count[i] > 0 ? number_of : V{} + A(1));
          store(means + i * STEP, count[i] > 0 ? mean : V{} - A(1));
        } else {
          store(means + i * STEP, sum[i] / steps);
        }
      }
      return;
    }
    using Count = __typeof__(count[0][0] + 0);
    A part[U * UNIT<A>];
    Count some[U * UNIT<A>];
    __builtin_memcpy(part, sum, sizeof part);
    __builtin_memcpy(some, count, sizeof some);
    add_rows<ANY, U * UNIT<A>>(part, some, total, entries);
  }
  mean_of_rows<ANY, U * UNIT<A>>(total, entries, tile.steps, means);
}

// Sends for some rows of the segment that starts at `next`: those that belong to block `block` of the one at work. Rows
// come from memory in long runs; the columns are then walked in the second-level cache.
template <typename A, typename S>
__attribute__((noinline)) void fetch(const ResidualTile& tile, int64_t next, int64_t block) {
  constexpr int64_t BLOCKS = SEGMENT / (WIDE * UNIT<A>), LINE = 64 / sizeof(S);
  if (tile.steps > ROWS || next >= tile.width) return;
  const int64_t last = (block + 1) * tile.steps / BLOCKS;
  for (int64_t step = block * tile.steps / BLOCKS; step < last; ++step) {
    const S* p = static_cast<const S*>(tile.prediction) + step * tile.prediction_step + next;
    const S* t = static_cast<const S*>(tile.target) + step * tile.target_step + next;
    for (int64_t j = 0; j < SEGMENT; j += LINE) __builtin_prefetch(p + j, 0, 2);
    for (int64_t j = 0; j < SEGMENT; j += LINE) __builtin_prefetch(t + j, 0, 2);
  }
}

template <Loss LOSS, Keep KEEP, bool AFFINE, typename A, typename S>
void tile_kernel(const ResidualTile& tile) {
  using M = typename Types<A>::M;
  constexpr bool ANY = KEEP != Keep::kAll || LOSS == Loss::kMape;
  A* row_sum = static_cast<A*>(tile.row_sum);
  A* row_loss = static_cast<A*>(tile.row_loss);
  A* row_weighted = static_cast<A*>(tile.row_weighted);
  A* means = static_cast<A*>(tile.node_mean);
  if (tile.steps == 0) {
    for (int64_t i = 0; i < tile.width; ++i) means[i] = A(-1);
    return;
  }
  for (int64_t segment = 0; segment < tile.width; segment += SEGMENT) {
    const int64_t end = segment + SEGMENT < tile.width ? segment + SEGMENT : tile.width;
    __builtin_memset(row_sum, 0, static_cast<uint64_t>(tile.steps * UNIT_BYTES));
    if (LOSS != Loss::kMae) __builtin_memset(row_loss, 0, static_cast<uint64_t>(tile.steps * UNIT_BYTES));
    if (tile.column_weight != nullptr)
      __builtin_memset(row_weighted, 0, static_cast<uint64_t>(tile.steps * UNIT_BYTES));
    __builtin_memset(tile.row_count, 0, static_cast<uint64_t>(tile.steps) * sizeof(int64_t));
    int64_t at = segment;
    for (; at + WIDE * UNIT<A> <= end; at += WIDE * UNIT<A>) {
      fetch<A, S>(tile, segment + SEGMENT, (at - segment) / (WIDE * UNIT<A>));
      columns<LOSS, KEEP, AFFINE, false, WIDE, A, S>(tile, at, nullptr, means + at);
    }
    for (; WIDE > 2 && at + 2 * UNIT<A> <= end; at += 2 * UNIT<A>) {
      columns<LOSS, KEEP, AFFINE, false, 2, A, S>(tile, at, nullptr, means + at);
    }
    while (at < end) {
      // One unit at a time; the last columns stand among lanes that do not count: those before them, or padding behind.
      const int64_t size = end - at < UNIT<A> ? end - at : UNIT<A>;
      const int64_t from = tile.overlap ? UNIT<A> - size : 0;
      constexpr int STEP = UNIT<A> / PARTS;
      M lanes[PARTS];
      for (int v = 0; v < PARTS; ++v) lanes[v] = lane_range<A, M>(from - v * STEP, from + size - v * STEP);
      A padded[UNIT<A>];
      columns<LOSS, KEEP, AFFINE, true, 1, A, S>(tile, at - from, lanes, padded);
      for (int64_t i = 0; i < size; ++i) means[at + i] = padded[from + i];
      at += size;
    }
    for (int64_t step = 0; step < tile.steps; ++step) {
      tile.rows[step].sum += lane_total(row_sum + step * UNIT<A>);
      if (LOSS != Loss::kMae) tile.rows[step].loss += lane_total(row_loss + step * UNIT<A>);
      if (tile.column_weight != nullptr) tile.rows[step].weighted += lane_total(row_weighted + step * UNIT<A>);
      tile.rows[step].count += ANY ? tile.row_count[step] : end - segment;
    }
  }
}

// A vector of slopes times `c`; `t` is the target as the loss sees it.
template <Loss LOSS, typename V, typename A>
STPRUNE_INLINE V slope_of(V e, V t, V c, A parameter) {
  const V zero = V{};
  if constexpr (LOSS == Loss::kMse) return c * (A(2) * e);
  if constexpr (LOSS == Loss::kHuber) {
    const V low = e < -parameter ? V{} - parameter : e;  // a NaN stays
    return c * (low > parameter ? V{} + parameter : low);
  }
  if constexpr (LOSS == Loss::kMape) return ((e > zero ? c : zero) - (e < zero ? c : zero)) / magnitude(t);
  if constexpr (LOSS == Loss::kQuantile) {
    return (e > zero ? c * (A(1) - parameter) : zero) - (e < zero ? c * parameter : zero);
  }
  return (e > zero ? c : zero) - (e < zero ? c : zero);
}

template <Loss LOSS, Keep KEEP, bool AFFINE, typename A, typename S>
void slopes_kernel(const ResidualRow& row) {
  using V = typename Types<A>::V;
  using M = typename Types<A>::M;
  constexpr bool ANY = KEEP != Keep::kAll || LOSS == Loss::kMape;
  constexpr int STEP = UNIT<A> / PARTS;
  const S* prediction = static_cast<const S*>(row.prediction);
  const S* target = static_cast<const S*>(row.target);
  const A* affine = static_cast<const A*>(row.affine);
  S* grad_prediction = static_cast<S*>(row.grad_prediction);
  S* grad_target = static_cast<S*>(row.grad_target);
  const V null = V{} + static_cast<A>(row.null_value);
  const A parameter = static_cast<A>(row.parameter);
  const V coefficient = V{} + static_cast<A>(row.coefficient);
  const A* scale = static_cast<const A*>(row.scale);
  const M always = everywhere<M>(!row.has_null);
  const uint8_t* mask = row.mask;
  int64_t n = row.width, affine_step = row.affine_step;
  // Less than a vector: on padded copies.
  S padded_p[STEP] = {}, padded_t[STEP] = {}, padded_grad_p[STEP], padded_grad_t[STEP];
  uint8_t padded_m[STEP] = {};
  A padded_a[AFFINE ? AFFINE_ROWS * STEP : 1] = {}, padded_scale[STEP] = {};
  const bool narrow = n < STEP;
  const uint64_t bytes = static_cast<uint64_t>(n) * sizeof(S);
  if (narrow) {
    __builtin_memcpy(padded_p, prediction, bytes);
    __builtin_memcpy(padded_t, target, bytes);
    if constexpr (KEEP == Keep::kMask) __builtin_memcpy(padded_m, mask, static_cast<uint64_t>(n));
    if constexpr (AFFINE) {
      for (int r = 0; r < AFFINE_ROWS; ++r) {
        __builtin_memcpy(padded_a + r * STEP, affine + r * affine_step, static_cast<uint64_t>(n) * sizeof(A));
      }
    }
    if (scale != nullptr) {
      __builtin_memcpy(padded_scale, scale, static_cast<uint64_t>(n) * sizeof(A));
      scale = padded_scale;
    }
    prediction = padded_p;
    target = padded_t;
    mask = padded_m;
    affine = padded_a;
    affine_step = STEP;
    grad_prediction = padded_grad_p;
    if (grad_target != nullptr) grad_target = padded_grad_t;
    n = STEP;
  }
  for (int64_t first = 0; first < n; first += STEP) {
    // The last entries again with those before them: the same values are written twice.
    const int64_t j = first + STEP <= n ? first : n - STEP;
    V p = read(prediction + j), t = read(target + j);
    M kept{};
    if constexpr (KEEP == Keep::kNull) kept = AFFINE ? static_cast<M>(present(t, null) | always) : present(t, null);
    if constexpr (KEEP == Keep::kMask) {
      load_keep(kept, mask + j);
      kept = static_cast<M>(kept & (present(t, null) | always));
    }
    if constexpr (KEEP == Keep::kAll && ANY) kept = everywhere<M>(true);
    V e;
    if constexpr (AFFINE) {
      const A* from = affine + j;
      p = p * load<V>(from) + load<V>(from + affine_step);
      t = t * load<V>(from + 2 * affine_step) + load<V>(from + 3 * affine_step);
      e = (p - t) * load<V>(from + 4 * affine_step);
    } else {
      e = p - t;
    }
    if constexpr (LOSS == Loss::kMape) kept = static_cast<M>(kept & not_less(magnitude(t), V{} + parameter));
    const V c = scale == nullptr ? coefficient : load<V>(scale + j);
    V slope = slope_of<LOSS>(e, t, c, parameter);
    if constexpr (AFFINE) slope *= load<V>(affine + j + 4 * affine_step);
    V grad = slope;
    if constexpr (AFFINE) grad *= load<V>(affine + j);
    if constexpr (ANY) grad = only(kept, grad);
    write(grad_prediction + j, grad);
    if (grad_target == nullptr) continue;
    grad = -slope;
    if constexpr (LOSS == Loss::kMape) {
      const V share = c * magnitude(e) / (t * t);
      grad -= t < A(0) ? -share : share;
    }
    if constexpr (AFFINE) grad *= load<V>(affine + j + 2 * affine_step);
    if constexpr (ANY) grad = only(kept, grad);
    write(grad_target + j, grad);
  }
  if (narrow) {
    __builtin_memcpy(row.grad_prediction, padded_grad_p, bytes);
    if (grad_target != nullptr) __builtin_memcpy(row.grad_target, padded_grad_t, bytes);
  }
}

// Adds body(value, whether it is a mean) over the lanes of blocks of 64 bytes of doubles.
template <typename A, typename Body>
STPRUNE_INLINE void for_means(const A* mean, int64_t n, Body body) {
  constexpr int BLOCK = 8;
  const int64_t whole = n / BLOCK * BLOCK;
  A rest[BLOCK];
  for (int i = 0; i < BLOCK; ++i) rest[i] = whole + i < n ? mean[whole + i] : A(-1);
  for (int64_t j = 0; j < n; j += BLOCK) {
    const A* block = j < whole ? mean + j : rest;
#pragma GCC unroll 4
    for (int v = 0; v < PARTS; ++v) {
      const F64 wide = load_f64(block + v * LANES_64);
      body(v, wide, (I64)(wide != -1.0));
    }
  }
}

template <typename A>
double spread(const A* mean, int64_t n) {
  F64 sum[PARTS] = {}, square[PARTS] = {};
  I64 present_in[PARTS] = {};
  for_means(mean, n, [&](int v, F64 value, I64 kept) __attribute__((always_inline)) {
    sum[v] += (F64)((I64)value & kept);
    present_in[v] -= kept;
  });
  int64_t some[8], groups = 0;
  __builtin_memcpy(some, present_in, sizeof some);
  for (int i = 0; i < 8; ++i) groups += some[i];
  if (groups == 0) return 0.0;
  double lanes[8];
  __builtin_memcpy(lanes, sum, sizeof lanes);
  const double centre = lane_total(lanes) / static_cast<double>(groups);
  for_means(mean, n, [&](int v, F64 value, I64 kept) __attribute__((always_inline)) {
    const F64 deviation = (F64)((I64)(value - centre) & kept);
    square[v] += deviation * deviation;
  });
  __builtin_memcpy(lanes, square, sizeof lanes);
  return __builtin_sqrt(lane_total(lanes) / static_cast<double>(groups));
}

template <Loss LOSS, typename A, typename S>
constexpr void fill(ResidualKernels& k, int storage) {
  const int loss = static_cast<int>(LOSS);
  for (int weighted = 0; weighted < 2; ++weighted) {
    k.tile[storage][loss][0][0][weighted] = tile_kernel<LOSS, Keep::kAll, false, A, S>;
    k.tile[storage][loss][1][0][weighted] = tile_kernel<LOSS, Keep::kNull, false, A, S>;
    k.tile[storage][loss][2][0][weighted] = tile_kernel<LOSS, Keep::kMask, false, A, S>;
  }
  k.slopes[storage][loss][0][0] = slopes_kernel<LOSS, Keep::kAll, false, A, S>;
  k.slopes[storage][loss][1][0] = slopes_kernel<LOSS, Keep::kNull, false, A, S>;
  k.slopes[storage][loss][2][0] = slopes_kernel<LOSS, Keep::kMask, false, A, S>;
  if constexpr (sizeof(S) == sizeof(A)) {
    for (int weighted = 0; weighted < 2; ++weighted) {
      k.tile[storage][loss][0][1][weighted] = tile_kernel<LOSS, Keep::kNull, true, A, S>;
      k.tile[storage][loss][1][1][weighted] = tile_kernel<LOSS, Keep::kNull, true, A, S>;
      k.tile[storage][loss][2][1][weighted] = tile_kernel<LOSS, Keep::kMask, true, A, S>;
    }
    k.slopes[storage][loss][0][1] = slopes_kernel<LOSS, Keep::kNull, true, A, S>;
    k.slopes[storage][loss][1][1] = slopes_kernel<LOSS, Keep::kNull, true, A, S>;
    k.slopes[storage][loss][2][1] = slopes_kernel<LOSS, Keep::kMask, true, A, S>;
  }
}

template <typename A, typename S>
constexpr void fill_losses(ResidualKernels& k, int storage) {
  fill<Loss::kMae, A, S>(k, storage);
  fill<Loss::kMse, A, S>(k, storage);
  fill<Loss::kHuber, A, S>(k, storage);
  fill<Loss::kMape, A, S>(k, storage);
  fill<Loss::kQuantile, A, S>(k, storage);
}

constexpr ResidualKernels all_kernels() {
  ResidualKernels k{};
  fill_losses<float, float>(k, static_cast<int>(Storage::kFloat));
  fill_losses<double, double>(k, static_cast<int>(Storage::kDouble));
  fill_losses<float, BFloat16>(k, static_cast<int>(Storage::kBFloat16));
  k.spread_f32 = spread<float>;
  k.spread_f64 = spread<double>;
  return k;
}

}  // namespace

constexpr ResidualKernels STPRUNE_SET::residual_table = all_kernels();

}  // namespace stprune
