"""The Triton kernel of draw_nodes: its results under Triton's interpreter, its Philox words, and that it compiles."""

import importlib
import pathlib

import pytest
import torch
from own_process import needs_triton, run

INTERPRETED = """
import torch, triton
import triton.language as tl
from triton_kernels import load

from stprune.nodes.pair_table import PairTable
from stprune.reference import draw_nodes as reference
from stprune.reference import keep_pairs
from stprune.reference.random import MASK_32

kernel = load("draw_nodes")
WINDOWS = torch.tensor([0, 1, 63, (1 << 32) - 1, 1 << 32, (1 << 56) - 1, 17])


# Random123's known answers, through the function the kernel calls.
@triton.jit
def philox_kernel(counter, seed, out):
    c0, c1, c2, c3 = tl.load(counter), tl.load(counter + 1), tl.load(counter + 2), tl.load(counter + 3)
    w0, w1, w2, w3 = tl.philox(tl.load(seed), c0, c1, c2, c3)
    tl.store(out, w0.to(tl.int64))
    tl.store(out + 1, w1.to(tl.int64))
    tl.store(out + 2, w2.to(tl.int64))
    tl.store(out + 3, w3.to(tl.int64))


for counter, key, expected in (
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([MASK_32] * 4, [MASK_32] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
):
    out = torch.empty(4, dtype=torch.int64)
    seed = torch.tensor(key, dtype=torch.uint32).view(torch.int64)
    philox_kernel[(1,)](torch.tensor(counter, dtype=torch.uint32), seed, out)
    assert out.tolist() == expected, out


SEEDS = ((5, 6), ((1 << 63) - 1, (1 << 32) - 1))
for (num_nodes, count), seeds in zip(((1, 1), (2, 1), (31, 31), (33, 32), (170, 51), (1025, 300)), SEEDS * 3):
    expected = reference.draw_nodes(WINDOWS, num_nodes, count, *seeds)
    assert torch.equal(kernel.draw_nodes(WINDOWS, num_nodes, count, *seeds), expected), (num_nodes, count)
# Ids are not looked at on a GPU: of those outside [0, 2^56) the lowest 56 bits count, here as in the reference.
for outside in (WINDOWS - (1 << 56), WINDOWS + (5 << 56)):
    assert torch.equal(kernel.draw_nodes(outside, 1025, 300, *SEEDS[1]), expected), outside
    assert torch.equal(reference.draw_nodes(outside, 1025, 300, *SEEDS[1]), expected), outside
assert kernel.draw_nodes(WINDOWS[:0], 10, 3, 0, 0).shape == (0, 3)

# Two nodes of one window have the same word: the smaller one comes first.
num_nodes = 8600
for window in range(2000):
    ordered = reference.node_words(torch.tensor([window]), num_nodes, 5, 6)[0].sort().values
    equal = (ordered[1:] == ordered[:-1]).nonzero().flatten()
    if equal.numel():
        break
rank = int(equal[0]) + 1
for count in (rank - 1, rank, rank + 1):
    index = torch.tensor([window])
    assert torch.equal(kernel.draw_nodes(index, num_nodes, count, 5, 6), reference.draw_nodes(index, num_nodes, count, 5, 6))

# Weights of every size: tiny, so that keys stop at the largest float; huge, so that they underflow; equal keys. In one block
# and in several.
generator = torch.Generator().manual_seed(0)
rows = torch.stack(
    [
        torch.rand(100, generator=generator) + 0.1,
        torch.rand(100, generator=generator) * 1e-44 + 1e-45,
        torch.full((100,), 3e38),
        torch.exp(20 * torch.randn(100, generator=generator)),
        torch.full((100,), 1e-45),
    ]
)
index = WINDOWS[: len(rows)]
for kernel.BLOCK, count in ((4096, 1), (32, 30), (64, 99)):
    nodes, factors = kernel.draw_nodes_weighted(rows, index, count, 7, 8)
    expected, weights = reference.draw_nodes_weighted(rows, index, count, 7, 8)
    assert torch.equal(nodes, expected), count
    assert torch.equal(factors, weights), count

# Scores in a table of pairs: unknown ones, zeros, equal ones, tiny and huge ones, one large beside subnormal ones.
for storage, num_nodes in (("float32", 100), ("bfloat16", 100), ("int8", 192)):
    scores = torch.exp(3 * torch.randn(9, num_nodes, generator=generator))
    scores[torch.rand(9, num_nodes, generator=generator) < 0.2] = torch.inf
    scores[3], scores[4], scores[5, 0], scores[5, 1:], scores[6] = torch.inf, 0.0, 1.0, 1e-42, 2.5
    scores[7] *= 1e-43
    scores[8] *= 1e30
    table = PairTable(9, num_nodes, storage=storage)
    table.update(torch.arange(9), torch.arange(num_nodes).expand(9, -1), scores)
    index = torch.randperm(9, generator=generator)
    for kernel.BLOCK, count, floor in ((4096, 30, 0.25), (64, 99, 1e-30)):
        found = kernel.draw_nodes_by_score(*table.columns, index, num_nodes, count, floor, 7, 8)
        expected = reference.draw_nodes_by_score(*table.columns, index, num_nodes, count, floor, 7, 8)
        assert torch.equal(found[0], expected[0]), (storage, count)
        assert torch.equal(found[1], expected[1]), (storage, count)

# Pairs that are kept: windows that come twice in a batch, that came before, ids outside of the table; in one block, in several.
pairs = load("keep_pairs")
for pairs.BLOCK_OTHER, pairs.BLOCK_NODE, count in ((1024, 1024, 7), (4, 128, 150)):
    ours = torch.zeros(9, count, dtype=torch.int32), torch.zeros(9, count), torch.zeros(9, dtype=torch.bool)
    theirs = [x.clone() for x in ours]
    for ids in ([1, 3, 1, 6, 1, 1], [9, -1, 6, 2**40, 6, -(2**62), 0], [-3, 9], [1, 4], []):
        index = torch.tensor(ids, dtype=torch.int64)
        node = torch.randint(5000, (len(ids), count), generator=generator)
        batch = index, node, torch.rand(node.shape, generator=generator)
        pairs.keep_pairs(*batch, *ours)
        keep_pairs.keep_pairs(*batch, *theirs)
        assert all(map(torch.equal, ours, theirs)), ids
    assert theirs[2].nonzero().flatten().tolist() == [0, 1, 3, 4, 6]
print("ok")
"""

# The interpreter leaves assertions out unless it is told.
ASSERTED = """
import torch
from triton.runtime import interpreter
from triton_kernels import load

interpreter.interpreter_builder.options = interpreter.InterpreterOptions(debug=True, sanitize_overflow=False)
interpreter.InterpreterBuilder.create_assert = lambda self, condition, message: bool(condition) or print(message)
for index in (0, 8, 9, -1):
    load("draw_nodes").draw_nodes_by_score(torch.ones(9, 5), torch.empty(0), torch.tensor([index]), 5, 2, 0.25, 7, 8)
"""


@needs_triton
def test_an_id_outside_the_table_stops_the_device_with_its_name() -> None:
    said = run(ASSERTED, TRITON_INTERPRET="1").splitlines()
    assert said == ["Priority.draw: index must lie in [0, number of windows - 1]"] * 2


COMPILED = """
from triton_kernels import assembly, load

kernel = load("draw_nodes")
TYPES = {"index": "*i64", "keys": "*u32", "nodes": "*i64", "factors": "*fp32", "seed": "i64", "epoch": "i64"}
TYPES |= {"scale": "*fp32", "floor": "fp32", "rest": "fp32"}
for by, given, capabilities in (
    (kernel.UNIFORM, "*i64", (90,)),
    (kernel.WEIGHTS, "*fp32", (90,)),
    (kernel.SCORES, "*fp32", (90,)),
    (kernel.SCORES, "*bf16", (80, 90, 100)),
    (kernel.LEVELS, "*u8", (80, 90, 100)),
):
    constants = {"BY": by.value, "BLOCK": kernel.BLOCK}
    options = {"num_warps": kernel.warps_of(kernel.BLOCK), "capabilities": capabilities, **kernel.OPTIONS}
    for text in assembly(kernel._draw_nodes_kernel, {**TYPES, "given": given}, constants, **options):
        assert by == kernel.UNIFORM or "div.rn.f32" in text and "div.rn.f64" in text
        assert "div.full.f32" not in text and ".ftz" not in text, "an approximate division or a flushed subnormal"
        assert "fma.rn.f32" not in text, "a product and a sum were rounded once"
kernel = load("keep_pairs")
TYPES = {"index": "*i64", "node": "*i64", "scores": "*fp32", "kept_node": "*i32", "kept_score": "*fp32", "fresh": "*i1"}
assembly(kernel._keep_pairs_kernel, TYPES, {"BLOCK_OTHER": 1024, "BLOCK_NODE": 1024}, num_warps=4)
"""


@needs_triton
def test_matches_reference_in_the_interpreter() -> None:
    assert run(INTERPRETED, TRITON_INTERPRET="1").strip() == "ok"


@needs_triton
def test_compiles_ahead_of_time(tmp_path: pathlib.Path) -> None:
    assert len(run(COMPILED, TRITON_CACHE_DIR=str(tmp_path)).splitlines()) == 12


class OnGpu(torch.Tensor):
    """A tensor that says it lives on a GPU; its memory is the host's."""

    is_cuda = True


@pytest.mark.parametrize("weighted", [False, True])
def test_a_gpu_takes_the_kernel_where_places_fit_into_32_bits(monkeypatch: pytest.MonkeyPatch, weighted: bool) -> None:
    module = importlib.import_module("stprune.ops.draw_nodes")
    op, route = (module._draw_nodes_weighted, "_weighted_by_triton") if weighted else (module._draw_nodes, "_by_triton")
    monkeypatch.setattr(module, "_MOST_NODES", 100)
    monkeypatch.setattr(module, route, lambda *arguments: "kernel")

    def drawn(index, num_nodes):
        return op(torch.ones(3, num_nodes), index, 5, 1, 2) if weighted else op(index, num_nodes, 5, 1, 2)

    index = torch.arange(3).as_subclass(OnGpu)
    assert drawn(index, 100) == "kernel"
    assert drawn(index, 101) != "kernel"
    assert drawn(torch.arange(3), 100) != "kernel"
