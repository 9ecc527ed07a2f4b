"""Drawn nodes that a loop must hand on, and node_ratio="auto": a choice that never comes, and states around it."""

import copy
import importlib
import warnings

import pytest
import torch

import stprune

N, W = 6, 8


def sampler(node_ratio="auto", **settings):
    return stprune.PruningSampler(W, num_epochs=6, method="full", num_nodes=N, node_ratio=node_ratio, **settings)


def batch(nodes):
    return torch.zeros(2, 3, nodes, requires_grad=True), torch.ones(2, 3, nodes), torch.tensor([0, 5])


# --- a criterion needs the drawn nodes -------------------------------------------------------------------------------


@pytest.mark.parametrize("node_sampler", ["uniform", "priority", stprune.Stratified(torch.arange(N) // 3)])
@pytest.mark.parametrize("kind", ["PrunedLoss", "PrunedMean"])
def test_a_loss_without_the_drawn_nodes_is_refused_in_training_only(kind, node_sampler):
    own = sampler(0.5, node_sampler=node_sampler)
    criterion = getattr(stprune, kind)(own)
    prediction, target, index = batch(3)

    def loss(*more):
        if kind == "PrunedLoss":
            return criterion(prediction, target, *more)
        return criterion((prediction - target).abs().mean(1), *more)

    words = rf"{kind}: node must be given in training where the sampler draws nodes \(node_ratio 0.5\), got None"
    with pytest.raises(TypeError, match=words):
        loss(index)
    assert own.state_dict()["position"] == 0
    assert bool(own.table.scores.isinf().all())
    loss(index, own.nodes(index)).backward()
    with torch.no_grad():
        assert loss(index) == loss() == 1.0
    criterion.eval()
    assert loss() == 1.0


@pytest.mark.parametrize(
    "own",
    [
        stprune.PruningSampler(W, num_epochs=1),
        stprune.PruningSampler(W, num_epochs=1, num_nodes=N),
        stprune.PruningSampler(W, num_epochs=1, num_nodes=N, granularity="window"),
        stprune.PruningSampler(W, num_epochs=1, num_nodes=N, granularity="pair"),
        stprune.PruningSampler(W, num_epochs=1, num_nodes=N, node_ratio=0.99),
        sampler(),
    ],
    ids=["no nodes", "ratio 1", "windows", "pairs", "all nodes by rounding up", "auto before its choice"],
)
def test_a_loss_of_all_nodes_or_of_pairs_needs_no_nodes(own):
    prediction, target, index = batch(1 if own.granularity == "pair" else N)
    assert stprune.PrunedLoss(own)(prediction, target, index) == 1.0


def test_a_loop_of_all_nodes_is_told_when_the_choice_comes():
    own = sampler()
    criterion = stprune.PrunedLoss(own)
    criterion(*batch(N)).backward()
    own.draw_next(2)
    with pytest.warns(RuntimeWarning, match="6 were left out"):
        own.set_epoch(1)
    with pytest.raises(TypeError, match=r"node must be given in training where the sampler draws nodes \(node_ratio 0.333\)"):
        criterion(*batch(N))


def test_a_sampler_shows_its_nodes():
    assert "granularity='node', num_nodes=6, node_ratio=0.5," in repr(sampler(0.5))
    pairs = stprune.PruningSampler(W, num_epochs=1, num_nodes=N, granularity="pair")
    assert "granularity='pair', num_nodes=6, rank" in repr(pairs)
    assert "keep_ratio=0.5, rank" in repr(stprune.PruningSampler(W, num_epochs=1))
    own = sampler()
    assert "node_ratio=auto, now 1," in repr(own)
    own.draw_next(3)
    own.set_epoch(1)
    assert "node_ratio=auto, now 0.5," in repr(own)


# --- "auto" without a choice -----------------------------------------------------------------------------------------

UNTOLD = r"node_ratio='auto' draws all 6 nodes of every window, as nobody has said how many"


def test_a_choice_that_never_comes_is_told_once_in_the_second_epoch():
    own = sampler()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own.set_epoch(0)
        list(own)
        own.set_epoch(0)
    with pytest.warns(RuntimeWarning, match=UNTOLD):
        own.set_epoch(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own.set_epoch(2)
        own.finish()


def test_a_choice_that_never_comes_in_a_run_of_one_epoch_is_told_at_its_end():
    own = stprune.PruningSampler(W, num_epochs=1, method="full", num_nodes=N, node_ratio="auto")
    own.set_epoch(0)
    with pytest.warns(RuntimeWarning, match=UNTOLD):
        own.finish()


@pytest.mark.parametrize("chosen", [3, N])
def test_a_choice_is_a_choice_also_of_all_nodes(chosen):
    own = sampler()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own.set_epoch(0)
        own.draw_next(chosen)
        own.set_epoch(1)
        own.set_epoch(2)
        own.finish()
        sampler(0.5).finish()
        sampler().finish()  # never used


# --- states of "auto" ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "began", "now", "then"), [(None, False, N, N), (3, False, N, 3), (3, True, 3, 3), (N, True, N, N)]
)
def test_a_state_goes_on_before_and_after_the_choice(told, began, now, then):
    own = sampler(node_sampler=stprune.Stratified(torch.arange(N) // 2))
    own.set_epoch(0)
    if told:
        own.draw_next(told)
    if began:
        own.set_epoch(1)
    again = sampler(node_sampler=stprune.Stratified(torch.arange(N) // 2))
    again.load_state_dict(copy.deepcopy(own.state_dict()))
    index = torch.arange(W)
    assert torch.equal(own.nodes(index), again.nodes(index))
    assert again.nodes(index).shape[1] == now
    for each in (own, again):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            each.set_epoch(2)
        assert len(found) == (told is None)
    assert torch.equal(own.nodes(index), again.nodes(index))
    assert again.nodes(index).shape[1] == then


def test_a_state_takes_an_earlier_choice_back():
    own, other = sampler(), sampler()
    own.draw_next(2)
    own.set_epoch(1)
    other.set_epoch(1)
    own.load_state_dict(other.state_dict())
    assert own.nodes(torch.arange(2)).shape[1] == N
    with pytest.warns(RuntimeWarning, match=UNTOLD):
        own.set_epoch(2)


def test_states_of_auto_and_of_a_number_do_not_fit_each_other():
    own, number = sampler(), sampler(0.5)
    own.draw_next(3)
    own.set_epoch(1)
    before = number.nodes(torch.arange(2))
    with pytest.raises(ValueError, match="node_ratio must be 0.5 as in this sampler, got 'auto'"):
        number.load_state_dict(own.state_dict())
    with pytest.raises(ValueError, match="node_ratio must be 'auto' as in this sampler, got 0.5"):
        own.load_state_dict(number.state_dict())
    assert own.nodes(torch.arange(2)).shape[1] == 3
    assert torch.equal(number.nodes(torch.arange(2)), before)


def test_more_groups_than_the_next_epoch_was_to_draw():
    own = sampler(node_sampler=stprune.Stratified(torch.arange(N) // 3))
    own.draw_next(2)
    own.grow_nodes(8, groups=torch.arange(8) // 2)
    own.set_epoch(1)
    assert own.nodes(torch.arange(2)).shape[1] == 4


@pytest.mark.parametrize(("groups", "drawn"), [(1, 2), (4, 4)])
def test_headroom_chooses_no_fewer_nodes_than_there_are_groups(monkeypatch, groups, drawn):
    measure = importlib.import_module("stprune.headroom.measure")
    monkeypatch.setattr(measure, "pays", lambda choice: True)
    monkeypatch.setattr(stprune.Headroom, "nodes_for", lambda found, batch_size: 2)
    x = torch.rand(16, 12, N, 3, generator=torch.Generator().manual_seed(0))
    own = sampler(node_sampler=stprune.Stratified(torch.arange(N) % groups))
    model = stprune.models.STID(N, steps_per_day=24, dim=2)
    stprune.headroom(model, [(x, x[..., :1])], seconds=0.3, num_windows=8, sampler=own)
    own.set_epoch(1)
    assert own.nodes(torch.arange(2)).shape[1] == drawn
