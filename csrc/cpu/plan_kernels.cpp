// Bodies of the kernels declared in plan_kernels.h, compiled once per instruction set; see lanes.h for the rule on
// headers.
#include "cpu/lanes.h"
#include "cpu/plan_kernels.h"

namespace stprune {
namespace {

typedef int64_t I64 __attribute__((vector_size(VECTOR_BYTES)));

constexpr int SUM_VECTORS = SUM_LANES / LANES_64;

STPRUNE_INLINE int64_t bits_in(uint64_t bits) { return __builtin_popcountll(bits); }
STPRUNE_INLINE uint64_t valid_bits(int64_t n, int64_t word) {
  return n - 64 * word >= 64 ? ~uint64_t{0} : (uint64_t{1} << (n - 64 * word)) - 1;
}

// Calls body(pointer to 64 elements, word number) for x [n]; the tail is padded with `fill`.
template <typename T, typename Body>
STPRUNE_INLINE void for_padded_words(const T* x, int64_t n, T fill, Body body) {
  const int64_t full = n / 64;
  for (int64_t word = 0; word < full; ++word) body(x + 64 * word, word);
  const int64_t rest = n - 64 * full;
  if (rest == 0) return;
  T tail[64];
  for (int64_t i = 0; i < 64; ++i) tail[i] = i < rest ? x[64 * full + i] : fill;
  body(tail, full);
}

// Adds up lanes in the fixed order: the upper half to the lower half until one is left.
STPRUNE_INLINE double fold(const F64* sums /* [SUM_VECTORS] */) {
  double lanes[SUM_LANES];
  for (int i = 0; i < SUM_VECTORS; ++i) store(lanes + i * LANES_64, sums[i]);
  for (int half = SUM_LANES / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

STPRUNE_INLINE F32 square_root(F32 x) {
#if STPRUNE_ISA == 2
  return (F32)_mm512_sqrt_ps((__m512)x);
#elif STPRUNE_ISA == 1
  return (F32)_mm256_sqrt_ps((__m256)x);
#elif defined(__SSE2__)
  return (F32)_mm_sqrt_ps((__m128)x);
#else
  for (int i = 0; i < LANES_32; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

STPRUNE_INLINE F64 square_root(F64 x) {
#if STPRUNE_ISA == 2
  return (F64)_mm512_sqrt_pd((__m512d)x);
#elif STPRUNE_ISA == 1
  return (F64)_mm256_sqrt_pd((__m256d)x);
#elif defined(__SSE2__)
  return (F64)_mm_sqrt_pd((__m128d)x);
#else
  for (int i = 0; i < LANES_64; ++i) x[i] = __builtin_sqrt(x[i]);
  return x;
#endif
}

template <typename T>
constexpr T NOT_A_NUMBER = static_cast<T>(__builtin_nan(""));

template <typename T>
STPRUNE_INLINE void stats(const T* x, int64_t n, BlockStats* out) {
  using V = typename Lanes<T>::Vector;
  const V infinity = V{} + static_cast<T>(__builtin_inf());
  F64 sums[SUM_VECTORS] = {};
  V least = infinity, largest = -infinity;
  int64_t count = 0;
  for_padded_words(x, n, NOT_A_NUMBER<T>, [&](const T* from, int64_t) {
    T values[64];
    uint64_t finite = 0;
#pragma GCC unroll 32
    for (int i = 0; i < 64; i += Lanes<T>::COUNT) {
      const V v = load<V>(from + i), zero = v - v;
      // Zero for finite numbers, NaN for others.
      finite |= equal(zero, zero) << i;
      const V low = zero == zero ? v : infinity, high = zero == zero ? v : -infinity;
      least = low < least ? low : least;
      largest = high > largest ? high : largest;
      store(values + i, zero == zero ? v : V{});
    }
#pragma GCC unroll 32
    for (int i = 0; i < 64; i += LANES_64) sums[i / LANES_64 % SUM_VECTORS] += load_f64(values + i);
    count += bits_in(finite);
  });
  out->sum = fold(sums);
  out->count = count;
  out->least = static_cast<double>(least[0]);
  out->largest = static_cast<double>(largest[0]);
  for (int i = 1; i < Lanes<T>::COUNT; ++i) {
    const double low = static_cast<double>(least[i]), high = static_cast<double>(largest[i]);
    if (low < out->least) out->least = low;
    if (high > out->largest) out->largest = high;
  }
}

// The sizes of 64 scores; NaN where the score is not finite.
template <typename T, Power POWER>
STPRUNE_INLINE void sizes_of(const T* from, T* to) {
  using V = typename Lanes<T>::Vector;
#pragma GCC unroll 32
  for (int i = 0; i < 64; i += Lanes<T>::COUNT) {
    const V v = load<V>(from + i), zero = v - v;
    V size = v > 0 ? v : V{};
    if constexpr (POWER == Power::kRoot) size = square_root(size);
    if constexpr (POWER == Power::kZero) size = V{} + static_cast<T>(1);
    store(to + i, zero == zero ? size : V{} + NOT_A_NUMBER<T>);
  }
}

template <typename T, Power POWER>
void clip_power(const T* x, int64_t n, double scale, double minimum, Clipped* out) {
  F64 sums[SUM_VECTORS] = {};
  const F64 one = F64{} + 1.0, least = F64{} + minimum;
  int64_t low = 0, high = 0;
  for_padded_words(x, n, NOT_A_NUMBER<T>, [&](const T* from, int64_t) {
    T size[64];
    sizes_of<T, POWER>(from, size);
    uint64_t is_low = 0, is_high = 0;
#pragma GCC unroll 32
    for (int i = 0; i < 64; i += LANES_64) {
      const F64 d = load_f64(size + i), scaled = d * scale;
      is_high |= less_equal(one, scaled) << i;
      is_low |= less_equal(scaled, least) << i;
      sums[i / LANES_64 % SUM_VECTORS] += (F64)((I64)d & ((scaled > least) & (scaled < one)));
    }
    high += bits_in(is_high);
    low += bits_in(is_low & ~is_high);
  });
  *out = {low, high, fold(sums)};
}

template <typename T, Power POWER>
int64_t split_power(const T* x, int64_t n, const Cuts<T>* cuts, uint64_t* aside, Split* out) {
  using V = typename Lanes<T>::Vector;
  const V high = V{} + cuts->high, low = V{} + cuts->low, from = V{} + cuts->from, to = V{} + cuts->to;
  F64 sums[SUM_VECTORS] = {};
  Split found{};
  int64_t count = 0;
  for_padded_words(x, n, NOT_A_NUMBER<T>, [&](const T* at, int64_t word) {
    T size[64];
    uint64_t is_known = 0, is_positive = 0, is_low = 0, is_high = 0, is_middle = 0;
#pragma GCC unroll 32
    for (int i = 0; i < 64; i += Lanes<T>::COUNT) {
      const V v = load<V>(at + i), zero = v - v;
      // Zero for finite numbers, NaN for others.
      is_known |= equal(zero, zero) << i;
      is_positive |= less(V{}, v) << i;
      is_high |= less_equal(high, v) << i;
      is_low |= less_equal(v, low) << i;
      is_middle |= (less_equal(from, v) & less_equal(v, to)) << i;
      V one = (v >= from) & (v <= to) ? v : V{};
      if constexpr (POWER == Power::kRoot) one = square_root(one);
      if constexpr (POWER == Power::kZero) one = (v >= from) & (v <= to) ? V{} + static_cast<T>(1) : V{};
      store(size + i, one);
    }
#pragma GCC unroll 32
    for (int i = 0; i < 64; i += LANES_64) sums[i / LANES_64 % SUM_VECTORS] += load_f64(size + i);
    if constexpr (POWER == Power::kZero) is_positive = is_known;
    is_high &= is_known;
    found.known += bits_in(is_known);
    found.positive += bits_in(is_positive & is_known);
    found.sure.high += bits_in(is_high);
    found.sure.low += bits_in(is_low & is_known & ~is_high);
    aside[word] = is_known & ~(is_high | is_low | is_middle);
    count += bits_in(aside[word]);
  });
  found.sure.middle = fold(sums);
  *out = found;
  return count;
}

template <typename T, Power POWER>
void probability_power(const T* x, int64_t n, double scale, double minimum, float* out) {
  const F64 one = F64{} + 1.0, least = F64{} + minimum;
  const bool unbounded = scale > __DBL_MAX__;
  for_padded_words(x, n, NOT_A_NUMBER<T>, [&](const T* from, int64_t word) {
    T size[64];
    float tail[64];
    const bool whole = n - 64 * word >= 64;
    float* to = whole ? out + 64 * word : tail;
    sizes_of<T, POWER>(from, size);
#pragma GCC unroll 32
    for (int i = 0; i < 64; i += LANES_64) {
      const F64 d = load_f64(size + i);
      F64 p = d * scale;
      // Zero sizes must not see an infinite scale.
      if (unbounded) p = d == 0.0 ? F64{} : p;
      // NaN stays NaN in the first comparison and becomes 1 in the second.
      p = least > p ? least : p;
      store_float(to + i, p < one ? p : one);
    }
    if (!whole) __builtin_memcpy(out + 64 * word, tail, static_cast<size_t>(n - 64 * word) * sizeof(float));
  });
}

// Calls the template for the power.
#define STPRUNE_BY_POWER(function, ...)              \
  switch (power) {                                   \
    case Power::kOne:                                \
      return function<T, Power::kOne>(__VA_ARGS__);  \
    case Power::kRoot:                               \
      return function<T, Power::kRoot>(__VA_ARGS__); \
    default:                                         \
      return function<T, Power::kZero>(__VA_ARGS__); \
  }

template <typename T>
void clip(const T* x, int64_t n, Power power, double scale, double minimum, Clipped* out) {
  STPRUNE_BY_POWER(clip_power, x, n, scale, minimum, out)
}

template <typename T>
int64_t split_sizes(const T* x, int64_t n, Power power, const Cuts<T>* cuts, uint64_t* aside, Split* out) {
  STPRUNE_BY_POWER(split_power, x, n, cuts, aside, out)
}

template <typename T>
void probability(const T* x, int64_t n, Power power, double scale, double minimum, float* out) {
  STPRUNE_BY_POWER(probability_power, x, n, scale, minimum, out)
}

template <typename T>
int64_t below(const T* x, int64_t n, T t, uint64_t* bits) {
  using V = typename Lanes<T>::Vector;
  const V threshold = V{} + t;
  int64_t count = 0;
  for_padded_words(x, n, NOT_A_NUMBER<T>, [&](const T* from, int64_t word) {
    uint64_t found = 0;
#pragma GCC unroll 32
    for (int i = 0; i < 64; i += Lanes<T>::COUNT) found |= less(load<V>(from + i), threshold) << i;
    bits[word] = found;
    count += bits_in(found);
  });
  return count;
}

// The element of the network's domain that feistel() maps to x.
STPRUNE_INLINE int64_t feistel_inverse(const Permutation& p, int64_t x) {
  uint32_t left = static_cast<uint32_t>(x / p.b), right = static_cast<uint32_t>(x % p.b);
  for (int r = PERMUTATION_ROUNDS - 1; r >= 0; --r) {
    uint32_t& to = r % 2 == 0 ? left : right;
    const uint32_t size = r % 2 == 0 ? p.a : p.b;
    const uint32_t added = feistel_step(r % 2 == 0 ? right : left, 0, size, p.keys[2 * r], p.keys[2 * r + 1]);
    to = to >= added ? to - added : to + size - added;
  }
  return static_cast<int64_t>(left) * p.b + right;
}

// Lane masks of (left, right) < (row, column) in the order of left * b + right.
STPRUNE_INLINE uint64_t before(U32 left, U32 right, U32 row, U32 column) {
  return less(left, row) | (equal(left, row) & less(right, column));
}

void in_head(const Permutation* p, int64_t start, int64_t count, int64_t head, uint64_t* bits) {
  U32 lane;
  for (int i = 0; i < LANES_32; ++i) lane[i] = static_cast<uint32_t>(i);
  const uint32_t a = p->a, b = p->b;
  const U32 head_row = U32{} + static_cast<uint32_t>(head / b), head_column = U32{} + static_cast<uint32_t>(head % b);
  const U32 end_row = U32{} + static_cast<uint32_t>(p->n / b), end_column = U32{} + static_cast<uint32_t>(p->n % b);
  uint32_t l = static_cast<uint32_t>(start / b), r = static_cast<uint32_t>(start % b);
  constexpr uint64_t ALL = (uint64_t{1} << LANES_32) - 1;
  for (int64_t word = 0; 64 * word < count; ++word) {
    uint64_t found = 0;
#pragma GCC unroll 16
    for (int part = 0; part < 64; part += LANES_32) {
      U32 right = lane + r, left = U32{} + l;
      // b >= 32 > LANES_32: at most one row ends among these elements.
      const U32 wrapped = subtract_once(right, b);
      left += (U32)(wrapped != right) & 1;
      right = wrapped;
      // The rounds of feistel(), last first, each addition taken back.
#pragma GCC unroll 6
      for (int round = PERMUTATION_ROUNDS - 1; round >= 0; --round) {
        U32 x = (round % 2 == 0 ? right : left) ^ p->keys[2 * round];
        x ^= x >> 16;
        x = multiply_low(x, MIX_M0);
        x ^= x >> 15;
        x += p->keys[2 * round + 1];
        x = multiply_low(x, MIX_M1);
        if (round % 2 == 0) {
          left = subtract_once(left + a - multiply_high(x, a), a);
        } else {
          right = subtract_once(right + b - multiply_high(x, b), b);
        }
      }
      uint64_t first = before(left, right, head_row, head_column);
      // Lanes past the end hold no position of the permutation: their walk need not ever come inside.
      const int64_t rest = count - (64 * word + part);
      const uint64_t real = rest >= LANES_32 ? ALL : rest > 0 ? (uint64_t{1} << rest) - 1 : 0;
      uint64_t outside = ~before(left, right, end_row, end_column) & real;
      for (; outside != 0; outside &= outside - 1) {
        // Cycle walking, backwards.
        const int i = __builtin_ctzll(outside);
        int64_t place = static_cast<int64_t>(left[i]) * b + right[i];
        while (place >= p->n) place = feistel_inverse(*p, place);
        first |= static_cast<uint64_t>(place < head) << i;
      }
      found |= first << part;
      r += LANES_32;
      if (r >= b) {
        r -= b;
        ++l;
      }
    }
    bits[word] = found & valid_bits(count, word);
  }
}

// The low bits of `source`, one after the other, at the set bits of `mask`; and the other way round.
STPRUNE_INLINE uint64_t deposit(uint64_t source, uint64_t mask) {
#if STPRUNE_ISA > 0
  return _pdep_u64(source, mask);
#else
  uint64_t out = 0;
  for (; mask != 0; mask &= mask - 1, source >>= 1) out |= (source & 1) != 0 ? mask & (~mask + 1) : 0;
  return out;
#endif
}

STPRUNE_INLINE uint64_t extract(uint64_t source, uint64_t mask) {
#if STPRUNE_ISA > 0
  return _pext_u64(source, mask);
#else
  uint64_t out = 0;
  for (int place = 0; mask != 0; mask &= mask - 1, ++place) {
    out |= static_cast<uint64_t>((source & mask & (~mask + 1)) != 0) << place;
  }
  return out;
#endif
}

int64_t keep_chosen(const uint64_t* below, const uint64_t* chosen, int64_t n, uint64_t* kept) {
  int64_t used = 0, count = 0;
  for (int64_t word = 0; 64 * word < n; ++word) {
    const int shift = static_cast<int>(used & 63);
    const uint64_t* from = chosen + (used >> 6);
    const uint64_t next = shift == 0 ? from[0] : from[0] >> shift | from[1] << (64 - shift);
    kept[word] = (~below[word] & valid_bits(n, word)) | deposit(next, below[word]);
    used += bits_in(below[word]);
    count += bits_in(kept[word]);
  }
  return count;
}

void emit_weights(const uint64_t* kept, const uint64_t* below, int64_t num_words, float weight, float* out,
                  [[maybe_unused]] int64_t count) {
  int64_t done = 0;
  for (int64_t word = 0; word < num_words; ++word) {
    const int64_t size = bits_in(kept[word]);
    uint64_t low = extract(below[word], kept[word]);
#if STPRUNE_ISA > 0
    // Whole registers are stored, so the last ones before the end of the output go one by one.
    if (done + 64 <= count) {
#if STPRUNE_ISA == 2
      const __m512 one = _mm512_set1_ps(1.0f), other = _mm512_set1_ps(weight);
      for (int64_t i = 0; i < size; i += 16, low >>= 16) {
        _mm512_storeu_ps(out + done + i, _mm512_mask_blend_ps(static_cast<__mmask16>(low), one, other));
      }
#else
      const __m256 one = _mm256_set1_ps(1.0f), other = _mm256_set1_ps(weight);
      const __m256i place = _mm256_set_epi32(128, 64, 32, 16, 8, 4, 2, 1);
      for (int64_t i = 0; i < size; i += 8, low >>= 8) {
        const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(low & 0xFF)), place);
        const __m256 mask = _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, place));
        _mm256_storeu_ps(out + done + i, _mm256_blendv_ps(one, other, mask));
      }
#endif
      done += size;
      continue;
    }
#endif
    for (int64_t i = 0; i < size; ++i, low >>= 1) out[done + i] = (low & 1) != 0 ? weight : 1.0f;
    done += size;
  }
}

void emit_inverse(const float* p, const uint64_t* bits, int64_t num_words, float* out, int64_t count) {
  int64_t done = 0;
#if STPRUNE_ISA == 2
  const __m512 one = _mm512_set1_ps(1.0f);
  for (int64_t word = 0; word < num_words; ++word) {
    uint64_t rest = bits[word];
    for (int64_t i = 0; rest != 0; i += 16, rest >>= 16) {
      const __mmask16 mask = static_cast<__mmask16>(rest);
      const int64_t size = bits_in(mask);
      const __m512 inverse = _mm512_div_ps(one, _mm512_maskz_compress_ps(mask, _mm512_loadu_ps(p + 64 * word + i)));
      if (done + 16 <= count) {
        _mm512_storeu_ps(out + done, inverse);
      } else {
        _mm512_mask_storeu_ps(out + done, static_cast<__mmask16>((1u << size) - 1), inverse);
      }
      done += size;
    }
  }
#else
  for (int64_t word = 0; word < num_words; ++word) {
    for (uint64_t rest = bits[word]; rest != 0; rest &= rest - 1) out[done++] = p[64 * word + __builtin_ctzll(rest)];
  }
  for (int64_t i = 0; i < count; ++i) out[i] = 1.0f / out[i];
#endif
}

template <typename Label>
void scale(float* weights, const Label* members, int64_t n, const double* factor) {
  const int64_t whole = n / 16 * 16;
  for (int64_t first = 0; first < whole; first += 16) {
    double factors[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) factors[i] = factor[members[first + i]];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += LANES_64) {
      store_float(weights + first + i, load_f64(weights + first + i) * load_f64(factors + i));
    }
  }
  for (int64_t i = whole; i < n; ++i) {
    weights[i] = static_cast<float>(static_cast<double>(weights[i]) * factor[members[i]]);
  }
}

}  // namespace

const PlanKernels STPRUNE_SET::plan_table = {
    .stats_f32 = stats<float>,
    .stats_f64 = stats<double>,
    .clip_f32 = clip<float>,
    .clip_f64 = clip<double>,
    .split_f32 = split_sizes<float>,
    .split_f64 = split_sizes<double>,
    .probability_f32 = probability<float>,
    .probability_f64 = probability<double>,
    .below_f32 = below<float>,
    .below_f64 = below<double>,
    .in_head = in_head,
    .keep_chosen = keep_chosen,
    .emit_weights = emit_weights,
    .emit_inverse = emit_inverse,
    .scale_u8 = scale<uint8_t>,
    .scale_i32 = scale<int32_t>,
};

}  // namespace stprune
