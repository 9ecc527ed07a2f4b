// Controls of the host's version of the CUDA kernels' vocabulary (csrc/cuda/emulate.h), for tests/test_cuda_host.py.
#include "cuda/block.h"

extern "C" {

// order of threads and blocks: 0 ascending, 1 descending, 2 mixed. processors: what a device would report.
void emulation_set(int order, int64_t processors) {
  stprune::emulation.order = order;
  stprune::emulation.multiprocessors = processors;
  stprune::emulation.error.clear();
}

const char* emulation_error() { return stprune::emulation.error.c_str(); }
int64_t emulation_launches() { return stprune::emulation.launches; }
int64_t emulation_waits() { return stprune::emulation.waits; }
int64_t emulation_rounds() { return stprune::emulation.rounds; }
// Elements of an op's input that the block with most of them has read in one launch or round since the last call.
int64_t emulation_most_reads() {
  const int64_t most = stprune::emulation.most_reads;
  stprune::emulation.most_reads = 0;
  return most;
}
}

namespace stprune {
namespace {

// Kernels that break the rules, so that a test can see the rules being kept.
struct Broken {
  static constexpr int THREADS = 64;
  struct Shared {
    SharedArray<int64_t, 64> cells;
  };
  int fault;
  int64_t* out;  // [64]

  STPRUNE_DEVICE void operator()(Block<THREADS>& block, Shared& shared) const {
    block.own([&](int t) {
      if (fault != 1) shared.cells[t] = int64_t{t};
    });
    if (fault != 0) block.sync();
    if (fault == 4) block.own([&](int) { shared.cells[0] = int64_t{7}; });
    if (fault == 5) {
      block.own([&](int t) { shared.cells.add(t, 1); });
      block.own([&](int t) { out[t] = shared.cells[t ^ 1]; });
      return;
    }
    block.own([&](int t) { out[t] = shared.cells[fault == 2 ? t + 1 : t ^ 1]; });
  }
};

}  // namespace
}  // namespace stprune

// fault: 0 no barrier, 1 nothing written, 2 index out of range, 3 none, 4 all write one cell, 5 read beside atomics.
extern "C" int emulation_break(int fault, int64_t* out) {
  return stprune::launch(stprune::Broken{fault, out}, 1, nullptr);
}
