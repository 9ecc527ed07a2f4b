// What program.py makes of an instruction of PTX.
#pragma once

#include <cstdint>
#include <stdexcept>

namespace {

// program.py reads these lists: the fields of an instruction are places in them.
// clang-format off
enum class Op : uint8_t {
  abs_, activemask_, add_, and_, atom_, bar_, bar_red_, barrier_warp_, bfe_, bfi_, bfind_, bra_, brev_, call_, clz_,
  copysign_, cos_, cvt_, cvt_pair_, div_, ex2_, exit_, fence_, fma_, ld_, ldmatrix_, lg2_, lop3_, match_, max_,
  min_, mov_, mul_, mul_hi_, mul_wide_, neg_, not_, or_, pack_, popc_, prmt_, rcp_, redux_, rem_, rsqrt_, selp_,
  setp_, shf_l_, shf_r_, shfl_, shl_, shr_, sin_, sqrt_, st_, stmatrix_, sub_, tanh_, trap_, unpack_, vote_, xor_,
  nop_, to_shared_, from_shared_
};
enum class Type : uint8_t {
  b8_, b16_, b32_, b64_, u8_, u16_, u32_, u64_, s8_, s16_, s32_, s64_, f16_, bf16_, f32_, f64_, pred_
};
enum class Comparison : uint8_t {
  eq_, ne_, lt_, le_, gt_, ge_, equ_, neu_, ltu_, leu_, gtu_, geu_, num_, nan_
};
enum class Mode : uint8_t {
  none_, and_, or_, xor_, up_, down_, bfly_, idx_, all_, any_, uni_, ballot_, add_, min_, max_, exch_, cas_, inc_,
  zero_, floor_, ceil_, near_
};
// Slots that every thread has first: what a thread knows of itself, then bases of memories.
enum class Special : uint8_t {
  tid_x_, tid_y_, tid_z_, ntid_x_, ntid_y_, ntid_z_, ctaid_x_, ctaid_y_, ctaid_z_, nctaid_x_, nctaid_y_, nctaid_z_,
  laneid_, warpid_, envreg1_, envreg2_, clock_, zero_, sink_, params_, locals_, dynamic_smem_
};
// clang-format on

struct Instruction {
  Op op;
  Type type, from;
  uint8_t mode, comparison;
  uint8_t count;  // elements of a vector
  uint8_t flags;
  uint8_t guard_negated;
  int32_t guard;  // slot, or -1
  int32_t d, a, b, c, e;
  int64_t offset;  // of an address; where a branch goes
};
static_assert(sizeof(Instruction) == 40);

// WHOLE: rounded to an integer. SECOND: the second form of an instruction (shf.clamp, bfind.shiftamt, matrices turned
// round).
enum Flag : uint8_t {
  SHARED = 1,
  ACQUIRE = 2,
  RELEASE = 4,
  SATURATE = 8,
  KEEP_NAN = 16,
  WHOLE = 32,
  SECOND = 64,
  NEGATED = 128
};

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace
