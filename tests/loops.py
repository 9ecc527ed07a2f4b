"""A run whose steps can be counted: 64 windows in batches of 8, in 4 epochs of 8, 4, 4 and 8 steps."""

import io

import torch
import torch._dynamo.testing
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import stprune

NUM_WINDOWS, BATCH_SIZE, STEPS = 64, 8, (8, 4, 4, 8)
NUM_EPOCHS = len(STEPS)
SERIES = torch.sin(7.0 * torch.arange(NUM_WINDOWS + 1)).reshape(-1, 1, 1)
DATA = stprune.IndexedDataset(TensorDataset(SERIES[:NUM_WINDOWS], SERIES[1:]))
EVERY_STEP = range(1, sum(STEPS) + 1)


def place(step):
    """The epoch in which the run's `step` steps end, and how many steps of that epoch are done: at least one."""
    epoch = 0
    while step > STEPS[epoch]:
        step -= STEPS[epoch]
        epoch += 1
    return epoch, step


def saved(state):
    """A state as a file would hold it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


class Run:
    """Sampler, loader and criterion of one process, and the ids of every batch it trained on.

    `kind` is what the loader is made of: "sampler" or "batches" (a DataLoader), "windows" (a WindowLoader) or "torch": a
    DataLoader with PyTorch's own DistributedSampler and no pruning, to see what a framework does with a sampler of its own.
    """

    def __init__(self, kind="sampler", loader=DataLoader, **options):
        self.kind, self.ids = kind, []
        self._loader, self._options = loader, options
        self.sampler = (
            DistributedSampler(DATA, num_replicas=1, rank=0)
            if kind == "torch"
            else stprune.PruningSampler(NUM_WINDOWS, num_epochs=NUM_EPOCHS, keep_ratio=0.5)
        )
        self.criterion = torch.nn.L1Loss() if kind == "torch" else stprune.PrunedLoss(self.sampler)
        self.loader = self.new_loader()

    def new_loader(self):
        if self.kind == "windows":
            return stprune.WindowLoader(SERIES, self.sampler, batch_size=BATCH_SIZE, history=1, horizon=1)
        if self.kind == "batches":
            return self._loader(DATA, batch_sampler=self.sampler.batches(BATCH_SIZE), **self._options)
        return self._loader(DATA, sampler=self.sampler, batch_size=BATCH_SIZE, **self._options)

    @staticmethod
    def parts(batch):
        """Index, x [B, 1, 1, 1] and y of a batch of either loader."""
        if len(batch) == 3:
            return batch
        index, (x, y) = batch
        return index, x.view(-1, 1, 1, 1), y.view(-1, 1, 1, 1)

    def loss(self, batch, weight):
        index, x, y = self.parts(batch)
        self.ids.append(index.tolist())
        return self.criterion(weight * x, y, *([] if self.kind == "torch" else [index]))

    def train(self, batch):
        self.loss(batch, torch.ones(1, requires_grad=True)).backward()

    def epoch(self, epoch=None, after_step=lambda: None):
        """One pass over the loader, after `set_epoch` unless `epoch` is None; `after_step` is called after every batch."""
        if epoch is not None:
            self.sampler.set_epoch(epoch)
        for batch in self.loader:
            self.train(batch)
            after_step()
        return self


def uninterrupted(kind, save, loader=None, **options):
    """The whole run's ids, and what `save(run)` gave after every step and after every epoch."""
    run = Run(kind, **({} if loader is None else {"loader": loader}), **options)
    after_step, after_epoch = [], []
    for epoch in range(NUM_EPOCHS):
        run.epoch(epoch, lambda: after_step.append(save(run)))
        after_epoch.append(save(run))
    return run.ids, after_step, after_epoch


def train_step(sampler, weight, step, *, compiled, epochs):
    """Train `weight` by the losses `step(index)` of batches of 10, compiled as one graph or not.

    Returns the function that trained, and a counter of the graphs that were made.
    """
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    function = torch.compile(step, fullgraph=True, backend=counter) if compiled else step
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for start in range(0, len(sampler), 10):
            function(sampler.plan.order(start, start + 10)).backward()
            with torch.no_grad():
                weight -= 0.1 * weight.grad
            weight.grad = None
    return function, counter
