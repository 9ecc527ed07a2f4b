"""examples/any_loss.py: runs as it says, and its losses go through PrunedMean unchanged and unbiased."""

import pytest
import torch

pytest.importorskip("sklearn", reason="examples/any_loss.py trains on scikit-learn's digits: pip install scikit-learn")

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

MODULE = example("any_loss")
TASKS = {
    "digits": MODULE.Digits(quick=True),
    "adversarial": MODULE.Digits(quick=True, adversarial=True),
    "tokens": MODULE.Tokens(quick=True),
}
DRAWN = {"num_nodes": 64, "node_ratio": 0.25}


@pytest.fixture(autouse=True)
def _one_thread(threads):
    """The models are so small that two threads wait for each other."""
    threads(1)


every_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def model_of(task):
    torch.manual_seed(0)
    return torch.nn.Sequential(*task.layers())


def trained(task, sampler, criterion=None, rate=None, **options):
    """A new model, trained by the example's own loop."""
    model = model_of(task)
    optimizer = torch.optim.Adam(model.parameters(), task.rate if rate is None else rate)
    MODULE.train(task, model, optimizer, sampler, criterion or stprune.PrunedMean(sampler), **options)
    return model


def loss_of(task, model):
    """The example's loss of samples by a new criterion, on the nodes that the sampler draws."""

    def loss(sampler, index):
        x, y = task.train[index]
        node = sampler.nodes(index) if sampler.num_nodes else None
        if node is not None:
            x, y = (stprune.gather_nodes(a, node, dim=1) for a in (x, y))
        return stprune.PrunedMean(sampler, rescale="epoch_sum")(task.losses(model, x, y), index, node)

    return loss


@pytest.mark.parametrize(
    ("arguments", "last_rows"),
    [
        ([], ["soft random", "ST-Prune"]),
        (["--adversarial"], ["soft random", "ST-Prune"]),
        (["--tokens"], ["uniform tokens", "tokens by loss", "high entropy"]),
    ],
)
def test_the_short_form_prints_its_table(arguments, last_rows):
    text = printed(MODULE, *arguments)
    check_table(text, ["full", "full, equal cost", *last_rows])
    samples, passes = (int(word.replace(",", "")) for word in text.split("\nfull ")[1].splitlines()[0].split()[-3:-1])
    assert passes == samples * (2 if arguments == ["--adversarial"] else 1)


@every_task
def test_nothing_pruned_is_plain_training(task):
    settings = {"keep_ratio": 1.0, **({"num_nodes": 64} if task is TASKS["tokens"] else {})}
    check_nothing_pruned(
        lambda: sampler_of(len(task.train), "st-prune", 3, **settings),
        lambda sampler, criterion: trained(task, sampler, criterion),
        lambda losses, index, node: losses.mean(),
    )


@pytest.mark.parametrize("name", ["digits", "adversarial"])
def test_kept_samples_are_unbiased_and_the_largest_are_not(name):
    task = TASKS[name]
    model = trained(task, sampler_of(len(task.train), "full", 4))
    check_unbiased(
        lambda method, epochs: sampler_of(len(task.train), method, epochs),
        model,
        loss_of(task, model),
        good=["st-prune", "soft-random"],
        bad=["top-k"],
    )


def test_drawn_tokens_are_unbiased_and_high_entropy_is_not():
    task = TASKS["tokens"]
    model = trained(task, sampler_of(len(task.train), "full", 4))

    def make(name, epochs):
        drawn = {} if name == "full" else DRAWN | {"node_sampler": MODULE.HighEntropy() if name == "high-entropy" else name}
        return sampler_of(len(task.train), "full", epochs, **drawn)

    check_unbiased(make, model, loss_of(task, model), good=["uniform", "priority"], bad=["high-entropy"])


@every_task
def test_stored_scores_are_those_of_their_samples(task):
    x, y = task.train.tensors
    losses = task.losses(model_of(task), x, y).detach()
    check_scores(
        sampler_of(len(task.train), "st-prune", 2),
        lambda sampler, workers: trained(task, sampler, rate=0.0, num_workers=workers),
        losses if losses.dim() == 1 else losses.mean(1),
    )


@every_task
def test_a_killed_run_ends_as_the_whole_run(task):
    nodes = DRAWN | {"node_sampler": "priority"} if task is TASKS["tokens"] else {}

    def start():
        model = model_of(task)
        optimizer = torch.optim.Adam(model.parameters(), task.rate)
        return {"model": model, "optimizer": optimizer, "sampler": sampler_of(len(task.train), "st-prune", 3, **nodes)}

    def train(parts):
        MODULE.train(task, criterion=stprune.PrunedMean(parts["sampler"]), **parts)

    # The first epoch has 6 or 3 steps, the others half as many; FGSM takes a second forward pass a step.
    kills = [1, 5, 7] if task is not TASKS["tokens"] else [1, 4]
    check_resume(start, train, [kill * task.passes for kill in kills])
