"""What only a GPU has: many items, streams, graphs, errors on the device, memory that runs out.

tests/test_ops.py compares every op on a GPU with its reference, and tests/test_cuda_host.py runs the
kernels' logic without one.
"""

import itertools
import subprocess
import sys

import pytest
import torch
from named_inputs import probabilities, weights_of

import stprune
from stprune import testing
from stprune.ops import draw_threshold
from stprune.ops._registry import kernel_module
from stprune.ops.budget import inclusion_budget
from stprune.ops.draw_nodes import _MOST_NODES
from stprune.ops.finite_mean import finite_stats
from stprune.reference import draw_nodes as reference_nodes
from stprune.reference import order as reference_order
from stprune.reference.random import DRAW, WEIGHTED, words, words_at

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

CUDA = torch.device("cuda")
DTYPES = (torch.float32, torch.float64)
OPS = torch.ops.stprune


def same(got, expected):
    assert got.is_cuda
    testing.assert_same(got.cpu(), expected)


def test_the_library_is_in_use():
    """Without it the tests on a GPU would compare the references with themselves."""
    status = stprune.library_status()["_C_cuda"]
    assert status.loaded, status.reason


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_select_of_many(dtype):
    n = 5_000_011
    keys = testing.named_keys("normal", n, dtype)
    keys[1_000_000:2_000_000] = 0.5
    keys[::1001] = float("nan")
    order = reference_order.descending_order(keys)
    on_device = keys.to(CUDA)
    for k in (1, 1000, 4995, 5000, n // 10, 1_500_000, 2_000_000, 2_400_000, n // 2, n - 1):
        same(stprune.select(on_device, k), order[:k].sort().values)
    same(stprune.topk(on_device, 200_000).indices, order[:200_000])
    rising = torch.arange(n, dtype=dtype, device=CUDA)
    same(stprune.select(rising, 70_000), torch.arange(n - 70_000, n))


def test_more_keys_than_32_bits_can_count():
    n = (1 << 31) + 10_001
    if torch.cuda.get_device_properties(CUDA).total_memory < 24 << 30:
        pytest.skip("needs 24 GiB of GPU memory")
    keys = torch.zeros(n, device=CUDA)
    keys[-1000:] = torch.arange(1, 1001, device=CUDA).float()
    same(stprune.select(keys, 500), torch.arange(n - 500, n))
    same(stprune.topk(keys, 3).indices, torch.arange(n - 1, n - 4, -1))
    chosen = stprune.select(keys, 2000)
    same(chosen, torch.cat([torch.arange(1000), torch.arange(n - 1000, n)]))


def test_draw_of_more_items_than_a_float_can_count():
    n = (1 << 24) + 100_003
    p = torch.full((n,), 2.0**-10, device=CUDA)
    kept = stprune.draw(p, seed=6, epoch=1).cpu()
    start = 1 << 24
    tail = words(n - start, seed=6, epoch=1, stream=DRAW, start=start)
    assert torch.equal(kept[kept >= start], (tail < 1 << 22).nonzero().flatten() + start)
    count = round(n * 2.0**-10)
    kept = stprune.draw(p, seed=6, epoch=1, count=count).cpu()
    assert kept.numel() == count
    assert bool((kept.diff() > 0).all())
    assert int((torch.bincount(kept >> 20, minlength=17)[:16] - 1024).abs().max()) <= 1


def test_draw_weighted_of_more_items_than_torch_multinomial_takes():
    n = (1 << 24) + 300_000
    w = torch.zeros(n)
    some = torch.arange((1 << 24) - 2000, n, 7)
    w[some] = torch.rand(some.numel(), generator=torch.Generator().manual_seed(1)) + 0.1
    indices, weights = stprune.draw_weighted(w.to(CUDA), 1000, seed=3, epoch=4)
    keys = (words_at(some, seed=3, epoch=4, stream=WEIGHTED).float() + 0.5) * 2.0**-32 / w[some]
    order = torch.sort(keys, stable=True)
    expected = some[order.indices[:1000]].sort().values
    same(indices, expected)
    same(weights, (1 / order.values[1000].double() / w[expected].double()).clamp(min=1).float())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_inclusion_budget_of_many(dtype):
    n = 3_000_001
    scores = torch.randn(n, generator=torch.Generator().manual_seed(31), dtype=dtype).exp()
    scores[::7] = torch.inf
    for alpha, ratio in ((0.5, 0.3), (1.0, 0.9), (0.0, 0.5)):
        settings = {"alpha": alpha, "count": float(round(ratio * n)), "minimum": ratio / 5}
        same(inclusion_budget(scores.to(CUDA), **settings), inclusion_budget(scores, **settings))


@pytest.mark.parametrize("exact", [False, True], ids=["each", "exact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_draw_threshold_of_many(dtype, exact):
    n, generator = 3_000_001, torch.Generator().manual_seed(31)
    scores = torch.randn(n, generator=generator).exp()
    scores[torch.rand(n, generator=generator) < 0.01] = torch.nan
    scores[torch.rand(n, generator=generator) < 0.01] = torch.inf
    scores = scores.to(dtype)
    assert finite_stats(scores.to(CUDA)) == finite_stats(scores)
    out = torch.empty(n, dtype=torch.int64, device=CUDA), torch.empty(n, device=CUDA)
    for keep in (0.5, 1.0):
        settings = {"seed": 5, "epoch": 6, "exact_count": exact}
        expected = draw_threshold(scores, keep, **settings)
        for got in (
            draw_threshold(scores.to(CUDA), keep, **settings),
            draw_threshold(scores.to(CUDA), keep, **settings, out=out),
        ):
            same(got[0], expected[0])
            same(got[1], expected[1])


def test_a_plan_is_the_same_on_both_devices():
    scores = torch.randn(100_000, generator=torch.Generator().manual_seed(1)).exp()
    strata = torch.arange(100_000) % 24
    for method, labels in itertools.product(("st-prune", "infobatch", "soft-random", "rs2", "top-k", "spaced"), (None, strata)):
        settings = {"method": method, "keep_ratio": 0.5, "epoch": 1, "seed": 0, "strata": labels}
        plans = [stprune.plan_epoch(s, **settings) for s in (scores.to(CUDA), scores)]
        same(plans[0].indices, plans[1].indices)
        same(plans[0].weights, plans[1].weights)


@pytest.mark.parametrize("num_nodes", [1, 63, 716, 8600, 16_384, 16_385])
def test_draw_nodes_by_the_triton_kernel(num_nodes):
    """Which draws by weights always, and uniformly where the library was not compiled."""
    kernel = kernel_module("draw_nodes")
    if kernel is None:
        pytest.skip("triton is not installed")
    index, count = torch.tensor([0, (1 << 32) - 1, (1 << 56) - 1, *range(20)]), -(-num_nodes // 3)
    if num_nodes <= _MOST_NODES:
        same(
            kernel.draw_nodes(index.to(CUDA), num_nodes, count, 5, 6), reference_nodes.draw_nodes(index, num_nodes, count, 5, 6)
        )
    weights = torch.exp(9 * torch.randn(len(index), num_nodes, generator=torch.Generator().manual_seed(0)))
    for kept in {count, num_nodes}:
        nodes, factors = stprune.draw_nodes_weighted(weights.to(CUDA), index.to(CUDA), count=kept, seed=5, epoch=6)
        expected, expected_factors = reference_nodes.draw_nodes_weighted(weights, index, kept, 5, 6)
        same(nodes, expected)
        same(factors, expected_factors)


def test_a_node_out_of_range_stops_the_device():
    """In a process of its own: the device's assertion ends its context."""
    program = (
        "import torch, stprune\n"
        "x = torch.rand(1, 1, 5, 1, device='cuda')\n"
        "stprune.gather_nodes(x, torch.tensor([[0, 5]], device='cuda'))\n"
        "torch.cuda.synchronize()\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "index < num_nodes" in result.stderr + result.stdout


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_runs_repeat(dtype):
    keys = testing.named_keys("tie_at_k", 1_000_003, dtype).to(CUDA)
    first = stprune.select(keys, 400_000)
    for _ in range(20):
        assert torch.equal(stprune.select(keys, 400_000), first)


def jobs():
    """Ops whose sizes do not depend on data, with two inputs each."""
    p = probabilities("mixed", 50_000, torch.float64)
    count = round(float(p.sum()))
    other = p.flip(0).contiguous()
    keys, more = (testing.named_keys(name, 50_000) for name in ("normal", "tie_at_k"))
    w = weights_of("lognormal", 50_000)
    ids = torch.arange(50_000)
    index = torch.arange(64)
    return {
        "select": (lambda x: OPS.select(x, 20_000, None)[0], keys, more),
        "topk": (lambda x: OPS.topk(x, 20_000, True, None, None)[1], keys, more),
        "draw": (lambda x: OPS.draw(x, count, 1, 2, None)[0], p, other),
        "draw_weighted": (lambda x: OPS.draw_weighted(x, 20_000, 1, 2, False, None, None)[1], w, w.flip(0).contiguous()),
        "check_range": (lambda x: OPS.check_range(x, 1.0, True), p, other),
        "shuffle": (lambda x: OPS.shuffle(x, 1, 2, None)[0], ids, ids.flip(0).contiguous()),
        "draw_nodes": (lambda x: OPS.draw_nodes(x, 170, 50, 1, 2), index, index + 100),
    }


@pytest.mark.parametrize("name", list(jobs()) if torch.cuda.is_available() else ["select"])
def test_captured_graphs_follow_their_input(name):
    """A capture fails when an op waits for the device; a replay on other data shows that nothing was decided before."""
    job, first, second = jobs()[name]
    static = first.to(CUDA)
    job(static)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = job(static)
    for data in (first, second, first):
        static.copy_(data)
        graph.replay()
        same(out, job(data))


def test_ops_run_on_the_current_stream():
    keys = testing.named_keys("normal", 3_000_000)
    expected = reference_order.select(keys, 1_000_000)
    stream = torch.cuda.Stream()
    source = keys.to(CUDA)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        # Half a second of work in front: an op on another stream would read what is not there yet.
        late = torch.empty_like(source)
        torch.cuda._sleep(500_000_000)
        late.copy_(source)
        got = stprune.select(late, 1_000_000)
    stream.synchronize()
    same(got, expected)


def test_errors_on_the_device():
    p = torch.full((10,), 0.5, device=CUDA)
    p[7] = float("nan")
    with pytest.raises(ValueError, match=r"probability must lie in \[0, 1\], got nan at index 7"):
        stprune.draw(p, seed=0, epoch=0)
    with pytest.raises(ValueError, match=r"weights must be at least 0, got nan at index 7"):
        stprune.draw_weighted(p, 2, seed=0, epoch=0)
    with pytest.raises(ValueError, match=r"k must lie in \[0, 10\], got 11"):
        stprune.select(p, 11)
    with pytest.raises(RuntimeError, match=r"k must lie in \[0, 10\], got 11"):
        OPS.select(p, 11, None)


def test_failed_allocation_changes_nothing():
    keys = testing.named_keys("normal", 40_000_000).to(CUDA)
    before = keys.clone()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(CUDA).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (4 << 20)) / total)
    try:
        with pytest.raises(RuntimeError):
            stprune.select(keys, 20_000_000)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert torch.equal(keys, before)
    assert stprune.select(keys, 20_000_000).numel() == 20_000_000
