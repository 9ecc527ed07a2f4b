// Vectors of the instruction set this file is compiled for. STPRUNE_ISA is 2 (AVX-512), 1 (AVX2) or 0 (what the
// compiler targets by default: SSE2 on x86, plain loops elsewhere); CMakeLists.txt sets it. Arithmetic uses the
// compiler's vector types; intrinsics stand only where those generate poor code. No header that defines inline
// functions with external linkage may be included here: the linker could keep the copy compiled for the wider set.
#pragma once

#include <stdint.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if STPRUNE_ISA == 2
#define STPRUNE_SET avx512
#elif STPRUNE_ISA == 1
#define STPRUNE_SET avx2
#else
#define STPRUNE_SET baseline
#endif

namespace stprune {

struct Kernels;
struct PlanKernels;
struct ResidualKernels;
struct WindowKernels;

// The tables of this set, one in each source of kernels. The first points to the others.
namespace STPRUNE_SET {
extern const Kernels kernel_table;
extern const PlanKernels plan_table;
extern const ResidualKernels residual_table;
extern const WindowKernels window_table;
}  // namespace STPRUNE_SET

namespace {

constexpr int VECTOR_BYTES = 16 << STPRUNE_ISA;

typedef uint32_t U32 __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t I32 __attribute__((vector_size(VECTOR_BYTES)));
typedef uint64_t U64 __attribute__((vector_size(VECTOR_BYTES)));
typedef float F32 __attribute__((vector_size(VECTOR_BYTES)));
typedef double F64 __attribute__((vector_size(VECTOR_BYTES)));

constexpr int LANES_32 = VECTOR_BYTES / 4;
constexpr int LANES_64 = VECTOR_BYTES / 8;

#define STPRUNE_INLINE inline __attribute__((always_inline))

template <typename V>
STPRUNE_INLINE V load(const void* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof(V));
  return v;
}

template <typename V>
STPRUNE_INLINE void store(void* to, V v) {
  __builtin_memcpy(to, &v, sizeof(V));
}

// Comparison masks, lane i at bit i; false where an operand is NaN.
#if STPRUNE_ISA == 2
STPRUNE_INLINE uint64_t less(F32 a, F32 b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ); }
STPRUNE_INLINE uint64_t less_equal(F32 a, F32 b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LE_OQ); }
STPRUNE_INLINE uint64_t equal(F32 a, F32 b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_EQ_OQ); }
STPRUNE_INLINE uint64_t less(F64 a, F64 b) { return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_LT_OQ); }
STPRUNE_INLINE uint64_t less_equal(F64 a, F64 b) { return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_LE_OQ); }
STPRUNE_INLINE uint64_t equal(F64 a, F64 b) { return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_EQ_OQ); }
#elif STPRUNE_ISA == 1
STPRUNE_INLINE uint64_t bits_of(__m256 v) { return static_cast<uint32_t>(_mm256_movemask_ps(v)); }
STPRUNE_INLINE uint64_t bits_of(__m256d v) { return static_cast<uint32_t>(_mm256_movemask_pd(v)); }
STPRUNE_INLINE uint64_t less(F32 a, F32 b) { return bits_of(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_LT_OQ)); }
STPRUNE_INLINE uint64_t less_equal(F32 a, F32 b) { return bits_of(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_LE_OQ)); }
STPRUNE_INLINE uint64_t equal(F32 a, F32 b) { return bits_of(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_EQ_OQ)); }
STPRUNE_INLINE uint64_t less(F64 a, F64 b) { return bits_of(_mm256_cmp_pd((__m256d)a, (__m256d)b, _CMP_LT_OQ)); }
STPRUNE_INLINE uint64_t less_equal(F64 a, F64 b) { return bits_of(_mm256_cmp_pd((__m256d)a, (__m256d)b, _CMP_LE_OQ)); }
STPRUNE_INLINE uint64_t equal(F64 a, F64 b) { return bits_of(_mm256_cmp_pd((__m256d)a, (__m256d)b, _CMP_EQ_OQ)); }
#elif defined(__SSE2__)
STPRUNE_INLINE uint64_t bits_of(__m128 v) { return static_cast<uint32_t>(_mm_movemask_ps(v)); }
STPRUNE_INLINE uint64_t bits_of(__m128d v) { return static_cast<uint32_t>(_mm_movemask_pd(v)); }
STPRUNE_INLINE uint64_t less(F32 a, F32 b) { return bits_of(_mm_cmplt_ps((__m128)a, (__m128)b)); }
STPRUNE_INLINE uint64_t less_equal(F32 a, F32 b) { return bits_of(_mm_cmple_ps((__m128)a, (__m128)b)); }
STPRUNE_INLINE uint64_t equal(F32 a, F32 b) { return bits_of(_mm_cmpeq_ps((__m128)a, (__m128)b)); }
STPRUNE_INLINE uint64_t less(F64 a, F64 b) { return bits_of(_mm_cmplt_pd((__m128d)a, (__m128d)b)); }
STPRUNE_INLINE uint64_t less_equal(F64 a, F64 b) { return bits_of(_mm_cmple_pd((__m128d)a, (__m128d)b)); }
STPRUNE_INLINE uint64_t equal(F64 a, F64 b) { return bits_of(_mm_cmpeq_pd((__m128d)a, (__m128d)b)); }
#else
template <typename V>
STPRUNE_INLINE uint64_t bits_of(V v) {
  uint64_t bits = 0;
  for (unsigned i = 0; i < sizeof(V) / sizeof(v[0]); ++i) bits |= static_cast<uint64_t>(v[i] & 1) << i;
  return bits;
}
STPRUNE_INLINE uint64_t less(F32 a, F32 b) { return bits_of(a < b); }
STPRUNE_INLINE uint64_t less_equal(F32 a, F32 b) { return bits_of(a <= b); }
STPRUNE_INLINE uint64_t equal(F32 a, F32 b) { return bits_of(a == b); }
STPRUNE_INLINE uint64_t less(F64 a, F64 b) { return bits_of(a < b); }
STPRUNE_INLINE uint64_t less_equal(F64 a, F64 b) { return bits_of(a <= b); }
STPRUNE_INLINE uint64_t equal(F64 a, F64 b) { return bits_of(a == b); }
#endif

// Unsigned comparison of 32-bit lanes.
STPRUNE_INLINE uint64_t less(U32 a, U32 b) {
#if STPRUNE_ISA == 2
  return _mm512_cmplt_epu32_mask((__m512i)a, (__m512i)b);
#elif STPRUNE_ISA == 1
  return bits_of((__m256)((I32)(a ^ 0x80000000u) < (I32)(b ^ 0x80000000u)));
#elif defined(__SSE2__)
  return bits_of((__m128)((I32)(a ^ 0x80000000u) < (I32)(b ^ 0x80000000u)));
#else
  return bits_of(a < b);
#endif
}

STPRUNE_INLINE uint64_t equal(U32 a, U32 b) {
#if STPRUNE_ISA == 2
  return _mm512_cmpeq_epi32_mask((__m512i)a, (__m512i)b);
#elif STPRUNE_ISA == 1
  return bits_of((__m256)(a == b));
#elif defined(__SSE2__)
  return bits_of((__m128)(a == b));
#else
  return bits_of(a == b);
#endif
}

// Products of the low halves of 64-bit lanes; the high halves are ignored.
STPRUNE_INLINE U64 multiply_halves(U64 a, U64 b) {
#if STPRUNE_ISA == 2
  return (U64)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif STPRUNE_ISA == 1
  return (U64)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (U64)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xFFFFFFFFull) * (b & 0xFFFFFFFFull);
#endif
}

STPRUNE_INLINE U64 exclusive_or(U64 a, U64 b, U64 c) {
#if STPRUNE_ISA == 2
  return (U64)_mm512_ternarylogic_epi64((__m512i)a, (__m512i)b, (__m512i)c, 0x96);
#else
  return a ^ b ^ c;
#endif
}

// The low halves of `even` in the even 32-bit lanes, those of `odd` in the odd ones.
STPRUNE_INLINE U32 interleave_low(U64 even, U64 odd) {
#if STPRUNE_ISA == 2
  return (U32)_mm512_mask_shuffle_epi32((__m512i)even, 0xAAAA, (__m512i)odd, _MM_PERM_CDAB);
#elif STPRUNE_ISA == 1
  return (U32)_mm256_blend_epi32((__m256i)even, _mm256_slli_epi64((__m256i)odd, 32), 0xAA);
#else
  return (U32)((even & 0xFFFFFFFFull) | (odd << 32));
#endif
}

// The high halves likewise.
STPRUNE_INLINE U32 interleave_high(U64 even, U64 odd) {
#if STPRUNE_ISA == 2
  return (U32)_mm512_mask_shuffle_epi32((__m512i)odd, 0x5555, (__m512i)even, _MM_PERM_CDAB);
#elif STPRUNE_ISA == 1
  return (U32)_mm256_blend_epi32(_mm256_srli_epi64((__m256i)even, 32), (__m256i)odd, 0xAA);
#else
  return (U32)((even >> 32) | (odd & 0xFFFFFFFF00000000ull));
#endif
}

STPRUNE_INLINE U32 multiply_low(U32 a, uint32_t factor) {
#if STPRUNE_ISA == 0 && defined(__SSE2__)
  const U64 m = U64{} + factor;
  return interleave_low(multiply_halves((U64)a, m), multiply_halves((U64)a >> 32, m));
#else
  return a * factor;
#endif
}

STPRUNE_INLINE U32 multiply_high(U32 a, uint32_t factor) {
  const U64 m = U64{} + factor;
  return interleave_high(multiply_halves((U64)a, m), multiply_halves((U64)a >> 32, m));
}

// x - size where x >= size, else x; for x < 2 * size < 2^31.
STPRUNE_INLINE U32 subtract_once(U32 x, uint32_t size) {
  const U32 less = x - size;
#if STPRUNE_ISA == 2
  return (U32)_mm512_min_epu32((__m512i)x, (__m512i)less);
#elif STPRUNE_ISA == 1
  return (U32)_mm256_min_epu32((__m256i)x, (__m256i)less);
#else
  // Negative differences have the sign bit.
  return less + ((U32)((I32)less >> 31) & size);
#endif
}

STPRUNE_INLINE U32 maximum(U32 a, U32 b) {
#if STPRUNE_ISA == 2
  return (U32)_mm512_max_epu32((__m512i)a, (__m512i)b);
#elif STPRUNE_ISA == 1
  return (U32)_mm256_max_epu32((__m256i)a, (__m256i)b);
#else
  // Values below 2^31 only.
  const U32 mask = (U32)((I32)a > (I32)b);
  return (a & mask) | (b & ~mask);
#endif
}

// float32 of 32-bit words, rounded once.
STPRUNE_INLINE F32 to_float(U32 word) {
#if STPRUNE_ISA == 2
  return (F32)_mm512_cvtepu32_ps((__m512i)word);
#else
  // Both halves convert exactly, the first stays exact when scaled, so the sum rounds once.
  const F32 high = __builtin_convertvector((I32)(word >> 16), F32);
  const F32 low = __builtin_convertvector((I32)(word & 0xFFFFu), F32);
  return high * 65536.0f + low;
#endif
}

// LANES_32 halves in the low bits of words.
STPRUNE_INLINE U32 load_halves(const uint16_t* from) {
#if STPRUNE_ISA == 2
  return (U32)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif STPRUNE_ISA == 1
  return (U32)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
  U32 v;
  for (int i = 0; i < LANES_32; ++i) v[i] = from[i];
  return v;
#endif
}

// LANES_64 words, floats or doubles as float64.
STPRUNE_INLINE F64 load_f64(const uint32_t* from) {
#if STPRUNE_ISA == 2
  return (F64)_mm512_cvtepu32_pd(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif STPRUNE_ISA == 1
  // word | 2^52 as the bits of a double is 2^52 + word.
  const __m256i wide = _mm256_cvtepu32_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  const __m256d magic = _mm256_set1_pd(4503599627370496.0);
  return (F64)_mm256_sub_pd(_mm256_or_pd(_mm256_castsi256_pd(wide), magic), magic);
#else
  F64 v;
  for (int i = 0; i < LANES_64; ++i) v[i] = static_cast<double>(from[i]);
  return v;
#endif
}

STPRUNE_INLINE F64 load_f64(const float* from) {
#if STPRUNE_ISA == 2
  return (F64)_mm512_cvtps_pd(_mm256_loadu_ps(from));
#elif STPRUNE_ISA == 1
  return (F64)_mm256_cvtps_pd(_mm_loadu_ps(from));
#else
  F64 v;
  for (int i = 0; i < LANES_64; ++i) v[i] = static_cast<double>(from[i]);
  return v;
#endif
}

STPRUNE_INLINE F64 load_f64(const double* from) { return load<F64>(from); }

// LANES_64 doubles as floats, rounded to nearest.
STPRUNE_INLINE void store_float(float* to, F64 v) {
#if STPRUNE_ISA == 2
  _mm256_storeu_ps(to, _mm512_cvtpd_ps((__m512d)v));
#elif STPRUNE_ISA == 1
  _mm_storeu_ps(to, _mm256_cvtpd_ps((__m256d)v));
#else
  for (int i = 0; i < LANES_64; ++i) to[i] = static_cast<float>(v[i]);
#endif
}

template <typename T>
struct Lanes;
template <>
struct Lanes<float> {
  using Vector = F32;
  static constexpr int COUNT = LANES_32;
};
template <>
struct Lanes<double> {
  using Vector = F64;
  static constexpr int COUNT = LANES_64;
};

}  // namespace
}  // namespace stprune
