"""Every op of the selection engine on a GPU against its reference, bit for bit; streams, graphs, errors.

The references run on the CPU: they share no code with the kernels. tests/test_cuda_host.py runs the same kernels' logic
without a GPU.
"""

import itertools
import subprocess
import sys

import pytest
import torch
from named_inputs import PROBABILITIES, WEIGHTS, probabilities, sample_positions, weights_of, window_with_a_tie

import stprune
from stprune import testing
from stprune.ops import draw_threshold, permute
from stprune.ops.budget import inclusion_budget
from stprune.ops.finite_mean import finite_stats
from stprune.reference import check_range as reference_range
from stprune.reference import draw as reference_draw
from stprune.reference import draw_nodes as reference_nodes
from stprune.reference import draw_weighted as reference_weighted
from stprune.reference import gather_nodes as reference_gather
from stprune.reference import order as reference_order
from stprune.reference import shuffle as reference_shuffle
from stprune.reference.random import DRAW, WEIGHTED, words, words_at

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

CUDA = torch.device("cuda")
DTYPES = (torch.float32, torch.float64)
OPS = torch.ops.stprune
# Around the kernels' blocks: segments of 1,024, chunks of 8,192, samples of 16,384, and a few chunks.
SIZES = (0, 1, 31, 128, 1023, 1025, 4097, 8191, 8193, 16_384, 16_385, 100_003)


def same(got, expected):
    assert got.is_cuda
    testing.assert_same(got.cpu(), expected)


def test_the_library_is_in_use():
    """Without it everything below would test the references against themselves."""
    status = stprune.library_status()["_C_cuda"]
    assert status.loaded, status.reason


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", testing.INPUTS)
def test_select_and_topk(name, dtype):
    for n in SIZES:
        keys = testing.named_keys(name, n, dtype)
        order = reference_order.descending_order(keys)
        on_device = keys.to(CUDA)
        for k in testing.ranks(n):
            ascending = order[:k].sort().values
            same(stprune.select(on_device, k), ascending)
            values, indices = stprune.topk(on_device, k)
            same(indices, order[:k])
            same(values, keys[order[:k]])
            values, indices = stprune.topk(on_device, k, sorted=False)
            same(indices, ascending)
            same(values, keys[ascending])


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


def test_select_when_the_sample_lies():
    n = 300_000
    keys = torch.zeros(n)
    for i, position in enumerate(sample_positions(n)):
        keys[position] = 1.0 + i
    rest = keys == 0
    keys[rest] = -torch.rand(int(rest.sum()), generator=torch.Generator().manual_seed(1))
    for signed in (keys, -keys):
        order = reference_order.descending_order(signed)
        for k in (1, 100, n // 2, n - 5):
            same(stprune.select(signed.to(CUDA), k), order[:k].sort().values)


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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PROBABILITIES)
def test_draw(name, dtype):
    for n in (*SIZES, 300_007):
        p = probabilities(name, n, dtype)
        on_device = p.to(CUDA)
        same(stprune.draw(on_device, seed=5, epoch=2), reference_draw.draw(p, None, 5, 2))
        count = round(float(p.double().sum()))
        same(stprune.draw(on_device, seed=5, epoch=2, count=count), reference_draw.draw(p, count, 5, 2))


def test_draw_rest_in_several_rounds():
    p = 1 - torch.rand(300_000, generator=torch.Generator().manual_seed(5), dtype=torch.float64) ** 8 * 1e-4
    p[::5] = 0.5
    for off in (0.49, -0.49):
        count = round(float(p.sum()))
        p[::5] += (count + off - float(p.sum())) / p[::5].numel()
        same(stprune.draw(p.to(CUDA), seed=3, epoch=1, count=count), reference_draw.draw(p, count, 3, 1))


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


@pytest.mark.parametrize("law", ["priority", "race"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_draw_weighted(name, law):
    for n in (*SIZES, 1_000_003):
        w = weights_of(name, n)
        for k in testing.ranks(int((w > 0).sum())):
            indices, weights = stprune.draw_weighted(w.to(CUDA), k, seed=5, epoch=6, law=law)
            expected_indices, expected_weights = reference_weighted.draw_weighted(w, k, 5, 6, law == "race")
            same(indices, expected_indices)
            if law == "priority":
                same(weights, expected_weights)


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
def test_check_range(dtype):
    p = probabilities("mixed", 100_003, dtype)
    for n in SIZES:
        for total in (False, True):
            same(OPS.check_range(p[:n].to(CUDA), 1.0, total), reference_range.check_range(p[:n], 1.0, total))
    p[[40_000, 77]] = float("nan")
    assert OPS.check_range(p.to(CUDA), 1.0, False).tolist()[:2] == [77, int((p > 0).sum())]


@pytest.mark.parametrize("n", [1, 2, 31, 1000, 1023, 1024, 1025, 4096, 1_000_003])
def test_shuffle_and_permute(n):
    expected = reference_shuffle.shuffle(torch.arange(n), 3, 4)
    same(stprune.shuffle(torch.arange(n, device=CUDA), seed=3, epoch=4), expected)
    same(permute(n, seed=3, epoch=4, device=CUDA), expected)
    same(permute(n, n // 3, n // 2, seed=3, epoch=4, device=CUDA), expected[n // 3 : n // 2])


@pytest.mark.parametrize("dtype", [torch.bool, torch.int16, torch.float32, torch.float64, torch.complex128], ids=str)
def test_shuffle_dtypes(dtype):
    for n in (0, 100, 3000):
        values = (torch.arange(n) % 251).to(dtype)
        same(stprune.shuffle(values.to(CUDA), seed=1, epoch=2), reference_shuffle.shuffle(values, 1, 2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [1, 4097, 20_001, 3_000_001])
def test_inclusion_budget(n, dtype):
    scores = torch.randn(n, generator=torch.Generator().manual_seed(31), dtype=dtype).exp()
    scores[::7] = torch.inf
    for alpha, ratio in ((0.5, 0.3), (1.0, 0.9), (0.0, 0.5)):
        settings = {"alpha": alpha, "count": float(round(ratio * n)), "minimum": ratio / 5}
        same(inclusion_budget(scores.to(CUDA), **settings), inclusion_budget(scores, **settings))


@pytest.mark.parametrize("exact", [False, True], ids=["each", "exact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n", [0, 1, 1500, 8193, 3_000_001])
def test_draw_threshold(n, dtype, exact):
    generator = torch.Generator().manual_seed(31)
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


@pytest.mark.parametrize(
    ("num_nodes", "count"),
    [(1, 1), (2, 1), (63, 10), (64, 64), (65, 64), (716, 214), (8600, 2580), (10_240, 1), (10_241, 5000)],
)
def test_draw_nodes(num_nodes, count):
    index = torch.tensor([0, 1, 63, (1 << 32) - 1, 1 << 32, (1 << 56) - 1, *range(100, 120)])
    got = stprune.draw_nodes(index.to(CUDA), num_nodes=num_nodes, count=count, seed=5, epoch=6)
    same(got, reference_nodes.draw_nodes(index, num_nodes, count, 5, 6))


def test_draw_nodes_with_equal_words():
    window, rank = window_with_a_tie(8600)
    index = torch.tensor([window])
    for count in (rank - 1, rank, rank + 1, rank + 2):
        got = stprune.draw_nodes(index.to(CUDA), num_nodes=8600, count=count, seed=5, epoch=6)
        same(got, reference_nodes.draw_nodes(index, 8600, count, 5, 6))


@pytest.mark.parametrize("num_nodes", [1, 63, 716, 8600, 16_384, 16_385])
def test_draw_nodes_by_the_triton_kernel(num_nodes):
    """Which draws by weights always, and uniformly where the library was not compiled."""
    kernel = pytest.importorskip("stprune.kernels.draw_nodes")
    index, count = torch.tensor([0, (1 << 32) - 1, (1 << 56) - 1, *range(20)]), -(-num_nodes // 3)
    if num_nodes <= kernel.MOST_NODES:
        got = torch.empty((len(index), count), dtype=torch.int64, device=CUDA)
        kernel.draw_nodes(None, index.to(CUDA), num_nodes, 5, 6, got, None)
        same(got, reference_nodes.draw_nodes(index, num_nodes, count, 5, 6))
    weights = torch.exp(9 * torch.randn(len(index), num_nodes, generator=torch.Generator().manual_seed(0)))
    for kept in {count, num_nodes}:
        nodes, factors = stprune.draw_nodes_weighted(weights.to(CUDA), index.to(CUDA), count=kept, seed=5, epoch=6)
        expected, expected_factors = reference_nodes.draw_nodes_weighted(weights, index, kept, 5, 6)
        same(nodes, expected)
        same(factors, expected_factors)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.complex128], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 2, 7, 1), (2, 3, 50, 3), (64, 12, 170, 1), (2, 5, 9, 600)])
def test_gather_nodes(shape, dtype):
    generator = torch.Generator().manual_seed(1)
    series = (torch.rand((shape[0] + shape[1], *shape[2:]), generator=generator) * 250).to(dtype)
    node = torch.randint(shape[2], (shape[0], 30), generator=generator)
    strides = (series.stride(0), *series.stride())
    expected = reference_gather.gather_nodes(series.as_strided(shape, strides), node)
    windows = series.to(CUDA).as_strided(shape, strides)
    same(stprune.gather_nodes(windows, node.to(CUDA)), expected)
    same(stprune.gather_nodes(windows.contiguous(), node.to(CUDA)), expected)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("repeats", [False, True])
def test_gather_nodes_backward(dtype, repeats):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 12, 300, 2, generator=generator).to(dtype)
    if repeats:
        node = torch.randint(30, (4, 100), generator=generator)
    else:
        node = torch.stack([torch.randperm(300, generator=generator)[:100] for _ in range(4)])
    grad = (torch.randn(4, 12, 100, 2, generator=generator) * 3).to(dtype)
    leaf = x.to(CUDA).requires_grad_()
    stprune.gather_nodes(leaf, node.to(CUDA)).backward(grad.to(CUDA))
    same(leaf.grad, reference_gather.gather_nodes_backward(grad, node, 300))


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


def test_strided_and_misaligned_input():
    keys = testing.named_keys("normal", 20_001)
    expected = reference_order.select(keys, 5000)
    strided = torch.empty(40_002, device=CUDA)[::2].copy_(keys)
    shifted = torch.empty(20_002, device=CUDA)[1:].copy_(keys)
    for view in (strided, shifted):
        same(stprune.select(view, 5000), expected)
        same(stprune.topk(view, 5000, sorted=False).indices, expected)


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
        "select": (lambda x: OPS.select(x, 20_000), keys, more),
        "topk": (lambda x: OPS.topk(x, 20_000, True)[1], keys, more),
        "draw": (lambda x: OPS.draw(x, count, 1, 2), p, other),
        "draw_weighted": (lambda x: OPS.draw_weighted(x, 20_000, 1, 2, False)[1], w, w.flip(0).contiguous()),
        "check_range": (lambda x: OPS.check_range(x, 1.0, True), p, other),
        "shuffle": (lambda x: OPS.shuffle(x, 1, 2), ids, ids.flip(0).contiguous()),
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


@pytest.mark.parametrize("name", ["select", "draw", "draw_weighted"])
def test_opcheck(name):
    p = probabilities("uniform", 300, torch.float32).to(CUDA)
    arguments = {"select": (p, 100), "draw": (p, round(float(p.sum())), 1, 2), "draw_weighted": (p, 100, 1, 2, False)}
    torch.library.opcheck(getattr(OPS, name).default, arguments[name])


def test_errors_on_the_device():
    p = torch.full((10,), 0.5, device=CUDA)
    p[7] = float("nan")
    with pytest.raises(ValueError, match=r"probability must lie in \[0, 1\], got nan at index 7"):
        stprune.draw(p, seed=0, epoch=0)
    with pytest.raises(ValueError, match=r"weights must be finite and not negative, got nan at index 7"):
        stprune.draw_weighted(p, 2, seed=0, epoch=0)
    with pytest.raises(ValueError, match=r"k must lie in \[0, 10\], got 11"):
        stprune.select(p, 11)
    with pytest.raises(RuntimeError, match=r"k must lie in \[0, 10\], got 11"):
        OPS.select(p, 11)


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
