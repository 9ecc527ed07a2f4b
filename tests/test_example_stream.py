"""examples/stream.py: runs as it says; windows, nodes and slots that come and go keep the gradient unbiased."""

import torch
from example_checks import (
    check_nothing_pruned,
    check_resume,
    check_scores,
    check_table,
    check_unbiased,
    example,
    printed,
)
from torch.utils.data import TensorDataset

import stprune

MODULE = example("stream")
ROWS = ["full", "full, equal steps", "newest only", "uniform replay", "score replay"]
PARTS = list(MODULE.periods(quick=True))
WINDOWS = 60


def network():
    torch.manual_seed(0)
    return stprune.models.STID(8, horizon=3, steps_per_day=24, dim=4, num_layers=1)


def memory_of(slots):
    x, y, _ = PARTS[0]
    return TensorDataset(*(torch.zeros(slots, *a.shape[1:]) for a in (x, y, torch.ones(1))))


def grown(memory, method="st-prune", num_epochs=None, periods=3, **settings):
    """A sampler that has grown with its memory over some periods, as in the example."""
    nodes = PARTS[0][2]
    settings = {"keep_ratio": 0.5, "node_ratio": 0.5, "schedule": "none", **settings}
    observed = stprune.Observed(lambda slots: memory.tensors[1][slots, 0, :nodes].isfinite())
    sampler = stprune.PruningSampler(
        0, num_epochs=num_epochs, num_nodes=nodes, node_sampler=observed, method=method, **settings
    )
    torch.manual_seed(1)
    for x, y, there in PARTS[:periods]:
        slots = MODULE.take(memory, sampler.num_windows, x[:WINDOWS], y[:WINDOWS])
        sampler.grow(max(sampler.num_windows, int(slots.max()) + 1))
        sampler.forget(slots)
        nodes = there
        sampler.grow_nodes(nodes)
    return sampler


def trained(memory, sampler, criterion=None, rate=3e-3, epochs=3, **options):
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), rate)
    criterion = criterion or stprune.PrunedMean(sampler)
    MODULE.train(memory, model, optimizer, sampler, criterion, range(sampler.epoch, epochs), **options)
    return model


def test_the_short_form_prints_its_table():
    check_table(printed(MODULE), ROWS, ("samples", "seconds"))


def test_new_windows_come_first_and_new_nodes_are_drawn():
    memory = memory_of(3 * WINDOWS)
    sampler = grown(memory, periods=1)
    trained(memory, sampler, epochs=2)
    assert torch.isfinite(sampler.table.scores).all()
    MODULE.take(memory, WINDOWS, *(a[:WINDOWS] for a in PARTS[1][:2]))
    sampler.grow(2 * WINDOWS)
    sampler.set_epoch(2)
    assert set(range(WINDOWS, 2 * WINDOWS)) <= set(sampler)
    sampler = grown(memory_of(3 * WINDOWS))
    node = sampler.nodes(torch.arange(3 * WINDOWS))
    assert node.shape[1] == 4
    assert node[:WINDOWS].max() == 3  # nodes of the first period
    assert node[-WINDOWS:].max() == 7


def test_slots_are_used_again_and_forgotten():
    memory = memory_of(2 * WINDOWS)
    sampler = grown(memory, periods=2)
    trained(memory, sampler, epochs=2)
    before = memory.tensors[0].clone()
    slots = MODULE.take(memory, 2 * WINDOWS, *(a[:WINDOWS] for a in PARTS[2][:2]))
    sampler.forget(slots)
    unknown = torch.zeros(2 * WINDOWS, dtype=torch.bool).index_fill(0, slots, True)
    assert unknown.sum() == WINDOWS
    assert torch.equal(sampler.table.scores == torch.inf, unknown)
    assert torch.equal(memory.tensors[0][slots], PARTS[2][0][:WINDOWS])
    assert torch.equal(memory.tensors[0][~unknown], before[~unknown])
    assert torch.equal(memory.tensors[2], torch.where(unknown, 1.0, 2.0))  # an old window stands for two


def test_weights_of_the_memory_count_windows_that_are_gone():
    values, sums = torch.randn(5, 20, generator=torch.Generator().manual_seed(0)) + 1, []
    for seed in range(400):
        torch.manual_seed(seed)
        memory, held = TensorDataset(torch.zeros(60), torch.zeros(60), torch.zeros(60)), 0
        for part in values:
            held = max(held, int(MODULE.take(memory, held, part, part).max()) + 1)
        sums.append((memory.tensors[0] * memory.tensors[2]).sum())
    sums = torch.stack(sums)
    assert abs(sums.mean() - values.sum()) < 4 * sums.std() / len(sums) ** 0.5


def test_nothing_pruned_is_plain_training():
    memory = memory_of(3 * WINDOWS)

    def train(sampler, criterion):
        if not isinstance(sampler, stprune.PruningSampler):
            sampler.nodes = lambda index: torch.arange(8).expand(len(index), 8)
        return trained(memory, sampler, criterion)

    check_nothing_pruned(
        lambda: grown(memory, num_epochs=3, keep_ratio=1.0, node_ratio=1.0),
        train,
        lambda values, index, node, mask, weight: values[mask].mean(),
    )


def test_old_and_new_windows_are_unbiased_and_the_largest_are_not():
    memory = memory_of(2 * WINDOWS)  # the third period takes slots of the first two

    def make(method, epochs):
        return grown(memory, method, epochs, node_ratio=1.0 if method == "full" and epochs == 1 else 0.5)

    model = trained(memory, make("full", 4), epochs=4)
    assert set(memory.tensors[2].tolist()) == {1.0, 2.0}

    def loss_of(sampler, index):
        x, y, weight = memory[index]
        node = sampler.nodes(index)
        values, mask = MODULE.losses(model, x, y, node)
        criterion = stprune.PrunedMean(sampler, rescale="epoch_sum")
        return criterion(values, index, node, mask=mask, weight=weight)

    check_unbiased(make, model, loss_of, good=["st-prune", "soft-random"], bad=["top-k"])


def test_stored_scores_are_those_of_their_slots():
    memory = memory_of(2 * WINDOWS)
    sampler = grown(memory, num_epochs=2, node_ratio=1.0)
    x, y, _ = memory.tensors
    values, mask = MODULE.losses(network(), x, y, sampler.nodes(torch.arange(len(x))))
    check_scores(
        sampler,
        lambda sampler, workers: trained(memory, sampler, rate=0.0, epochs=2, num_workers=workers),
        ((values * mask).sum((1, 2)) / mask.sum((1, 2))).detach(),
    )


def test_a_killed_run_ends_as_the_whole_run():
    memory = memory_of(3 * WINDOWS)

    def start():
        model, sampler = network(), grown(memory)
        return {"model": model, "optimizer": torch.optim.Adam(model.parameters(), 3e-3), "sampler": sampler}

    def train(parts):
        sampler = parts["sampler"]
        MODULE.train(memory, criterion=stprune.PrunedMean(sampler), epochs=range(sampler.epoch, 3), **parts)

    check_resume(start, train, [1, 4, 8])


def test_calibration_knows_no_label_before_its_time():
    forecast, y = torch.randn(2, 40, 3, 5, generator=torch.Generator().manual_seed(0)).unbind()
    found, other = MODULE.calibrated(forecast, y), y.clone()
    other[20:] += 100
    assert torch.equal(MODULE.calibrated(forecast, other)[:23], found[:23])
    assert not torch.equal(MODULE.calibrated(forecast, other)[23], found[23])


def test_calibration_takes_away_a_shift():
    forecast = PARTS[4][1]
    errors = [(guess - forecast - 1.0).abs().mean() for guess in (MODULE.calibrated(forecast, forecast + 1.0), forecast)]
    assert errors[0] < 0.7 * errors[1]
