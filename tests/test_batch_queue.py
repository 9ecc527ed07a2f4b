"""BatchQueue: every delivered batch meets its own loss, or an error names both numbers."""

import copy
import itertools
import queue
import threading

import pytest
import rank_processes
import torch
from torch.nn import functional
from torch.utils.data import BatchSampler, DataLoader, TensorDataset

import stprune

N, SIZE = 30, 8
DATA = torch.arange(float(N)) + 100.0
"""The sample is its id and 100, so that a stored score tells whose it is."""


def parts(keep_ratio=0.5, num_epochs=4, loader=None, n=N, ahead=0, **settings):
    """A sampler, a queue over a loader of plain samples, and the loss of a batch."""
    sampler = stprune.PruningSampler(
        n, num_epochs=num_epochs, keep_ratio=keep_ratio, schedule="none", num_replicas=1, rank=0, **settings
    )
    sampler.table.decay = 1.0  # a score stays what it was
    data = DATA[:n]
    made = DataLoader(data, sampler=sampler, batch_size=SIZE) if loader is None else loader(data, sampler)
    batches = stprune.BatchQueue(sampler, made, ahead=ahead)
    criterion = stprune.PrunedMean(sampler)

    def loss(batch):
        values = batch * torch.ones(1, requires_grad=True)
        return criterion(values, batches.take(len(values)))

    return sampler, batches, loss


def train(batches, loss, left_out=()):
    """A pass, without the losses of some batches."""
    for number, batch in enumerate(batches):
        if number not in left_out:
            loss(batch)


def assert_own_scores(sampler, count):
    """As many samples were scored, each by its own loss."""
    scores = sampler.table.scores
    known = torch.isfinite(scores)
    assert int(known.sum()) == count
    assert torch.equal(scores[known], DATA[: len(scores)][known])


LOADERS = {
    "sampler": lambda data, sampler: DataLoader(data, sampler=sampler, batch_size=SIZE),
    "drop_last": lambda data, sampler: DataLoader(data, sampler=sampler, batch_size=SIZE, drop_last=True),
    "batch sampler": lambda data, sampler: DataLoader(data, batch_sampler=BatchSampler(sampler, SIZE, False)),
    "batches": lambda data, sampler: DataLoader(data, batch_sampler=sampler.batches(SIZE)),
    "batches, drop_last": lambda data, sampler: DataLoader(data, batch_sampler=sampler.batches(SIZE, drop_last=True)),
    "order": lambda data, sampler: DataLoader(
        data, batch_sampler=sampler.batches(SIZE, order=sampler.plan.order(0, N).flip(0).contiguous())
    ),
    "workers": lambda data, sampler: DataLoader(data, sampler=sampler, batch_size=SIZE, num_workers=2),
    "persistent workers": lambda data, sampler: DataLoader(
        data, sampler=sampler, batch_size=SIZE, num_workers=1, persistent_workers=True, prefetch_factor=4
    ),
}


@pytest.mark.parametrize("name", LOADERS)
def test_every_loss_meets_its_own_samples(name):
    sampler, batches, loss = parts(1.0 if name == "order" else 0.5, loader=LOADERS[name])
    seen = set()
    for epoch in range(1 if name == "order" else 3):
        sampler.set_epoch(epoch)
        delivered = 0
        for batch in batches:
            loss(batch).backward()
            delivered += len(batch)
            seen |= set((batch - 100.0).long().tolist())
        dropped = len(sampler) % SIZE if "drop_last" in name else 0
        assert delivered == sampler.table.num_losses == sampler.table.num_trained == len(sampler) - dropped
    assert_own_scores(sampler, len(seen))
    assert len(batches) == len(batches.loader)


def test_the_ids_are_those_of_the_batch():
    _, batches, _ = parts()
    for batch in batches:
        index = batches.take(len(batch))
        assert index.dtype == torch.int64
        assert torch.equal(index, (batch - 100.0).long())


def test_it_resumes_in_the_middle_of_an_epoch():
    sampler, batches, loss = parts()
    for batch in itertools.islice(batches, 2):
        loss(batch)
    state = copy.deepcopy(sampler.state_dict())
    for batches_left in (2, 4):  # the rest of the epoch, then the next pass over all of it
        sampler, batches, loss = parts() if batches_left == 2 else (sampler, batches, loss)
        if batches_left == 2:
            sampler.load_state_dict(state)
        taken = 0
        for batch in batches:
            loss(batch)
            taken += 1
        assert taken == batches_left
        assert_own_scores(sampler, N)


def test_it_follows_a_loader_that_saves_its_own_position():
    torchdata = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is not installed")
    for workers in (0, 2):
        make = lambda data, sampler, workers=workers: torchdata.StatefulDataLoader(
            data, sampler=sampler, batch_size=SIZE, num_workers=workers
        )
        sampler, batches, loss = parts(loader=make)
        for batch in itertools.islice(batches, 2):
            loss(batch)
        states = copy.deepcopy((sampler.state_dict(), batches.loader.state_dict()))
        sampler, batches, loss = parts(loader=make)
        sampler.load_state_dict(states[0])
        batches.loader.load_state_dict(states[1])
        for batch in batches:
            loss(batch)
        assert_own_scores(sampler, N)


@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_take_their_own_ids(drop_last):
    """31 samples on 4 ranks: padding, or a tail that is dropped."""
    found = []
    for rank in range(4):
        sampler = stprune.PruningSampler(31, num_epochs=1, num_replicas=4, rank=rank, drop_last=drop_last, process_group="none")
        data = torch.arange(31)
        batches = stprune.BatchQueue(sampler, DataLoader(data, sampler=sampler, batch_size=3))
        for batch in batches:
            assert torch.equal(batches.take(len(batch)), batch)
            found.append(batch)
    assert len(torch.cat(found)) == (28 if drop_last else 32)


def ddp(rank, start):
    """DistributedDataParallel on both ranks, and on one all samples at once: the gradient of the first epoch's losses."""
    start()
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(16, 4, generator=g), torch.arange(16) % 3
    model = torch.nn.Linear(4, 3)
    torch.nn.init.constant_(model.weight, 0.1)
    found = []
    for processes in (2, 1):
        sampler = stprune.PruningSampler(
            16, num_epochs=2, keep_ratio=0.5, schedule="none", process_group=None if processes == 2 else "none"
        )
        model.zero_grad()
        run = torch.nn.parallel.DistributedDataParallel(model) if processes == 2 else model
        batches = stprune.BatchQueue(sampler, DataLoader(TensorDataset(x, y), sampler=sampler, batch_size=4 * (3 - processes)))
        criterion = stprune.PrunedMean(sampler, model=run)
        for epoch in range(2):
            sampler.set_epoch(epoch)
            for inputs, classes in batches:
                values = functional.cross_entropy(run(inputs), classes, reduction="none")
                criterion(values, batches.take(len(values))).backward()
        sampler.synchronize()
        found.append((model.weight.grad.clone(), sampler.table.scores))
    return found


CASES = {"ddp": (2, ddp)}


def test_two_ranks_train_as_one(tmp_path):
    """Queue, PrunedMean and DistributedDataParallel: gradients and scores are those of one process with larger batches."""
    found = rank_processes.results("test_batch_queue", tmp_path, 2)["ddp"]
    for two, one in found:
        for ours, expected in zip(two, one, strict=True):
            torch.testing.assert_close(ours, expected)
    assert torch.equal(found[0][0][0], found[1][0][0])


# --- misuse --------------------------------------------------------------------------------------------------------------


def test_a_skipped_batch():
    sampler, batches, loss = parts()
    with pytest.raises(
        RuntimeError, match=r"at most 1 batches may wait for their loss \(ahead=0\), got 1 losses for 2 batches"
    ):
        train(batches, loss, left_out=[1])
    assert_own_scores(sampler, SIZE)
    # On purpose: its ids are taken, and left.
    batches.clear()
    for number, batch in enumerate(batches):
        if number == 1:
            batches.take(len(batch))
        else:
            loss(batch)
    assert_own_scores(sampler, N - SIZE)


def ahead_of(batches, number):
    """What loaders that look ahead do: fetch some batches before the first is handed on."""
    iterator = iter(batches)
    held = list(itertools.islice(iterator, number))
    for batch in iterator:
        held.append(batch)
        yield held.pop(0)
    yield from held


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_loop_that_looks_ahead(number):
    sampler, batches, loss = parts()
    with pytest.raises(RuntimeError, match=r"\(ahead=0\), got 0 losses for 1 batches.* needs ahead="):
        train(ahead_of(batches, number), loss)
    assert_own_scores(sampler, 0)
    sampler, batches, loss = parts(ahead=number)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for batch in ahead_of(batches, number):
            loss(batch)
        assert sampler.table.num_losses == len(sampler)
    assert_own_scores(sampler, N)


def test_a_thread_that_reads_ahead():
    sampler, batches, loss = parts(ahead=2)
    channel = queue.Queue(maxsize=1)  # one in it, and one in the thread's hand

    def read():
        for batch in batches:
            channel.put(batch)
        channel.put(None)

    thread = threading.Thread(target=read)
    thread.start()
    while (batch := channel.get()) is not None:
        loss(batch)
    thread.join()
    assert_own_scores(sampler, N)


def test_a_validation_loss_in_between():
    """With gradients off at once; with gradients on where no batch waits for a loss, which is at once without ahead."""
    for ahead in (0, 2):
        sampler, batches, loss = parts(ahead=ahead)
        next(iter(batches))
        with pytest.raises(RuntimeError, match="take: the loss must be one of training, got gradients off"):
            torch.no_grad()(loss)(torch.zeros(SIZE))
        assert_own_scores(sampler, 0)
    sampler, batches, loss = parts()
    with pytest.raises(RuntimeError, match="take: every loss must have a batch, got loss 2 for 1 batches. Is it one of valid"):
        train(batches, lambda batch: [loss(batch), loss(batch)])
    assert_own_scores(sampler, SIZE)


def test_a_last_smaller_batch_and_a_wrong_size():
    _, batches, loss = parts()
    sizes = []
    for batch in batches:
        sizes.append(len(batch))
        loss(batch)
    assert sizes == [8, 8, 8, 6]
    with pytest.raises(ValueError, match="take: batch_size must be 6 as of batch 4 of 4 delivered, got 8"):
        train(batches, lambda batch: loss(torch.cat([batch, batch])[:SIZE]))
    for bad, error in ((2.0, TypeError), (-1, ValueError)):
        with pytest.raises(error, match="^BatchQueue.take: batch_size must"):
            batches.take(bad)


def test_losses_that_are_missing_at_the_end():
    sampler, batches, loss = parts()
    with pytest.raises(
        RuntimeError, match="every batch must have had its loss at the end of a pass, got 3 losses for 4 batches"
    ):
        train(batches, loss, left_out=[3])
    assert_own_scores(sampler, 3 * SIZE)


def test_an_abandoned_pass():
    sampler, batches, loss = parts()
    next(iter(batches))
    with pytest.raises(RuntimeError, match="every batch of the pass before must have had its loss, got 0 losses for 1 batches"):
        next(iter(batches))
    batches.clear()
    # One whose batches all had their loss is in order.
    for batch in itertools.islice(batches, 2):
        loss(batch)
    for batch in batches:
        loss(batch)
    assert_own_scores(sampler, N)


def test_a_pass_inside_of_another():
    _, batches, loss = parts()
    outer = iter(batches)
    loss(next(outer))
    inner = iter(batches)
    loss(next(inner))
    with pytest.raises(RuntimeError, match="one pass must end before the next begins, got pass 2 inside of 1"):
        next(outer)
    loss(next(inner))


def test_an_epoch_that_changes_in_between():
    sampler, batches, loss = parts()
    with pytest.raises(RuntimeError, match="take: the sampler must be in epoch 0 of the batch, got 1"):
        train(batches, lambda batch: [sampler.set_epoch(1), loss(batch)])


class Strange:
    """A loader around another that delivers other batches than the sampler's pass has."""

    def __init__(self, loader, change):
        self.loader, self.change, self.batch_size = loader, change, SIZE

    def __iter__(self):
        return iter(self.change(list(self.loader)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batches: batches[:2], "loader must deliver the 4 batches of the sampler's pass, got 2"),
        (lambda batches: [*batches, batches[0]], "loader must deliver the 4 batches of the sampler's pass, got 5"),
    ],
)
def test_a_loader_that_delivers_other_batches(change, message):
    _, batches, loss = parts(loader=lambda data, sampler: Strange(LOADERS["sampler"](data, sampler), change))
    with pytest.raises(RuntimeError, match=message):
        train(batches, loss)


def test_a_loader_that_does_not_draw_from_the_sampler():
    with pytest.raises(ValueError, match="loader must draw from the sampler given, got one that draws from"):
        parts(loader=lambda data, sampler: DataLoader(data, batch_size=SIZE, shuffle=True))
    _, batches, _ = parts(loader=lambda data, sampler: Strange(DataLoader(data, batch_size=SIZE), list))
    with pytest.raises(RuntimeError, match="loader must draw from the sampler given, got a batch without a pass over it"):
        next(iter(batches))


def test_refusals():
    sampler = stprune.PruningSampler(N, num_epochs=1)
    loader = DataLoader(DATA, sampler=sampler, batch_size=SIZE)
    for arguments, keywords, error, message in (
        ((3, loader), {}, TypeError, "sampler must be a PruningSampler, got int"),
        ((sampler, 3), {}, TypeError, "loader must be iterable, got int"),
        ((sampler, loader), {"ahead": -1}, ValueError, "ahead must be at least 0, got -1"),
        ((sampler, loader), {"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ((sampler, [1, 2]), {}, ValueError, "batch_size must be given for a loader that does not say it, got None"),
        ((sampler, DataLoader(DATA, sampler=sampler, batch_size=None)), {}, ValueError, "batch_size must be given"),
    ):
        with pytest.raises(error, match=f"^BatchQueue: {message}"):
            stprune.BatchQueue(*arguments, **keywords)
    assert repr(stprune.BatchQueue(sampler, loader)) == "BatchQueue(0 losses for 0 batches, ahead=0)"
