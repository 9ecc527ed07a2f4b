"""What only a GPU has: many items, streams, graphs, errors on the device, memory that runs out.

tests/test_ops.py compares every op on a GPU with its reference, and tests/test_cuda_host.py runs the
kernels' logic without one.
"""

import itertools
import subprocess
import sys

import pytest
import torch
from costly_inputs import costly_inputs
from engine_cases import flat, kernel, on
from graph_jobs import JOBS

import stprune
from stprune import testing
from stprune.ops import draw_threshold
from stprune.ops._registry import kernel_module
from stprune.ops.budget import inclusion_budget
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


@pytest.mark.parametrize("name", [name for name, *_ in costly_inputs(1 << 17)])
def test_costly_inputs_of_many(name):
    """What no shortcut helps with at 10^8 scores: the passes over all of them take the whole device."""
    op, arguments = next((op, arguments) for found, op, arguments in costly_inputs(10**8) if found == name)
    run = kernel(op)
    expected = run(*arguments)
    for one, other in zip(flat(run(*on(CUDA, arguments))), flat(expected), strict=True):
        testing.assert_same(one.cpu(), other)


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
    for method, labels in itertools.product(
        ("st-prune", "infobatch", "soft-random", "rs2", "top-k", "spaced", "seta"), (None, strata)
    ):
        settings = {"method": method, "keep_ratio": 0.5, "epoch": 1, "seed": 0, "strata": labels}
        plans = [stprune.plan_epoch(s, **settings) for s in (scores.to(CUDA), scores)]
        same(plans[0].indices, plans[1].indices)
        same(plans[0].weights, plans[1].weights)


@pytest.mark.parametrize("num_nodes", [1, 63, 716, 8600, 16_385])
def test_draw_nodes_by_the_triton_kernel(num_nodes):
    """Which draws by weights always, and uniformly where the library was not compiled."""
    kernel = kernel_module("draw_nodes")
    if kernel is None:
        pytest.skip("triton is not installed")
    index, count = torch.tensor([0, (1 << 32) - 1, (1 << 56) - 1, *range(20)]), -(-num_nodes // 3)
    expected = reference_nodes.draw_nodes(index, num_nodes, count, 5, 6)
    same(kernel.draw_nodes(index.to(CUDA), num_nodes, count, 5, 6), expected)
    weights = torch.exp(9 * torch.randn(len(index), num_nodes, generator=torch.Generator().manual_seed(0)))
    for kept in {count, num_nodes}:
        nodes, factors = stprune.draw_nodes_weighted(weights.to(CUDA), index.to(CUDA), count=kept, seed=5, epoch=6)
        expected, expected_factors = reference_nodes.draw_nodes_weighted(weights, index, kept, 5, 6)
        same(nodes, expected)
        same(factors, expected_factors)


# Each in a process of its own: the device's assertion ends its context.
WRONG = {
    "stprune.gather_nodes(x, torch.tensor([[0, 5]]))": "gather_nodes: node must lie in [0, ",
    "stprune.gather_windows(x[0], start + 7, history=1, horizon=1)": "gather_windows: start must lie in [0, ",
    "stprune.gather_windows(x[0], start, node=start[None] - 1, history=1, horizon=1)": "gather_windows: node must lie in [0, ",
    "stprune.Priority().bind(num_windows=9, num_nodes=5, count=2, seed=0).draw(start + 9, 0)": "Priority.draw: index must",
}


@pytest.mark.parametrize("call", WRONG)
def test_an_id_out_of_range_stops_the_device_with_its_name(call):
    setup = "import torch, stprune; torch.set_default_device('cuda'); x, start = torch.rand(1, 8, 5, 1), torch.tensor([0])"
    program = f"{setup}\n{call}\ntorch.cuda.synchronize()\n"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert WRONG[call] in result.stderr + result.stdout


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_runs_repeat(dtype):
    keys = testing.named_keys("tie_at_k", 1_000_003, dtype).to(CUDA)
    first = stprune.select(keys, 400_000)
    for _ in range(20):
        assert torch.equal(stprune.select(keys, 400_000), first)


@pytest.mark.parametrize("name", JOBS)
def test_captured_graphs_follow_their_input(name):
    """A capture fails when an op waits for the device; a replay on other data shows that nothing was decided before.

    tests/test_loss_triton.py does so with a whole step of training.
    """
    make, first, second = JOBS[name]
    job, static = make(CUDA), first.to(CUDA)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        job(static)  # compiles the kernels of Triton, puts settings on the device
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = job(static)
    for data in (first, second, first):
        static.copy_(data)
        graph.replay()
        same(out.clone(), job(data.to(CUDA)).cpu())


@pytest.mark.parametrize("name", ["draw_nodes", "draw_nodes_weighted", "gather_nodes", "gather_windows", "residual_stats"])
def test_same_bits_under_torch_compile(name):
    make, _, given = JOBS[name]
    job, on_device = make(CUDA), given.to(CUDA)
    torch._dynamo.reset()
    same(torch.compile(job, backend="aot_eager", fullgraph=True)(on_device), job(on_device).cpu())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs")
@pytest.mark.parametrize("name", JOBS)
def test_two_devices_in_one_process(name):
    """What is on the second device is computed there, while the first one stays the current one."""
    make, first, second = JOBS[name]
    for given in (first, second):
        results = [make(device)(given.to(device)) for device in (torch.device("cuda:0"), torch.device("cuda:1"))]
        assert [result.device.index for result in results] == [0, 1]
        same(results[1], results[0].cpu())
        assert torch.cuda.current_device() == 0


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs")
def test_a_step_of_training_on_the_second_device():
    results = []
    for device in ("cuda:0", "cuda:1"):
        generator = torch.Generator().manual_seed(0)
        sampler = stprune.PruningSampler(64, num_epochs=2).to(device)
        prediction, target = (torch.randn(8, 12, 170, generator=generator).to(device) for _ in range(2))
        prediction.requires_grad_()
        loss = stprune.PrunedLoss(sampler, null_value=0.0)(prediction, target, torch.arange(8).to(device))
        loss.backward()
        assert loss.device == torch.device(device)
        assert torch.cuda.current_device() == 0
        results.append([x.detach().cpu() for x in (loss, prediction.grad, sampler.table.scores)])
    for a, b in zip(*results, strict=True):
        testing.assert_same(a, b)


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
    with pytest.raises(RuntimeError, match=r"select: out must be on the device of the input"):
        OPS.select(p, 3, torch.empty(3, dtype=torch.int64))
    with pytest.raises(RuntimeError, match=r"calibrate: indices must be on the device of its data"):
        OPS.calibrate(p, torch.arange(10), torch.zeros(10, dtype=torch.uint8), torch.tensor([10]))


@pytest.mark.parametrize("name", JOBS)
def test_views_lie_anywhere(name):
    """x[1:] of float32 is aligned to 4 bytes only."""
    make, given, _ = JOBS[name]
    moved = torch.empty(given.numel() + 1, dtype=given.dtype, device=CUDA)[1:].view(given.shape).copy_(given)
    job = make(CUDA)
    same(job(moved), job(given.to(CUDA)).cpu())


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
