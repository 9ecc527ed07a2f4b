"""What the tests of examples/ share: their short form, and four invariants of their models and losses.

An example is a file with `main(arguments)`, and a `train(...)` that goes on at `sampler.next_epoch`, so that a loaded state
continues. Its tests give these functions the example's own training as a closure.
"""

import contextlib
import copy
import functools
import importlib.util
import io
import pathlib
import re

import pytest
import torch
from loops import saved

import stprune

EXAMPLES = pathlib.Path(__file__).resolve().parents[1] / "examples"
PROJECTIONS = 24
DRAWS = 100


def example(name):
    """examples/<name>.py as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def printed(module, *arguments):
    """What the short form of an example prints, for three seeds."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        module.main(["--quick", "--seeds", "3", *arguments])
    return out.getvalue()


def check_table(text, rows, columns=("samples", "passes", "seconds")):
    """The rows, in this order, each with a mean and a spread of the measure and its costs, and a sentence after them."""
    lines = text.splitlines()
    head = next(at for at, line in enumerate(lines) if line.split()[:1] == ["run"])
    assert all(column in lines[head] for column in columns), lines[head]
    for name, line in zip(rows, lines[head + 1 :], strict=False):
        assert line.startswith(name + " "), f"{name}: {line}"
        assert re.search(r"\d ± \d", line), line
        assert len(re.findall(r"(?<![\d.,])[\d,]+(?:\.\d+)?", line.split("±")[-1])) >= 1 + len(columns), line
    rest = " ".join(lines[head + 1 + len(rows) :])
    assert re.search(r"\w.*\.", rest), "no sentence after the table"
    assert "nan" not in text


# --- I1: nothing pruned is plain training ------------------------------------------------------------------------------


class PlainOrder(torch.utils.data.Sampler):
    """A sampler without pruning: the ids of every epoch, written down beforehand."""

    num_nodes = None

    def __init__(self, sampler):
        self.num_epochs, self.epoch, self.next_epoch, self.orders = sampler.num_epochs, 0, 0, []
        self.total_steps = sampler.total_steps
        for epoch in range(self.num_epochs):
            sampler.set_epoch(epoch)
            self.orders.append(list(sampler))

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return len(self.orders[self.epoch])

    def __iter__(self):
        return iter(self.orders[self.epoch])


def check_nothing_pruned(make_sampler, train, plain):
    """Training that prunes nothing gives, bit for bit, the parameters that plain training gives.

    Args:
        make_sampler: makes the sampler of a run with keep_ratio 1, whose method has scores and weights.
        train: `train(sampler, criterion)` trains a new model and returns it; a criterion of None is the example's own.
        plain: the criterion of the same loop without this package.
    """
    with torch.random.fork_rng():
        order = PlainOrder(make_sampler())
        assert all(sorted(ids) == list(range(len(ids))) for ids in order.orders)
        ours, theirs = train(make_sampler(), None), train(order, plain)
    parameters = dict(theirs.named_parameters())
    assert parameters
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, parameters[name]), name


# --- I2: the weighted gradient -----------------------------------------------------------------------------------------


@functools.cache
def directions(size):
    return torch.randn(PROJECTIONS, size, generator=torch.Generator().manual_seed(5))


def projected(model, loss):
    """[PROJECTIONS]: the gradient of a loss, seen from some fixed random directions."""
    gradients = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
    flat = torch.cat([g.flatten() for g in gradients])
    return directions(flat.numel()) @ flat


def weighted_gradients(sampler, model, loss_of, draws=DRAWS):
    """[draws, PROJECTIONS]: for each epoch's plan the gradient of the weighted sum of losses over it, over all samples.

    Args:
        sampler: of at least draws + 1 epochs, schedule "none"; epoch 0 is full and scores everything.
        model: frozen: nothing steps it.
        loss_of: `loss_of(index)`: the example's loss of samples [K], by a criterion with rescale="epoch_sum".
    """
    found = []
    for epoch in range(draws + 1):
        sampler.set_epoch(epoch)
        index = sampler.plan.indices.clone()
        gradient = projected(model, loss_of(index)) * len(index) / sampler.table.num_samples
        if epoch > 0:
            found.append(gradient)
    return torch.stack(found)


def is_unbiased(draws, full):
    """Whether the mean of the draws lies within 4 standard errors of the full gradient, in every direction."""
    error = (draws.mean(0) - full).abs()
    return bool((error <= 4 * draws.std(0) / len(draws) ** 0.5 + 1e-5 * full.abs().max()).all())


def check_unbiased(make_sampler, model, loss_of, good, bad):
    """The good samplers' weighted gradients have the full one as their mean; the bad ones' fail the same test.

    Args:
        make_sampler: `make_sampler(name, num_epochs)`.
        loss_of: `loss_of(sampler, index)`: the example's loss by a new criterion of the sampler, rescale="epoch_sum".
        good, bad: names that `make_sampler` knows.
    """
    full = make_sampler("full", 1)
    full.set_epoch(0)
    full = projected(model, loss_of(full, full.plan.indices))
    verdicts = {}
    for name in (*good, *bad):
        sampler = make_sampler(name, DRAWS + 1)
        verdicts[name] = is_unbiased(weighted_gradients(sampler, model, lambda index, s=sampler: loss_of(s, index)), full)
    assert verdicts == dict.fromkeys(good, True) | dict.fromkeys(bad, False)


# --- I3: scores --------------------------------------------------------------------------------------------------------


def check_scores(sampler, train, recomputed):
    """With a frozen model and 2 workers, every stored score is that of its own sample.

    Args:
        train: `train(sampler, num_workers)` runs all epochs with a learning rate of 0.
        recomputed: [num_samples] scores of the same model, without loader.
    """
    train(sampler, 2)
    scores = sampler.table.scores
    assert torch.allclose(scores, recomputed, rtol=1e-4, atol=1e-7), (scores - recomputed).abs().max()
    assert not torch.allclose(scores, recomputed.roll(1), rtol=1e-4, atol=1e-7), "the samples' scores do not differ"


# --- I4: a killed run --------------------------------------------------------------------------------------------------


class Killed(Exception):
    """Carries the states of the run's parts at the moment."""


def check_resume(start, train, kills):
    """A run killed before any of these forward passes, and continued from its saved parts, ends as the whole run ends.

    Args:
        start: `start()` gives the parts of a new run by name, each with a state_dict: "model", "sampler", an optimizer ...
        train: `train(parts)` trains from where the parts stand.
        kills: numbers of forward passes of the model in training that a step begins with, from 1; None of them is 0.
    """

    def run(parts, kill=None):
        calls = 0

        def count(*_):
            nonlocal calls
            if calls == kill:
                raise Killed({name: saved(part.state_dict()) for name, part in parts.items()})
            calls += 1

        with parts["model"].register_forward_pre_hook(count):
            train(parts)
        return parts

    whole = run(start())
    for kill in kills:
        with pytest.raises(Killed) as killed:
            run(start(), kill)
        parts = start()
        for name, state in copy.deepcopy(killed.value.args[0]).items():
            parts[name].load_state_dict(state)
        run(parts)
        for (name, ours), theirs in zip(parts["model"].named_parameters(), whole["model"].parameters(), strict=True):
            assert torch.equal(ours, theirs), f"killed before pass {kill}: {name}"
        assert torch.equal(parts["sampler"].table.scores, whole["sampler"].table.scores), f"killed before pass {kill}"


def sampler_of(num_samples, method, num_epochs, **settings):
    """A sampler that keeps half in every epoch but the first."""
    settings = {"keep_ratio": 0.5, "schedule": "none", **settings}
    return stprune.PruningSampler(num_samples, num_epochs=num_epochs, method=method, **settings)
