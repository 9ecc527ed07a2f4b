"""Accelerate as its users use it, on one and on two processes: delivered = planned, resumed runs, evaluation, accumulation."""

import warnings

import pytest
import torch
from example_checks import example
from loops import BATCH_SIZE, DATA, EVERY_STEP, NUM_EPOCHS, NUM_WINDOWS, STEPS, Run, place, saved
from rank_processes import WORLD, on_two_processes
from readme import code_of
from torch.utils.data import DataLoader, TensorDataset

import stprune

accelerate = pytest.importorskip("accelerate", reason="accelerate is missing: pip install stprune[frameworks]")

from stprune.integrations.accelerate import PruningLoader  # noqa: E402


class Loop:
    """A user's loop: the ids of every batch it trains on, and its optimizer steps."""

    def __init__(self, accumulate=1, per_process=BATCH_SIZE, wrap=True, batches=False):
        self.accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
        self.sampler = stprune.PruningSampler(NUM_WINDOWS, num_epochs=NUM_EPOCHS)
        self.criterion = stprune.PrunedLoss(self.sampler)
        chosen = {"batch_sampler": self.sampler.batches(per_process)} if batches else {"sampler": self.sampler}
        if not batches:
            chosen["batch_size"] = per_process
        loader = DataLoader(DATA, **chosen)
        torch.manual_seed(0)  # not all weights keep the bound on scores below
        self.weight = torch.nn.Linear(1, 1, bias=False)
        optimizer = torch.optim.SGD(self.weight.parameters(), 0.01)
        total = self.sampler.total_steps(per_process, accumulate=accumulate)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=total)
        self.model, self.optimizer, self.loader = self.accelerator.prepare(
            self.weight, optimizer, PruningLoader(self.accelerator, loader) if wrap else loader
        )
        if wrap:
            self.accelerator.register_for_checkpointing(self.loader, self.schedule)
        self.ids, self.steps = [], 0

    def epoch(self, epoch, after_step=lambda: None):
        self.sampler.set_epoch(epoch)
        for index, (x, y) in self.loader:
            with self.accelerator.accumulate(self.model):
                self.ids.append(index.tolist())
                self.accelerator.backward(self.criterion(self.model(x).unsqueeze(-1), y.unsqueeze(-1), index))
                self.optimizer.step()
                self.optimizer.zero_grad()
            if self.accelerator.sync_gradients:
                self.schedule.step()
                self.steps += 1
            after_step()
        return self.sampler.plan.indices.tolist()


def joined(batches):
    return [index for batch in batches for index in batch]


@pytest.mark.parametrize("batches", [False, True])
def test_ids_are_the_plan_and_every_loss_is_its_own_samples(batches):
    """The loader looks one batch ahead; a loss of a neighbour batch would be stored for another sample."""
    loop = Loop(batches=batches)
    for epoch in range(NUM_EPOCHS):
        loop.ids.clear()
        plan = loop.epoch(epoch)
        assert sorted(joined(loop.ids)) == plan
        assert len(loop.ids) == len(loop.loader) == STEPS[epoch]
        if epoch == 0:
            with torch.no_grad():
                x, y = DATA.dataset.tensors
                expected = torch.cat([loop.model(x[ids]) - y[ids] for ids in loop.ids]).abs().flatten()
            # Weights move by less than 0.01 a step, scores of other samples differ by far more.
            assert torch.allclose(loop.sampler.table.scores[joined(loop.ids)], expected, atol=0.1)


@pytest.mark.parametrize("kind", ["windows", "stateful"])
def test_other_loaders_continue_too(kind):
    """WindowLoader, and torchdata's StatefulDataLoader, of whose own state nothing is needed."""
    if kind == "stateful":
        package = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is missing")
    whole, first, second = (
        Run("windows") if kind == "windows" else Run("sampler", loader=package.StatefulDataLoader) for _ in range(3)
    )
    for run in (whole, first, second):
        run.loader = PruningLoader(accelerate.Accelerator(cpu=True), run.loader)
    for epoch in range(NUM_EPOCHS):
        whole.epoch(epoch)
    first.epoch(0)
    first.sampler.set_epoch(1)
    first.train(next(iter(first.loader)))
    second.loader.load_state_dict(saved(first.loader.state_dict()))
    for epoch in range(1, NUM_EPOCHS):
        second.epoch(epoch)
    assert second.ids == whole.ids[9:]


def test_a_run_continues_from_every_checkpoint(tmp_path):
    whole = Loop()
    for epoch in range(NUM_EPOCHS):
        whole.epoch(epoch, lambda: whole.accelerator.save_state(str(tmp_path / f"{len(whole.ids)}")))
    for step in EVERY_STEP:
        loop = Loop()
        loop.accelerator.load_state(str(tmp_path / f"{step}"))
        epoch, done = place(step)
        for at in range(epoch + (done == STEPS[epoch]), NUM_EPOCHS):
            loop.epoch(at)
        assert loop.ids == whole.ids[step:], f"after step {step}"
        assert torch.equal(loop.weight.weight, whole.weight.weight), f"after step {step}"
    with pytest.raises(AttributeError, match="skip_first_batches must not be called"):
        loop.accelerator.skip_first_batches(loop.loader, 1)


def test_accumulation_takes_the_steps_that_total_steps_counts():
    loop = Loop(accumulate=3)
    for epoch in range(NUM_EPOCHS):
        loop.epoch(epoch)
    assert loop.steps == sum(-(-steps // 3) for steps in STEPS) == loop.schedule.total_steps


def test_settings_that_share_batches_out_are_refused():
    loader = DataLoader(DATA, sampler=stprune.PruningSampler(NUM_WINDOWS, num_epochs=2))
    for name in ("split_batches", "dispatch_batches"):
        config = accelerate.utils.DataLoaderConfiguration(**{name: True})
        with pytest.raises(ValueError, match=f"PruningLoader: {name} must be off"):
            PruningLoader(accelerate.Accelerator(cpu=True, dataloader_config=config), loader)
    with pytest.raises(TypeError, match="PruningLoader: loader must have a PruningSampler, got RandomSampler"):
        PruningLoader(accelerate.Accelerator(cpu=True), DataLoader(DATA, shuffle=True))


# --- two processes ---------------------------------------------------------------------------------------------------


def evaluation(loop):
    """What gather_for_metrics gives of 21 samples in batches of 4 a process, in the middle of an epoch of training."""
    loader = loop.accelerator.prepare(DataLoader(TensorDataset(torch.arange(21)), batch_size=4))
    return torch.cat([loop.accelerator.gather_for_metrics(batch) for (batch,) in loader]).tolist()


def two_processes(rank, folder):
    result = {"epochs": [], "plans": [], "seen": []}
    whole = Loop(per_process=4, accumulate=3)

    def after_step():
        whole.accelerator.save_state(f"{folder}/{len(whole.ids)}")
        if len(whole.ids) == 2:
            result["evaluated"] = evaluation(whole)

    for epoch in range(NUM_EPOCHS):
        begin = len(whole.ids)
        result["plans"].append(whole.epoch(epoch, after_step))
        result["epochs"].append(whole.ids[begin:])
    result["steps"] = whole.steps, whole.schedule.total_steps
    result["weight"] = whole.weight.weight.tolist()
    for step in (3, 8, 10, 12, 17):
        loop = Loop(per_process=4, accumulate=3)
        loop.accelerator.load_state(f"{folder}/{step}")
        epoch, done = place(step)
        for at in range(epoch + (done == STEPS[epoch]), NUM_EPOCHS):
            loop.epoch(at)
        result[f"after step {step}"] = loop.ids == whole.ids[step:]
    # Accelerate's own sharing out, where a user forgets our loader.
    loop = Loop(per_process=4, wrap=False)
    loop.epoch(0)
    result["not wrapped"] = sum(map(len, loop.ids))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop.sampler.set_epoch(1)
    result["said"] = [str(each.message) for each in caught]
    return result


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return on_two_processes(two_processes, str(tmp_path_factory.mktemp("accelerate")))


def test_two_processes_train_on_the_plan(ranks):
    for epoch in range(NUM_EPOCHS):
        first, second = (joined(rank["epochs"][epoch]) for rank in ranks)
        assert ranks[0]["plans"][epoch] == ranks[1]["plans"][epoch] == sorted(first + second)
        assert [len(rank["epochs"][epoch]) for rank in ranks] == [STEPS[epoch]] * WORLD
    assert ranks[0]["weight"] == ranks[1]["weight"]


def test_two_processes_continue_from_a_checkpoint(ranks):
    for step in (3, 8, 10, 12, 17):
        assert [rank[f"after step {step}"] for rank in ranks] == [True, True], f"after step {step}"


def test_two_processes_evaluate_as_ever(ranks):
    for rank in ranks:
        assert sorted(rank["evaluated"]) == list(range(21))


def test_two_processes_accumulate(ranks):
    steps = sum(-(-steps // 3) for steps in STEPS)
    assert [rank["steps"] for rank in ranks] == [(steps, steps)] * WORLD


def test_without_our_loader_half_of_the_plan_is_lost(ranks):
    """And the sampler says so. Red as soon as Accelerate shares nothing out: our loader is not needed then."""
    assert [rank["not wrapped"] for rank in ranks] == [NUM_WINDOWS // 4] * WORLD
    for rank in ranks:
        assert any("16" in said and "32" in said for said in rank["said"]), rank["said"]


# --- what users read -------------------------------------------------------------------------------------------------


def test_readmes_code():
    sampler = stprune.PruningSampler(NUM_WINDOWS, num_epochs=1)
    model = torch.nn.Linear(1, 1)
    names = {"accelerator": accelerate.Accelerator(cpu=True), "DataLoader": DataLoader, "data": DATA, "sampler": sampler}
    names |= {"model": model, "optimizer": torch.optim.SGD(model.parameters(), 0.1)}
    exec(code_of("Accelerate"), names)
    assert sorted(joined([index.tolist() for index, _ in names["loader"]])) == list(range(NUM_WINDOWS))


def test_the_example(tmp_path, capsys):
    options = ["--epochs", "3", "--windows", "256", "--accumulate", "3", "--folder", str(tmp_path)]
    example("accelerate_loop").main(options)
    said = capsys.readouterr().out
    assert said.count("delivered = planned: True") == 3
    assert "8 optimizer steps on each of 1 processes, 3 validations" in said
    assert "the same batches as without a stop: True" in said
