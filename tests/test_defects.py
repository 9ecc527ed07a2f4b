"""One test for each known defect of earlier dynamic pruners: none of them may exist here.

The numbers are those of the list in the project's study of InfoBatch and its descendants.
"""

import contextlib
import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Subset, TensorDataset

import stprune


class Spawned(torch.utils.data.Dataset):
    """At module level, as spawned workers import it."""

    def __len__(self):
        return 64

    def __getitem__(self, i):
        return torch.tensor([float(i)])


def scored(n=1000, method="infobatch", seed=0, **kwargs):
    sampler = stprune.PruningSampler(n, num_epochs=100, method=method, seed=seed, **kwargs)
    sampler.update(torch.arange(n), torch.empty(n).log_normal_(generator=torch.Generator().manual_seed(7)))
    sampler.set_epoch(1)
    return sampler


def test_01_an_epoch_ends_and_is_planned_once():
    """Endless epoch on torch >= 2.6, and one pruning per batch with drop_last."""
    for drop_last in (False, True):
        sampler = scored()
        plan = sampler.plan
        batches = BatchSampler(sampler, 32, drop_last)
        assert len(list(batches)) == len(batches)
        loader = DataLoader(TensorDataset(torch.arange(1000)), batch_size=32, sampler=sampler, drop_last=drop_last)
        assert len(list(loader)) == len(loader)
        assert sampler.plan is plan
        assert sampler.epoch == 1


RANKS = """
import sys
import torch
from torch import distributed
import stprune
rank = int(sys.argv[1])
distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
n = (1 << 24) + 1001
sampler = stprune.PruningSampler(n, num_epochs=4, method="infobatch")
assert (sampler.num_replicas, sampler.rank) == (2, rank)
ids = torch.arange((1 << 24) + 1 + rank, n, 2)  # beyond what float32 can count; odd ones on rank 0
sampler.update(ids, (ids - (1 << 24)).float())
sampler.set_epoch(1)
every = torch.arange((1 << 24) + 1, n)
assert torch.equal(sampler.table.scores[every], (every - (1 << 24)).float()), "a score went to another sample"
assert bool(torch.isinf(sampler.table.scores[: (1 << 24) + 1]).all())
kept = torch.tensor([len(sampler.plan), int(sampler.plan.indices.sum())])
other = kept.clone()
distributed.broadcast(other, 0)
assert torch.equal(kept, other), "ranks plan differently"
distributed.destroy_process_group()
"""


def test_02_ids_beyond_2_to_the_24_keep_their_scores_across_ranks(tmp_path):
    """Ids travelled as float32 between ranks."""
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANKS, str(rank), str(tmp_path / "store")], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float32])
def test_03_losses_of_every_dtype(dtype):
    """Only float32 losses were accepted."""
    sampler = stprune.PruningSampler(4, num_epochs=2)
    prediction = torch.ones(4, 3, 2, 1, dtype=dtype, requires_grad=True)
    stprune.PrunedLoss(sampler)(prediction, torch.zeros_like(prediction), torch.arange(4)).backward()
    assert sampler.table.scores.tolist() == [1.0] * 4
    sampler.update(torch.arange(4), torch.ones(4, dtype=dtype))


@pytest.mark.parametrize("num_epochs", [100, 30])
def test_04_annealing_resets_every_weight(num_epochs):
    """Weights stayed at 2 where num_epochs * delta is not whole."""
    sampler = stprune.PruningSampler(1000, num_epochs=num_epochs, method="infobatch")
    sampler.update(torch.arange(1000), torch.rand(1000))
    first = int(num_epochs * 0.875)
    for epoch in range(1, num_epochs):
        sampler.set_epoch(epoch)
        weights = set(sampler.plan.weights.tolist())
        if epoch >= first:
            assert weights == {1.0}
            assert len(sampler) == 1000
        else:
            assert weights == {1.0, 2.0}


def test_05_prefetching_gives_every_sample_its_own_loss():
    """A hidden 'current batch' shifted scores by one under any loader that fetches ahead."""
    data = stprune.IndexedDataset(TensorDataset(torch.arange(640, dtype=torch.float32)))
    sampler = stprune.PruningSampler(640, num_epochs=2, method="infobatch")
    criterion = stprune.PrunedLoss(sampler, spatial=0.0, temporal=0.0)
    pending = None
    for batch in [*DataLoader(data, batch_size=10, sampler=sampler), None]:  # always one batch ahead
        if pending is not None:
            index, (value,) = pending
            prediction = value.view(-1, 1, 1, 1).requires_grad_()
            criterion(prediction, torch.zeros_like(prediction), index)
        pending = batch
    assert torch.equal(sampler.table.scores, torch.arange(640, dtype=torch.float32))


def test_06_the_callers_tensors_are_not_scaled_in_place():
    """The weights were multiplied into the caller's loss, which broke autograd of square roots."""
    sampler = scored(10, keep_ratio=0.5)
    index = sampler.plan.indices[:4]
    prediction = torch.rand(4, 3, 2, 1, requires_grad=True)
    target = torch.zeros(4, 3, 2, 1)
    per_sample = stprune.residual_stats(prediction, target, loss="mse").loss.sqrt()
    value = per_sample.detach().clone()
    sampler.update(index, per_sample)
    loss = stprune.PrunedLoss(sampler, loss="mse")(prediction, target, index).sqrt()
    (loss + per_sample.sum()).backward()
    assert torch.equal(per_sample.detach(), value)
    assert bool(torch.isfinite(prediction.grad).all())
    assert torch.equal(target, torch.zeros_like(target))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", ["infobatch", "st-prune"])
def test_07_one_bad_score_does_not_stop_or_poison_pruning(bad, method):
    """One NaN stopped all pruning; one infinity made every sample 'well learned'."""
    clean, dirty = scored(method=method), scored(method=method)
    clean.set_epoch(2)
    dirty.update(torch.tensor([5]), torch.tensor([bad]))
    with pytest.warns(RuntimeWarning, match="1 of 1000 samples were scored NaN or infinite"):
        dirty.set_epoch(2)
    assert 5 in dirty.plan.indices
    assert abs(len(clean) - len(dirty)) <= 20
    assert float(dirty.plan.weights[dirty.plan.indices == 5]) == 1.0
    dirty.set_epoch(3)  # reported once; a second warning would be an error here


@pytest.mark.filterwarnings("error")
def test_07_the_report_comes_once():
    sampler = scored()
    for epoch in (2, 3):
        sampler.table.update(torch.tensor([5]), torch.tensor([float("nan")]))
        with pytest.warns(RuntimeWarning) if epoch == 2 else contextlib.nullcontext():
            sampler.set_epoch(epoch)


def test_08_the_length_is_this_epochs():
    """len(loader) was the previous epoch's."""
    sampler = scored()
    loader = DataLoader(TensorDataset(torch.arange(1000)), batch_size=10, sampler=sampler)
    for epoch in (1, 50, 86, 87, 99):
        sampler.set_epoch(epoch)
        length = len(loader)
        assert length == sum(1 for _ in loader)
    assert length == 100


def test_09_global_random_state_is_neither_read_nor_written():
    """np.random.seed(epoch) on the global generator; no seed of one's own."""
    np.random.seed(1)
    torch.manual_seed(1)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    sampler = scored(method="st-prune")
    list(sampler)
    sampler.set_epoch(2)
    list(sampler.batches(10))
    assert np.array_equal(before[0], np.random.get_state()[1])
    assert torch.equal(before[1], torch.get_rng_state())
    torch.manual_seed(99)
    assert list(scored(method="st-prune")) == list(scored(method="st-prune"))
    assert list(scored(method="st-prune", seed=1)) != list(scored(method="st-prune", seed=2))


def test_10_looking_does_not_advance():
    """A peek at the iterator, or at .sampler, pruned again and moved the schedule on."""
    sampler = scored()
    loader = DataLoader(TensorDataset(torch.arange(1000)), batch_size=10, sampler=sampler)
    order = list(sampler)
    for _ in range(5):
        next(iter(loader))
        assert loader.sampler is sampler
    assert sampler.epoch == 1
    assert list(sampler) == order


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_11_workers_of_every_start_method(context):
    """Attribute forwarding recursed for ever in copies and spawned workers."""
    data = stprune.IndexedDataset(Spawned())
    for duplicate in (copy.copy(data), copy.deepcopy(data), pickle.loads(pickle.dumps(data))):
        assert duplicate[3] == (3, torch.tensor([3.0]))
    sampler = scored(64)
    loader = DataLoader(data, batch_size=8, sampler=sampler, num_workers=2, multiprocessing_context=context)
    delivered = [(int(i), float(v)) for index, value in loader for i, v in zip(index, value, strict=True)]
    assert [i for i, _ in delivered] == list(sampler)
    assert all(i == v for i, v in delivered)


def test_12_a_resumed_epoch_repeats_nothing():
    """No state: after a resume most samples of the epoch came again."""
    sampler = scored()
    batches = list(sampler.batches(10))
    for ids in batches[:10]:
        sampler.update(torch.from_numpy(ids), torch.ones(10))
    resumed = scored()
    resumed.load_state_dict(sampler.state_dict())
    rest = list(resumed.batches(10))
    assert len(rest) == len(batches) - 10
    assert np.array_equal(np.concatenate(rest), np.concatenate(batches[10:]))


def test_13_steps_do_not_grow_with_what_is_pruned():
    """E[batch mean of w * gradient] was n / kept times the full mean; per_step keeps it at 1."""
    sampler = scored()
    assert len(sampler) < 800
    criterion = stprune.PrunedLoss(sampler)
    total = 0.0
    for ids in sampler.batches(10):
        index = torch.from_numpy(ids)
        prediction = torch.ones(len(ids), 1, 1, 1, requires_grad=True)
        total += criterion(prediction, torch.zeros_like(prediction), index).item() * len(ids)
    assert total / len(sampler) == pytest.approx(1.0, abs=1e-5)


def test_14_small_pools_are_drawn_from():
    """int(0.1 * 9) is 0: none of nine well-learned samples was ever kept."""
    scores = torch.tensor([1.0] * 9 + [100.0])
    hits = 0
    for epoch in range(200):
        plan = stprune.plan_epoch(scores, method="infobatch", keep_ratio=0.1, epoch=epoch, seed=0)
        assert 9 in plan.indices
        hits += len(plan) - 1
    # 200 * 9 * 0.1 = 180 expected, one Bernoulli(0.9) each epoch: standard deviation 4.2
    assert 160 <= hits <= 198


def test_15_the_threshold_does_not_depend_on_the_thread_count(threads):
    """A float32 mean of 12,345,678 equal scores came out above them with one thread: half of the data was pruned."""
    scores = torch.full((12_345_678,), 3.0)
    for count in (1, 2):
        threads(count)
        assert len(stprune.plan_epoch(scores, method="infobatch", keep_ratio=0.5, epoch=0, seed=0)) == 12_345_678


def test_16_subsets_and_iterable_sets():
    """Subset leaked (index, data) tuples to the model; iterable sets died with an obscure TypeError."""
    data = stprune.IndexedDataset(Spawned())
    index, value = next(iter(DataLoader(Subset(data, [5, 9]), batch_size=2)))
    assert index.tolist() == [5, 9]
    assert value.squeeze(1).tolist() == [5.0, 9.0]

    class Stream(IterableDataset):
        def __iter__(self):
            yield 1

    with pytest.raises(TypeError, match="IndexedDataset"):
        stprune.IndexedDataset(Stream())
    with pytest.raises(TypeError, match="data_source must be a length or a data set with one, got Stream"):
        stprune.PruningSampler(Stream(), num_epochs=2)
