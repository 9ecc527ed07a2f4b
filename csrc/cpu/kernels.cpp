// Bodies of the kernels declared in kernels.h, compiled once per instruction set; see lanes.h for the rule on headers.
#include "cpu/kernels.h"

#include "cpu/lanes.h"

namespace stprune {
namespace {

STPRUNE_INLINE int64_t count_bits(uint64_t bits) { return __builtin_popcountll(bits); }

// Calls body(pointer to 64 elements, word number, mask of valid bits) for x [n]; the tail is padded with `fill`.
template <typename T, typename Body>
STPRUNE_INLINE void for_words(const T* x, int64_t n, T fill, Body body) {
  const int64_t full = n / 64;
  for (int64_t word = 0; word < full; ++word) body(x + 64 * word, word, ~uint64_t{0});
  const int64_t rest = n - 64 * full;
  if (rest == 0) return;
  T tail[64];
  for (int64_t i = 0; i < 64; ++i) tail[i] = i < rest ? x[64 * full + i] : fill;
  body(tail, full, (uint64_t{1} << rest) - 1);
}

// Words of 64 indices. Sixteen counters at a time, the even ones and the odd ones in 64-bit lanes: a product leaves its
// high word above its low word, and whatever stands in the high half of a lane is ignored by the next product.
class WordMaker {
 public:
  STPRUNE_INLINE explicit WordMaker(const PhiloxCounter& at)
      : m0_(U64{} + PHILOX_M0),
        m1_(U64{} + PHILOX_M1),
        c1_(U64{} + at.c1),
        c2_(U64{} + at.c2),
        c3_(U64{} + at.c3),
        c0_(at.c0) {
    for (int i = 0; i < LANES_64; ++i) even_lane_[i] = static_cast<uint64_t>(2 * i);
    for (int round = 0; round < PHILOX_ROUNDS; ++round) {
      round_keys_[2 * round] = at.key_low + static_cast<uint32_t>(round) * PHILOX_W0;
      round_keys_[2 * round + 1] = at.key_high + static_cast<uint32_t>(round) * PHILOX_W1;
    }
  }

  STPRUNE_INLINE void block(int64_t number, uint32_t* to /* [64] */) const {
    constexpr int PARTS = 16 / LANES_32;
    const uint32_t first = c0_ + 16 * static_cast<uint32_t>(number);
#pragma GCC unroll 4
    for (int part = 0; part < PARTS; ++part) {
      const U64 even = even_lane_ + (first + static_cast<uint32_t>(part * LANES_32));
      U64 w[2][4] = {{even, c1_, c2_, c3_}, {even + 1, c1_, c2_, c3_}};
#pragma GCC unroll 10
      for (int round = 0; round < PHILOX_ROUNDS; ++round) {
        const U64 key_0 = U64{} + round_keys_[2 * round], key_1 = U64{} + round_keys_[2 * round + 1];
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          const U64 product_0 = multiply_halves(w[half][0], m0_), product_1 = multiply_halves(w[half][2], m1_);
          w[half][0] = exclusive_or(product_1 >> 32, w[half][1], key_0);
          w[half][1] = product_1;
          w[half][2] = exclusive_or(product_0 >> 32, w[half][3], key_1);
          w[half][3] = product_0;
        }
      }
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) store(to + 16 * j + part * LANES_32, interleave_low(w[0][j], w[1][j]));
    }
  }

 private:
  U64 even_lane_, m0_, m1_, c1_, c2_, c3_;
  // In memory: an instruction broadcasts its operand from there for nothing.
  uint64_t round_keys_[2 * PHILOX_ROUNDS];
  uint32_t c0_;
};

void words(uint32_t key_low, uint32_t key_high, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, int64_t blocks,
           uint32_t* out) {
  const WordMaker maker({key_low, key_high, c0, c1, c2, c3});
  for (int64_t block = 0; block < blocks; ++block) maker.block(block, out + 64 * block);
}

template <typename T>
STPRUNE_INLINE int64_t split(const T* x, int64_t n, T low, T high, uint64_t* above, uint64_t* inside,
                             int64_t* inside_count) {
  using V = typename Lanes<T>::Vector;
  const V low_v = V{} + low, high_v = V{} + high;
  int64_t num_above = 0, num_inside = 0;
  for_words(x, n, low, [&](const T* from, int64_t word, uint64_t valid) {
    uint64_t below_high = 0, in = 0;
#pragma GCC unroll 32
    for (int i = 0; i < 64; i += Lanes<T>::COUNT) {
      const V v = load<V>(from + i);
      const uint64_t below = less(v, high_v);
      below_high |= below << i;
      in |= (below & less(low_v, v)) << i;
    }
    const uint64_t up = ~below_high & valid;
    in &= valid;
    above[word] = up;
    inside[word] = in;
    num_above += count_bits(up);
    num_inside += count_bits(in);
  });
  *inside_count = num_inside;
  return num_above;
}

template <typename T>
STPRUNE_INLINE int64_t compare(const T* x, int64_t n, T t, uint64_t* greater, uint64_t* same, int64_t* equal_count) {
  using V = typename Lanes<T>::Vector;
  const V t_v = V{} + t;
  const bool t_is_nan = t != t;
  int64_t num_greater = 0, num_equal = 0;
  for_words(x, n, t, [&](const T* from, int64_t word, uint64_t valid) {
    uint64_t not_greater = 0, is_same = 0;
#pragma GCC unroll 32
    for (int i = 0; i < 64; i += Lanes<T>::COUNT) {
      const V v = load<V>(from + i);
      not_greater |= less_equal(v, t_v) << i;
      is_same |= equal(v, t_is_nan ? v : t_v) << i;
    }
    // NaN is the largest key: nothing comes before it, and x == x is false for it alone.
    const uint64_t up = (t_is_nan ? 0 : ~not_greater) & valid;
    const uint64_t tie = (t_is_nan ? ~is_same : is_same) & valid;
    greater[word] = up;
    same[word] = tie;
    num_greater += count_bits(up);
    num_equal += count_bits(tie);
  });
  *equal_count = num_equal;
  return num_greater;
}

// Calls body(halves, floats) for 64 elements at a time, through padded copies for the last.
template <typename Body>
STPRUNE_INLINE void for_halves(const uint16_t* x, int64_t n, float* out, Body body) {
  const int64_t full = n / 64 * 64;
  for (int64_t i = 0; i < full; i += 64) body(x + i, out + i);
  const size_t rest = static_cast<size_t>(n - full);
  if (rest == 0) return;
  uint16_t tail[64] = {};
  float result[64];
  __builtin_memcpy(tail, x + full, rest * sizeof(uint16_t));
  body(tail, result);
  __builtin_memcpy(out + full, result, rest * sizeof(float));
}

void widen_bf16(const uint16_t* x, int64_t n, float* out) {
  for_halves(x, n, out, [](const uint16_t* from, float* to) {
    for (int i = 0; i < 64; i += LANES_32) store(to + i, load_halves(from + i) << 16);
  });
}

void widen_f16(const uint16_t* x, int64_t n, float* out) {
  for_halves(x, n, out, [](const uint16_t* from, float* to) {
    for (int i = 0; i < 64; i += LANES_32) {
      const U32 half = load_halves(from + i), magnitude = half & 0x7FFFu;
      // The product moves the exponent's bias from 15 to 127 and is exact for denormals too.
      const U32 finite = (U32)((F32)(magnitude << 13) * 0x1p112f);
      const U32 infinite = (magnitude << 13) | 0x7F800000u;
      const U32 bits = (I32)magnitude < 0x7C00 ? finite : infinite;
      store(to + i, bits | (half & 0x8000u) << 16);
    }
  });
}

constexpr float LARGEST = 3.402823466385288598e+38f;

// Minus the key numerator / weight: at most FLT_MAX where the weight is positive, infinite where it is 0.
STPRUNE_INLINE F32 negative_key(F32 numerator, F32 weight) {
  const F32 key = numerator / weight, largest = F32{} + LARGEST;
  const F32 clamped = key < largest ? key : largest;
  return weight > 0.0f ? -clamped : F32{} - __builtin_inff();
}

// Calls body(weights, words, keys) for blocks of 64, through padded copies for the last.
template <typename Body>
STPRUNE_INLINE void for_keys(const float* w, const uint32_t* word, int64_t n, float* keys, Body body) {
  const int64_t full = n / 64 * 64;
  for (int64_t i = 0; i < full; i += 64) body(w + i, word + i, keys + i);
  const size_t rest = static_cast<size_t>(n - full);
  if (rest == 0) return;
  float local_w[64] = {}, local_keys[64];
  uint32_t local_word[64] = {};
  __builtin_memcpy(local_w, w + full, rest * sizeof(float));
  __builtin_memcpy(local_word, word + full, rest * sizeof(uint32_t));
  body(local_w, local_word, local_keys);
  __builtin_memcpy(keys + full, local_keys, rest * sizeof(float));
}

void priority(const float* w, const uint32_t* word, int64_t n, float* keys) {
  for_keys(w, word, n, keys, [](const float* weight, const uint32_t* from, float* to) {
#pragma GCC unroll 16
    for (int i = 0; i < 64; i += LANES_32) {
      const F32 u = (to_float(load<U32>(from + i)) + 0.5f) * 0x1p-32f;
      store(to + i, negative_key(u, load<F32>(weight + i)));
    }
  });
}

// stprune/reference/draw_weighted.py: logarithm.
STPRUNE_INLINE F64 logarithm(F64 u) {
  const U64 bits = (U64)u;
  // The exponent as the low bits of 2^52 + exponent.
  const F64 exponent = (F64)((bits >> 52) | 0x4330000000000000ull) - (0x1p52 + 1022.0);
  const F64 half = (F64)((bits & 0x000FFFFFFFFFFFFFull) | 0x3FE0000000000000ull);
  const F64 m = half < 0.70710678118654752440 ? half + half : half;
  const F64 e = half < 0.70710678118654752440 ? exponent - 1.0 : exponent;
  const F64 s = (m - 1.0) / (m + 1.0);
  const F64 z = s * s;
  F64 series = z * (1.0 / 21.0) + 1.0 / 19.0;
  series = series * z + 1.0 / 17.0;
  series = series * z + 1.0 / 15.0;
  series = series * z + 1.0 / 13.0;
  series = series * z + 1.0 / 11.0;
  series = series * z + 1.0 / 9.0;
  series = series * z + 1.0 / 7.0;
  series = series * z + 1.0 / 5.0;
  series = series * z + 1.0 / 3.0;
  const F64 tail = s * (z * series);
  return e * 6.93147180369123816490e-01 + (2.0 * s + (2.0 * tail + e * 1.90821492927058770002e-10));
}

void race(const float* w, const uint32_t* word, int64_t n, float* keys) {
  for_keys(w, word, n, keys, [](const float* weight, const uint32_t* from, float* to) {
    float numerator[64];
    for (int i = 0; i < 64; i += LANES_64) {
      store_float(numerator + i, -logarithm((load_f64(from + i) + 0.5) * 0x1p-32));
    }
    for (int i = 0; i < 64; i += LANES_32) {
      store(to + i, negative_key(load<F32>(numerator + i), load<F32>(weight + i)));
    }
  });
}

// max(1, tau / w) of the drawn items. Weights are staged far enough ahead that a wide load does not wait for the narrow
// stores it spans.
void sample_weights(const float* w, const int64_t* indices, int64_t n, double tau, float* out) {
  constexpr int64_t STAGE = 512;
  float drawn[STAGE], result[LANES_64];
  for (int64_t first = 0; first < n; first += STAGE) {
    const int64_t size = n - first < STAGE ? n - first : STAGE;
    for (int64_t i = 0; i < size; ++i) drawn[i] = w[indices[first + i]];
    // The last lanes divide by something too.
    for (int64_t i = size; i < size + LANES_64 && i < STAGE; ++i) drawn[i] = 1.0f;
    for (int64_t i = 0; i < size; i += LANES_64) {
      const F64 weight = tau / load_f64(drawn + i);
      const F64 clamped = weight > 1.0 ? weight : F64{} + 1.0;
      if (size - i >= LANES_64) {
        store_float(out + first + i, clamped);
      } else {
        store_float(result, clamped);
        __builtin_memcpy(out + first + i, result, static_cast<size_t>(size - i) * sizeof(float));
      }
    }
  }
}

template <typename T>
STPRUNE_INLINE void fixed_point(const T* p, int64_t n, int64_t* q) {
  for (int64_t i = 0; i < n; ++i) {
    // 2^52 + x rounds x to a whole number, half to even, and holds it in its low bits.
    const double shifted = static_cast<double>(p[i]) * 0x1p32 + 0x1p52;
    int64_t bits;
    __builtin_memcpy(&bits, &shifted, 8);
    q[i] = bits & 0x000FFFFFFFFFFFFFll;
  }
}

template <typename T>
STPRUNE_INLINE int64_t range(const T* x, int64_t n, T high, int64_t* positive) {
  using V = typename Lanes<T>::Vector;
  const V zero = V{}, high_v = V{} + high;
  int64_t count = 0, bad = -1;
  for_words(x, n, T{0}, [&](const T* from, int64_t word, uint64_t valid) {
    uint64_t good = 0, up = 0;
#pragma GCC unroll 32
    for (int i = 0; i < 64; i += Lanes<T>::COUNT) {
      const V v = load<V>(from + i);
      good |= (less_equal(zero, v) & less_equal(v, high_v)) << i;
      up |= less(zero, v) << i;
    }
    count += count_bits(up & valid);
    const uint64_t wrong = ~good & valid;
    if (wrong != 0 && bad < 0) bad = 64 * word + __builtin_ctzll(wrong);
  });
  *positive = count;
  return bad;
}

// Bits of bytes that are 0 or 1; the bytes are readable up to a multiple of 64.
void pack(const uint8_t* flags, int64_t num_words, uint64_t* bits) {
  for (int64_t word = 0; word < num_words; ++word) {
    uint64_t mask = 0;
    for (int byte = 0; byte < 8; ++byte) {
      // The product gathers the lowest bits of eight bytes in its highest byte.
      const uint64_t eight = load<uint64_t>(flags + 64 * word + 8 * byte);
      mask |= ((eight * 0x0102040810204080ull) >> 56) << (8 * byte);
    }
    bits[word] = mask;
  }
}

int64_t below(const uint32_t* x, int64_t n, uint32_t t, uint64_t* less_bits, uint64_t* equal_bits,
              int64_t* equal_count) {
  const U32 t_v = U32{} + t;
  int64_t num_less = 0, num_equal = 0;
  for_words(x, n, 0u, [&](const uint32_t* from, int64_t word, uint64_t valid) {
    uint64_t smaller = 0, same = 0;
#pragma GCC unroll 32
    for (int i = 0; i < 64; i += LANES_32) {
      const U32 v = load<U32>(from + i);
      smaller |= less(v, t_v) << i;
      same |= equal(v, t_v) << i;
    }
    less_bits[word] = smaller & valid;
    equal_bits[word] = same & valid;
    num_less += count_bits(smaller & valid);
    num_equal += count_bits(same & valid);
  });
  *equal_count = num_equal;
  return num_less;
}

#if STPRUNE_ISA > 0
// Positions of the set bits of a byte, packed in eight bytes.
struct BytePositions {
  uint64_t packed[256];
  constexpr BytePositions() : packed() {
    for (int byte = 0; byte < 256; ++byte) {
      int place = 0;
      for (int bit = 0; bit < 8; ++bit) {
        if (byte >> bit & 1) packed[byte] |= static_cast<uint64_t>(bit) << (8 * place++);
      }
    }
  }
};
constexpr BytePositions BYTE_POSITIONS;
#endif

void emit(const uint64_t* bits, int64_t num_words, int64_t base, int64_t* out, int64_t count) {
  int64_t done = 0;
  for (int64_t word = 0; word < num_words; ++word) {
    uint64_t rest = bits[word];
    const int64_t first = base + 64 * word;
#if STPRUNE_ISA > 0
    // Eight indices are stored for each byte however few are meant; near the end of the output they go one by one. A
    // table of byte positions is faster than vpcompressq (0.26 against 0.37 ns an index on Zen 4).
    if (rest != 0 && done + 64 <= count) {
#pragma GCC unroll 8
      for (int byte = 0; byte < 8; ++byte) {
        const uint64_t mask = rest >> (8 * byte) & 0xFF;
        const __m128i packed = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(BYTE_POSITIONS.packed + mask));
        int64_t* to = out + done;
#if STPRUNE_ISA == 2
        store(to, (U64)_mm512_cvtepu8_epi64(packed) + static_cast<uint64_t>(first + 8 * byte));
#else
        store(to, (U64)_mm256_cvtepu8_epi64(packed) + static_cast<uint64_t>(first + 8 * byte));
        store(to + 4, (U64)_mm256_cvtepu8_epi64(_mm_srli_si128(packed, 4)) + static_cast<uint64_t>(first + 8 * byte));
#endif
        done += count_bits(mask);
      }
      continue;
    }
#endif
    for (; rest != 0 && done < count; rest &= rest - 1) out[done++] = first + __builtin_ctzll(rest);
  }
}

// Images of 64 positions from (l, r) on, as halves; the largest left half. Vectors of a group are interleaved: one
// alone would wait for the latency of its chain of multiplications.
STPRUNE_INLINE U32 permute_halves(const Permutation& p, uint32_t l, uint32_t r, U32* lefts, U32* rights) {
  constexpr int VECTORS = 64 / LANES_32, GROUP = 4;
  const uint32_t a = p.a, b = p.b;
  U32 lane;
  for (int i = 0; i < LANES_32; ++i) lane[i] = static_cast<uint32_t>(i);
  U32 furthest = U32{};
  for (int first = 0; first < VECTORS; first += GROUP) {
    U32 left[GROUP], right[GROUP];
#pragma GCC unroll 4
    for (int i = 0; i < GROUP; ++i) {
      // b >= 32 > LANES_32: at most one row ends among these positions.
      const U32 place = lane + r;
      right[i] = subtract_once(place, b);
      left[i] = l - (U32)((I32)right[i] != (I32)place);
      r += LANES_32;
      if (r >= b) {
        r -= b;
        ++l;
      }
    }
#pragma GCC unroll 6
    for (int round = 0; round < PERMUTATION_ROUNDS; ++round) {
      U32* from = round % 2 == 0 ? right : left;
      U32* to = round % 2 == 0 ? left : right;
      const uint32_t size = round % 2 == 0 ? a : b;
      U32 x[GROUP];
#pragma GCC unroll 4
      for (int i = 0; i < GROUP; ++i) {
        x[i] = from[i] ^ p.keys[2 * round];
        x[i] ^= x[i] >> 16;
      }
#pragma GCC unroll 4
      for (int i = 0; i < GROUP; ++i) x[i] = multiply_low(x[i], MIX_M0);
#pragma GCC unroll 4
      for (int i = 0; i < GROUP; ++i) {
        x[i] ^= x[i] >> 15;
        x[i] += p.keys[2 * round + 1];
      }
#pragma GCC unroll 4
      for (int i = 0; i < GROUP; ++i) x[i] = multiply_low(x[i], MIX_M1);
#pragma GCC unroll 4
      for (int i = 0; i < GROUP; ++i) x[i] = multiply_high(x[i], size);
#pragma GCC unroll 4
      for (int i = 0; i < GROUP; ++i) to[i] = subtract_once(to[i] + x[i], size);
    }
#pragma GCC unroll 4
    for (int i = 0; i < GROUP; ++i) {
      furthest = maximum(furthest, left[i]);
      lefts[first + i] = left[i];
      rights[first + i] = right[i];
    }
  }
  return furthest;
}

constexpr uint64_t ALL_LANES = (uint64_t{1} << LANES_32) - 1;

template <typename Index>
STPRUNE_INLINE void permute_to(const Permutation* p, int64_t start, int64_t count, Index* out) {
  constexpr int VECTORS = 64 / LANES_32;
  const uint32_t b = p->b;
  // Images in rows before this one lie below n.
  const U32 last_row = U32{} + static_cast<uint32_t>(p->n / b);
  U32 lefts[VECTORS], rights[VECTORS];
  for (int64_t done = 0; done < count; done += 64) {
    const int64_t position = start + done;
    const U32 furthest =
        permute_halves(*p, static_cast<uint32_t>(position / b), static_cast<uint32_t>(position % b), lefts, rights);
    uint32_t left[64], right[64];
    __builtin_memcpy(left, lefts, sizeof left);
    __builtin_memcpy(right, rights, sizeof right);
    const int64_t size = count - done < 64 ? count - done : 64;
    for (int64_t i = 0; i < size; ++i) {
      out[done + i] = static_cast<Index>(static_cast<Index>(left[i]) * static_cast<Index>(b) + right[i]);
    }
    if (less(furthest, last_row) == ALL_LANES) continue;
    for (int64_t i = 0; i < size; ++i) {
      while (static_cast<int64_t>(out[done + i]) >= p->n) {
        out[done + i] = static_cast<Index>(feistel(*p, static_cast<int64_t>(out[done + i])));
      }
    }
  }
}

void permute(const Permutation* p, int64_t start, int64_t count, int64_t* out) {
  permute_to(p, start, count, reinterpret_cast<uint64_t*>(out));
}

void permute_u32(const Permutation* p, int64_t start, int64_t count, uint32_t* out) {
  permute_to(p, start, count, out);
}

}  // namespace
}  // namespace stprune

#include "cpu/drawn_kernels.inc"
#include "cpu/systematic_kernels.inc"
#include "cpu/weighted_kernels.inc"

namespace stprune {

const Kernels STPRUNE_SET::kernel_table = {
    .isa = STPRUNE_ISA,
    .plan = &STPRUNE_SET::plan_table,
    .residual = &STPRUNE_SET::residual_table,
    .window = &STPRUNE_SET::window_table,
    .words = words,
    .split_f32 = split<float>,
    .split_f64 = split<double>,
    .compare_f32 = compare<float>,
    .compare_f64 = compare<double>,
    .widen_f16 = widen_f16,
    .widen_bf16 = widen_bf16,
    .below = below,
    .priority = priority,
    .race = race,
    .split_priority = split_priority,
    .split_race = split_race,
    .marked_weights = marked_weights,
    .sample_weights = sample_weights,
    .bernoulli_f32 = bernoulli<float>,
    .bernoulli_f64 = bernoulli<double>,
    .keep_below_f32 = keep_below<float>,
    .keep_below_f64 = keep_below<double>,
    .fixed_point_f32 = fixed_point<float>,
    .fixed_point_f64 = fixed_point<double>,
    .fixed_sums_f32 = fixed_sums_f32,
    .fixed_sums_f64 = fixed_sums_f64,
    .fixed_low_f32 = fixed_low_f32,
    .fixed_low_f64 = fixed_low_f64,
    .order_block = order_block,
    .pack = pack,
    .range_f32 = range<float>,
    .range_f64 = range<double>,
    .emit = emit,
    .permute = permute,
    .permute_u32 = permute_u32,
};

}  // namespace stprune
