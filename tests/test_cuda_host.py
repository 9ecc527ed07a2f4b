"""The CUDA kernels' logic on the host, against the references, bit for bit: no GPU needed.

The kernels are written in phases (csrc/cuda/block.h), so that a C++ compiler turns the very same sources into loops. Launchers,
scratch layout and every kernel run here on CPU memory; races in shared memory, reads of what nobody wrote and indices out
of range are errors. What this cannot see is the device's own part: intrinsics, launches, streams (tests/test_cuda.py).
"""

import concurrent.futures
import ctypes
import itertools
import os
import pathlib
import shutil
import subprocess

import pytest
import torch
from costly_inputs import costly_inputs
from engine_cases import REFERENCES, SIZED, assert_all_same, flat, inputs, outcome
from own_process import made_once
from special_inputs import SPECIAL
from stand_in import COSTS

from stprune import testing
from stprune.reference.plan_weights import compact_strata

ROOT = pathlib.Path(__file__).resolve().parents[1]
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")

# The kernels' own block sizes and what surrounds them: segments of 1,024, chunks of 8,192, samples of 16,384.
SIZES = (0, 1, 31, 128, 1023, 1025, 4095, 4097, 8191, 8193, 16_384, 16_385, 30_001)
FEW_SIZES = (0, 1, 1025, 5130, 16_385)
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
    made = made_once(tmp_path_factory, "libcuda_host.so", lambda folder: build(folder, flags))
    found = with_types(ctypes.CDLL(str(made)))
    found.emulation_error.restype = ctypes.c_char_p
    for name in ("launches", "waits", "rounds", "most_reads"):
        getattr(found, f"emulation_{name}").restype = ctypes.c_int64
    return found


def with_types(library):
    """The library, whose sizes of scratch memory are 64-bit."""
    sized = ("select", "topk", "bernoulli", "systematic", "draw_spaced", "draw_weighted", "gather_nodes_backward")
    for name in (*sized, "finite_stats", "draw_threshold", "budget", "plan_budget", "calibrate", "count_nonfinite"):
        getattr(library, f"stprune_cuda_{name}_scratch").restype = ctypes.c_int64
    return library


class Kernels:
    """Calls launchers on tensors; every output and scratch buffer has guards around it."""

    def __init__(self, library, *, all_sizes=True):
        self.library = library
        self.all_sizes = all_sizes
        self.guarded = []
        self.offset = 0  # elements by which an output is off the beginning of a line of memory

    def call(self, name, *arguments):
        code = getattr(self.library, f"stprune_cuda_{name}")(*map(self.converted, arguments), None)
        assert code == 0, FAILED + self.error()
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
        whole = torch.full((2 * GUARD + count * size + 128,), POISON, dtype=torch.uint8)
        start = -whole.data_ptr() % 64 + GUARD + self.offset * (dtype != torch.uint8) * size
        stop = start + count * size
        self.guarded += [whole[:start], whole[stop:]]
        return whole[start:stop].view(dtype).view(shape)

    def copied(self, tensor):
        return self.empty(tensor.shape, tensor.dtype).copy_(tensor)

    def scratch(self, name, *sizes):
        size = getattr(self.library, f"stprune_cuda_{name}_scratch")
        return self.empty((max(1, size(*[ctypes.c_int64(s) for s in sizes])),), torch.uint8)

    def select(self, keys, k):
        wide, n = int(keys.dtype == torch.float64), keys.numel()
        out = self.empty((k,))
        self.call("select", wide, keys, n, k, self.scratch("select", wide, n, k), out)
        return out

    def topk(self, keys, k, sorted):
        wide, n = int(keys.dtype == torch.float64), keys.numel()
        values, indices = self.empty((k,), keys.dtype), self.empty((k,))
        scratch = self.scratch("topk", wide, n, k, int(sorted))
        self.call("topk", wide, keys, n, k, int(sorted), scratch, values, indices)
        return values, indices

    def check_range(self, values, high, total):
        out = self.empty((3,))
        wide = int(values.dtype == torch.float64)
        self.call("check_range", wide, values, values.numel(), ctypes.c_double(high), int(total), out)
        return out

    def finite_stats(self, values):
        wide, n = int(values.dtype == torch.float64), values.numel()
        out = self.empty((4,), torch.float64)
        self.call("finite_stats", wide, values, n, self.scratch("finite_stats", n), out)
        return out

    def inclusion_budget(self, scores, alpha, count, minimum):
        wide, n = int(scores.dtype == torch.float64), scores.numel()
        out, numbers = self.empty((n,), torch.float32), [ctypes.c_double(x) for x in (alpha, count, minimum)]
        self.call("budget", wide, scores, n, *numbers, self.scratch("budget", wide, n), out)
        return out

    def plan_budget(self, scores, alpha, count, minimum, strata, sizes, seed, epoch, room=None):
        """Without `room` memory is made as soon as the number of samples is known."""
        wide, n = int(scores.dtype == torch.float64), scores.numel()
        cut = (0, None, None, 0) if strata is None else (strata.itemsize, strata, sizes, sizes.numel())
        scratch, kept, totals = self.scratch("plan_budget", wide, n, cut[3]), ctypes.c_int64(), torch.zeros(2).double()
        guards, power = list(self.guarded), ctypes.c_double(alpha)
        rule = power, ctypes.c_double(count), ctypes.c_double(minimum)
        self.call("plan_budget_begin", wide, scores, n, *rule, scratch, None if room else ctypes.byref(kept))
        self.guarded += guards
        room = room or kept.value
        indices, weights = self.empty((room,)), self.empty((room,), torch.float32)
        result = indices, weights, totals
        self.call("plan_budget_finish", wide, scores, n, power, seed, epoch, *cut, scratch, room, *result)
        return indices, weights, totals

    def calibrate(self, weights, indices, strata, sizes):
        """In memory of its own, between guards."""
        guarded, n, num_strata = self.copied(weights), strata.numel(), sizes.numel()
        scratch = self.scratch("calibrate", n, num_strata)
        cut = strata.itemsize, strata, n, sizes, num_strata
        self.call("calibrate", guarded, indices, indices.numel(), *cut, scratch)
        weights.copy_(guarded)

    def table_age(self, scores, marks, mean, keep):
        moves, numbers = int(mean is not None), [ctypes.c_double(x) for x in (mean or 0.0, keep)]
        self.call("table_age", scores, marks, scores.numel(), moves, *numbers)

    def count_nonfinite(self, scores, marks):
        n, out = scores.numel(), self.empty((1,))
        self.call("count_nonfinite", scores, marks, n, self.scratch("count_nonfinite", n), out)
        return out

    def draw_threshold(self, scores, keep, exact, seed, epoch):
        wide, n = int(scores.dtype == torch.float64), scores.numel()
        scratch, drawn, share = self.scratch("draw_threshold", n), ctypes.c_int64(), ctypes.c_double(keep)
        guards = list(self.guarded)
        self.call("draw_threshold_mark", wide, scores, n, share, int(exact), seed, epoch, scratch, ctypes.byref(drawn))
        self.guarded += guards
        indices, weights = self.empty((drawn.value,)), self.empty((drawn.value,), torch.float32)
        self.call("draw_threshold_emit", wide, scores, n, share, scratch, indices, weights)
        return indices, weights

    def draw_spaced(self, scores, spacing, threshold, seed, epoch):
        wide, n = int(scores.dtype == torch.float64), scores.numel()
        scratch, drawn, rule = self.scratch("draw_spaced", n), ctypes.c_int64(), (spacing, ctypes.c_double(threshold))
        guards = list(self.guarded)
        self.call("draw_spaced_mark", wide, scores, n, *rule, seed, epoch, scratch, ctypes.byref(drawn))
        self.guarded += guards
        out = self.empty((drawn.value,))
        self.call("draw_spaced_emit", n, scratch, out)
        return out

    def draw(self, p, count, seed, epoch):
        wide, n = int(p.dtype == torch.float64), p.numel()
        if count is None:
            scratch, drawn = self.scratch("bernoulli", n), ctypes.c_int64()
            self.call("bernoulli_mark", wide, p, n, seed, epoch, scratch, ctypes.byref(drawn))
            out = self.empty((drawn.value,))
            self.call("bernoulli_emit", n, scratch, out)
            return out
        out = self.empty((count,))
        self.call("systematic", wide, p, n, count, seed, epoch, self.scratch("systematic", n), out)
        return out

    def draw_weighted(self, w, k, seed, epoch, race):
        n = w.numel()
        indices, weights = self.empty((k,)), self.empty((0 if race else k,), torch.float32)
        scratch = self.scratch("draw_weighted", n)
        self.call("draw_weighted", w, n, k, seed, epoch, int(race), scratch, indices, weights)
        return indices, weights

    def permute(self, out, n, start, seed, epoch, stream):
        guarded = self.empty(out.shape)
        self.call("permute", n, start, out.numel(), seed, epoch, stream, guarded)
        out.copy_(guarded)

    def shuffle(self, values, seed, epoch):
        out = self.empty((values.numel(),), values.dtype)
        self.call("shuffle", values, values.numel(), values.element_size(), seed, epoch, out)
        return out

    def draw_nodes(self, index, num_nodes, count, seed, epoch):
        out = self.empty((index.numel(), count))
        self.call("draw_nodes", index, index.numel(), num_nodes, count, seed, epoch, out)
        return out

    def gather_nodes(self, x, node):
        samples, outer, num_nodes, inner = x.shape
        size, m = x.element_size(), node.shape[1]
        out = self.empty((samples, outer, m, inner), x.dtype)
        self.call(
            "gather_nodes", x, node, samples, outer, num_nodes, m, inner * size, x.stride(0) * size,
            x.stride(1) * size, out,
        )  # fmt: skip
        return out

    def gather_nodes_backward(self, grad, node, num_nodes):
        samples, outer, m, inner = grad.shape
        kind = (torch.float32, torch.float64, torch.bfloat16, torch.float16).index(grad.dtype)
        out = self.empty((samples, outer, num_nodes, inner), grad.dtype)
        scratch = self.scratch("gather_nodes_backward", samples, num_nodes, m)
        self.call("gather_nodes_backward", kind, grad, node, samples, outer, num_nodes, m, inner, scratch, out)
        return out

    def at(self, tensor):
        return ctypes.c_void_p(tensor.data_ptr())

    def converted(self, argument):
        if isinstance(argument, torch.Tensor):
            return self.at(argument)
        return ctypes.c_int64(argument) if isinstance(argument, int) else argument

    def error(self):
        return self.library.emulation_error().decode()


@pytest.fixture(params=[0, 1, 2], ids=["in_ascending_order", "in_descending_order", "in_mixed_order"])
def kernels(request, library):
    """The kernels with threads and blocks run in one of three orders, on a device of 1, 2 or 5 processors."""
    library.emulation_set(request.param, ctypes.c_int64((1, 2, 5)[request.param]))
    return Kernels(library, all_sizes=request.param == 2)


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
    code = kernels.library.emulation_break(fault, kernels.at(out))
    if why is None:
        assert code == 0
        assert out.tolist() == [t ^ 1 for t in range(64)]
    else:
        assert code == 1
        assert why in kernels.library.emulation_error().decode()


def first_word(name):
    return name.split()[0]


# A kernel of Triton's draws by weights, and 16-bit keys come as float32.
INPUTS = [
    name
    for name, (op, _) in {**SIZED, **SPECIAL}.items()
    if hasattr(Kernels, op) and not (op in ("select", "topk") and name.endswith("float16"))
]


def taken(op, every):
    """Arguments that the kernels take; the steps of a plan are those of three other ops."""
    return every if op != "plan_budget" else itertools.islice(every, 0, None, 7)


@pytest.mark.parametrize("name", INPUTS)
def test_matches_the_reference(kernels, name):
    few = not kernels.all_sizes or name.startswith("topk")
    op, every = inputs(name, FEW_SIZES if few else SIZES)
    # The emulation is slow: of the inputs that try many ranks, and of all in the second and third order, some will do.
    step = (15 if "every_rank" in name or "at_edges" in name else 1) * (1 if kernels.all_sizes else 4)
    for arguments in itertools.islice(taken(op, every), 0, None, step):
        expected = outcome(op, REFERENCES[op], arguments)
        assert_all_same(outcome(op, getattr(kernels, op), arguments), expected)


# One input of each op, by the op's name.
ONE_EACH = {first_word(name): name for name in INPUTS if name.endswith(("float32", "int32")) and name not in SPECIAL}


@pytest.mark.parametrize("op", ONE_EACH)
def test_views_lie_anywhere(library, op):
    """A view's first element is aligned as its type asks, and no better: a wide load would trap here."""
    library.emulation_set(0, ctypes.c_int64(2))
    kernels = Kernels(library)
    kernels.offset = 1
    for arguments in itertools.islice(inputs(ONE_EACH[op], (5130,))[1], 4):
        moved = [torch.cat([x[:1], x])[1:] if isinstance(x, torch.Tensor) and x.numel() else x for x in arguments]
        assert_all_same(outcome(op, getattr(kernels, op), moved), outcome(op, REFERENCES[op], arguments))


def test_draw_of_a_wrong_count_is_an_error_not_a_wild_write(library):
    library.emulation_set(0, ctypes.c_int64(2))
    with pytest.raises(AssertionError, match="draw: count must be the sum"):
        Kernels(library).draw(torch.full((100,), 0.5), 60, 0, 0)


@pytest.mark.parametrize(
    ("index", "stratum", "rule"), [(-1, 0, "indices"), (9, 0, "indices"), (8, 2, "strata"), (8, -1, "strata")]
)
def test_a_stratum_or_sample_out_of_range_stops_the_kernel(library, index, stratum, rule):
    library.emulation_set(0, ctypes.c_int64(2))
    strata = torch.tensor([0] * 8 + [stratum], dtype=torch.int32)
    with pytest.raises(AssertionError, match=f"calibrate: {rule} must"):
        Kernels(library).calibrate(torch.ones(2), torch.tensor(sorted((3, index))), strata, torch.tensor([5, 4]))


def test_a_node_out_of_range_stops_the_kernel(library):
    library.emulation_set(0, ctypes.c_int64(2))
    for bad in (-1, 5):
        with pytest.raises(AssertionError, match=r"gather_nodes: node must lie in \[0, num_nodes\)"):
            Kernels(library).gather_nodes(torch.rand(1, 1, 5, 1), torch.tensor([[0, bad]]))
        with pytest.raises(AssertionError, match=r"gather_nodes: node must lie in \[0, num_nodes\)"):
            Kernels(library).gather_nodes_backward(torch.rand(1, 1, 2, 1), torch.tensor([[0, bad]]), 5)


def counted(library, op, *arguments):
    """Launches, waits, and the reads of the block with most of them in one launch or round; and the results."""
    launches, waits = library.emulation_launches(), library.emulation_waits()
    library.emulation_most_reads()
    results = getattr(Kernels(library), op)(*arguments)
    return library.emulation_launches() - launches, library.emulation_waits() - waits, library.emulation_most_reads(), results


PROCESSORS, MANY = 4, 1 << 19


@pytest.mark.parametrize("name", [name for name, *_ in costly_inputs(1 << 17)])
def test_no_block_reads_more_than_its_share(library, name):
    """What takes several passes over the input takes the whole device: a block that read all of 10^8 scores would need a
    hundred times as long."""
    library.emulation_set(0, ctypes.c_int64(PROCESSORS))
    op, arguments = next((op, arguments) for found, op, arguments in costly_inputs(MANY) if found == name)
    *_, reads, results = counted(library, op, *arguments)
    assert reads <= MANY // PROCESSORS
    assert_all_same(flat(results), outcome(op, REFERENCES[op], arguments))


def test_launches_and_waits_are_those_that_plans_are_counted_by(library):
    library.emulation_set(0, ctypes.c_int64(8))
    scores, n = torch.rand(140_000, generator=torch.Generator().manual_seed(0)), 140_000
    cut = compact_strata(torch.arange(n) % 24)
    arguments = {
        "select": (scores, 70_000),
        "finite_stats": (scores,),
        "draw": (torch.full((n,), 0.5), n // 2, 1, 2),
        "draw_threshold": (scores, 0.5, True, 1, 2),
        "plan_budget": (scores, 0.5, n // 2, 0.1, None, None, 1, 2),
        "plan_budget with strata": (scores, 0.5, n // 2, 0.1, *cut, 1, 2),
        "calibrate": (torch.ones(n // 2), torch.arange(n // 2), *cut),
        "draw_spaced": (scores, 24, 0.5, 1, 2),
        "shuffle": (torch.arange(n), 1, 2),
        "permute": (torch.empty(n, dtype=torch.int64), n, 0, 1, 2, 0),
        "table_age": (scores.clone(), torch.zeros(n, dtype=torch.uint8), 0.5, 0.9),
        "count_nonfinite": (scores, torch.zeros(n, dtype=torch.uint8)),
    }
    assert {name: counted(library, name.split()[0], *given)[:2] for name, given in arguments.items()} == COSTS


def test_a_plan_that_has_buffers_waits_once(library):
    library.emulation_set(0, ctypes.c_int64(8))
    scores = torch.rand(5000, generator=torch.Generator().manual_seed(0))
    rule = (scores, 0.5, 2000, 0.1, None, None, 1, 2)
    launches, waits, _, (indices, weights, totals) = counted(library, "plan_budget", *rule, 5000)
    assert (launches, waits) == (6, 1)
    expected = REFERENCES["plan_budget"](*rule)
    assert_all_same((indices[:2000], weights[:2000], totals), expected)
    # Nothing is written where there is no room for all.
    indices, _, totals = Kernels(library).plan_budget(*rule, 1999)
    assert totals[0] == 2000
    assert bool((indices.view(torch.uint8) == POISON).all())


def test_launches_do_not_depend_on_the_data(library):
    """What a CUDA graph captures once must do for all data of the same size."""
    library.emulation_set(0, ctypes.c_int64(2))
    counts = set()
    for name in testing.INPUTS:
        before = library.emulation_launches()
        Kernels(library).select(testing.named_keys(name, 20_000), 7000)
        counts.add(library.emulation_launches() - before)
    assert len(counts) == 1
