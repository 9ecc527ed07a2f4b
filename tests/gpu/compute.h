// Numbers in registers of 64 bits, and the instructions that need nothing but a thread's registers.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <type_traits>

#include "instruction.h"

namespace {

template <class T>
T as(uint64_t bits) {
  T value;
  if constexpr (sizeof(T) == 8) {
    std::memcpy(&value, &bits, 8);
  } else {
    const auto low = static_cast<
        std::conditional_t<sizeof(T) == 4, uint32_t, std::conditional_t<sizeof(T) == 2, uint16_t, uint8_t>>>(bits);
    std::memcpy(&value, &low, sizeof(T));
  }
  return value;
}
template <class T>
uint64_t bits(T value) {
  uint64_t result = 0;
  std::memcpy(&result, &value, sizeof(T));
  return result;
}

struct Brain {
  uint16_t raw;
};
float number(_Float16 x) { return static_cast<float>(x); }
float number(Brain x) { return std::bit_cast<float>(static_cast<uint32_t>(x.raw) << 16); }
Brain brain(double x) {
  const float value = static_cast<float>(x);
  const uint32_t raw = std::bit_cast<uint32_t>(value);
  if (value != value) return {0x7FFF};
  return {static_cast<uint16_t>((raw + 0x7FFF + ((raw >> 16) & 1)) >> 16)};
}

int bytes_of(Type type) {
  switch (type) {
    case Type::b8_:
    case Type::u8_:
    case Type::s8_: return 1;
    case Type::b16_:
    case Type::u16_:
    case Type::s16_:
    case Type::f16_:
    case Type::bf16_: return 2;
    case Type::b64_:
    case Type::u64_:
    case Type::s64_:
    case Type::f64_: return 8;
    default: return 4;
  }
}

// Calls f with a value of the C++ type.
template <class F>
uint64_t with_number(Type type, F f) {
  switch (type) {
    case Type::b8_:
    case Type::u8_: return f(uint8_t{});
    case Type::s8_: return f(int8_t{});
    case Type::b16_:
    case Type::u16_: return f(uint16_t{});
    case Type::s16_: return f(int16_t{});
    case Type::b32_:
    case Type::u32_: return f(uint32_t{});
    case Type::s32_: return f(int32_t{});
    case Type::b64_:
    case Type::u64_: return f(uint64_t{});
    case Type::s64_: return f(int64_t{});
    case Type::f32_: return f(float{});
    case Type::f64_: return f(double{});
    case Type::pred_: return f(uint8_t{});
    default: throw Failure("an operation on 16-bit floats");
  }
}

template <class T>
constexpr bool floating = std::is_floating_point_v<T>;

template <class T>
bool compare(Comparison how, T a, T b) {
  bool unordered = false;
  if constexpr (floating<T>) unordered = a != a || b != b;
  switch (how) {
    case Comparison::eq_: return !unordered && a == b;
    case Comparison::ne_: return !unordered && a != b;
    case Comparison::lt_: return a < b;
    case Comparison::le_: return a <= b;
    case Comparison::gt_: return a > b;
    case Comparison::ge_: return a >= b;
    case Comparison::equ_: return unordered || a == b;
    case Comparison::neu_: return unordered || a != b;
    case Comparison::ltu_: return unordered || a < b;
    case Comparison::leu_: return unordered || a <= b;
    case Comparison::gtu_: return unordered || a > b;
    case Comparison::geu_: return unordered || a >= b;
    case Comparison::num_: return !unordered;
    default: return unordered;
  }
}

template <class T>
T larger(T a, T b, bool keep_nan) {
  if constexpr (floating<T>) {
    if (a != a || b != b) return keep_nan ? std::nan("") : a != a ? b : a;
    if (a == b) return std::signbit(a) ? b : a;
  }
  return a < b ? b : a;
}
template <class T>
T smaller(T a, T b, bool keep_nan) {
  if constexpr (floating<T>) {
    if (a != a || b != b) return keep_nan ? std::nan("") : a != a ? b : a;
    if (a == b) return std::signbit(a) ? a : b;
  }
  return b < a ? b : a;
}

double rounded(Mode mode, double x) {
  return mode == Mode::zero_    ? std::trunc(x)
         : mode == Mode::floor_ ? std::floor(x)
         : mode == Mode::ceil_  ? std::ceil(x)
                                : std::nearbyint(x);
}

template <class T>
uint64_t to_integer(double x) {
  if (x != x) return sizeof(T) == 8 ? bits<T>(static_cast<T>(1ull << 63)) : 0;
  constexpr double low = static_cast<double>(std::numeric_limits<T>::min());
  constexpr double high = static_cast<double>(std::numeric_limits<T>::max());
  if (x <= low) return bits<T>(std::numeric_limits<T>::min());
  if (x >= high) return bits<T>(std::numeric_limits<T>::max());
  return bits<T>(static_cast<T>(x));
}

uint64_t convert(const Instruction& i, uint64_t raw) {
  const Type from = i.from, to = i.type;
  const bool is_float = from == Type::f16_ || from == Type::bf16_ || from == Type::f32_ || from == Type::f64_;
  if (is_float) {
    double x = from == Type::f64_   ? as<double>(raw)
               : from == Type::f32_ ? as<float>(raw)
               : from == Type::f16_ ? number(as<_Float16>(raw))
                                    : number(as<Brain>(raw));
    switch (to) {
      case Type::f64_:
      case Type::f32_: {
        if (i.flags & WHOLE) x = rounded(static_cast<Mode>(i.mode), x);
        if (i.flags & SATURATE) x = x > 0 ? (x < 1 ? x : 1) : 0;
        return to == Type::f64_ ? bits(x) : bits(static_cast<float>(x));
      }
      case Type::f16_: return bits(static_cast<_Float16>(static_cast<float>(x)));
      case Type::bf16_: return bits(brain(x));
      default: break;
    }
    x = rounded(static_cast<Mode>(i.mode), x);
    return with_number(to, [&](auto zero) -> uint64_t {
      using T = decltype(zero);
      if constexpr (floating<T>)
        return 0;
      else
        return to_integer<T>(x);
    });
  }
  return with_number(from, [&](auto zero) -> uint64_t {
    using From = decltype(zero);
    const From x = as<From>(raw);
    if (to == Type::f16_) return bits(static_cast<_Float16>(static_cast<float>(x)));
    if (to == Type::bf16_) return bits(brain(static_cast<double>(x)));
    return with_number(to, [&](auto target) -> uint64_t {
      using To = decltype(target);
      if constexpr (!floating<From> && !floating<To>) {
        if (i.flags & SATURATE) {
          const auto wide = static_cast<__int128>(x);
          const auto low = static_cast<__int128>(std::numeric_limits<To>::min()),
                     high = static_cast<__int128>(std::numeric_limits<To>::max());
          return bits<To>(static_cast<To>(wide < low ? low : wide > high ? high : wide));
        }
      }
      return bits<To>(static_cast<To>(x));
    });
  });
}

// Instructions that need nothing but a thread's registers; false for the others.
bool compute(const Instruction& i, uint64_t* s, const int32_t* lists) {
  // 16-bit floats in float32: exact for a comparison, a sign, a sum or a product that is rounded once.
  const bool narrow = i.type == Type::f16_ || i.type == Type::bf16_;
  const auto in = [](std::initializer_list<Op> ops, Op op) {
    return std::find(ops.begin(), ops.end(), op) != ops.end();
  };
  if (narrow && in({Op::add_, Op::sub_, Op::mul_, Op::min_, Op::max_, Op::neg_, Op::abs_, Op::setp_}, i.op)) {
    uint64_t wide[6] = {};
    Instruction widened = i;
    widened.op = Op::cvt_;
    widened.type = Type::f32_;
    widened.from = i.type;
    wide[1] = convert(widened, s[i.a]);
    wide[2] = convert(widened, s[i.b]);
    wide[3] = s[i.c];
    widened = i;
    widened.type = Type::f32_;
    widened.d = 0, widened.a = 1, widened.b = 2, widened.c = 3, widened.e = 4;
    compute(widened, wide, lists);
    Instruction back = i;
    back.from = Type::f32_;
    s[i.d] = i.op == Op::setp_ ? wide[0] : convert(back, wide[0]);
    if (i.op == Op::setp_ && i.count == 2) s[i.e] = wide[4];
    return true;
  }
  const uint64_t a = s[i.a], b = s[i.b], c = s[i.c];
  auto number = [&](auto f) {
    s[i.d] = with_number(i.type, [&](auto zero) -> uint64_t {
      using T = decltype(zero);
      return bits(static_cast<T>(f(as<T>(a), as<T>(b), as<T>(c))));
    });
  };
  auto integer = [&](auto f) {
    s[i.d] = with_number(i.type, [&](auto zero) -> uint64_t {
      using T = decltype(zero);
      if constexpr (floating<T>)
        throw Failure("an integer's operation on floats");
      else
        return bits(static_cast<T>(f(as<T>(a), as<T>(b), as<T>(c))));
    });
  };
  auto real = [&](auto f) {
    s[i.d] = with_number(i.type, [&](auto zero) -> uint64_t {
      using T = decltype(zero);
      if constexpr (floating<T>)
        return bits(static_cast<T>(f(as<T>(a), as<T>(b), as<T>(c))));
      else
        throw Failure("a float's operation on integers");
    });
  };
  const unsigned width = static_cast<unsigned>(bytes_of(i.type)) * 8;
  switch (i.op) {
    case Op::add_: number([](auto x, auto y, auto) { return static_cast<decltype(x)>(x + y); }); break;
    case Op::sub_: number([](auto x, auto y, auto) { return static_cast<decltype(x)>(x - y); }); break;
    case Op::mul_:
      number([](auto x, auto y, auto) {
        if constexpr (floating<decltype(x)>)
          return x * y;
        else
          return static_cast<decltype(x)>(static_cast<uint64_t>(x) * static_cast<uint64_t>(y));
      });
      break;
    case Op::mul_hi_:
      s[i.d] = with_number(i.type, [&](auto zero) -> uint64_t {
        using T = decltype(zero);
        if constexpr (floating<T>)
          return 0;
        else {
          using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
          return bits(static_cast<T>((static_cast<Wide>(as<T>(a)) * static_cast<Wide>(as<T>(b))) >> (8 * sizeof(T))));
        }
      });
      break;
    case Op::mul_wide_:
      s[i.d] = with_number(i.type, [&](auto zero) -> uint64_t {
        using T = decltype(zero);
        if constexpr (floating<T>)
          return 0;
        else {
          using Wide = std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>;
          const auto product = static_cast<Wide>(as<T>(a)) * static_cast<Wide>(as<T>(b));
          return sizeof(T) == 2 ? bits(static_cast<uint32_t>(product)) : bits(product);
        }
      });
      break;
    case Op::fma_: real([](auto x, auto y, auto z) { return std::fma(x, y, z); }); break;
    case Op::div_:
      number([](auto x, auto y, auto) {
        using T = decltype(x);
        if constexpr (!floating<T>) {
          if (y == 0) return static_cast<T>(-1);
          if constexpr (std::is_signed_v<T>) {
            if (y == -1) return static_cast<T>(0 - static_cast<uint64_t>(x));
          }
        }
        return static_cast<T>(x / y);
      });
      break;
    case Op::rem_:
      integer([](auto x, auto y, auto) {
        using T = decltype(x);
        if (y == 0) return x;
        if constexpr (std::is_signed_v<T>) {
          if (y == -1) return T{0};
        }
        return static_cast<T>(x % y);
      });
      break;
    case Op::min_: number([&](auto x, auto y, auto) { return smaller(x, y, i.flags & KEEP_NAN); }); break;
    case Op::max_: number([&](auto x, auto y, auto) { return larger(x, y, i.flags & KEEP_NAN); }); break;
    case Op::abs_:
      number([](auto x, auto, auto) {
        if constexpr (floating<decltype(x)>)
          return std::fabs(x);
        else
          return static_cast<decltype(x)>(static_cast<int64_t>(x) < 0 ? 0 - static_cast<uint64_t>(x)
                                                                      : static_cast<uint64_t>(x));
      });
      break;
    case Op::neg_:
      number([](auto x, auto, auto) {
        if constexpr (floating<decltype(x)>)
          return -x;
        else
          return static_cast<decltype(x)>(0 - static_cast<uint64_t>(x));
      });
      break;
    case Op::sqrt_: real([](auto x, auto, auto) { return std::sqrt(x); }); break;
    case Op::rsqrt_: real([](auto x, auto, auto) { return 1 / std::sqrt(x); }); break;
    case Op::rcp_: real([](auto x, auto, auto) { return 1 / x; }); break;
    case Op::ex2_: real([](auto x, auto, auto) { return std::exp2(x); }); break;
    case Op::lg2_: real([](auto x, auto, auto) { return std::log2(x); }); break;
    case Op::sin_: real([](auto x, auto, auto) { return std::sin(x); }); break;
    case Op::cos_: real([](auto x, auto, auto) { return std::cos(x); }); break;
    case Op::tanh_: real([](auto x, auto, auto) { return std::tanh(x); }); break;
    case Op::copysign_: real([](auto x, auto y, auto) { return std::copysign(y, x); }); break;
    case Op::and_: s[i.d] = a & b; break;
    case Op::or_: s[i.d] = a | b; break;
    case Op::xor_: s[i.d] = a ^ b; break;
    case Op::not_: s[i.d] = i.type == Type::pred_ ? a == 0 : width == 64 ? ~a : ~a & ((1ull << width) - 1); break;
    case Op::shl_:
      integer([&](auto x, auto, auto) {
        return static_cast<uint32_t>(b) >= width ? 0 : static_cast<uint64_t>(x) << static_cast<uint32_t>(b);
      });
      break;
    case Op::shr_:
      integer([&](auto x, auto, auto) {
        using T = decltype(x);
        const auto by = static_cast<uint32_t>(b);
        if (by >= width) return static_cast<T>(std::is_signed_v<T> && x < 0 ? -1 : 0);
        return static_cast<T>(x >> by);
      });
      break;
    case Op::shf_l_:
    case Op::shf_r_: {
      const uint64_t both = (b & 0xFFFFFFFF) << 32 | (a & 0xFFFFFFFF);
      uint64_t by = c & 0xFFFFFFFF;
      by = i.flags & SECOND ? std::min<uint64_t>(by, 32) : by & 31;
      s[i.d] = i.op == Op::shf_l_ ? (both << by) >> 32 : (both >> by) & 0xFFFFFFFF;
      break;
    }
    case Op::lop3_: {
      const uint64_t table = s[i.e];
      uint64_t result = 0;
      for (int k = 0; k < 8; ++k) {
        if ((table >> k) & 1) result |= (k & 4 ? a : ~a) & (k & 2 ? b : ~b) & (k & 1 ? c : ~c);
      }
      s[i.d] = result & 0xFFFFFFFF;
      break;
    }
    case Op::prmt_: {
      const uint64_t both = (b & 0xFFFFFFFF) << 32 | (a & 0xFFFFFFFF);
      uint64_t result = 0;
      for (int k = 0; k < 4; ++k) {
        const uint64_t which = c >> (4 * k) & 15;
        uint64_t byte = both >> (8 * (which & 7)) & 0xFF;
        if (which & 8) byte = byte & 0x80 ? 0xFF : 0;
        result |= byte << (8 * k);
      }
      s[i.d] = result;
      break;
    }
    case Op::bfe_: {
      const uint64_t start = b & 0xFF, length = c & 0xFF;
      integer([&](auto x, auto, auto) {
        using T = decltype(x);
        const auto raw = static_cast<std::make_unsigned_t<T>>(x);
        const uint64_t field = start >= width ? 0 : static_cast<uint64_t>(raw) >> start;
        uint64_t part = length >= 64 ? field : field & ((1ull << length) - 1);
        if constexpr (std::is_signed_v<T>) {
          const uint64_t top = std::min<uint64_t>(start + length - 1, width - 1);
          if (length != 0 && ((static_cast<uint64_t>(raw) >> top) & 1) && length < 64)
            part |= ~0ull << std::min<uint64_t>(length, top - std::min(start, top) + 1);
        }
        return part;
      });
      break;
    }
    case Op::bfi_: {
      const uint64_t start = c & 0xFF, length = s[i.e] & 0xFF;
      const uint64_t mask = start >= width || length == 0 ? 0 : (length >= 64 ? ~0ull : (1ull << length) - 1) << start;
      const uint64_t whole = width == 64 ? ~0ull : (1ull << width) - 1;
      s[i.d] = ((b & ~mask) | ((start >= width ? 0 : a << start) & mask)) & whole;
      break;
    }
    case Op::bfind_:
      s[i.d] = with_number(i.type, [&](auto zero) -> uint64_t {
        using T = decltype(zero);
        if constexpr (floating<T>)
          return 0;
        else {
          auto x = as<T>(a);
          if (std::is_signed_v<T> && x < 0) x = static_cast<T>(~x);
          const uint64_t raw = bits(x);
          if (raw == 0) return 0xFFFFFFFF;
          const int top = 63 - std::countl_zero(raw);
          return static_cast<uint64_t>(i.flags & SECOND ? static_cast<int>(width) - 1 - top : top);
        }
      });
      break;
    case Op::brev_: {
      uint64_t result = 0;
      for (unsigned k = 0; k < width; ++k) result |= (a >> k & 1) << (width - 1 - k);
      s[i.d] = result;
      break;
    }
    case Op::popc_: s[i.d] = static_cast<uint64_t>(std::popcount(a)); break;
    case Op::clz_: s[i.d] = static_cast<uint64_t>(std::countl_zero(a)) - (64 - width); break;
    case Op::setp_: {
      bool holds = with_number(i.type, [&](auto zero) -> uint64_t {
                     using T = decltype(zero);
                     return compare(static_cast<Comparison>(i.comparison), as<T>(a), as<T>(b));
                   }) != 0;
      const bool other = (c != 0) != ((i.flags & NEGATED) != 0);
      auto joined = [&](bool x) {
        switch (static_cast<Mode>(i.mode)) {
          case Mode::and_: return x && other;
          case Mode::or_: return x || other;
          case Mode::xor_: return x != other;
          default: return x;
        }
      };
      s[i.d] = joined(holds);
      if (i.count == 2) s[i.e] = joined(!holds);
      break;
    }
    case Op::selp_: s[i.d] = c != 0 ? a : b; break;
    case Op::mov_: s[i.d] = width == 64 || i.type == Type::pred_ ? a : a & ((1ull << width) - 1); break;
    case Op::pack_: {
      const unsigned each = width / i.count;
      uint64_t result = 0;
      for (unsigned k = 0; k < i.count; ++k)
        result |= (s[lists[i.a + static_cast<int>(k)]] & ((1ull << each) - 1)) << (each * k);
      s[i.d] = result;
      break;
    }
    case Op::unpack_: {
      const unsigned each = width / i.count;
      for (unsigned k = 0; k < i.count; ++k)
        s[lists[i.d + static_cast<int>(k)]] = (a >> (each * k)) & ((1ull << each) - 1);
      break;
    }
    case Op::cvt_: s[i.d] = convert(i, a); break;
    case Op::cvt_pair_: {
      const float high = as<float>(a), low = as<float>(b);
      if (i.type == Type::bf16_)
        s[i.d] = uint64_t{brain(high).raw} << 16 | brain(low).raw;
      else
        s[i.d] = bits(static_cast<_Float16>(high)) << 16 | bits(static_cast<_Float16>(low));
      break;
    }
    default: return false;
  }
  if (i.mode == static_cast<uint8_t>(Mode::near_)) {
    // An approximation is not the nearest float: what needs that must not use one.
    if (i.type != Type::f32_) throw Failure("an approximation of another type than float");
    const float exact = as<float>(s[i.d]);
    if (std::isfinite(exact) && exact != 0) ++s[i.d];
  }
  return true;
}

}  // namespace
