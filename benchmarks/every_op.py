"""Every op once, on inputs that reach each of its kernels: what a memory or race checker runs.

python benchmarks/every_op.py cuda
"""

from __future__ import annotations

import sys

import torch

import stprune
from stprune.ops import draw_threshold, permute
from stprune.ops.budget import inclusion_budget


def selection(device: torch.device) -> None:
    """Select, draw, order and plan; sizes around a GPU's segments and samples."""
    generator = torch.Generator().manual_seed(0)
    seed = {"seed": 1, "epoch": 2}
    keys = torch.randn(30_001, generator=generator).abs().to(device)
    ids = torch.arange(5000, device=device)
    p = keys.double() / (keys.max().double() * 2)
    p *= round(float(p.sum())) / float(p.sum())
    count = round(float(p.sum()))
    for some in (keys, torch.ones_like(keys), keys.half(), keys.double()):
        assert len(stprune.select(some, 9000)) == 9000
    assert len(stprune.topk(keys.double(), 5000).indices) == 5000
    stprune.draw(p, **seed)
    assert len(stprune.draw(p, **seed, count=count)) == count
    for law in ("priority", "race"):
        assert len(stprune.draw_weighted(keys, 9000, **seed, law=law)[0]) == 9000
    for some in (ids, ids[:500]):
        assert int(stprune.shuffle(some, **seed).sum()) == int(some.sum())
    assert int(permute(5000, **seed, device=device).sum()) == int(ids.sum())
    assert abs(float(inclusion_budget(keys, alpha=0.5, count=9000.0, minimum=0.06).double().sum()) - 9000) < 0.1
    for exact in (False, True):
        draw_threshold(keys, 0.5, **seed, exact_count=exact)
    for method in ("st-prune", "infobatch", "soft-random"):
        plan = stprune.plan_epoch(
            keys, method=method, keep_ratio=0.5, **seed, strata=torch.arange(len(keys), device=device) % 24
        )
        assert 0 < len(plan.order(0, len(plan))) < len(keys)


def training(device: torch.device) -> None:
    """Nodes, windows, losses with their gradients, and the table's update."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(8, device=device)
    for nodes in (170, 10_300):
        weights = torch.rand(8, nodes, generator=generator).to(device) + 0.1
        stprune.draw_nodes_weighted(weights, ids, count=50, seed=1, epoch=2)
        node = stprune.draw_nodes(ids, num_nodes=nodes, count=50, seed=1, epoch=2)
        x = torch.randn(8, 3, nodes, 2, generator=generator).to(device).requires_grad_()
        stprune.gather_nodes(x, node).sum().backward()
        assert x.grad is not None
        assert int(x.grad.sum()) == 8 * 3 * 50 * 2
        series = torch.randn(100, nodes, generator=generator).to(device)
        stprune.window_stats(series, history=12, horizon=12)
        for share in (1.0, 0.3):
            sampler = stprune.PruningSampler(77, num_epochs=4, num_nodes=nodes, node_ratio=share).to(device)
            criterion = stprune.PrunedLoss(sampler, null_value=0.0)
            loader = stprune.WindowLoader(series, sampler, batch_size=16)
            scale = torch.ones((), device=device, requires_grad=True)
            for epoch in range(2):
                loader.set_epoch(epoch)
                for index, *drawn, x, y in loader:
                    criterion(x * scale, y, index, *drawn).backward()
            assert scale.grad is not None
            assert bool(scale.grad.isfinite())
    table = stprune.ScoreTable(10**6, device=device)
    for batch in (64, 16_384):
        table.update(
            torch.randperm(10**6, generator=generator)[:batch].to(device), torch.rand(batch, generator=generator).to(device)
        )


if __name__ == "__main__":
    device = torch.device(sys.argv[1])
    selection(device)
    training(device)
    if device.type == "cuda":
        torch.cuda.synchronize()
    print(f"every op has run on {device}")
