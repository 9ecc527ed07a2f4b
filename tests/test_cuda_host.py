"""The CUDA kernels' logic on the host, against the references, bit for bit: no GPU needed.

The kernels are written in phases (csrc/cuda/block.h), so that a C++ compiler turns the very same sources into loops. Launchers,
scratch layout and every kernel run here on CPU memory; races in shared memory, reads of what nobody wrote and indices out
of range are errors. What this cannot see is the device's own part: intrinsics, launches, streams (tests/test_cuda.py).
"""

import concurrent.futures
import ctypes
import math
import os
import pathlib
import shutil
import subprocess

import pytest
import torch
from named_inputs import PROBABILITIES, WEIGHTS, probabilities, sample_positions, weights_of, window_with_a_tie

from stprune import testing
from stprune.reference import budget as reference_budget
from stprune.reference import check_range as reference_range
from stprune.reference import draw as reference_draw
from stprune.reference import draw_nodes as reference_nodes
from stprune.reference import draw_threshold as reference_threshold
from stprune.reference import draw_weighted as reference_weighted
from stprune.reference import finite_stats as reference_finite
from stprune.reference import gather_nodes as reference_gather
from stprune.reference import order as reference_order
from stprune.reference import shuffle as reference_shuffle

ROOT = pathlib.Path(__file__).resolve().parents[1]
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")

# The kernels' own block sizes and what surrounds them: segments of 1,024, chunks of 8,192, samples of 16,384.
SIZES = (1, 31, 128, 1023, 1025, 8191, 8193, 16_384, 16_385, 30_001)
FEW_SIZES = (1025, 16_385)
FAILED = "the kernel broke a rule: "
GUARD, POISON = 512, 0xA5  # bytes on either side of a buffer, and what they hold


def build(folder, flags):
    # A sanitizer's runtime that is preloaded into Python is none of the compiler's business.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    sources = [*sorted((ROOT / "csrc" / "cuda").glob("*.cu")), ROOT / "tests" / "cuda_emulation.cpp"]

    def compile_one(source):
        target = folder / f"{source.stem}.o"
        command = [COMPILER, "-x", "c++", "-std=c++20", "-O1", "-ffp-contract=off", "-fPIC", *flags]
        command += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", f"-I{ROOT / 'csrc'}", "-c", str(source)]
        done = subprocess.run([*command, "-o", str(target)], capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        return str(target)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources))
    library = folder / "libcuda_host.so"
    subprocess.run([COMPILER, "-shared", *flags, *objects, "-o", str(library)], check=True, env=environment)
    return library


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The launchers, compiled for the host; undefined behaviour traps."""
    flags = os.environ.get("STPRUNE_EMULATION_FLAGS", "-fsanitize=undefined -fsanitize-undefined-trap-on-error").split()
    found = ctypes.CDLL(str(build(tmp_path_factory.mktemp("cuda_host"), flags)))
    found.emulation_error.restype = ctypes.c_char_p
    sized = ("select", "topk", "bernoulli", "systematic", "draw_weighted", "gather_nodes_backward")
    for name in (*sized, "finite_stats", "draw_threshold", "budget"):
        getattr(found, f"stprune_cuda_{name}_scratch").restype = ctypes.c_int64
    found.emulation_launches.restype = ctypes.c_int64
    return found


class Kernels:
    """Calls launchers on tensors; every output and scratch buffer has guards around it."""

    def __init__(self, library, *, all_sizes=True):
        self.library = library
        self.all_sizes = all_sizes
        self.guarded = []

    def call(self, name, *arguments):
        converted = [ctypes.c_int64(a) if isinstance(a, int) and not isinstance(a, bool) else a for a in arguments]
        code = getattr(self.library, f"stprune_cuda_{name}")(*converted, None)
        assert code == 0, FAILED + self.library.emulation_error().decode()
        for guard in self.guarded:
            assert bool((guard == POISON).all()), f"{name}: wrote outside of a buffer"
        self.guarded.clear()

    def empty(self, shape, dtype=torch.int64):
        """A tensor between guards, full of what no kernel writes."""
        count = 1
        for size in shape:
            count *= size
        size = dtype.itemsize
        # Whole 64-byte lines, so that what a kernel takes for aligned is.
        whole = torch.full((2 * GUARD + count * size + 64,), POISON, dtype=torch.uint8)
        start = -whole.data_ptr() % 64 + GUARD
        stop = start + count * size
        self.guarded += [whole[:start], whole[stop:]]
        return whole[start:stop].view(dtype).view(shape)

    def scratch(self, name, *sizes):
        size = getattr(self.library, f"stprune_cuda_{name}_scratch")
        return self.empty((max(1, size(*[ctypes.c_int64(s) for s in sizes])),), torch.uint8)

    def select(self, keys, k):
        wide, n = int(keys.dtype == torch.float64), keys.numel()
        out = self.empty((k,))
        self.call("select", wide, at(keys), n, k, at(self.scratch("select", wide, n, k)), at(out))
        return out

    def topk(self, keys, k, sorted):
        wide, n = int(keys.dtype == torch.float64), keys.numel()
        values, indices = self.empty((k,), keys.dtype), self.empty((k,))
        scratch = self.scratch("topk", wide, n, k, int(sorted))
        self.call("topk", wide, at(keys), n, k, int(sorted), at(scratch), at(values), at(indices))
        return values, indices

    def check_range(self, values, high, total):
        out = self.empty((3,))
        wide = int(values.dtype == torch.float64)
        self.call("check_range", wide, at(values), values.numel(), ctypes.c_double(high), int(total), at(out))
        return out

    def finite_stats(self, values):
        wide, n = int(values.dtype == torch.float64), values.numel()
        out = self.empty((4,), torch.float64)
        self.call("finite_stats", wide, at(values), n, at(self.scratch("finite_stats", n)), at(out))
        return out

    def inclusion_budget(self, scores, alpha, count, minimum):
        wide, n = int(scores.dtype == torch.float64), scores.numel()
        out, numbers = self.empty((n,), torch.float32), [ctypes.c_double(x) for x in (alpha, count, minimum)]
        self.call("budget", wide, at(scores), n, *numbers, at(self.scratch("budget", wide, n)), at(out))
        return out

    def draw_threshold(self, scores, keep, exact, seed, epoch):
        wide, n = int(scores.dtype == torch.float64), scores.numel()
        scratch, drawn, share = self.scratch("draw_threshold", n), ctypes.c_int64(), ctypes.c_double(keep)
        guards = list(self.guarded)
        self.call("draw_threshold_mark", wide, at(scores), n, share, int(exact), seed, epoch, at(scratch), ctypes.byref(drawn))
        self.guarded += guards
        indices, weights = self.empty((drawn.value,)), self.empty((drawn.value,), torch.float32)
        self.call("draw_threshold_emit", wide, at(scores), n, share, at(scratch), at(indices), at(weights))
        return indices, weights

    def draw(self, p, count, seed, epoch):
        wide, n = int(p.dtype == torch.float64), p.numel()
        if count is None:
            scratch, drawn = self.scratch("bernoulli", n), ctypes.c_int64()
            self.call("bernoulli_mark", wide, at(p), n, seed, epoch, at(scratch), ctypes.byref(drawn))
            out = self.empty((drawn.value,))
            self.call("bernoulli_emit", n, at(scratch), at(out))
            return out
        out = self.empty((count,))
        self.call("systematic", wide, at(p), n, count, seed, epoch, at(self.scratch("systematic", n)), at(out))
        return out

    def draw_weighted(self, w, k, seed, epoch, race):
        n = w.numel()
        indices, weights = self.empty((k,)), self.empty((0 if race else k,), torch.float32)
        scratch = self.scratch("draw_weighted", n)
        self.call("draw_weighted", at(w), n, k, seed, epoch, int(race), at(scratch), at(indices), at(weights))
        return indices, weights

    def permute(self, n, start, count, seed, epoch, stream):
        out = self.empty((count,))
        self.call("permute", n, start, count, seed, epoch, stream, at(out))
        return out

    def shuffle(self, values, seed, epoch):
        out = self.empty((values.numel(),), values.dtype)
        self.call("shuffle", at(values), values.numel(), values.element_size(), seed, epoch, at(out))
        return out

    def draw_nodes(self, index, num_nodes, count, seed, epoch):
        out = self.empty((index.numel(), count))
        self.call("draw_nodes", at(index), index.numel(), num_nodes, count, seed, epoch, at(out))
        return out

    def gather_nodes(self, x, node):
        samples, outer, num_nodes, inner = x.shape
        size, m = x.element_size(), node.shape[1]
        out = self.empty((samples, outer, m, inner), x.dtype)
        self.call(
            "gather_nodes", at(x), at(node), samples, outer, num_nodes, m, inner * size, x.stride(0) * size,
            x.stride(1) * size, at(out),
        )  # fmt: skip
        return out

    def gather_nodes_backward(self, grad, node, num_nodes):
        samples, outer, m, inner = grad.shape
        kind = (torch.float32, torch.float64, torch.bfloat16, torch.float16).index(grad.dtype)
        out = self.empty((samples, outer, num_nodes, inner), grad.dtype)
        scratch = self.scratch("gather_nodes_backward", samples, num_nodes, m)
        self.call("gather_nodes_backward", kind, at(grad), at(node), samples, outer, num_nodes, m, inner, at(scratch), at(out))
        return out


def at(tensor):
    return ctypes.c_void_p(tensor.data_ptr())


@pytest.fixture(params=[0, 1, 2], ids=["ascending", "descending", "mixed"])
def kernels(request, library):
    """The kernels with threads and blocks run in one of three orders, on a device of 1, 2 or 5 processors."""
    library.emulation_set(request.param, ctypes.c_int64((1, 2, 5)[request.param]))
    return Kernels(library, all_sizes=request.param == 0)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (0, "read races with a write"),
        (1, "read before written"),
        (2, "index out of range"),
        (3, None),
        (4, "write races"),
        (5, "read races with a write"),
    ],
)
def test_rules_are_enforced(kernels, fault, why):
    out = kernels.empty((64,))
    code = kernels.library.emulation_break(fault, at(out))
    if why is None:
        assert code == 0
        assert out.tolist() == [t ^ 1 for t in range(64)]
    else:
        assert code == 1
        assert why in kernels.library.emulation_error().decode()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", testing.INPUTS)
def test_select(kernels, name, dtype):
    for n in SIZES if kernels.all_sizes else FEW_SIZES:
        keys = testing.named_keys(name, n, dtype)
        order = reference_order.descending_order(keys)
        for k in sorted({0, 1, n // 2, n - 1, n}):
            assert torch.equal(kernels.select(keys, k), order[:k].sort().values), (n, k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_select_every_rank(kernels, dtype):
    n = 20_000
    keys = testing.named_keys("normal", n, dtype)
    keys[100:3000] = 0.25
    keys[5000:5100] = float("nan")
    keys[7000:7300] = float("inf")
    keys[9000:9300] = -float("inf")
    order = reference_order.descending_order(keys)
    for k in [*range(1, 500, 101), *range(7000, 11_000, 531), *range(n - 700, n + 1, 131)]:
        assert torch.equal(kernels.select(keys, k), order[:k].sort().values), k


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_select_when_the_sample_lies(kernels, dtype):
    """Keys that differ where the sample looks: the bracket misses, on either side, and all keys are searched."""
    n = 60_000
    keys = torch.zeros(n, dtype=dtype)
    for i, position in enumerate(sample_positions(n)):
        keys[position] = 1.0 + i
    rest = keys == 0
    keys[rest] = -torch.rand(int(rest.sum()), generator=torch.Generator().manual_seed(1), dtype=dtype)
    for signed in (keys, -keys):
        order = reference_order.descending_order(signed)
        for k in (1, 100, 30_000, n - 5):
            assert torch.equal(kernels.select(signed, k), order[:k].sort().values), k


def test_select_where_candidates_crowd(kernels):
    """Sorted keys put all codes of the bracket into a few segments, which then have no room for them."""
    keys = torch.arange(100_000, dtype=torch.float32)
    assert torch.equal(kernels.select(keys, 40_000), torch.arange(60_000, 100_000))
    # Ties inside the bracket, in one stretch, a little off the wanted rank.
    keys = torch.rand(100_000, generator=torch.Generator().manual_seed(2))
    keys[30_000:33_000] = 0.5
    order = reference_order.descending_order(keys)
    for k in (47_000, 49_000, 50_000, 51_000):
        assert torch.equal(kernels.select(keys, k), order[:k].sort().values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["normal", "all_equal", "tie_at_k", "nan", "inf", "signed_zero", "denormal"])
def test_topk(kernels, name, dtype):
    for n in (1, 65, 5000, 20_001) if kernels.all_sizes else (5000,):
        keys = testing.named_keys(name, n, dtype)
        order = reference_order.descending_order(keys)
        for k in sorted({0, 1, n // 3, n}):
            for is_sorted in (True, False):
                values, indices = kernels.topk(keys, k, is_sorted)
                expected = order[:k] if is_sorted else order[:k].sort().values
                assert torch.equal(indices, expected), (n, k)
                testing.assert_same(values, keys[expected])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_check_range(kernels, dtype):
    p = torch.rand(30_000, generator=torch.Generator().manual_seed(3), dtype=dtype)
    p[::7] = 0
    for n in (0, 1, 2047, 2048, 2049, 30_000):
        for total in (False, True):
            expected = reference_range.check_range(p[:n], 1.0, total)
            assert torch.equal(kernels.check_range(p[:n], 1.0, total), expected), n
    for bad in (float("nan"), -1e-9, 1.5, float("inf"), -float("inf")):
        q = p.clone()
        q[[29_999, 12_345]] = bad
        found = kernels.check_range(q, 1.0, True)
        assert int(found[0]) == 12_345
        assert int(found[1]) == int((q > 0).sum())
    w = torch.tensor([0.0, 3e38, 1e-45])
    assert kernels.check_range(w, torch.finfo(torch.float32).max, False).tolist() == [-1, 2, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", PROBABILITIES)
def test_draw(kernels, name, dtype):
    for n in (1, 63, 1023, 1024, 1025, 4095, 4096, 4097, 5130, 20_001) if kernels.all_sizes else (5130, 8193):
        p = probabilities(name, n, dtype)
        assert torch.equal(kernels.draw(p, None, 5, 2), reference_draw.draw(p, None, 5, 2)), n
        count = round(float(p.double().sum()))
        assert torch.equal(kernels.draw(p, count, 5, 2), reference_draw.draw(p, count, 5, 2)), n
    large = 2**63 - 1
    p = probabilities(name, 9000, dtype)
    count = round(float(p.double().sum()))
    for c in (None, count):
        assert torch.equal(kernels.draw(p, c, large, 2**32 - 1), reference_draw.draw(p, c, large, 2**32 - 1))


@pytest.mark.parametrize("off", [-0.5, -0.4, 0.4, 0.5])
@pytest.mark.parametrize("n", [3, 5000])
def test_draw_count_half_an_item_off(kernels, n, off):
    p = torch.full((n,), 0.5, dtype=torch.float64)
    count = (n + 1) // 2
    p *= (count - off) / float(p.sum())
    for epoch in range(5):
        assert torch.equal(kernels.draw(p, count, 0, epoch), reference_draw.draw(p, count, 0, epoch))


def test_draw_rest_in_several_rounds(kernels):
    p = torch.zeros(9000, dtype=torch.float64)
    p[::3] = 1.0
    for values, count in (([0.99, 0.7], 3002), ([0.9999, 0.9, 0.8], 3003), ([1e-4, 0.3], 3000), ([1e-9, 1e-4, 0.4], 3000)):
        p[1], p[4], p[7] = (*values, 0.0)[:3]
        assert torch.equal(kernels.draw(p, count, 3, 1), reference_draw.draw(p, count, 3, 1))
    # Many items close to one, so that a round drops thousands of them in many blocks.
    p = 1 - torch.rand(30_000, generator=torch.Generator().manual_seed(5), dtype=torch.float64) ** 8 * 1e-4
    p[::5] = 0.5
    for off in (0.49, -0.49):
        count = round(float(p.sum()))
        p[::5] += (count + off - float(p.sum())) / p[::5].numel()
        spread = reference_draw.spread(reference_draw.fixed_point(p), count)
        assert int(spread.sum()) == count << 32
        assert torch.equal(kernels.draw(p, count, 3, 1), reference_draw.draw(p, count, 3, 1))


def test_draw_of_a_wrong_count_is_an_error_not_a_wild_write(library):
    library.emulation_set(0, ctypes.c_int64(2))
    with pytest.raises(AssertionError, match="device check failed"):
        Kernels(library).draw(torch.full((100,), 0.5), 60, 0, 0)


@pytest.mark.parametrize("race", [False, True], ids=["priority", "race"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_draw_weighted(kernels, name, race):
    for n in (1, 65, 1025, 8193, 20_001) if kernels.all_sizes else (1025, 17_000):
        w = weights_of(name, n)
        positive = int((w > 0).sum())
        for k in sorted({0, min(1, positive), positive // 2, max(0, positive - 1), positive}):
            indices, weights = kernels.draw_weighted(w, k, 5, 6, race)
            expected_indices, expected_weights = reference_weighted.draw_weighted(w, k, 5, 6, race)
            assert torch.equal(indices, expected_indices), (n, k)
            testing.assert_same(weights, expected_weights)


def scores_of(name, n, dtype):
    generator = torch.Generator().manual_seed(31)
    scores = torch.randn(n, generator=generator, dtype=torch.float64).exp().to(dtype)
    if name == "holes":
        scores[torch.rand(n, generator=generator) < 0.3] = math.nan
        scores[torch.rand(n, generator=generator) < 0.1] = math.inf
        scores[torch.rand(n, generator=generator) < 0.1] = -math.inf
    elif name == "equal":
        scores.fill_(0.1)
    elif name == "unknown":
        scores.fill_(math.inf)
    elif name == "zeros":
        scores = torch.where(torch.rand(n, generator=generator) < 0.5, 0.0, -0.0).to(dtype)
    elif name == "outlier":
        scores[n // 2] = 1e6  # all but one lie below the mean
    elif name == "far apart":
        scores *= 10.0 ** torch.randint(-30, 30, (n,), generator=generator)
    return scores


NAMES = ("lognormal", "holes", "equal", "unknown", "zeros", "outlier", "far apart")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_finite_stats(kernels, name, dtype):
    for n in (0, 1, 31, 33, 4095, 4096, 4097, 3 * 4096, 50_001) if kernels.all_sizes else (5 * 4096 + 7,):
        scores = scores_of(name, n, dtype) if n else torch.empty(0, dtype=dtype)
        testing.assert_same(kernels.finite_stats(scores), reference_finite.finite_stats(scores))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_inclusion_budget(kernels, name, dtype):
    for n in (0, 1, 33, 4097, 20_001) if kernels.all_sizes else (9000,):
        scores = scores_of(name, n, dtype) if n else torch.empty(0, dtype=dtype)
        for alpha, ratio in ((0.5, 0.1), (0.5, 0.9), (1.0, 0.5), (0.0, 0.3)):
            settings = (alpha, float(round(ratio * n)), ratio / 5)
            expected = reference_budget.inclusion_budget(scores, *settings) if n else torch.empty(0)
            testing.assert_same(kernels.inclusion_budget(scores, *settings), expected)


@pytest.mark.parametrize("name", ["lognormal", "holes", "equal", "outlier", "misleading", "two groups"])
def test_inclusion_budget_with_a_sample(kernels, name):
    """Sampled, the bracket's few open sizes apart; and where the sample misleads, or leaves too many sizes open."""
    n = reference_budget.SAMPLED + 12_345
    if not kernels.all_sizes and name not in ("lognormal", "misleading"):
        return
    if name == "misleading":
        scores = torch.full((n,), 1e-3)
        words = reference_budget.words(reference_budget.SAMPLE, seed=0, epoch=0, stream=reference_budget.STREAM)
        scores[words * (n >> 8) >> 24] = 5.0
    elif name == "two groups":
        # Half of the sizes lie within the bracket's reach of being certain.
        scores = torch.ones(n)
        scores[::2] = 1e-6
    else:
        scores = scores_of(name, n, torch.float32)
    for alpha, ratio in ((0.5, 0.3), (1.0, 0.5)):
        settings = (alpha, float(round(ratio * n)), ratio / 5)
        expected = reference_budget.inclusion_budget(scores, *settings)
        testing.assert_same(kernels.inclusion_budget(scores, *settings), expected)


@pytest.mark.parametrize("exact", [False, True], ids=["each", "exact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_draw_threshold(kernels, name, dtype, exact):
    for n in (0, 1, 65, 1025, 1500, 8193, 20_001) if kernels.all_sizes else (1500, 8193):
        scores = scores_of(name, n, dtype) if n else torch.empty(0, dtype=dtype)
        for keep, seed, epoch in ((0.5, 5, 6), (1.0, 5, 7), (0.3, 2**63 - 1, 2**32 - 1)):
            expected = reference_threshold.draw_threshold(scores, keep, exact, seed, epoch)
            for got, wanted in zip(kernels.draw_threshold(scores, keep, exact, seed, epoch), expected, strict=True):
                testing.assert_same(got, wanted)


def test_draw_threshold_from_a_pool_that_keeps_one_or_none(kernels):
    scores = torch.tensor([1.0, 1.0, 5.0])
    sizes = set()
    for epoch in range(30):
        indices, weights = kernels.draw_threshold(scores, 0.2, True, 3, epoch)
        expected = reference_threshold.draw_threshold(scores, 0.2, True, 3, epoch)
        assert torch.equal(indices, expected[0])
        assert torch.equal(weights, expected[1])
        sizes.add(len(indices))
    assert sizes == {1, 2}


@pytest.mark.parametrize("n", [1, 2, 3, 31, 64, 1000, 1023, 1024, 1025, 4096, 5000])
def test_shuffle_and_permute(kernels, n):
    expected = reference_shuffle.shuffle(torch.arange(n), 3, 4)
    assert torch.equal(kernels.shuffle(torch.arange(n), 3, 4), expected)
    whole = torch.empty(n, dtype=torch.int64)
    reference_shuffle.permute(whole, n, 0, 3, 4, 9)
    for start, stop in {(0, n), (n // 3, n // 2), (n - 1, n)}:
        assert torch.equal(kernels.permute(n, start, stop - start, 3, 4, 9), whole[start:stop])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.float64, torch.complex128], ids=str)
def test_shuffle_dtypes(kernels, dtype):
    for n in (100, 3000):
        values = (torch.arange(n) % 251).to(dtype)
        assert torch.equal(kernels.shuffle(values, 1, 2), reference_shuffle.shuffle(values, 1, 2))


def test_permute_beyond_32_bits(kernels):
    n = (1 << 40) - 7
    out = torch.empty(100, dtype=torch.int64)
    reference_shuffle.permute(out, n, 1 << 39, 3, 4, 2)
    assert torch.equal(kernels.permute(n, 1 << 39, 100, 3, 4, 2), out)
    n = (1 << 32) + 5
    reference_shuffle.permute(out, n, n - 100, 3, 4, 2)
    assert torch.equal(kernels.permute(n, n - 100, 100, 3, 4, 2), out)


@pytest.mark.parametrize(
    ("num_nodes", "count"),
    [(1, 1), (2, 1), (63, 10), (64, 64), (65, 64), (192, 58), (1025, 300), (8600, 2580), (10_240, 1), (10_241, 5000)],
)
def test_draw_nodes(kernels, num_nodes, count):
    index = torch.tensor([0, 1, 63, (1 << 32) - 1, 1 << 32, (1 << 56) - 1] if num_nodes < 2000 else [7, (1 << 40) + 3])
    got = kernels.draw_nodes(index, num_nodes, count, 5, 6)
    assert torch.equal(got, reference_nodes.draw_nodes(index, num_nodes, count, 5, 6))


def test_draw_nodes_with_equal_words(kernels):
    """32-bit words of 8,600 nodes collide once in a hundred windows; the smaller node comes first."""
    window, rank = window_with_a_tie(8600)
    for count in (rank - 1, rank, rank + 1, rank + 2):
        expected = reference_nodes.draw_nodes(torch.tensor([window]), 8600, count, 5, 6)
        assert torch.equal(kernels.draw_nodes(torch.tensor([window]), 8600, count, 5, 6), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.complex128], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 2, 7, 1), (2, 3, 50, 3), (4, 12, 170, 2), (2, 5, 9, 600)])
def test_gather_nodes(kernels, shape, dtype):
    generator = torch.Generator().manual_seed(1)
    x = (torch.rand(shape, generator=generator) * 250).to(dtype)
    node = torch.randint(shape[2], (shape[0], 30), generator=generator)
    assert torch.equal(kernels.gather_nodes(x, node), reference_gather.gather_nodes(x, node))
    # Windows of one series overlap in memory.
    series = (torch.rand((shape[0] + shape[1], *shape[2:]), generator=generator) * 250).to(dtype)
    windows = series.as_strided(shape, (series.stride(0), *series.stride()))
    assert torch.equal(kernels.gather_nodes(windows, node), reference_gather.gather_nodes(windows, node))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("repeats", [False, True])
def test_gather_nodes_backward(kernels, dtype, repeats):
    generator = torch.Generator().manual_seed(1)
    for samples, outer, num_nodes, m, inner in ((1, 1, 1, 1, 1), (3, 4, 60, 20, 1), (2, 5, 700, 300, 3)):
        grad = (torch.randn(samples, outer, m, inner, generator=generator) * 3).to(dtype)
        if repeats:
            node = torch.randint(max(1, num_nodes // 10), (samples, m), generator=generator)
        else:
            node = torch.stack([torch.randperm(num_nodes, generator=generator)[:m] for _ in range(samples)])
        got = kernels.gather_nodes_backward(grad, node, num_nodes)
        testing.assert_same(got, reference_gather.gather_nodes_backward(grad, node, num_nodes))


def test_narrow_floats_round_like_torch(kernels):
    """One gradient a node: the backward widens and narrows it, and must give every value back."""
    for dtype in (torch.bfloat16, torch.float16):
        values = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)
        node = torch.arange(1 << 16).unsqueeze(0)
        got = kernels.gather_nodes_backward(values.view(1, 1, -1, 1), node, 1 << 16).flatten()
        testing.assert_same(got, values + 0.0)
        # Two gradients a node: their sum in float32 is rounded once.
        generator = torch.Generator().manual_seed(4)
        pairs = (torch.randn(2, 5000, generator=generator) * torch.logspace(-9, 4.9, 5000)).to(dtype)
        node = torch.arange(5000).repeat(2).unsqueeze(0)
        got = kernels.gather_nodes_backward(pairs.view(1, 1, -1, 1), node, 5000).flatten()
        testing.assert_same(got, (pairs[0].float() + pairs[1].float()).to(dtype))


def test_a_node_out_of_range_stops_the_kernel(library):
    library.emulation_set(0, ctypes.c_int64(2))
    for bad in (-1, 5):
        with pytest.raises(AssertionError, match="device check failed"):
            Kernels(library).gather_nodes(torch.rand(1, 1, 5, 1), torch.tensor([[0, bad]]))
        with pytest.raises(AssertionError, match="device check failed"):
            Kernels(library).gather_nodes_backward(torch.rand(1, 1, 2, 1), torch.tensor([[0, bad]]), 5)


def test_launches_do_not_depend_on_the_data(library):
    """What a CUDA graph captures once must do for all data of the same size."""
    library.emulation_set(0, ctypes.c_int64(2))
    counts = set()
    for name in testing.INPUTS:
        before = library.emulation_launches()
        Kernels(library).select(testing.named_keys(name, 20_000), 7000)
        counts.add(library.emulation_launches() - before)
    assert len(counts) == 1
