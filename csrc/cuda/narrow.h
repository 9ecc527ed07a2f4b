// bfloat16 and float16 as float32, and back with rounding to the nearest even: by integers, the same on host and
// device.
#pragma once

#include "cuda/block.h"

namespace stprune {
namespace {

struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

STPRUNE_DEVICE float widened(float x) { return x; }
STPRUNE_DEVICE double widened(double x) { return x; }
STPRUNE_DEVICE float widened(Bfloat16 x) { return float_of(static_cast<uint32_t>(x.bits) << 16); }
STPRUNE_DEVICE float widened(Float16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16, rest = x.bits & 0x7FFFu;
  if (rest >= 0x7C00u) return float_of(sign | 0x7F800000u | (rest & 0x3FFu) << 13);  // infinity, NaN
  if (rest >= 0x0400u) return float_of(sign | ((rest << 13) + (112u << 23)));
  const float small = static_cast<float>(rest) * 0x1p-24f;  // subnormal: exact
  return sign != 0 ? -small : small;
}

template <class T>
struct Narrowed;
template <>
struct Narrowed<float> {
  static STPRUNE_DEVICE float of(float x) { return x; }
};
template <>
struct Narrowed<double> {
  static STPRUNE_DEVICE double of(double x) { return x; }
};
template <>
struct Narrowed<Bfloat16> {
  static STPRUNE_DEVICE Bfloat16 of(float x) {
    const uint32_t bits = bits_of(x);
    if (x != x) return {0x7FC0u};
    return {static_cast<uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16)};
  }
};
template <>
struct Narrowed<Float16> {
  static STPRUNE_DEVICE Float16 of(float x) {
    const uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000u, rest = bits & 0x7FFFFFFFu;
    if (rest > 0x7F800000u) return {static_cast<uint16_t>(sign | 0x7E00u)};
    if (rest >= 0x47800000u) return {static_cast<uint16_t>(sign | 0x7C00u)};  // 65536 and more
    if (rest >= 0x38800000u) {  // a normal float16; a carry out of the fraction is right, up to infinity
      const uint32_t shifted = rest - (112u << 23);
      return {static_cast<uint16_t>(sign | (shifted + 0xFFFu + (shifted >> 13 & 1u)) >> 13)};
    }
    // Subnormal: adding 1/2 leaves the units of 2^-24 in the last bits of the fraction, rounded by the addition.
    return {static_cast<uint16_t>(sign | (bits_of(float_of(rest) + 0.5f) - 0x3F000000u))};
  }
};

}  // namespace
}  // namespace stprune
