// A GPU that executes PTX, one thread's instruction after the other: what nvcc and Triton made of a kernel runs on a
// machine without a GPU. program.py reads the text of PTX; this file runs it.
//
// Threads stop where they wait for others: barriers, shuffles and votes, the barrier of a grid. Which thread goes on,
// and after how many instructions another one does, follows from a seed. Errors: an address outside of the memory that
// was allowed, or not aligned to its type; shared memory read before it is written; two threads that touch a byte, one
// of them writing another value, with neither a barrier nor a release and acquire between them; threads that wait for
// each other for ever; a failed assertion. Not simulated: time, caches, weak ordering, tensor cores, asynchronous
// copies. Approximate instructions are off by the last bit (compute.h).
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "compute.h"
#include "instruction.h"
#include "memory.h"

namespace {

constexpr int WARP = 32;

uint64_t random_state = 0;
uint64_t random_number() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  return random_state ^= random_state << 17;
}

struct Thread {
  std::vector<uint64_t> slots;
  std::vector<uint64_t> local;
  int32_t pc = 0;
  int number = 0;
  bool done = false, waiting = false;
  bool fenced = false;
};

struct Block {
  uint32_t number = 0;
  std::vector<Thread> threads;
  std::vector<uint8_t> shared;
  std::vector<Shadow> shadow;
  std::vector<uint32_t> warp_barriers;
  std::vector<uint32_t> seen;  // of every block's clock
  uint32_t barriers = 0;
};

struct Program {
  std::string name;
  std::vector<Instruction> code;
  std::vector<uint64_t> slots;                     // as a thread finds them
  std::vector<int32_t> lists;                      // slots of vectors
  std::vector<std::array<int32_t, 2>> parameters;  // offset and bytes
  int64_t shared, local, threads;
};
std::map<std::string, Program> programs;

class Launch {
 public:
  Launch(const Program& program, std::array<uint32_t, 3> grid, std::array<uint32_t, 3> shape, int64_t dynamic,
         const uint8_t* params, bool together)
      : program(program), grid(grid), shape(shape), dynamic(dynamic), params(params), together(together) {
    ++gpu.launch;
    ++gpu.launches;
    const uint64_t blocks = uint64_t{grid[0]} * grid[1] * grid[2];
    const int64_t threads = int64_t{shape[0]} * shape[1] * shape[2];
    if (blocks == 0 || threads == 0 || threads > 1024)
      throw Failure("a launch of no block, of no thread or of more than 1,024");
    if (program.threads != 0 && threads > program.threads)
      throw Failure("a block of more threads than the kernel was compiled for");
    if (grid[1] > 65535 || grid[2] > 65535 || grid[0] > 0x7FFFFFFF)
      throw Failure("a grid of more blocks than a launch takes");
    if (program.shared + dynamic > 227 * 1024) throw Failure("more shared memory than a block has");
    if (together && blocks > static_cast<uint64_t>(gpu.processors))
      throw Failure("a cooperative launch of more blocks than processors");
    clocks.assign(blocks, 0);
    // Where a grid's barrier counts, and its size before it.
    if (together) allow(workspace.data(), sizeof workspace, true);
    const uint64_t most = together ? blocks : 3;
    uint64_t next = 0;
    std::vector<std::unique_ptr<Block>> present;
    const bool backwards = gpu.seed & 1;
    while (next < blocks || !present.empty()) {
      while (next < blocks && present.size() < most) {
        present.push_back(begin(static_cast<uint32_t>(backwards ? blocks - 1 - next : next), blocks));
        ++next;
      }
      bool moved = false;
      for (size_t at = 0; at < present.size();) {
        moved |= step(*present[at]);
        if (std::all_of(present[at]->threads.begin(), present[at]->threads.end(),
                        [](const Thread& t) { return t.done; })) {
          present.erase(present.begin() + static_cast<ptrdiff_t>(at));
          moved = true;
        } else {
          ++at;
        }
      }
      if (!moved) throw Failure("threads wait for each other for ever");
    }
  }

 private:
  const Program& program;
  const std::array<uint32_t, 3> grid, shape;
  const int64_t dynamic;
  const uint8_t* params;
  const bool together;
  std::vector<uint32_t> clocks;
  alignas(16) std::array<uint32_t, 4> workspace{16, 0, 0, 0};
  std::map<uint64_t, std::vector<uint32_t>> released;  // what an address tells of the blocks' clocks

  std::unique_ptr<Block> begin(uint32_t number, uint64_t blocks) {
    auto block = std::make_unique<Block>();
    block->number = number;
    block->shared.assign(static_cast<size_t>(program.shared + dynamic), 0xA5);
    block->shadow.resize(block->shared.size());
    block->seen.assign(blocks, 0);
    clocks[number] = 1;
    const uint32_t count = shape[0] * shape[1] * shape[2];
    block->warp_barriers.assign((count + WARP - 1) / WARP, 0);
    block->threads.resize(count);
    for (uint32_t n = 0; n < count; ++n) {
      Thread& t = block->threads[n];
      t.number = static_cast<int>(n);
      t.slots = program.slots;
      t.local.assign(static_cast<size_t>(program.local + 7) / 8, 0xA5A5A5A5A5A5A5A5ull);
      auto set = [&](Special which, uint64_t value) { t.slots[static_cast<size_t>(which)] = value; };
      set(Special::tid_x_, n % shape[0]);
      set(Special::tid_y_, n / shape[0] % shape[1]);
      set(Special::tid_z_, n / shape[0] / shape[1]);
      set(Special::ntid_x_, shape[0]);
      set(Special::ntid_y_, shape[1]);
      set(Special::ntid_z_, shape[2]);
      set(Special::ctaid_x_, number % grid[0]);
      set(Special::ctaid_y_, number / grid[0] % grid[1]);
      set(Special::ctaid_z_, number / grid[0] / grid[1]);
      set(Special::nctaid_x_, grid[0]);
      set(Special::nctaid_y_, grid[1]);
      set(Special::nctaid_z_, grid[2]);
      set(Special::laneid_, n % WARP);
      set(Special::warpid_, n / WARP);
      set(Special::envreg1_, together ? reinterpret_cast<uint64_t>(workspace.data()) >> 32 : 0);
      set(Special::envreg2_, together ? reinterpret_cast<uint64_t>(workspace.data()) & 0xFFFFFFFF : 0);
      set(Special::params_, reinterpret_cast<uint64_t>(params));
      set(Special::locals_, reinterpret_cast<uint64_t>(t.local.data()));
      set(Special::dynamic_smem_, static_cast<uint64_t>(program.shared));
    }
    return block;
  }

  // Lets the block's threads go on until each waits; whether one moved.
  bool step(Block& block) {
    bool moved = false;
    const size_t count = block.threads.size(), shift = gpu.seed != 0 ? random_number() % count : 0;
    for (size_t i = 0; i < count; ++i) {
      const size_t at = (i + shift) % count;
      Thread& t = block.threads[gpu.seed & 2 ? count - 1 - at : at];
      if (t.done || t.waiting) continue;
      run(block, t, gpu.seed != 0 ? 1 + static_cast<int64_t>(random_number() % 64) : 100000);
      moved = true;
    }
    return meet_warps(block) | meet_block(block) | moved;
  }

  const Instruction& at(const Thread& t) const { return program.code[static_cast<size_t>(t.pc)]; }

  static bool of_block(Op op) { return op == Op::bar_ || op == Op::bar_red_; }

  bool meet_block(Block& block) {
    uint64_t number = 0;
    int64_t expected = 0, waiting = 0, present = 0;
    bool any = false, all = true, first = true;
    for (const Thread& t : block.threads) {
      if (t.done) continue;
      ++present;
      if (!t.waiting || !of_block(at(t).op)) continue;
      const Instruction& i = at(t);
      if (first) number = t.slots[i.a], expected = static_cast<int64_t>(t.slots[i.b]), first = false;
      if (t.slots[i.a] != number) continue;
      ++waiting;
      if (i.op == Op::bar_red_) {
        const bool value = (t.slots[i.c] != 0) != ((i.flags & NEGATED) != 0);
        any |= value;
        all &= value;
      }
    }
    if (waiting == 0 || waiting < (expected != 0 ? expected : present)) return false;
    ++block.barriers;
    for (Thread& t : block.threads) {
      if (t.done || !t.waiting || !of_block(at(t).op) || t.slots[at(t).a] != number) continue;
      const Instruction& i = at(t);
      if (i.op == Op::bar_red_) t.slots[i.d] = static_cast<Mode>(i.mode) == Mode::and_ ? all : any;
      t.waiting = false;
      ++t.pc;
    }
    return true;
  }

  bool meet_warps(Block& block) {
    bool moved = false;
    for (size_t first = 0; first < block.threads.size(); first += WARP) {
      const size_t last = std::min(first + WARP, block.threads.size());
      for (size_t lane = first; lane < last; ++lane) {
        const Thread& t = block.threads[lane];
        if (t.done || !t.waiting || of_block(at(t).op)) continue;
        const Instruction& i = at(t);
        const auto mask = static_cast<uint32_t>(t.slots[i.e]);
        if (((mask >> (lane - first)) & 1) == 0) throw Failure("a thread that is not in its own mask of lanes");
        uint32_t there = 0;
        for (size_t other = first; other < last; ++other) {
          const Thread& o = block.threads[other];
          if (!o.done && o.waiting && at(o).op == i.op && static_cast<uint32_t>(o.slots[at(o).e]) == mask)
            there |= 1u << (other - first);
        }
        const uint32_t needed = last - first == WARP ? mask : mask & ((1u << (last - first)) - 1);
        if ((there & needed) != needed) continue;
        exchange(block, first, needed);
        moved = true;
      }
    }
    return moved;
  }

  void exchange(Block& block, size_t first, uint32_t mask) {
    std::array<uint64_t, WARP> value{}, result{};
    std::array<bool, WARP> inside{};
    auto lanes = [&](auto f) {
      for (int lane = 0; lane < WARP; ++lane) {
        if ((mask >> lane) & 1) f(lane, block.threads[first + static_cast<size_t>(lane)]);
      }
    };
    Op op = Op::nop_;
    lanes([&](int lane, Thread& t) {
      const Instruction& i = at(t);
      op = i.op;
      if (op == Op::barrier_warp_) return;
      if (op == Op::stmatrix_ || op == Op::ldmatrix_) return move_matrices(block, first, lane, t);
      const uint64_t raw = t.slots[i.a];
      value[lane] = op == Op::vote_ ? (raw != 0) != ((i.flags & NEGATED) != 0) : raw;
    });
    uint32_t ballot = 0;
    lanes([&](int lane, Thread&) { ballot |= static_cast<uint32_t>(value[lane] != 0) << lane; });
    lanes([&](int lane, Thread& t) {
      const Instruction& i = at(t);
      const auto mode = static_cast<Mode>(i.mode);
      if (op == Op::vote_) {
        result[lane] = mode == Mode::ballot_ ? ballot
                       : mode == Mode::all_  ? ballot == mask
                       : mode == Mode::any_  ? ballot != 0
                                             : ballot == 0 || ballot == mask;
      } else if (op == Op::match_) {
        lanes([&](int other, Thread&) { result[lane] |= static_cast<uint64_t>(value[other] == value[lane]) << other; });
      } else if (op == Op::redux_) {
        bool first_lane = true;
        lanes([&](int other, Thread&) {
          result[lane] = first_lane ? value[other] : combine(i.type, mode, result[lane], value[other]);
          first_lane = false;
        });
      } else if (op == Op::shfl_) {
        const int b = static_cast<int>(t.slots[i.b] & 31), c = static_cast<int>(t.slots[i.c]), segment = (c >> 8) & 31;
        const int bound = (lane & segment) | (c & 31 & ~segment), lowest = lane & segment;
        int source = 0;
        bool in = false;
        if (mode == Mode::up_) source = lane - b, in = source >= bound;
        if (mode == Mode::down_) source = lane + b, in = source <= bound;
        if (mode == Mode::bfly_) source = lane ^ b, in = source <= bound;
        if (mode == Mode::idx_) source = lowest | (b & ~segment), in = source <= bound;
        if (!in) source = lane;
        if (((mask >> source) & 1) == 0) throw Failure("a shuffle from a lane that does not take part");
        result[lane] = value[source];
        inside[lane] = in;
      }
    });
    if (op == Op::barrier_warp_) ++block.warp_barriers[first / WARP];
    lanes([&](int lane, Thread& t) {
      const Instruction& i = at(t);
      if (op == Op::shfl_ && i.count == 2) t.slots[i.offset] = inside[lane];
      if (op != Op::barrier_warp_ && op != Op::stmatrix_ && op != Op::ldmatrix_) t.slots[i.d] = result[lane];
      t.waiting = false;
      ++t.pc;
    });
  }

  // A lane's part of 8 x 8 matrices of 16-bit elements: two neighbours of a row in each register. The address of row r
  // of matrix m is that of lane 8 m + r.
  void move_matrices(Block& block, size_t first, int lane, Thread& t) {
    const Instruction& i = at(t);
    for (int matrix = 0; matrix < i.count; ++matrix) {
      uint64_t& pair =
          t.slots[static_cast<size_t>(i.count == 1 ? i.b : program.lists[static_cast<size_t>(i.b + matrix)])];
      uint64_t loaded = 0;
      for (int half = 0; half < 2; ++half) {
        const int along = 2 * (lane % 4) + half, across = lane / 4;
        const bool turned = i.flags & SECOND;
        const Thread& owner = block.threads[first + static_cast<size_t>(8 * matrix + (turned ? along : across))];
        const uint64_t row = address_of(owner, i);
        if (row % 16 != 0) throw Failure(place(block, t) + "a matrix's row that is not aligned to 16 bytes");
        const uint64_t cell = row + 2 * static_cast<uint64_t>(turned ? across : along);
        uint16_t value = static_cast<uint16_t>(pair >> (16 * half));
        auto* bytes =
            find(block, t, cell, true, 2, i.op == Op::stmatrix_, false, reinterpret_cast<const uint8_t*>(&value));
        if (i.op == Op::stmatrix_)
          std::memcpy(bytes, &value, 2);
        else
          std::memcpy(&value, bytes, 2), loaded |= static_cast<uint64_t>(value) << (16 * half);
      }
      if (i.op == Op::ldmatrix_) pair = loaded;
    }
  }

  std::string place(const Block& block, const Thread& t) const {
    return program.name + ", block " + std::to_string(block.number) + ", thread " + std::to_string(t.number) +
           ", instruction " + std::to_string(t.pc) + ": ";
  }

  void touch(Block& block, Thread& t, Shadow* bytes, int size, bool writes, bool changes, bool atomic, bool shared) {
    const uint32_t warp = block.warp_barriers[static_cast<size_t>(t.number) / WARP];
    const Touch now{gpu.launch, block.number, clocks[block.number], block.barriers, warp, t.number, atomic};
    auto races_with = [&](const Touch& before) {
      if (before.launch != gpu.launch || (before.atomic && atomic)) return false;
      if (before.block != block.number) return before.clock > block.seen[before.block];
      if (before.thread == t.number || before.barriers != block.barriers) return false;
      return before.thread / WARP != t.number / WARP || before.warp_barriers == warp;
    };
    for (int i = 0; i < size; ++i) {
      Shadow& shadow = bytes[i];
      if (!writes && !shadow.known)
        throw Failure(place(block, t) + (shared ? "shared" : "global") + " memory is read before it is written");
      for (const Touch* before : {&shadow.write, &shadow.read}) {
        // What is written again as it was harms nobody.
        const bool matters = before == &shadow.write ? !writes || changes : writes && changes;
        if (!matters || !races_with(*before)) continue;
        throw Failure(place(block, t) + "races with a " + (before == &shadow.write ? "write" : "read") + " of thread " +
                      std::to_string(before->thread) + " of block " + std::to_string(before->block));
      }
      if (!shared) {
        const bool here = shadow.write.launch == gpu.launch;
        if (writes)
          gpu.bytes_written += !here;
        else
          gpu.bytes_read += !here && shadow.read.launch != gpu.launch;
      }
      if (writes) {
        shadow.known = true;
        if (changes || shadow.write.launch != gpu.launch) shadow.write = now;
      }
      if (!writes || atomic) shadow.read = now;
    }
  }

  static uint64_t address_of(const Thread& t, const Instruction& i) {
    return t.slots[static_cast<size_t>(i.a)] + static_cast<uint64_t>(i.offset);
  }

  // Host memory behind an address of the device.
  uint8_t* find(Block& block, Thread& t, uint64_t address, bool to_shared, int size, bool writes, bool atomic,
                const uint8_t* written) {
    uint64_t host = address;
    if (to_shared) host = reinterpret_cast<uint64_t>(block.shared.data()) + (address & 0xFFFFFFFF);
    if ((to_shared ? address : host) % static_cast<uint64_t>(size) != 0)
      throw Failure(place(block, t) + "an address that is not a multiple of " + std::to_string(size));
    const uint64_t base = reinterpret_cast<uint64_t>(block.shared.data());
    Shadow* shadow = nullptr;
    bool shared = false;
    if (host >= base && host + static_cast<uint64_t>(size) <= base + block.shared.size()) {
      shadow = block.shadow.data() + (host - base);
      shared = true;
    } else if (to_shared) {
      throw Failure(place(block, t) + "an address outside of shared memory");
    } else if (inside(host, size, t.local.data(), t.local.size() * 8) || inside(host, size, params, 4096)) {
      return reinterpret_cast<uint8_t*>(host);
    } else {
      const auto found = gpu.memories.upper_bound(host);
      if (found == gpu.memories.end() || host < found->second.begin ||
          host + static_cast<uint64_t>(size) > found->first)
        throw Failure(place(block, t) + (writes ? "writes" : "reads") + " outside of the memory that was given");
      Memory& memory = found->second;
      if (memory.shadow.empty()) {
        memory.shadow.resize(memory.size);
        for (Shadow& one : memory.shadow) one.known = memory.known;
      }
      shadow = memory.shadow.data() + (host - memory.begin);
    }
    auto* bytes = reinterpret_cast<uint8_t*>(host);
    touch(block, t, shadow, size, writes,
          writes && (written == nullptr || std::memcmp(bytes, written, static_cast<size_t>(size)) != 0), atomic,
          shared);
    return bytes;
  }
  static bool inside(uint64_t host, int size, const void* begin, uint64_t count) {
    const auto first = reinterpret_cast<uint64_t>(begin);
    return host >= first && host + static_cast<uint64_t>(size) <= first + count;
  }

  void release(Block& block, uint64_t address) {
    auto& told = released[address];
    told.resize(clocks.size());
    block.seen[block.number] = clocks[block.number];
    for (size_t b = 0; b < told.size(); ++b) told[b] = std::max(told[b], block.seen[b]);
    ++clocks[block.number];
  }
  void acquire(Block& block, uint64_t address) {
    const auto told = released.find(address);
    if (told == released.end()) return;
    for (size_t b = 0; b < block.seen.size(); ++b) block.seen[b] = std::max(block.seen[b], told->second[b]);
  }

  void load(Block& block, Thread& t, const Instruction& i) {
    const int size = bytes_of(i.type), all = size * i.count;
    const uint8_t* from =
        find(block, t, address_of(t, i), i.flags & SHARED, all, false, (i.flags & ACQUIRE) != 0, nullptr);
    for (int n = 0; n < i.count; ++n) {
      uint64_t raw = 0;
      std::memcpy(&raw, from + n * size, static_cast<size_t>(size));
      if (i.type == Type::s8_) raw = bits(int64_t{as<int8_t>(raw)});
      if (i.type == Type::s16_) raw = bits(int64_t{as<int16_t>(raw)});
      if (i.type == Type::s32_) raw = bits(int64_t{as<int32_t>(raw)});
      t.slots[i.count == 1 ? i.d : program.lists[i.d + n]] = raw;
    }
    if (i.flags & ACQUIRE) acquire(block, reinterpret_cast<uint64_t>(from));
  }

  void store(Block& block, Thread& t, const Instruction& i) {
    const int size = bytes_of(i.type), all = size * i.count;
    std::array<uint8_t, 64> given{};
    for (int n = 0; n < i.count; ++n)
      std::memcpy(given.data() + n * size, &t.slots[i.count == 1 ? i.b : program.lists[i.b + n]],
                  static_cast<size_t>(size));
    uint8_t* to = find(block, t, address_of(t, i), i.flags & SHARED, all, true, (i.flags & RELEASE) != 0, given.data());
    std::memcpy(to, given.data(), static_cast<size_t>(all));
    if (i.flags & RELEASE) release(block, reinterpret_cast<uint64_t>(to));
  }

  // What an atomic or a reduction makes of two values.
  static uint64_t combine(Type type, Mode mode, uint64_t a, uint64_t b) {
    return with_number(type, [&](auto zero) -> uint64_t {
      using T = decltype(zero);
      const T x = as<T>(a), y = as<T>(b);
      switch (mode) {
        case Mode::add_: return bits(static_cast<T>(x + y));
        case Mode::min_: return bits(smaller(x, y, false));
        case Mode::max_: return bits(larger(x, y, false));
        case Mode::and_: return a & b;
        case Mode::or_: return a | b;
        case Mode::xor_: return a ^ b;
        case Mode::exch_: return bits(y);
        case Mode::inc_: return bits(static_cast<T>(x >= y ? T{0} : static_cast<T>(x + 1)));
        default: throw Failure("an atomic that is not known");
      }
    });
  }

  void atomic(Block& block, Thread& t, const Instruction& i) {
    const int size = bytes_of(i.type);
    uint8_t* at_host = find(block, t, address_of(t, i), i.flags & SHARED, size, true, true, nullptr);
    const auto address = reinterpret_cast<uint64_t>(at_host);
    if ((i.flags & ACQUIRE) || t.fenced) acquire(block, address);
    uint64_t old = 0;
    std::memcpy(&old, at_host, static_cast<size_t>(size));
    const uint64_t b = t.slots[i.b];
    const auto mode = static_cast<Mode>(i.mode);
    const uint64_t low = size == 8 ? ~0ull : (1ull << (8 * size)) - 1;
    const uint64_t fresh = mode != Mode::cas_ ? combine(i.type, mode, old, b)
                           : old == (b & low) ? t.slots[i.c] & low
                                              : old;
    std::memcpy(at_host, &fresh, static_cast<size_t>(size));
    t.slots[i.d] = old;
    if ((i.flags & RELEASE) || t.fenced) release(block, address);
  }

  void run(Block& block, Thread& t, int64_t quantum) {
    auto& s = t.slots;
    for (; quantum > 0; --quantum) {
      const Instruction& i = at(t);
      const bool skipped = i.guard >= 0 && (s[static_cast<size_t>(i.guard)] != 0) == (i.guard_negated != 0);
      if (skipped || compute(i, s.data(), program.lists.data())) {
        ++t.pc;
        continue;
      }
      const uint64_t a = s[static_cast<size_t>(i.a)];
      switch (i.op) {
        case Op::to_shared_: s[i.d] = a - reinterpret_cast<uint64_t>(block.shared.data()); break;
        case Op::from_shared_: s[i.d] = (a & 0xFFFFFFFF) + reinterpret_cast<uint64_t>(block.shared.data()); break;
        case Op::ld_: load(block, t, i); break;
        case Op::st_: store(block, t, i); break;
        case Op::atom_: atomic(block, t, i); break;
        case Op::fence_: t.fenced = true; break;
        case Op::activemask_: s[i.d] = 1u << (t.number % WARP); break;
        case Op::nop_: break;
        case Op::bra_: t.pc = static_cast<int32_t>(i.offset); continue;
        case Op::exit_: t.done = true; return;
        case Op::call_:
          throw Failure("device check failed: " + std::string(*reinterpret_cast<const char**>(t.local.data())));
        case Op::trap_: throw Failure(place(block, t) + "trap");
        default:  // waits for others
          t.waiting = true;
          return;
      }
      ++t.pc;
    }
  }
};

}  // namespace

extern "C" {

const char* gpu_error() { return gpu.error.c_str(); }
int64_t gpu_launches() { return gpu.launches; }
int64_t gpu_waits() { return gpu.waits; }
int64_t gpu_bytes_read() { return gpu.bytes_read; }
int64_t gpu_bytes_written() { return gpu.bytes_written; }
void gpu_count_wait() { ++gpu.waits; }
int64_t gpu_processors() { return gpu.processors; }
// seed: of the threads' order, 0 for one after the other. processors: of the device.
void gpu_set(uint64_t seed, int64_t processors) {
  gpu.seed = seed;
  gpu.processors = processors;
  random_state = seed * 0x9E3779B97F4A7C15ull + 1;
  gpu.launches = gpu.waits = gpu.bytes_read = gpu.bytes_written = 0;
  gpu.error.clear();
}
// Memory that kernels may use; known: all of it may be read, not only what a kernel has written.
void gpu_allow(const void* begin, int64_t size, int known) { allow(begin, size, known != 0); }
void gpu_allow_nothing() { gpu.memories.clear(); }
// The host has written these bytes.
void gpu_written(const void* begin, int64_t size) {
  const auto first = reinterpret_cast<uint64_t>(begin);
  const auto found = gpu.memories.upper_bound(first);
  if (found == gpu.memories.end() || first < found->second.begin) return;
  Memory& memory = found->second;
  if (memory.known && memory.shadow.empty()) return;
  if (memory.shadow.empty()) memory.shadow.resize(memory.size);
  for (int64_t i = 0; i < size && first - memory.begin + static_cast<uint64_t>(i) < memory.size; ++i)
    memory.shadow[first - memory.begin + static_cast<uint64_t>(i)].known = true;
}
void gpu_define(const char* name, const void* code, int64_t code_size, const uint64_t* slots, int64_t num_slots,
                const int32_t* lists, int64_t num_lists, const int32_t* parameters, int64_t num_parameters,
                int64_t shared, int64_t local, int64_t threads) {
  Program program{name,
                  std::vector<Instruction>(static_cast<size_t>(code_size)),
                  {slots, slots + num_slots},
                  {lists, lists + num_lists},
                  {},
                  shared,
                  local,
                  threads};
  std::memcpy(program.code.data(), code, program.code.size() * sizeof(Instruction));
  for (int64_t i = 0; i < num_parameters; ++i) program.parameters.push_back({parameters[2 * i], parameters[2 * i + 1]});
  programs.insert_or_assign(name, std::move(program));
}
// arguments: pointers to the values of a kernel's parameters; those after the last one are 0. 1 and an error where a
// rule broke.
int gpu_launch(const char* name, const uint32_t* grid, const uint32_t* shape, int64_t dynamic, void* const* arguments,
               int64_t num_arguments, int together) {
  try {
    const auto found = programs.find(name);
    if (found == programs.end()) throw Failure(std::string("no kernel of this name: ") + name);
    const Program& program = found->second;
    std::array<uint8_t, 4096> params{};
    for (size_t i = 0; i < program.parameters.size() && (num_arguments < 0 || static_cast<int64_t>(i) < num_arguments);
         ++i) {
      std::memcpy(params.data() + program.parameters[i][0], arguments[i],
                  static_cast<size_t>(program.parameters[i][1]));
    }
    Launch(program, {grid[0], grid[1], grid[2]}, {shape[0], shape[1], shape[2]}, dynamic, params.data(), together != 0);
    return 0;
  } catch (const Failure& failure) {
    gpu.error = failure.what();
    return 1;
  }
}
}
