"""Two real processes with torch.distributed: shares, exchanged scores, and what is refused on every rank."""

import datetime

import pytest
import torch
from torch import distributed, multiprocessing

import stprune

WORLD = 2
TIMEOUT = datetime.timedelta(seconds=60)


def train(sampler, epoch):
    """Score this rank's samples of an epoch: window i gets i + 1."""
    sampler.set_epoch(epoch)
    ids = torch.tensor(list(sampler))
    sampler.update(ids, ids + 1.0)
    return ids.tolist()


def view(sampler, ids):
    """What two ranks must agree on, or share."""
    return {
        "replicas": (sampler.num_replicas, sampler.rank),
        "ids": ids,
        "lengths": (len(sampler), len(sampler.batches(8)), len(list(sampler.batches(8)))),
        "plan": sampler.plan.indices.tolist(),
        "scores": sampler.table.scores.tolist(),
    }


def two_epochs(sampler):
    train(sampler, 0)
    return view(sampler, train(sampler, 1)) | {"exchanged": exchanged(sampler)}


def exchanged(sampler):
    sampler.set_epoch(2)
    return sampler.table.scores.tolist()


def shares(size, drop_last):
    def case(rank, start):
        start()
        return two_epochs(stprune.PruningSampler(size, num_epochs=4, drop_last=drop_last))

    return case


def built_before(rank, start):
    sampler = stprune.PruningSampler(64, num_epochs=4)
    stprune.PrunedLoss(sampler)
    start()
    return two_epochs(sampler)


def of_a_group(rank, start):
    start()
    return two_epochs(stprune.PruningSampler(64, num_epochs=4, process_group=distributed.new_group([0, 1])))


def of_this_rank_alone(rank, start):
    """As in tensor parallelism: both ranks train on every window."""
    start()
    groups = [distributed.new_group([each]) for each in range(WORLD)]
    return two_epochs(stprune.PruningSampler(64, num_epochs=4, process_group=groups[rank]))


def beyond_float32(rank, start):
    """Ids above 2^24, which float32 cannot count: each rank scores every other one."""
    start()
    n = (1 << 24) + 1001
    sampler = stprune.PruningSampler(n, num_epochs=4, method="infobatch")
    every = torch.arange((1 << 24) + 1, n)
    sampler.update(every[rank::2], (every[rank::2] - (1 << 24)).float())
    sampler.set_epoch(1)
    scores = sampler.table.scores
    return {
        "scored": torch.equal(scores[every], (every - (1 << 24)).float()),
        "others": bool(torch.isinf(scores[: (1 << 24) + 1]).all()),
        "plan": (len(sampler.plan), int(sampler.plan.indices.sum())),
    }


def resumed(rank, start):
    start()
    first, second = (stprune.PruningSampler(64, num_epochs=4) for _ in range(2))
    train(first, 0)
    first.set_epoch(1)
    ids = list(first)
    first.update(torch.tensor(ids[:8]), torch.ones(8))
    first.synchronize()
    second.load_state_dict(first.state_dict())
    return {"whole": ids, "left": list(second), "length": len(second), "again": list(second)}


def differing(epoch=0, **options):
    """Each option is a pair: what rank 0 and what rank 1 are given. `epoch` 1: rank 0 begins epoch 1, rank 1 epoch 2."""

    def case(rank, start):
        start()
        settings = {"data_source": 64, "num_epochs": 4} | {name: value[rank] for name, value in options.items()}
        sampler = stprune.PruningSampler(**settings)
        if epoch:
            train(sampler, 0)
        try:
            sampler.set_epoch(epoch * (rank + 1))
            return "nothing was said"
        except (RuntimeError, ValueError) as error:
            return f"{type(error).__name__}: {error}"

    return case


CASES = {
    **{f"{size} windows, drop_last={drop}": shares(size, drop) for size in (64, 65) for drop in (False, True)},
    "built before": built_before,
    "group": of_a_group,
    "alone": of_this_rank_alone,
    "resumed": resumed,
    "beyond float32": beyond_float32,
    "seed": differing(seed=(0, 1)),
    "method": differing(method=("st-prune", "infobatch")),
    "keep_ratio": differing(keep_ratio=(0.5, 0.25)),
    "epoch": differing(epoch=1),
    "length": differing(data_source=(64, 65)),
}


def process(rank, folder):
    """Run every case in a process group of its own, and keep what it gave or raised."""
    torch.set_num_threads(1)
    for name, case in CASES.items():

        def start(name=name):
            store = distributed.FileStore(f"{folder}/{name}", WORLD)
            distributed.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=TIMEOUT)

        try:
            result = case(rank, start)
        except Exception as error:  # a case's fault is its own test's
            result = f"{type(error).__name__}: {error}"
        torch.save(result, f"{folder}/{name} on {rank}")
        if distributed.is_initialized():
            distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each rank found, by case. Ranks that disagree may abort a process: then the cases after it have no result."""
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.spawn(process, (str(folder),), nprocs=WORLD, join=False)
    try:
        while not context.join():
            pass
    except (multiprocessing.ProcessExitedException, multiprocessing.ProcessRaisedException) as error:
        print(error)
    files = {name: [folder / f"{name} on {rank}" for rank in range(WORLD)] for name in CASES}
    return {
        name: [torch.load(file, weights_only=True) if file.is_file() else "the process ended" for file in each]
        for name, each in files.items()
    }


@pytest.mark.parametrize("case", ["built before", "group", *(name for name in CASES if "drop_last" in name)])
def test_ranks_share_the_epoch_and_exchange_scores(results, case):
    first, second = results[case]
    assert (first["replicas"], second["replicas"]) == ((2, 0), (2, 1)), first
    assert first["plan"] == second["plan"]
    assert first["lengths"] == second["lengths"]
    assert first["lengths"][1] == first["lengths"][2]
    kept, both = set(first["plan"]), [*first["ids"], *second["ids"]]
    if "drop_last=True" in case:
        assert len(both) == len(set(both)) == len(kept) // 2 * 2
        assert set(both) <= kept
    else:
        assert len(both) == -(-len(kept) // 2) * 2
        assert set(both) == kept
    assert first["exchanged"] == second["exchanged"]
    assert [first["exchanged"][id] for id in sorted(set(both))] == [id + 1.0 for id in sorted(set(both))]


def test_a_group_of_one_trains_on_everything(results):
    for result in results["alone"]:
        assert result["replicas"] == (1, 0), result
        assert sorted(result["ids"]) == result["plan"]


def test_ids_beyond_float32_keep_their_scores(results):
    first, second = results["beyond float32"]
    assert first == second
    assert first["scored"], first
    assert first["others"]


def test_ranks_continue_where_each_stopped(results):
    for result in results["resumed"]:
        assert result["left"] == result["whole"][8:]
        assert result["length"] == len(result["again"]) == len(result["whole"])


@pytest.mark.parametrize("name", ["seed", "length", "method", "keep_ratio", "epoch"])
def test_ranks_that_differ_are_refused_on_every_rank(results, name):
    first, second = results[name]
    assert first == second
    assert "Error: PruningSampler" in first, first
    assert "rank" in first


@pytest.mark.parametrize("first_use", [len, lambda sampler: next(iter(sampler)), lambda sampler: sampler.set_epoch(0)])
def test_scores_that_cannot_be_exchanged_are_refused(first_use):
    """A loader that shards, or data x tensor parallel groups: more replicas than torch.distributed knows of."""
    options = {"num_epochs": 4, "num_replicas": 2, "rank": 0}
    with pytest.raises((RuntimeError, ValueError), match='PruningSampler.*process_group="none"'):
        first_use(stprune.PruningSampler(64, **options))
    first_use(stprune.PruningSampler(64, **options, method="soft-random"))
    alone = stprune.PruningSampler(64, **options, process_group="none")
    first_use(alone)
    assert (alone.num_replicas, alone.rank, len(alone)) == (2, 0, 32)
