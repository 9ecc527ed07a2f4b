"""examples/video.py: runs as it says, and its videos and rasters go through PrunedLoss unchanged and unbiased."""

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

MODULE = example("video")
VIDEO, HOLES = MODULE.Video(quick=True), MODULE.Holes(quick=True)
OBSERVED = HOLES.runs["observed pixels"]


@pytest.fixture(autouse=True)
def _one_thread(threads):
    """The models are so small that two threads wait for each other."""
    threads(1)


every_task = pytest.mark.parametrize("task", [VIDEO, HOLES], ids=["video", "holes"])


def parts_of(task, sampler, rate=3e-3):
    """Everything that the example's `main` gives its loop."""
    torch.manual_seed(0)
    model = task.model()
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=sampler.total_steps(16))
    return {"model": model, "optimizer": optimizer, "schedule": schedule, "sampler": sampler}


def trained(task, sampler, criterion=None, rate=3e-3, **options):
    parts = parts_of(task, sampler, rate)
    MODULE.train(task, criterion=criterion or stprune.PrunedLoss(sampler, **task.loss), **parts, **options)
    return parts["model"]


def whole(task):
    """All samples of the training set in one batch."""
    return [torch.stack(part) for part in zip(*(task.train[i] for i in range(len(task.train))), strict=True)]


def loss_of(task, model):
    """The example's loss of samples by a new criterion, on the pixels that the sampler draws."""
    data = whole(task)

    def loss(sampler, index):
        node = sampler.nodes(index) if sampler.num_nodes else None
        x, y = (a[index] if node is None else stprune.gather_nodes(a[index], node) for a in data)
        return stprune.PrunedLoss(sampler, rescale="epoch_sum", **task.loss)(model(x), y, index, node)

    return loss


@pytest.mark.parametrize(
    ("arguments", "last_rows"),
    [([], ["soft random", "ST-Prune"]), (["--holes"], ["uniform pixels", "static pixels", "observed pixels"])],
)
def test_the_short_form_prints_its_table(arguments, last_rows):
    text = printed(MODULE, *arguments)
    check_table(text, ["full", "full, equal cost", *last_rows])
    counts = {line[:18].strip(): line.split()[-3:-1] for line in text.splitlines()}
    if arguments:
        assert counts["observed pixels"][0] == counts["observed pixels"][1], "a hole was drawn"
        assert counts["uniform pixels"][0] != counts["uniform pixels"][1], "uniform draws fall into holes"
    else:
        assert counts["ST-Prune"] == counts["soft random"] == counts["full, equal cost"]


def test_a_video_is_a_function_of_its_index():
    assert all(torch.equal(a, b) for a, b in zip(MODULE.blobs(7), MODULE.blobs(7), strict=True))
    assert not torch.equal(MODULE.blobs(7)[0], MODULE.blobs(8)[0])


def test_the_loss_is_that_of_torch():
    """Its gradient to the bit, its value to a rounding of a sum in another order; of the holes nothing."""
    for task in (VIDEO, HOLES):
        x, y = whole(task)
        prediction = task.model()(x).detach().requires_grad_()
        seen = y.isfinite()
        sampler = sampler_of(len(x), "st-prune", 1, keep_ratio=1.0)
        ours = stprune.PrunedLoss(sampler, **task.loss)(prediction, y, torch.arange(len(x)))
        theirs = torch.nn.MSELoss()(prediction[seen], y[seen])
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
        (our_gradient,), (their_gradient,) = (torch.autograd.grad(loss, prediction) for loss in (ours, theirs))
        assert torch.equal(our_gradient, their_gradient)
        assert bool((our_gradient[~seen] == 0).all())


@every_task
def test_nothing_pruned_is_plain_training(task):
    def plain(prediction, target, index, node):
        seen = target.isfinite()
        return (
            torch.nn.functional.mse_loss(prediction[seen], target[seen])
            if task is HOLES
            else torch.nn.MSELoss()(prediction, target)
        )

    check_nothing_pruned(
        lambda: sampler_of(len(task.train), "st-prune", 3, keep_ratio=1.0),
        lambda sampler, criterion: trained(task, sampler, criterion),
        plain,
    )


def test_kept_samples_are_unbiased_and_the_largest_are_not():
    torch.manual_seed(0)
    model = MODULE.SimVP()
    check_unbiased(
        lambda method, epochs: sampler_of(24, method, epochs),
        model,
        loss_of(VIDEO, model),
        good=["st-prune", "soft-random"],
        bad=["top-k"],
    )


def test_drawn_pixels_are_observed_and_unbiased_and_static_ones_are_not():
    model = trained(HOLES, sampler_of(len(HOLES.train), "full", 2))

    def make(name, epochs):
        return sampler_of(len(HOLES.train), "full", epochs, **({} if name == "full" else HOLES.runs[f"{name} pixels"]))

    check_unbiased(make, model, loss_of(HOLES, model), good=["observed"], bad=["static"])
    index = torch.arange(len(HOLES.train))
    for epoch in range(5):
        for name, all_seen in (("observed", True), ("static", True), ("uniform", False)):
            sampler = make(name, 5)
            sampler.set_epoch(epoch)
            assert bool(HOLES.known[sampler.nodes(index)].all()) is all_seen, name


@every_task
def test_stored_scores_are_those_of_their_samples(task):
    x, y = whole(task)
    torch.manual_seed(0)
    with torch.no_grad():
        scores = stprune.score(task.model()(x), y, **task.loss)
    check_scores(
        sampler_of(len(task.train), "st-prune", 2),
        lambda sampler, workers: trained(task, sampler, rate=1e-30, num_workers=workers),
        scores,
    )


@every_task
def test_a_killed_run_ends_as_the_whole_run(task):
    """Also OneCycleLR, which refuses a step more than it was told of."""
    settings = OBSERVED if task is HOLES else {"fixed_length": True}

    def start():
        return parts_of(task, sampler_of(len(task.train), "st-prune", 3, **settings))

    def train(parts):
        MODULE.train(task, criterion=stprune.PrunedLoss(parts["sampler"], **task.loss), **parts)

    check_resume(start, train, [1, 3, 5])


def test_one_cycle_ends_with_its_last_step():
    sampler = sampler_of(len(VIDEO.train), "st-prune", 3, schedule="step", fixed_length=True)
    parts = parts_of(VIDEO, sampler)
    MODULE.train(VIDEO, criterion=stprune.PrunedLoss(sampler, **VIDEO.loss), **parts)
    assert parts["schedule"].last_epoch == parts["schedule"].total_steps == 3 * 2
