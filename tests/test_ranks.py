"""Real processes with torch.distributed: shares, exchanged scores, training, killed ranks, and what every rank refuses."""

import copy
import os
import signal
import time

import pytest
import rank_processes
import torch
from torch import distributed

import stprune
from stprune.exchange import message_device
from stprune.ops.table_update import FRESH
from stprune.reference import table_update as reference

WORLD = 2
MOST = 4


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


def told_to_one(rank, start):
    """Rank 0 alone says how many nodes are drawn; a second time both do, and do not agree."""
    start()
    sampler = stprune.PruningSampler(8, num_epochs=4, method="rs2", num_nodes=6, node_ratio="auto")
    drawn = []
    for epoch, told in enumerate([(3, None), (None, None), (2, 5), (None, 4)]):
        if told[rank]:
            sampler.draw_next(told[rank])
        sampler.set_epoch(epoch)
        drawn.append((sampler.nodes(torch.arange(2)).shape[1], sampler.node_ratio * 6))
    return drawn


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


def resumed_apart(rank, start):
    """Each rank goes on from a state of its own, as loaders save one on each rank; one without a stop beside it."""
    start()
    settings = {"num_epochs": None, "num_nodes": 6, "node_ratio": 0.5, "node_sampler": "priority"}
    first, second = (stprune.PruningSampler(64, **settings) for _ in range(2))

    def scored(sampler, ids):
        index = torch.tensor(ids)
        node = sampler.nodes(index)
        stprune.PrunedMean(sampler)(((index.unsqueeze(1) + node) / 7.0).requires_grad_(), index, node)

    for epoch in range(2):
        first.set_epoch(epoch)
        scored(first, list(first)[: 8 if epoch else None])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for sampler, rest in ((first, list(first)[8:]), (second, list(second))):
        scored(sampler, rest)
        sampler.set_epoch(2)
    return [
        (sampler.plan.indices.tolist(), sampler.table.scores.tolist(), sampler.nodes(torch.arange(64)).tolist())
        for sampler in (first, second)
    ]


def differing(epoch=0, **options):
    """Each option is a pair: what rank 0 and what rank 1 are given. `epoch` 1: rank 0 begins epoch 1, rank 1 epoch 2."""

    def case(rank, start):
        start()
        settings = {"data_source": 64, "num_epochs": 4} | {name: value[rank] for name, value in options.items()}
        sampler = stprune.PruningSampler(**settings)
        if epoch:
            train(sampler, 0)
        return rank_processes.refusal(lambda: sampler.set_epoch(epoch * (rank + 1)))

    return case


# --- the exchange ------------------------------------------------------------------------------------------------------


class Counted:
    """Counts what goes through torch.distributed's collectives while it is open: messages, and bytes that this rank sends."""

    NAMES = ("all_reduce", "all_gather", "all_to_all_single", "all_gather_object")

    def __enter__(self):
        self.messages, self.bytes, self.true = [], [], {name: getattr(distributed, name) for name in self.NAMES}
        for name, collective in self.true.items():
            setattr(distributed, name, self.counting(name, collective))
        return self

    def counting(self, name, collective):
        def call(*arguments, **options):
            sent = arguments[0 if name == "all_reduce" else 1]
            self.messages.append(name)
            self.bytes.append(sent.nbytes if isinstance(sent, torch.Tensor) else -1)
            return collective(*arguments, **options)

        return call

    def __exit__(self, *_):
        for name, collective in self.true.items():
            setattr(distributed, name, collective)


def sparse(rank, start):
    """Ranks score 5, 0 and 2 samples of a thousand or of three million; only these travel."""
    start()
    found = {}
    for size in (1000, 3 << 20):
        table = stprune.ScoreTable(size, beta=0.0, track_variance=True)
        ids = [torch.tensor([1, 7, 8, 9, 500]), torch.tensor([], dtype=torch.int64), torch.tensor([500, 999])][rank]
        table.update(ids, ids * 2.0 + rank)
        with Counted() as counted:
            table.synchronize()
        found[size] = (counted.messages, counted.bytes, int(torch.isfinite(table.scores).sum()), float(table.scores[500]))
    return found


def one_message_of_settings(rank, start):
    start()
    sampler = stprune.PruningSampler(64, num_epochs=4)
    train(sampler, 0)
    with Counted() as counted:
        sampler.set_epoch(1)
    return counted.messages, counted.bytes


def as_dense(rank, start):
    """Many samples that one, several or no ranks scored, against sums over whole vectors in the order of the ranks."""
    start()
    size, world = 5000, distributed.get_world_size()
    random = torch.Generator().manual_seed(rank)
    table = stprune.ScoreTable(size, beta=0.0)
    ids = torch.randperm(size, generator=random)[: (0, 3000, 700, 2500)[rank]]
    table.update(ids, torch.randn(len(ids), generator=random))
    fresh = (table.columns[1] & FRESH) > 0
    everyone = [torch.empty(2, size) for _ in range(world)]
    distributed.all_gather(everyone, torch.stack([fresh.float(), torch.where(fresh, table.scores, 0.0)]))
    count, total = everyone[0]
    for more in everyone[1:]:
        count, total = count + more[0], total + more[1]
    expected = torch.where(count > 0, total / count, torch.inf)
    table.synchronize()
    return bool(torch.equal(table.scores, expected)), int(count.max())


def pair_scores(rank, start):
    """Priority: windows that one rank trained on, that two did, that nobody did; a second exchange moves nothing."""
    start()
    sampler = stprune.PruningSampler(40, num_epochs=4, num_nodes=6, node_ratio=0.5, node_sampler="priority")
    index = torch.arange(rank, 33, 2 if rank < 2 else 5)
    node = sampler.nodes(index)
    sampler.node_sampler.update(index, node, (index.unsqueeze(1) + node) * 1.0)
    with Counted() as counted:
        sampler.synchronize()
    first = {name: value.clone() for name, value in sampler.node_sampler.state_dict().items() if name != "table"}
    sampler.grow(42)
    with Counted() as again:
        sampler.synchronize()
    second = {name: value for name, value in sampler.node_sampler.state_dict().items() if name != "table"}
    right = torch.equal(first["score"], (first["index"].unsqueeze(1) + first["node"].long() - 1) * 1.0)
    return {
        "windows": first["index"].tolist(),
        "right": right,
        "same": all(torch.equal(first[name], second[name]) for name in first),
        "messages": (len(counted.messages), len(again.messages)),
    }


def forgotten_by_one(rank, start):
    """One rank alone forgets a sample; then both forget the same, in another order."""
    start()
    sampler = stprune.PruningSampler(64, num_epochs=4)
    train(sampler, 0)
    if rank == 0:
        sampler.forget(torch.tensor([3]))
    said = rank_processes.refusal(lambda: sampler.set_epoch(1))
    sampler.forget(torch.tensor([5, 6] if rank else [6, 5, 6]))
    sampler.set_epoch(1)
    return said


def wrong_id_on_one(rank, start):
    """One rank alone was given an id that is not in the plan, where asking would have waited, as on a GPU."""
    start()
    sampler = stprune.PruningSampler(64, num_epochs=4)
    train(sampler, 0)
    if rank == 1:
        reference.update_known(*sampler.table.columns, torch.tensor([77]), torch.ones(1), None, None, 0.5, True)
    said = rank_processes.refusal(lambda: sampler.set_epoch(1))
    sampler.set_epoch(1)
    return said


# --- training ------------------------------------------------------------------------------------------------------------


def model_and_data():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 6)).double()
    x = torch.randn(48, 6, generator=torch.Generator().manual_seed(1)).double()
    return model, x, x.roll(1, 1) * 2.0 + 0.1 * torch.arange(48).unsqueeze(1)


def training(**options):
    """Four epochs of the same batches of 12 samples, of which each rank has its part: losses and sampled sets."""

    def case(rank, start):
        start()
        world = distributed.get_world_size()
        model, x, y = model_and_data()
        parallel = torch.nn.parallel.DistributedDataParallel(model)
        sampler = stprune.PruningSampler(48, num_epochs=4, keep_ratio=0.5, schedule="none", **options)
        criterion = stprune.PrunedLoss(sampler)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        losses, sets = [], []
        for epoch in range(4):
            sampler.set_epoch(epoch)
            sets.append([])
            for ids in sampler.batches(12 // world):
                index = torch.from_numpy(ids)
                loss = criterion(parallel(x[index]).unsqueeze(2), y[index].unsqueeze(2), index)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                mean = loss.detach().clone()
                distributed.all_reduce(mean)
                losses.append(float(mean) / world)
                everyone = [torch.empty_like(index) for _ in range(world)]
                distributed.all_gather(everyone, index)
                sets[-1].append(sorted(torch.cat(everyone).tolist()))
        return {
            "losses": losses,
            "sets": sets,
            "weights": torch.cat([p.detach().flatten() for p in model.parameters()]).tolist(),
        }

    return case


def first_part(rank, start):
    """One rank trains on 12 of 60 samples, and leaves a checkpoint."""
    folder = start()
    sampler = stprune.PruningSampler(120, num_epochs=4)
    train(sampler, 0)
    sampler.set_epoch(1)
    return {"plan": sampler.plan.indices.tolist(), "ids": go_on(sampler, 12, folder / "first.pt")}


def go_on(sampler, number, path):
    """Train on the next `number` samples, and leave a checkpoint."""
    ids = list(sampler)[:number]
    sampler.update(torch.tensor(ids), torch.tensor(ids) + 2.0)
    sampler.synchronize()
    if sampler.rank == 0 and path is not None:
        stprune.checkpoint.save(sampler.state_dict(), path)
    return ids


def next_part(number, before, after):
    """More ranks go on from the checkpoint `before`."""

    def case(rank, start):
        folder = start()
        sampler = stprune.PruningSampler(120, num_epochs=4)
        sampler.load_state_dict(stprune.checkpoint.load(folder / before))
        sampler.set_epoch(1)
        return {"ids": go_on(sampler, number, folder / after), "scores": sampler.table.scores.tolist()}

    return case


# --- killed ranks ----------------------------------------------------------------------------------------------------------


def killed(phase):
    """The last rank is killed in the second epoch; the others say how their run ended, and how soon."""

    def case(rank, start):
        folder = start()
        sampler = stprune.PruningSampler(96, num_epochs=4)
        kill = rank == sampler.num_replicas - 1
        begin = time.monotonic()
        try:
            for epoch in range(3):
                if kill and epoch == 1 and phase == "before set_epoch":
                    os.kill(os.getpid(), signal.SIGKILL)
                if kill and epoch == 1 and phase == "exchange":
                    # Settings were compared, numbers of rows agreed on; now the rows would go.
                    distributed.all_gather = lambda *arguments, **options: os.kill(os.getpid(), signal.SIGKILL)
                train_and_reduce(sampler, epoch, kill and epoch == 1 and phase == "training")
                sampler.synchronize()
                if rank == 0:
                    stprune.checkpoint.save(sampler.state_dict(), folder / f"{phase}.pt")
        except RuntimeError as error:
            return {"error": type(error).__name__, "seconds": time.monotonic() - begin}
        return "the run went on"

    return case


def train_and_reduce(sampler, epoch, kill):
    sampler.set_epoch(epoch)
    for ids in sampler.batches(4):
        if kill:
            os.kill(os.getpid(), signal.SIGKILL)
        index = torch.from_numpy(ids)
        distributed.all_reduce(torch.ones(4))  # as the gradients
        sampler.update(index, index + 1.0)


def after_the_kill(phase, saved):
    """The ranks that are left resume from the last checkpoint and train the rest of the epoch."""

    def case(rank, start):
        folder = start()
        sampler = stprune.PruningSampler(96, num_epochs=4)
        state = stprune.checkpoint.load(folder / f"{phase}.pt")
        sampler.load_state_dict(state)
        sampler.set_epoch(saved + 1)
        ids = train(sampler, saved + 1)
        return {"epoch": state["epoch"], "ids": ids, "plan": sampler.plan.indices.tolist()}

    return case


CASES = {
    **{f"{size} windows, drop_last={drop}": (2, shares(size, drop)) for size in (64, 65) for drop in (False, True)},
    **{f"{size} windows on 3, drop_last={drop}": (3, shares(size, drop)) for size in (63, 64, 65) for drop in (False, True)},
    **{f"{size} windows on 4, drop_last=False": (4, shares(size, False)) for size in (1, 2, 5)},
    "built before": (2, built_before),
    "group": (2, of_a_group),
    "alone": (2, of_this_rank_alone),
    "resumed": (2, resumed),
    "resumed apart": (3, resumed_apart),
    "told to one": (2, told_to_one),
    "beyond float32": (2, beyond_float32),
    "seed": (2, differing(seed=(0, 1))),
    "method": (2, differing(method=("st-prune", "infobatch"))),
    "keep_ratio": (2, differing(keep_ratio=(0.5, 0.25))),
    "epoch": (2, differing(epoch=1)),
    "length": (2, differing(data_source=(64, 65))),
    "sparse": (3, sparse),
    "settings": (2, one_message_of_settings),
    "dense": (4, as_dense),
    "pair scores": (3, pair_scores),
    "forgotten by one": (2, forgotten_by_one),
    "wrong id on one": (2, wrong_id_on_one),
    **{f"training on {world}": (world, training()) for world in (1, 2, 3, 4)},
    "part 1": (1, first_part),
    "part 2": (2, next_part(6, "first.pt", "second.pt")),
    "part 3": (3, next_part(12, "second.pt", "third.pt")),
    # A killed process takes part in no case after this one.
    "killed before set_epoch": (4, killed("before set_epoch")),
    "after before set_epoch": (3, after_the_kill("before set_epoch", 0)),
    "killed in exchange": (3, killed("exchange")),
    "after exchange": (2, after_the_kill("exchange", 0)),
    "killed in training": (2, killed("training")),
    "after training": (1, after_the_kill("training", 0)),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return rank_processes.results("test_ranks", tmp_path_factory.mktemp("ranks"), MOST)


@pytest.mark.parametrize("case", ["built before", "group", *(name for name in CASES if "drop_last" in name)])
def test_ranks_share_the_epoch_and_exchange_scores(results, case):
    first, *others = found = results[case]
    world = len(found)
    assert [each["replicas"] for each in found] == [(world, rank) for rank in range(world)]
    for other in others:
        assert other["plan"] == first["plan"]
        assert other["lengths"] == first["lengths"]
        assert other["exchanged"] == first["exchanged"]
    assert first["lengths"][1] == first["lengths"][2]
    kept, all_ids = set(first["plan"]), [id for each in found for id in each["ids"]]
    if "drop_last=True" in case:
        assert len(all_ids) == len(set(all_ids)) == len(kept) // world * world
        assert set(all_ids) <= kept
    else:
        assert len(all_ids) == -(-len(kept) // world) * world
        assert set(all_ids) == kept
    assert [first["exchanged"][id] for id in sorted(set(all_ids))] == [id + 1.0 for id in sorted(set(all_ids))]


def test_a_group_of_one_trains_on_everything(results):
    for result in results["alone"]:
        assert result["replicas"] == (1, 0), result
        assert sorted(result["ids"]) == result["plan"]


def test_all_ranks_draw_the_number_of_nodes_that_rank_0_was_told(results):
    for drawn in results["told to one"]:
        assert drawn == [(3, 3.0), (3, 3.0), (2, 2.0), (2, 2.0)]


def test_ids_beyond_float32_keep_their_scores(results):
    first, second = results["beyond float32"]
    assert first == second
    assert first["scored"], first
    assert first["others"]


def test_ranks_continue_where_each_stopped(results):
    for result in results["resumed"]:
        assert result["left"] == result["whole"][8:]
        assert result["length"] == len(result["again"]) == len(result["whole"])


def test_ranks_continue_from_states_of_their_own(results):
    expected, _ = results["resumed apart"][0]
    for result in results["resumed apart"]:
        assert list(result) == [expected, expected]


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


def test_only_what_was_scored_travels(results):
    """An id, a score and a variance are 16 bytes; the first message has one number for each 2^20 samples."""
    for found in results["sparse"]:
        for size, pieces in ((1000, 1), (3 << 20, 3)):
            messages, sizes, known, both = found[size]
            assert messages == ["all_reduce", "all_gather"], found
            assert sizes == [8 * pieces, 16 * 5]
            assert (known, both) == (6, 1001.0)


def test_settings_are_compared_by_one_small_message(results):
    for messages, sizes in results["settings"]:
        assert messages == ["all_reduce", "all_reduce", "all_gather"]  # settings, rows, the scores of 32 samples
        assert sizes == [16, 8, 12 * 32]


def test_a_sparse_exchange_gives_what_a_dense_one_does(results):
    assert results["dense"] == [(True, 3)] * 4


def test_pair_scores_travel_once(results):
    first, *others = results["pair scores"]
    assert first["windows"] == list(range(33))
    assert first["right"]
    assert first["same"]
    assert first["messages"] == (3, 2)  # no sample was scored: one message; windows: one and one, then only one
    assert all(other == first for other in others)


def test_ranks_that_do_not_forget_alike_are_refused(results):
    first, second = results["forgotten by one"]
    assert first == second
    assert "forgotten must be the same on every rank, got '1 samples" in first, first


def test_a_wrong_id_on_one_rank_is_an_error_on_every_rank(results):
    first, second = results["wrong id on one"]
    assert first == second
    assert first.startswith("ValueError: table_update: index must hold ids of the table and the epoch's plan, got 77")
    assert first.endswith("(rank 1)")


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_train_as_one(results, world):
    (one,), several = results["training on 1"], results[f"training on {world}"]
    assert [len(each) for each in one["sets"]] == [4, 2, 2, 2]
    for each in several:
        assert each["sets"] == one["sets"]
        assert each["losses"] == pytest.approx(one["losses"], rel=1e-5)  # scores and weights are float32
        assert each["weights"] == pytest.approx(one["weights"], rel=1e-5, abs=1e-7)
        assert each["weights"] == several[0]["weights"]


def test_more_ranks_resume_without_a_window_twice_or_lost(results):
    plan = results["part 1"][0]["plan"]
    trained = [id for part in (1, 2, 3) for each in results[f"part {part}"] for id in each["ids"]]
    assert sorted(trained) == plan
    assert len(plan) == 60
    for each in results["part 3"]:
        assert [each["scores"][id] for id in plan] == [(id + 1 + id + 2) / 2 for id in plan]


@pytest.mark.parametrize("phase", ["before set_epoch", "exchange", "training"])
def test_a_killed_rank_ends_the_run_and_the_last_checkpoint_resumes(results, phase):
    name = phase if phase == "before set_epoch" else f"in {phase}"
    *left, dead = results[f"killed {name}"]
    assert dead == "the process ended"
    for each in left:
        assert each["seconds"] < rank_processes.TIMEOUT.total_seconds() + 10, each
    resumed = results[f"after {phase}"]
    for each in resumed:
        assert each["epoch"] == 0
        assert each["plan"] == resumed[0]["plan"]
    assert {id for each in resumed for id in each["ids"]} == set(resumed[0]["plan"])


@pytest.mark.parametrize(
    ("backends", "device", "expected"),
    [
        ("cpu:gloo,cuda:nccl", "cpu", "cpu"),
        ("cuda:nccl", "cpu", "cuda"),
        ("cuda:nccl", "cuda:1", "cuda:1"),
        ("cpu:gloo", "cpu", "cpu"),
    ],
)
def test_messages_lie_where_the_groups_backend_takes_them(monkeypatch, backends, device, expected):
    """A group of NCCL alone takes no tensor of the host: it goes through this process's current GPU."""
    monkeypatch.setattr(distributed, "get_backend_config", lambda group: backends)
    assert message_device(None, torch.device(device)) == torch.device(expected)
