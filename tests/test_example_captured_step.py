"""examples/captured_step.py: runs as it says; captured it is, bit for bit, the same training."""

import contextlib
import copy

import pytest
import torch
from example_checks import example

import stprune

MODULE = example("captured_step")
SERIES = torch.sin(0.26 * torch.arange(183.0).view(-1, 1, 1) + torch.arange(9).view(1, -1, 1)) + 2  # 160 windows
EPOCHS, BATCH_SIZE = 4, 24
STEPS = 7 + 4 + 4 + 7  # the last of each epoch is smaller


def results(device="cpu", **options):
    model, sampler, losses, _ = MODULE.train(SERIES.to(device), epochs=EPOCHS, batch_size=BATCH_SIZE, **options)
    assert len(losses) == STEPS
    return [losses, sampler.table.scores, sampler.table.columns[1] & 15, *model.parameters()]


def assert_same(a, b):
    for one, other in zip(a, b, strict=True):
        assert torch.equal(one, other)


def test_it_prints_a_line_for_each_way(capsys):
    MODULE.main(["--device", "cpu", "--epochs", "2", "--rows", "400", "--nodes", "12"])
    note, line = capsys.readouterr().out.splitlines()
    assert note.startswith("nothing is captured on cpu")
    assert line.startswith("step by step: ")
    assert "us a step on cpu, last loss" in line


def test_step_by_step_it_is_a_plain_loop():
    torch.manual_seed(0)
    sampler = stprune.PruningSampler(160, num_epochs=EPOCHS, num_nodes=9, node_ratio=0.5)
    loader = stprune.WindowLoader(SERIES, sampler, batch_size=BATCH_SIZE)
    model, criterion, losses = MODULE.Forecaster(9, 1), stprune.PrunedLoss(sampler), []
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        for index, node, x, y in loader:
            optimizer.zero_grad()
            losses.append(criterion(model(x, node), y, index, node))
            losses[-1].backward()
            optimizer.step()
    sampler.finish()
    expected = [torch.stack(losses), sampler.table.scores, sampler.table.columns[1] & 15, *model.parameters()]
    assert_same(results(captured=False), expected)
    assert losses[-1] < losses[0]


def test_what_is_replayed_and_what_is_not(monkeypatch):
    """With a graph that runs the step again on the memory that it was captured with, and into it."""
    memory, replays = [], []

    class Graph:
        def replay(self):
            replays.append(len(memory))
            steps[0].loss.copy_(steps[0].run(*memory[-1]))

    @contextlib.contextmanager
    def capturing(graph):
        (step,) = steps
        memory.append(list(step.batch))
        parts = [step.model, step.optimizer]
        before = [copy.deepcopy(part.state_dict()) for part in parts]
        columns = [column for column in step.criterion.sampler.table.columns if column is not None]
        values = [column.clone() for column in columns]
        yield
        # Capturing runs nothing.
        for part, state in zip(parts, before, strict=True):
            part.load_state_dict(state)
        for column, value in zip(columns, values, strict=True):
            column.copy_(value)

    steps = []
    original = MODULE.Step.__init__

    def noted(self, *args, **options):
        steps.append(self)
        original(self, *args, **options)

    monkeypatch.setattr(MODULE.Step, "__init__", noted)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    expected = results(captured=False)
    steps.clear()
    assert_same(results(captured=True), expected)
    # All but the first batch of an epoch and its last one, which is smaller.
    assert replays == [1] * 5 + [2] * 2 + [3] * 2 + [4] * 5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_the_captured_steps_are_the_eager_ones():
    expected = results("cuda", captured=False)
    assert_same(results("cuda", captured=True), expected)
