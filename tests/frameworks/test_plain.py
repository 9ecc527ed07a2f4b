"""Plain torch with the four lines: DDP and FSDP2 on two processes, autocast, GradScaler, accumulation, torch.compile."""

import pytest
import torch
from loops import NUM_EPOCHS, NUM_WINDOWS, STEPS
from rank_processes import WORLD, on_two_processes
from readme import code_of
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import stprune

GLOBAL_BATCH = 8


def made_model():
    generator = torch.Generator().manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    return model


def made_data():
    generator = torch.Generator().manual_seed(2)
    x, y = (torch.randn(NUM_WINDOWS, size, generator=generator) for size in (6, 4))
    # Samples of different difficulty.
    return stprune.IndexedDataset(TensorDataset(x, y * torch.rand(NUM_WINDOWS, 1, generator=generator)))


class Loop:
    """A user's loop: plans, ids, gradients and losses of every step."""

    def __init__(self, model, batch_size=GLOBAL_BATCH, **options):
        self.sampler = stprune.PruningSampler(NUM_WINDOWS, num_epochs=NUM_EPOCHS, **options)
        self.criterion = stprune.PrunedLoss(self.sampler, loss="mse", dims="BC")
        self.loader = DataLoader(made_data(), batch_size=batch_size, sampler=self.sampler)
        self.model = model
        self.optimizer = torch.optim.SGD(model.parameters(), 0.05)
        self.plans, self.ids, self.gradients = [], [], []

    def loss(self, index, x, y):
        return self.criterion(self.model(x), y, index)

    def step(self):
        self.optimizer.step()

    def train(self, accumulate=1):
        for epoch in range(NUM_EPOCHS):
            self.sampler.set_epoch(epoch)
            self.plans.append(self.sampler.plan.indices.tolist())
            for number, (index, (x, y)) in enumerate(self.loader, 1):
                self.ids.append(index.tolist())
                self.backward(self.loss(index, x, y) / accumulate)
                if number % accumulate == 0 or number == len(self.loader):
                    self.gradients.append([whole(parameter.grad) for parameter in self.model.parameters()])
                    self.step()
                    self.optimizer.zero_grad()
        return self

    def backward(self, loss):
        loss.backward()


def whole(gradient):
    """A copy of a gradient, of which every process may hold a part."""
    return (gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient).clone()


def wrapped(name):
    model = made_model()
    if name == "DDP":
        return DistributedDataParallel(model)
    mesh = distributed.device_mesh.init_device_mesh("cpu", (WORLD,))
    fully_shard(model[0], mesh=mesh)
    return fully_shard(model, mesh=mesh)


def two_processes(rank, folder):
    distributed.init_process_group("gloo")
    loops = {name: Loop(wrapped(name), batch_size=GLOBAL_BATCH // WORLD).train() for name in ("DDP", "FSDP2")}
    return {name: {"plans": loop.plans, "ids": loop.ids, "gradients": loop.gradients} for name, loop in loops.items()}


@pytest.fixture(scope="module")
def both_ranks(tmp_path_factory):
    return on_two_processes(two_processes, str(tmp_path_factory.mktemp("plain")))


@pytest.mark.parametrize("wrap", ["DDP", "FSDP2"])
def test_gradients_of_two_processes_are_those_of_one(wrap, both_ranks):
    """Ids = plan, and every step of the run has the gradient of one process with the same batch."""
    ranks = [rank[wrap] for rank in both_ranks]
    one = Loop(made_model()).train()
    assert ranks[0]["plans"] == ranks[1]["plans"] == one.plans
    steps = iter(zip(ranks[0]["ids"], ranks[1]["ids"], one.ids, strict=True))
    for plan, count in zip(one.plans, STEPS, strict=True):
        batches = [next(steps) for _ in range(count)]
        assert sorted(index for first, second, _ in batches for index in first + second) == plan
        assert all(sorted(first + second) == sorted(both) for first, second, both in batches)
    assert len(one.gradients) == sum(STEPS)
    for rank in ranks:
        torch.testing.assert_close(rank["gradients"], one.gradients, rtol=1e-4, atol=1e-6)


def test_bfloat16_autocast_trains_on_the_plan():
    class Autocast(Loop):
        def loss(self, index, x, y):
            with torch.autocast("cpu", torch.bfloat16):
                prediction = self.model(x)
                assert prediction.dtype == torch.bfloat16
                return self.criterion(prediction, y, index)

    loop, full = Autocast(made_model()).train(), Loop(made_model()).train()
    assert [len(batch) for batch in loop.ids] == [GLOBAL_BATCH] * sum(STEPS)
    assert sorted(index for batch in loop.ids[8:12] for index in batch) == loop.plans[1]
    torch.testing.assert_close(loop.gradients[0], full.gradients[0], rtol=0.05, atol=0.02)


def test_a_grad_scaler_changes_no_score_and_no_step():
    class Scaled(Loop):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

        def backward(self, loss):
            self.scaler.scale(loss).backward()

        def step(self):
            self.scaler.step(self.optimizer)
            self.scaler.update()

    loop, full = Scaled(made_model()).train(), Loop(made_model()).train()
    assert loop.ids == full.ids
    torch.testing.assert_close(loop.model.state_dict(), full.model.state_dict())
    assert torch.equal(loop.sampler.table.scores, full.sampler.table.scores)


@pytest.mark.parametrize("accumulate", [2, 3])
def test_total_steps_counts_accumulated_steps(accumulate):
    loop = Loop(made_model()).train(accumulate)
    assert len(loop.gradients) == loop.sampler.total_steps(GLOBAL_BATCH, accumulate=accumulate)
    assert [sorted(index for batch in loop.ids[begin : begin + 4] for index in batch) for begin in (8, 12)] == loop.plans[1:3]


def test_a_compiled_step_is_not_compiled_anew_each_epoch():
    """Model and loss in one graph, for the first full epoch, the first pruned one, and a full one after it: for no other."""
    compiled = []

    def backend(graph, inputs):
        compiled.append(len(loop.plans))
        return graph.forward

    class Compiled(Loop):
        def __init__(self, model):
            super().__init__(model)
            self.compiled = torch.compile(super().loss, backend=backend, fullgraph=True)

        def loss(self, index, x, y):
            return self.compiled(index, x, y)

    torch.compiler.reset()
    loop = Compiled(made_model())
    loop.train()
    full = Loop(made_model()).train()
    assert loop.ids == full.ids
    torch.testing.assert_close(loop.gradients, full.gradients)
    assert compiled == [1, 2, NUM_EPOCHS], compiled


def test_readmes_code(tmp_path):
    distributed.init_process_group("gloo", store=distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        loop = Loop(made_model())
        index, (x, y) = next(iter(loop.loader))
        names = {name: getattr(loop, name) for name in ("model", "optimizer", "sampler", "criterion")}
        names |= {"torch": torch, "OneCycleLR": torch.optim.lr_scheduler.OneCycleLR, "scaler": torch.amp.GradScaler("cpu")}
        names |= {"DistributedDataParallel": DistributedDataParallel, "index": index, "x": x, "y": y}
        exec(code_of("DDP, FSDP2, AMP, torch.compile"), names)
    finally:
        distributed.destroy_process_group()
    assert names["schedule"].total_steps == sum(-(-steps // 2) for steps in STEPS)
    assert loop.sampler.table.num_losses == GLOBAL_BATCH
    assert all(parameter.grad.abs().sum() > 0 for parameter in loop.model.parameters())
