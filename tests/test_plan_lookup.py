"""plan_lookup: weights of ids, whatever lies between the kept ids."""

import pytest
import torch

from stprune.ops.plan_lookup import plan_lookup
from stprune.reference import plan_lookup as reference


def kept(kind, n=5000):
    g = torch.Generator().manual_seed(0)
    if kind == "even":
        return torch.arange(0, 2 * n, 2)
    if kind == "random":
        return torch.randperm(4 * n, generator=g)[:n].sort().values
    if kind == "clumped":  # interpolation guesses badly
        return torch.cat([torch.arange(n // 2), torch.tensor([2**40]), 2**61 + torch.arange(n // 2)])
    return torch.tensor([7])


@pytest.mark.parametrize("kind", ["even", "random", "clumped", "one"])
@pytest.mark.parametrize("mean", [None, 1.7])
def test_matches_reference(kind, mean):
    indices = kept(kind)
    weights = torch.rand(indices.numel(), generator=torch.Generator().manual_seed(1))
    index = indices[torch.randperm(indices.numel(), generator=torch.Generator().manual_seed(2))]
    mean = None if mean is None else torch.tensor(mean)
    expected = reference.plan_lookup(index, indices, weights, False, mean)
    assert torch.equal(plan_lookup(index, indices, weights, full=False, mean_weight=mean), expected)


@pytest.mark.parametrize("kind", ["even", "random", "clumped", "one"])
def test_unknown_ids_are_refused(kind):
    indices = kept(kind)
    weights = torch.ones(indices.numel())
    known = set(indices.tolist())
    probes = {-1, -(2**62), 2**62, *(i + d for i in indices[::97].tolist() for d in (-1, 1))} - known
    for bad in probes:
        with pytest.raises(RuntimeError, match=f"plan_lookup: index must hold ids of the plan, got {bad}"):
            plan_lookup(torch.tensor([int(indices[0]), bad]), indices, weights, full=False)


def test_a_full_plan_needs_no_search():
    weights = torch.ones(1).expand(10)
    assert torch.equal(plan_lookup(torch.tensor([9, 0]), torch.arange(10), weights, full=True), torch.ones(2))
    for bad in (-1, 10):
        with pytest.raises(RuntimeError, match=f"got {bad}"):
            plan_lookup(torch.tensor([bad]), torch.arange(10), weights, full=True)


def test_empty():
    none = torch.zeros(0, dtype=torch.int64)
    assert plan_lookup(none, torch.arange(3), torch.ones(3), full=True).shape == (0,)
    assert plan_lookup(none, none, torch.ones(0), full=False).shape == (0,)
    with pytest.raises(RuntimeError, match="got 0"):
        plan_lookup(torch.tensor([0]), none, torch.ones(0), full=False)


def test_opcheck():
    arguments = (torch.tensor([7, 2]), torch.tensor([2, 5, 7]), torch.rand(3), False, torch.tensor(1.5))
    torch.library.opcheck(torch.ops.stprune.plan_lookup.default, arguments)
