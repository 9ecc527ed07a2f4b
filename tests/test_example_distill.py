"""examples/distill.py: runs as it says, asks its teacher once a kept sample, and credits every forecast to its own sample."""

import pytest
import torch
from example_checks import (
    check_nothing_pruned,
    check_resume,
    check_scores,
    check_table,
    check_unbiased,
    example,
    printed,
    sampler_of,
)

import stprune

MODULE = example("distill")
COLUMNS = ("samples", "teacher calls", "seconds")


@pytest.fixture(autouse=True)
def synthetic(monkeypatch):
    """The series that is there without the package simbench, so that all machines test the same."""
    monkeypatch.setattr(MODULE.importlib.util, "find_spec", lambda name: None)


@pytest.fixture
def data(synthetic):
    return MODULE.load(7, 4)[0]


def network(seed=0):
    torch.manual_seed(seed)
    return stprune.models.STID(4, horizon=24, steps_per_day=96, dim=4, num_layers=1)


def teacher_of(data, **options):
    return MODULE.Teacher(network(seed=1), data, **options)


def trained(data, sampler, criterion=None, teacher=None, rate=3e-3, **options):
    """A new model, trained by the example's own loop."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), rate)
    MODULE.train(data, model, sampler, criterion or stprune.PrunedMean(sampler), optimizer, teacher, **options)
    return model


def everything(data):
    index = torch.arange(len(data))
    return index, *data.batch(index)


@pytest.fixture(scope="module")
def table():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE.importlib.util, "find_spec", lambda name: None)
        return printed(MODULE, "--shuffled")


ROWS = ["the teacher", "full", "full, equal cost", "no teacher", "shuffled teacher", "soft random", "ST-Prune"]


def test_the_short_form_prints_its_table(table):
    assert "simbench is not installed" in table
    check_table(table, ROWS, COLUMNS)


def test_a_teacher_shuffled_against_the_ids_loses(table):
    error = {row: float(table.split(f"\n{row} ")[1].split()[0]) for row in ROWS}
    assert error["shuffled teacher"] > 1.01 * error["ST-Prune"], error


@pytest.mark.parametrize("method", ["st-prune", "soft-random"])
def test_the_teacher_is_asked_once_for_each_sample_that_is_kept(data, method):
    teacher, sampler = teacher_of(data), sampler_of(len(data), method, 2, fixed_length=True)
    trained(data, sampler, teacher=teacher)
    kept = torch.isfinite(sampler.table.scores)  # in one of two epochs or in both
    assert torch.equal(teacher.known, kept)
    assert len(data) // 2 < teacher.calls == int(kept.sum()) < len(data)


def test_online_the_teacher_is_asked_for_every_sample_trained_on(data):
    teacher, sampler = teacher_of(data, online=True), sampler_of(len(data), "st-prune", 3)
    optimizer = torch.optim.Adam((model := network()).parameters())
    samples = MODULE.train(data, model, sampler, stprune.PrunedMean(sampler), optimizer, teacher)
    assert teacher.calls == samples < 3 * len(data)


def test_forecasts_are_those_of_their_samples_unless_shuffled(data):
    index, x, _ = everything(data)
    own = MODULE.forecast(network(seed=1), x)[0]
    teacher = teacher_of(data)
    for part in index.flip(0).split(10):
        assert torch.allclose(teacher(part, x[part]), own[part], atol=1e-6)
    shuffled = teacher_of(data, shuffled=True)(index, x)
    assert not torch.allclose(shuffled, own, atol=1e-3)
    assert torch.allclose(shuffled.sum(0), own.sum(0), atol=1e-3)


def test_nothing_pruned_is_plain_training(data):
    teacher = teacher_of(data)
    check_nothing_pruned(
        lambda: sampler_of(len(data), "st-prune", 3, keep_ratio=1.0),
        lambda sampler, criterion: trained(data, sampler, criterion, teacher),
        lambda values, index, score: values.mean(),
    )


def test_kept_samples_are_unbiased_and_the_largest_are_not(data):
    teacher, (_, x, y) = teacher_of(data), everything(data)
    model = trained(data, sampler_of(len(data), "full", 4), teacher=teacher)

    def loss_of(sampler, index):
        values, score = MODULE.losses(model, teacher, index, x[index], y[index])
        return stprune.PrunedMean(sampler, rescale="epoch_sum")(values, index, score=score)

    check_unbiased(
        lambda method, epochs: sampler_of(len(data), method, epochs),
        model,
        loss_of,
        good=["st-prune", "soft-random"],
        bad=["top-k"],
    )


def test_stored_scores_are_the_excess_of_their_samples(data):
    teacher, batch = teacher_of(data), everything(data)
    check_scores(
        sampler_of(len(data), "st-prune", 2),
        lambda sampler, workers: trained(data, sampler, teacher=teacher, rate=0.0, num_workers=workers),
        MODULE.losses(network(), teacher, *batch)[1].detach(),
    )


def test_a_killed_run_ends_as_the_whole_run(data):
    def start():
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        return {"model": model, "optimizer": optimizer, "sampler": sampler_of(len(data), "st-prune", 3)}

    def train(parts):
        # A new process has a new teacher, too, which makes the forecasts that it needs once more.
        MODULE.train(data, criterion=stprune.PrunedMean(parts["sampler"]), teacher=teacher_of(data), **parts)

    check_resume(start, train, [1, 3, 4])
