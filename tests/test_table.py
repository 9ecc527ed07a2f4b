"""ScoreTable: smoothing, ageing, duplicates, non-finite scores, state."""

import copy
import io
import math

import pytest
import torch

import stprune
from stprune.ops.table_update import FRESH, KNOWN, SCORED, wrong_id
from stprune.reference import table_update as reference

INF = float("inf")


def table(n=6, **kwargs):
    return stprune.ScoreTable(n, **kwargs)


def test_never_scored_is_inf():
    t = table(3)
    assert torch.equal(t.scores, torch.full((3,), INF))
    assert t.num_nonfinite() == 0


def test_first_score_is_taken_whole_and_later_ones_are_smoothed():
    t = table(beta=0.75)
    t.update(torch.tensor([2]), torch.tensor([4.0]))
    t.update(torch.tensor([2]), torch.tensor([8.0]))
    assert t.scores[2] == 0.75 * 4 + 0.25 * 8


def test_beta_zero_keeps_the_last_score():
    t = table(beta=0.0)
    t.update(torch.tensor([1, 3]), torch.tensor([1.0, 2.0]))
    t.update(torch.tensor([1]), torch.tensor([9.0]))
    assert t.scores[1] == 9.0
    assert t.scores[3] == 2.0


def test_unvisited_decay_to_the_mean_and_visited_stay():
    t = table(4, beta=0.0, decay=0.5)
    t.update(torch.tensor([0, 1, 2]), torch.tensor([1.0, 5.0, 6.0]))
    t.advance()  # all visited in epoch 0: nothing decays
    assert t.scores[:3].tolist() == [1.0, 5.0, 6.0]
    t.update(torch.tensor([0]), torch.tensor([1.0]))
    t.advance()
    mean = (1 + 5 + 6) / 3
    assert t.scores.tolist() == [1.0, mean + 0.5 * (5 - mean), mean + 0.5 * (6 - mean), INF]


def test_the_last_of_duplicates_wins():
    for _ in range(20):
        t = table(5, beta=0.0)
        index = torch.tensor([3, 1, 3, 3, 1])
        t.update(index, torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
        assert t.scores[3] == 4.0
        assert t.scores[1] == 5.0


def test_duplicates_smooth_once_not_repeatedly():
    t = table(2, beta=0.5)
    t.update(torch.tensor([0]), torch.tensor([8.0]))
    t.update(torch.tensor([0, 0]), torch.tensor([100.0, 4.0]))
    assert t.scores[0] == 6.0


@pytest.mark.parametrize("bad", [math.nan, INF])
def test_nonfinite_scores_are_kept_counted_and_replaced(bad):
    t = table(4, beta=0.5, decay=0.5)
    t.update(torch.tensor([0, 1, 2]), torch.tensor([bad, 2.0, 4.0]))
    assert t.num_nonfinite() == 1
    t.advance()
    t.update(torch.tensor([1]), torch.tensor([2.0]))
    t.advance()
    assert t.scores[2] == 3.0 + 0.5 * (4.0 - 3.0)  # the mean 3 knows nothing of the bad score
    t.update(torch.tensor([0]), torch.tensor([7.0]))
    assert t.scores[0] == 7.0
    assert t.num_nonfinite() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scores_of_every_floating_dtype(dtype):
    t = table()
    t.update(torch.tensor([0]), torch.tensor([1.5], dtype=dtype))
    assert t.scores[0] == 1.5
    assert t.scores.dtype == torch.float32


def test_variance_follows_the_scores():
    t = table(2, beta=0.5, track_variance=True)
    t.update(torch.tensor([0]), torch.tensor([4.0]))
    assert t.variance.tolist() == [0.0, 0.0]
    t.update(torch.tensor([0]), torch.tensor([8.0]))
    assert t.variance[0] == 0.5 * 16.0


@pytest.mark.parametrize(
    ("index", "scores", "error", "message"),
    [
        (torch.tensor([0.0]), torch.tensor([1.0]), TypeError, "index must be int64, got torch.float32"),
        (torch.tensor([0], dtype=torch.int32), torch.tensor([1.0]), TypeError, "index must be int64"),
        ([0], torch.tensor([1.0]), TypeError, "index must be a tensor, got list"),
        (torch.tensor([0]), torch.tensor([1]), TypeError, "scores must be float32"),
        (torch.tensor([0, 1]), torch.tensor([1.0]), ValueError, r"scores must have the shape of index \(2,\), got \(1,\)"),
        (torch.tensor([6]), torch.tensor([1.0]), ValueError, r"index must lie in \[0, 5\], got 6"),
        (torch.tensor([2, -1]), torch.tensor([1.0, 1.0]), ValueError, r"index must lie in \[0, 5\], got -1"),
        (torch.tensor([[0]]), torch.tensor([[1.0]]), ValueError, "index must have one dimension"),
        (torch.tensor([0]), torch.empty(1, device="meta"), ValueError, "scores must live on the table's device cpu, got meta"),
    ],
)
def test_bad_updates_change_nothing(index, scores, error, message):
    t = table()
    t.update(torch.tensor([0]), torch.tensor([2.0]))
    before = copy.deepcopy(t.state_dict())
    with pytest.raises(error, match="ScoreTable.update: " + message):
        t.update(index, scores)
    after = t.state_dict()
    assert torch.equal(before["scores"], after["scores"])
    assert torch.equal(before["marks"], after["marks"])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"beta": 1.0}, "beta must lie in"),
        ({"beta": -0.1}, "beta must lie in"),
        ({"decay": 0.0}, "decay must lie in"),
        ({"decay": math.nan}, "decay must lie in"),
    ],
)
def test_bad_settings(kwargs, message):
    with pytest.raises(ValueError, match=message):
        table(3, **kwargs)


def test_state_round_trip_through_a_file():
    t = table(4, track_variance=True)
    t.update(torch.tensor([1, 2]), torch.tensor([1.0, math.nan]))
    t.advance()
    buffer = io.BytesIO()
    torch.save(t.state_dict(), buffer)
    buffer.seek(0)
    other = table(4, track_variance=True)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other.scores, t.scores) or torch.equal(other.scores.isnan(), t.scores.isnan())
    assert other.epoch == t.epoch


def test_state_of_another_size_is_refused():
    with pytest.raises(ValueError, match="num_samples must be 4 as in this table, got 3"):
        table(4).load_state_dict(table(3).state_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.25}, "beta must be 0.5 as in this table, got 0.25"),
        ({"track_variance": True}, "track_variance must be False as in this table, got True"),
        ({"stored": False}, "stored must be True as in this table, got False"),
    ],
)
def test_state_of_other_settings_is_refused_and_changes_nothing(settings, message):
    t = table(4)
    t.update(torch.tensor([1]), torch.tensor([2.0]))
    with pytest.raises(ValueError, match=message):
        t.load_state_dict(table(4, **settings).state_dict())
    bad = t.state_dict() | {"scores": torch.zeros(3)}
    with pytest.raises(ValueError, match="scores must be"):
        t.load_state_dict(bad)
    with pytest.raises(ValueError, match="state must have the entries"):
        t.load_state_dict({"scores": t.scores})
    assert t.scores.tolist() == [INF, 2.0, INF, INF]


def test_a_state_from_the_middle_of_an_epoch_knows_who_was_scored_in_it():
    t = table(3, beta=0.0, decay=0.5)
    t.update(torch.tensor([0, 1]), torch.tensor([1.0, 3.0]))
    t.advance()
    t.update(torch.tensor([0]), torch.tensor([1.0]))
    other = table(3, beta=0.0, decay=0.5)
    other.update(torch.tensor([2]), torch.tensor([9.0]))  # of a run that is given up
    other.load_state_dict(t.state_dict())
    for one in (t, other):
        one.advance()
        assert one.scores.tolist() == [1.0, 2.0 + 0.5 * (3.0 - 2.0), INF]


def test_scores_of_several_epochs_wait_for_one_exchange(tmp_path):
    """What was scored since the last exchange is exchanged, also when epochs have ended since; then it is no longer new."""
    from torch import distributed

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        t = table(3, decay=1.0)
        t.update(torch.tensor([0]), torch.tensor([4.0]))
        t.advance()
        marks = t.columns[1]
        assert bool(marks[0] & FRESH)
        t.synchronize()
        # Everybody knows now that it was scored, in this epoch.
        assert marks.tolist() == [SCORED | KNOWN, 0, 0]
    finally:
        distributed.destroy_process_group()


def test_a_large_table_holds_what_a_small_one_does():
    n = (8 << 20) // 4 + 3  # beyond the size from which the memory comes in large pages
    t = table(n, track_variance=True)
    index = torch.tensor([0, 5, n - 1])
    assert bool((t.scores == INF).all())
    t.update(index, torch.tensor([1.0, 2.0, 3.0]))
    assert t.scores[index].tolist() == [1.0, 2.0, 3.0]
    assert int(torch.isfinite(t.scores).sum()) == 3
    assert float(t.variance.sum()) == 0.0


def test_scores_that_ask_for_a_gradient_leave_none_in_the_table():
    t = table()
    t.update(torch.tensor([1]), torch.tensor([2.0], requires_grad=True) * 2)
    assert t.scores[1] == 4.0
    assert not t.scores.requires_grad


# the op ---------------------------------------------------------------------------------------------------

LAST = 15  # the bits of a mark that mean something outside of the kernel


def columns(n, *, variance=True, seed=0):
    """scores, marks, variance and count of a table in use, with entries that are not finite."""
    g = torch.Generator().manual_seed(seed)
    scores = torch.rand(n, generator=g)
    scores[torch.rand(n, generator=g) < 0.2] = INF
    scores[torch.rand(n, generator=g) < 0.1] = math.nan
    marks = torch.randint(0, 256, (n,), generator=g, dtype=torch.uint8)  # of any batch, the next one's number included
    return [scores, marks, torch.rand(n, generator=g) if variance else None, torch.tensor([17, 5, 40, 0])]


def assert_same_table(actual, expected):
    for a, b in zip(actual[:3], expected[:3], strict=True):
        if a is None or b is None:
            assert a is b
        elif a.dtype == torch.uint8:
            assert torch.equal(a & LAST, b & LAST)
        else:
            assert torch.equal(a.nan_to_num(nan=-7.0), b.nan_to_num(nan=-7.0))
    assert actual[3][::2].tolist() == expected[3][::2].tolist()


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("variance", [False, True])
@pytest.mark.parametrize(("n", "size"), [(1, 1), (50, 0), (50, 64), (1000, 257), (1 << 20, 140_000), (3000, 140_000)])
def test_the_op_is_the_reference_bit_for_bit(n, size, variance, trained, threads):
    g = torch.Generator().manual_seed(n + size)
    index = torch.randint(0, n, (size,), generator=g)
    values = torch.rand(size, generator=g)
    values[::7] = math.nan
    values[::11] = INF
    for entries in (None, torch.randint(0, 3, (size,), generator=g)):
        expected = columns(n, variance=variance)
        reference.table_update(*expected, index, values, entries, None, 0.3, trained)
        for count in (1, 2, 3):
            threads(count)
            actual = columns(n, variance=variance)
            torch.ops.stprune.table_update(*actual, index, values, entries, None, 0.3, trained)
            assert_same_table(actual, expected)


@pytest.mark.parametrize("trained", [False, True])
def test_many_batches_in_a_row_are_the_reference(trained, threads):
    """The same ids come again and again, some twice in a batch: whether one is of this batch is never mistaken."""
    threads(1)
    g = torch.Generator().manual_seed(0)
    actual, expected = columns(40), columns(40)
    for step in range(200):
        index = torch.randint(0, 40, (25,), generator=g)
        values, entries = torch.rand(25, generator=g), torch.randint(0, 3, (25,), generator=g)
        if step % 9 == 0:  # an epoch begins
            for table_columns in (actual, expected):
                table_columns[1] &= 255 - reference.TRAINED
        reference.table_update(*expected, index, values, entries, None, 0.3, trained)
        torch.ops.stprune.table_update(*actual, index, values, entries, None, 0.3, trained)
        assert_same_table(actual, expected)


def test_a_second_pass_over_a_batch_moves_nothing():
    t = [torch.full((4,), INF), torch.zeros(4, dtype=torch.uint8), torch.zeros(4), torch.zeros(4, dtype=torch.int64)]
    index = torch.tensor([2, 0, 2])
    torch.ops.stprune.table_update(*t, index, torch.tensor([1.0, 2.0, 3.0]), None, None, 0.5, True)
    assert t[0].tolist() == [2.0, INF, 3.0, INF]
    assert t[3][::2].tolist() == [2, 3]
    once = [x.clone() for x in t]
    torch.ops.stprune.table_update(*t, index, torch.tensor([9.0, 9.0, 9.0]), None, None, 0.5, True)
    assert_same_table([*t[:3], once[3]], once)
    assert t[3][::2].tolist() == [2, 6]


def test_a_sample_without_entries_keeps_its_score_and_is_trained_on():
    t = [
        torch.tensor([5.0, INF]),
        torch.tensor([reference.KNOWN, 0], dtype=torch.uint8),
        None,
        torch.zeros(4, dtype=torch.int64),
    ]
    torch.ops.stprune.table_update(*t, torch.tensor([0, 1]), torch.zeros(2), torch.zeros(2, dtype=torch.int64), None, 0.5, True)
    assert t[0].tolist() == [5.0, INF]
    assert (t[1] & LAST).tolist() == [reference.KNOWN | reference.TRAINED, reference.TRAINED]
    assert int(t[3][0]) == 2


def test_a_table_that_stores_nothing_counts():
    for update in (torch.ops.stprune.table_update, reference.table_update):
        count = torch.zeros(4, dtype=torch.int64)
        update(None, None, None, count, torch.tensor([3, 3]), torch.ones(2), None, None, 0.5, True)
        assert count.tolist() == [0, 0, 2, 0]


def test_the_op_checks_ids_before_it_writes():
    for bad in (-1, 50, 2**62, -(2**62)):
        actual = columns(50)
        with pytest.raises(RuntimeError, match=r"index must lie in \[0, 49\]"):
            torch.ops.stprune.table_update(*actual, torch.tensor([3, bad]), torch.ones(2), None, None, 0.5, True)
        assert_same_table(actual, columns(50))


def test_an_id_without_a_weight_is_refused_before_anything_is_written():
    for update in (torch.ops.stprune.table_update, reference.table_update):
        actual, weight = columns(50), torch.tensor([1.0, math.nan])
        with pytest.raises(RuntimeError, match="table_update: index must hold ids of the plan, got 7"):
            update(*actual, torch.tensor([3, 7]), torch.ones(2), None, weight, 0.5, True)
        assert_same_table(actual, columns(50))


def test_where_asking_would_wait_wrong_ids_alone_are_left_out_and_the_largest_is_noted():
    g = torch.Generator().manual_seed(0)
    index, values = torch.randint(0, 50, (70,), generator=g), torch.rand(70, generator=g)
    unknown = index % 7 == 3
    for trained in (False, True):
        for weight, ids in ((torch.where(unknown, math.nan, 1.0), index), (None, torch.where(unknown, index + 50, index))):
            actual, expected = columns(50), columns(50)
            reference.update_known(*actual, ids, values, None, weight, 0.3, trained)
            reference.table_update(*expected, index[~unknown], values[~unknown], None, None, 0.3, trained)
            expected[3][2] += int(unknown.sum()) * trained
            assert_same_table(actual, expected)
            assert wrong_id(int(actual[3][3])) == int(ids[unknown].max())
    actual = columns(50)
    for ids, noted in (([0, 1], None), ([50, 60, 1], 60), ([55], 60), ([-3, 99], -3), ([100], -3)):  # of all that came
        reference.update_known(*actual, torch.tensor(ids), torch.zeros(len(ids)), None, None, 0.3, True)
        assert wrong_id(int(actual[3][3])) == noted
    actual = columns(50)
    reference.update_known(*actual, torch.tensor([50, -1]), torch.zeros(2), None, None, 0.3, True)
    assert_same_table([*actual[:3], columns(50)[3]], columns(50))
    assert actual[3].tolist() == [17, 5, 42, -1]


@pytest.mark.filterwarnings("ignore:stprune")
def test_a_wrong_id_is_told_once_by_what_waits_for_the_table():
    made = stprune.PruningSampler(20, num_epochs=4, keep_ratio=0.5, method="full")
    for ask in (made.state_dict, made.finish, lambda: made.set_epoch(made.epoch + 1)):
        made.update(torch.arange(20), torch.ones(20))
        reference.update_known(*made.table.columns, torch.tensor([3, 77]), torch.ones(2), None, None, 0.5, True)
        with pytest.raises(ValueError, match=r"index must hold ids of the table and .*, got 77 in a batch on cpu"):
            ask()
        ask()


@pytest.mark.filterwarnings("ignore:stprune")
def test_a_wrong_id_neither_ends_a_pass_nor_is_forgotten():
    made = stprune.PruningSampler(20, num_epochs=4, keep_ratio=0.5, method="full")
    state = copy.deepcopy(made.state_dict())
    batches = []
    for index in made.batches(8):
        reference.update_known(*made.table.columns, torch.tensor([77]), torch.ones(1), None, None, 0.5, True)
        batches.append(len(index))
    assert batches == [8, 8, 4]
    made.load_state_dict(state)
    made.resume_at(0)
    made.table.advance()
    with pytest.raises(ValueError, match="got 77 in a batch"):
        made.set_epoch(1)
    made.set_epoch(1)


def test_the_op_passes_opcheck():
    for variance in (False, True):
        entries, weight = (torch.tensor([1, 0, 2]), torch.ones(3)) if variance else (None, None)
        arguments = (*columns(50, variance=variance), torch.tensor([3, 9, 3]), torch.rand(3), entries, weight, 0.5, True)
        torch.library.opcheck(torch.ops.stprune.table_update.default, arguments)


def test_what_was_trained_on_counts_once_an_epoch():
    t = table(6, beta=0.0)
    t.update(torch.tensor([0, 1]), torch.tensor([1.0, 2.0]))
    t.update(torch.tensor([0, 1, 1]), torch.tensor([3.0, 4.0, 5.0]), trained=True)
    assert (t.num_trained, t.num_losses, t.scores[:2].tolist()) == (2, 3, [3.0, 5.0])
    t.update(torch.tensor([1, 2]), torch.tensor([7.0, 8.0]), trained=True)
    assert (t.num_trained, t.num_losses, t.scores[:3].tolist()) == (3, 5, [3.0, 5.0, 8.0])
    for begin in (t.restart, t.advance):
        begin()
        assert (t.num_trained, t.num_losses) == (0, 0)
        t.update(torch.tensor([1]), torch.tensor([9.0]), trained=True)
        assert (t.num_trained, float(t.scores[1])) == (1, 9.0)


def test_a_table_without_scores():
    t = table(10**12, stored=False)
    t.update(torch.tensor([5, 5]), torch.rand(2), trained=True)
    t.advance()
    assert (t.num_losses, t.num_trained, t.num_nonfinite()) == (0, 0, 0)
    assert t.scores.shape == t.variance.shape == (10**12,)
    assert float(t.scores[3]) == INF


def test_strided_ids_and_scores():
    a, b = table(8), table(8)
    index, scores = torch.tensor([1, 9, 5, 9, 1, 9]), torch.arange(6.0)
    a.update(index[::2], scores[::2])
    b.update(index[::2].clone(), scores[::2].clone())
    assert torch.equal(a.scores, b.scores)


def test_the_mean_does_not_depend_on_threads(threads):
    from stprune.ops.finite_mean import finite_mean

    values = torch.rand(1_000_003) ** 8
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(finite_mean(values))
    assert results[0] == results[1] == results[2]
