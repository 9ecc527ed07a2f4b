"""The demo: its data, its batches, its runs and clocks, its numbers, and a small run from end to end."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import importlib.util
import json
import math
import pathlib
import re

import numpy as np
import pytest
import torch

from stprune.demo import DemoOptions, data, delivery, figures, report, run_demo, train, verdict
from stprune.demo.feeds import PlainFeed, PrunedFeed, Shuffle, by_window_loader, masked_mae
from stprune.demo.options import DEFAULT_RUNS, choose_device
from stprune.demo.records import EpochRecord, Metrics, RunRecord, summarize
from stprune.demo.runs import Group
from stprune.demo.table import as_text, cells, columns, legend
from stprune.demo.windows import HISTORY, HORIZON, prepare, split_windows

CPU = torch.device("cpu")
WINDOW = HISTORY + HORIZON


def small_series(days=14, nodes=5, seed=0):
    return data.synthetic(num_days=days, num_nodes=nodes, seed=seed)


@pytest.fixture(scope="module")
def problem():
    return prepare(small_series(), device=CPU)


def record(name, seed=0, *, mae=1.0, seconds=(10.0, 20.0), errors=(2.0, 1.0), steps=(5, 10), **settings):
    """A run with made-up numbers."""
    epochs = tuple(
        EpochRecord(e, t, s, 1.0, 1.0, 1.0, v) for e, (t, s, v) in enumerate(zip(seconds, steps, errors, strict=True))
    )
    values = {
        "test": Metrics(mae, 2 * mae, 30 * mae),
        "windows": 100,
        "pairs": 500,
        "seconds": seconds[-1],
        "cpu_seconds": seconds[-1],
        "plan_seconds": 0.1,
        "score_seconds": 0.3,
        "scores": np.zeros((0, 4), np.float32),
        "kept": np.zeros(4, np.int64),
        "node_mae": np.ones((len(errors), 5), np.float32),
        "drawn": np.zeros(5, np.int64),
    }
    return RunRecord(name=name, seed=seed, epochs=epochs, **{**values, **settings})


# --- data ------------------------------------------------------------------------------------------------------------


# The night in which the clock is put back: 2:45 is followed by 2:00 again.
STAMPS = ["30.10.2016 02:45", "30.10.2016 02:00", "31.10.2016 00:00", "31.12.2016 23:45"]


@pytest.fixture
def simbench(tmp_path, monkeypatch):
    """Reads a file of SimBench's form, made of 4 rows and 2 columns."""
    monkeypatch.setattr(data, "SIMBENCH_STEPS", 4)
    monkeypatch.setattr(data, "SIMBENCH_NODES", 2)

    def load(names, stamps):
        path = tmp_path / "LoadProfile.csv"
        lines = [f"{stamp};" + ";".join(str(step + 0.25 * i) for i in range(len(names))) for step, stamp in enumerate(stamps)]
        path.write_text("\n".join([";".join(["time", *names]), *lines]) + "\n")
        return data.load_simbench(path)

    return load


def test_simbench_columns_and_clock_are_read_from_the_file(simbench):
    series = simbench(["a_pload", "a_qload"], STAMPS)
    assert series.values.dtype == np.float32
    assert series.values.tolist() == [[0.0, 0.25], [1.0, 1.25], [2.0, 2.25], [3.0, 3.25]]
    assert series.time_of_day.tolist() == pytest.approx([11 / 96, 8 / 96, 0.0, 95 / 96])
    assert series.day_of_week.tolist() == [6, 6, 0, 5]
    assert series.first_day == datetime.date(2016, 10, 30)
    assert series.node_names == ("a_pload", "a_qload")


@pytest.mark.parametrize(
    ("names", "stamps", "message"),
    [
        (["a_pload"], STAMPS, "columns must be time and 2 load profiles"),
        (["a_pload", "a_other"], STAMPS, "columns must be time and 2 load profiles"),
        (["a_pload", "a_qload"], STAMPS[:3], "values must be 4 x 2, got 3 x 2"),
        (["a_pload", "a_qload"], ["2016-01-01"] * 4, "time stamps must be dd.mm.yyyy HH:MM"),
    ],
)
def test_another_file_than_simbench_is_refused(simbench, names, stamps, message):
    with pytest.raises(ValueError, match=f"LoadProfile.csv: {message}"):
        simbench(names, stamps)


def test_real_simbench_is_a_leap_year_of_192_profiles():
    if importlib.util.find_spec("simbench") is None:
        pytest.skip("simbench is not installed")
    series = data.load("simbench")
    assert series.values.shape == (366 * 96, 192)
    assert series.values.dtype == np.float32
    assert np.isfinite(series.values).all()
    assert series.first_day == datetime.date(2016, 1, 1)
    assert series.day_of_week[0] == 4  # a Friday
    # The clock jumps by an hour in March and October, so the count of steps and the clock differ in between.
    counted = np.arange(len(series.values)) % 96
    clock = np.rint(series.time_of_day * 96).astype(int)
    shifted = counted != clock
    assert shifted.any()
    assert not shifted[: 60 * 96].any()
    assert not shifted[-60 * 96 :].any()


def test_synthetic_series_is_made_by_its_seed_alone():
    before = np.random.get_state()[1].tolist()
    series, again, other = small_series(), small_series(), small_series(seed=1)
    assert np.array_equal(series.values, again.values)
    assert not np.array_equal(series.values, other.values)
    assert np.random.get_state()[1].tolist() == before
    assert series.values.dtype == np.float32
    assert series.values.shape == (14 * 96, 5)


def test_a_path_is_read_with_its_own_time_stamps(tmp_path):
    values = np.arange(600, dtype=np.float32).reshape(300, 2)
    times = np.datetime64("2024-02-29T00:00") + np.arange(300) * np.timedelta64(60, "m")
    lines = [f"{time}," + ",".join(str(v) for v in row) for time, row in zip(times, values, strict=True)]
    path = tmp_path / "load.csv"
    path.write_text("time,a,b\n" + "\n".join(lines) + "\n")
    series = data.load(str(path))
    assert np.array_equal(series.values, values)
    assert series.steps_per_day == 24
    assert series.time_of_day[:3].tolist() == pytest.approx([0, 1 / 24, 2 / 24])
    assert series.day_of_week[0] == 3  # a Thursday
    assert series.first_day == datetime.date(2024, 2, 29)
    assert data.load(str(path), steps_per_day=12).steps_per_day == 12


def test_a_path_without_time_stamps_starts_on_a_monday(tmp_path):
    path = tmp_path / "values.npz"
    np.savez(path, data=np.zeros((600, 3, 1), np.float32))
    with pytest.raises(ValueError, match=r"--steps-per-day: must be given for values\.npz"):
        data.load(str(path))
    series = data.load(str(path), steps_per_day=288)
    assert series.steps_per_day == 288
    assert series.day_of_week[[0, 287, 288]].tolist() == [0, 0, 1]
    assert series.time_of_day[289] == pytest.approx(1 / 288)
    assert series.first_day is None


def test_constant_and_copied_nodes_are_counted():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(500, 3)).astype(np.float32)
    values = np.column_stack([values, 3 - 2 * values[:, 0], np.full(500, 7.3), np.zeros(500)]).astype(np.float32)
    assert data.repeated_nodes(values) == (2, 1)
    values[4, 0] = np.nan
    assert data.repeated_nodes(values[:, :3]) == (0, 0)


# --- windows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_steps", "per_day"), [(120, 96), (1344, 96), (35_136, 96), (105_120, 288), (200_000, 24)])
def test_windows_of_the_parts_do_not_touch_and_cover_every_time_of_day(num_steps, per_day):
    split = split_windows(num_steps, per_day)
    first, second = int(num_steps * 0.6), int(num_steps * 0.8)
    train_rows, validation, test = (part.first_rows for part in (split.train, split.validation, split.test))
    assert train_rows[0] == 0
    assert train_rows[-1] + WINDOW <= first
    assert validation[0] == first
    assert validation[-1] + WINDOW <= second
    assert np.array_equal(test, np.arange(second, num_steps - WINDOW + 1))
    for part, rows in ((split.train, train_rows), (split.validation, validation), (split.test, test)):
        assert len(part) == len(rows)
        # Not one more would fit.
        assert rows[-1] + part.stride + WINDOW > part.stop
    if len(split.train) >= per_day:
        assert len(set((train_rows % per_day).tolist())) == per_day


def first_batch(problem, part, numbers, **settings):
    return next(problem.batches(part, numbers, batch_size=len(numbers), **settings))


def test_a_batch_is_the_slices_of_the_series(problem):
    series = small_series()
    part = problem.split.train
    batch = first_batch(problem, part, [0, 7, 400])
    normal = (series.values - problem.mean) / problem.std
    assert batch.index.tolist() == [0, 7, 400]
    assert batch.node is None
    for row, begin in enumerate(part.first_rows[[0, 7, 400]]):
        past, future = slice(begin, begin + HISTORY), slice(begin + HISTORY, begin + WINDOW)
        torch.testing.assert_close(
            batch.x[row, ..., 0], torch.from_numpy(normal[past].astype(np.float32)), rtol=1e-5, atol=1e-6
        )
        assert torch.equal(batch.y[row, ..., 0], torch.from_numpy(series.values[future]))
        clock = torch.from_numpy(series.time_of_day[past])[:, None].expand(-1, 5)
        week = torch.from_numpy(series.day_of_week[past] / 7).float()[:, None].expand(-1, 5)
        assert torch.equal(batch.x[row, ..., 1], clock)
        assert torch.equal(batch.x[row, ..., 2], week)


def test_a_batch_of_drawn_nodes_is_a_part_of_the_whole_batch(problem):
    feed = pruned(problem, node_ratio=0.4)
    feed.start(0)
    for batch in feed.batches():
        whole = first_batch(problem, problem.split.train, batch.index.tolist())
        assert torch.equal(batch.node, feed.sampler.nodes(batch.index))
        assert batch.x.shape[2] == batch.y.shape[2] == 2
        for row, node in enumerate(batch.node):
            assert torch.equal(batch.x[row], whole.x[row][:, node])
            assert torch.equal(batch.y[row], whole.y[row][:, node])


def test_a_data_loader_delivers_the_same_batches(problem):
    order = Shuffle(len(problem.split.train), seed=3)
    usual = delivery.by_data_loader(delivery.usual_series(problem))
    count = 0
    for one, other in zip(by_window_loader(problem, order, 50), usual(problem, order, 50), strict=True):
        assert torch.equal(one.index, other.index)
        torch.testing.assert_close(one.x, other.x, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(one.y, other.y, rtol=1e-5, atol=1e-6)
        count += len(one.index)
    assert count == len(problem.split.train)


def test_both_deliveries_train_the_same_model(problem):
    ticks = []
    found = delivery.compare_deliveries(trainer(problem), batch_size=64, seed=0, tick=lambda: ticks.append(1))
    before, after = found["DataLoader"], found["WindowLoader"]
    assert before.validation_mae == pytest.approx(after.validation_mae, rel=1e-4)
    assert min(before.training, before.alone, after.training, after.alone) > 0
    assert len(ticks) == 2 * (1 + delivery.ROUNDS)


def test_normalisation_sees_the_training_part_only():
    series = small_series()
    border = int(len(series.values) * 0.6)
    before = prepare(series, device=CPU)
    series.values[border:] *= 100
    after = prepare(series, device=CPU)
    assert (after.mean, after.std) == (before.mean, before.std)
    assert before.mean == pytest.approx(series.values[:border].mean(dtype=np.float64), rel=1e-6)
    assert before.std == pytest.approx(series.values[:border].std(dtype=np.float64), rel=1e-6)


def test_missing_values_enter_as_the_mean_and_never_count():
    series = small_series()
    series.values[5, 0] = np.nan
    series.values[20, 1] = -9.0
    problem = prepare(series, device=CPU, null_value=-9.0)
    assert not problem.complete
    batch = first_batch(problem, problem.split.train, [0])
    y = batch.y
    assert float(batch.x[0, 5, 0, 0]) == 0.0
    assert math.isnan(float(y[0, 20 - HISTORY, 1, 0]))
    usual = delivery.by_data_loader(delivery.usual_series(problem))
    other = next(usual(problem, Shuffle(len(problem.split.train), seed=0, max_samples=1), 1))
    assert not torch.isnan(other.x).any()
    assert int(torch.isnan(y).sum()) == 1
    prediction = torch.zeros_like(y)
    expected = np.nanmean(np.abs(y.numpy()))
    assert float(masked_mae(prediction, y, complete=False)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("value", [3.0, np.nan])
def test_a_constant_or_missing_training_part_is_refused(value):
    series = small_series()
    series.values[:] = value
    with pytest.raises(ValueError, match="at least two different values"):
        prepare(series, device=CPU)


# --- feeds and training ----------------------------------------------------------------------------------------------


def pruned(problem, method="st-prune", *, epochs=8, keep_ratio=0.5, node_ratio=1.0, batch_size=64):
    return PrunedFeed(
        problem,
        method=method,
        num_epochs=epochs,
        keep_ratio=keep_ratio,
        node_ratio=node_ratio,
        batch_size=batch_size,
        seed=0,
    )


def trainer(problem):
    return dataclasses.replace(train.Trainer.of(problem, "stid", steps_per_day=96), dim=2)


def test_a_plain_feed_gives_every_window_once_in_a_new_order_each_epoch(problem):
    feed = PlainFeed(problem, batch_size=64, num_epochs=2, seed=0)
    size = len(problem.split.train)
    orders = []
    for epoch in range(2):
        steps = feed.start(epoch)
        batches = [batch.index for batch in feed.batches()]
        assert [len(batch) for batch in batches] == [64] * (size // 64) + [size % 64]
        assert steps == len(batches)
        orders.append(torch.cat(batches))
        assert orders[-1].sort().values.tolist() == list(range(size))
    assert not torch.equal(*orders)


def test_a_cut_feed_stops_after_exactly_the_steps_asked_for(problem):
    per_epoch = math.ceil(len(problem.split.train) / 64)
    for extra in (0, 3):
        feed = PlainFeed(problem, batch_size=64, seed=0, max_steps=2 * per_epoch + extra)
        lengths = []
        for epoch in range(feed.num_epochs):
            steps = feed.start(epoch)
            assert len(list(feed.batches())) == steps
            lengths.append(steps)
            assert feed.steps_after(epoch) == 2 * per_epoch + extra - sum(lengths)
        assert lengths == [per_epoch, per_epoch, extra][: feed.num_epochs]
        assert feed.num_epochs == (3 if extra else 2)


@pytest.mark.parametrize("method", ["st-prune", "soft-random", "infobatch"])
def test_the_learning_rate_ends_at_the_end_of_every_method(problem, method):
    feed = pruned(problem, method, epochs=4)
    run = train.TrainRun(method, trainer(problem), feed, seed=0)
    rates = []
    set_rate = run._set_rate
    run._set_rate = lambda progress: (rates.append(progress), set_rate(progress))
    while run.progress < 1:
        run.run_epoch()
    assert run._rate_progress == pytest.approx(1.0)
    assert rates[0] == 0.0
    assert all(after > before for before, after in zip(rates, rates[1:], strict=False))
    assert len(rates) == run.records[-1].steps
    if method != "infobatch":
        # Known lengths: the rate falls evenly with the optimizer steps of the whole run.
        assert rates == pytest.approx([step / len(rates) for step in range(len(rates))])
        assert len(rates) == feed.sampler.total_steps(64)


def test_probing_and_replaying_leave_no_trace_in_scores_or_plan(problem, monkeypatch):
    feed = pruned(problem, node_ratio=0.4)
    steps = feed.start(0)
    batch = next(feed.batches())
    feed.loss(batch.x[..., :1].clone().requires_grad_(), batch)
    before, planned = feed.sampler.table.scores.clone(), feed.plan_seconds
    drawn = []
    nodes = feed.sampler.nodes
    monkeypatch.setattr(feed.sampler, "nodes", lambda index: drawn.append(index) or nodes(index))
    feed.probe_loss(batch.x[..., :1] + 1, batch)
    feed.replay_draws()
    assert torch.equal(feed.sampler.table.scores, before)
    assert len(feed.extra_loss_seconds) == 1
    assert feed.plan_seconds > planned
    # Replaying gives out every id and draws its nodes.
    assert torch.cat(drawn).sort().values.tolist() == list(range(len(problem.split.train)))
    assert len(list(feed.batches())) == steps


def test_the_plain_and_the_pruned_loss_agree_at_weight_one(problem):
    feed = pruned(problem)
    feed.start(0)
    batch = next(feed.batches())
    prediction = batch.x[..., :1].clone().requires_grad_()
    # So the runs differ in what they train on, not in the loss; the sums may be taken in another order.
    torch.testing.assert_close(feed.loss(prediction, batch), masked_mae(prediction, batch.y, complete=True), rtol=1e-6, atol=0)


def test_equal_seeds_give_equal_weights_and_leave_the_global_state_alone(problem):
    before = torch.get_rng_state()
    same, again, other = (trainer(problem).build(seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(same[key], again[key]) for key in same)
    assert not torch.equal(same["head.weight"], other["head.weight"])


def test_evaluation_is_the_errors_over_all_present_targets(problem):
    series = small_series()
    series.values[1300:1303, 2] = np.nan
    holes = prepare(series, device=CPU)
    subject = trainer(holes)
    model = subject.build(0)
    found, node_mae = subject.evaluate(model, holes.split.test)
    batch = next(holes.batches(holes.split.test, batch_size=len(holes.split.test)))
    with torch.no_grad():
        error = (subject.forecast(model, batch.x) - batch.y).double().numpy()
    y = batch.y.double().numpy()
    counted = np.abs(y) >= holes.mape_floor
    assert 0 < counted.sum() < y.size
    assert found.mae == pytest.approx(np.nanmean(np.abs(error)), rel=1e-6)
    assert found.rmse == pytest.approx(np.sqrt(np.nanmean(error**2)), rel=1e-6)
    assert found.mape == pytest.approx(100 * np.mean(np.abs(error[counted] / y[counted])), rel=1e-6)
    assert node_mae == pytest.approx(np.nanmean(np.abs(error), axis=(0, 1, 3)), rel=1e-6)


class FakeClock:
    """A clock that moves only when told to."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    process_time = perf_counter


def test_a_runs_clock_counts_training_and_neither_evaluation_nor_probes(problem, monkeypatch):
    clock = FakeClock()
    monkeypatch.setattr(train, "time", clock)
    feed = pruned(problem, epochs=2)
    run = train.TrainRun("st-prune", trainer(problem), feed, seed=0, setup_seconds=5.0)

    def slow(function, seconds):
        def wrapped(*arguments, **named):
            clock.now += seconds
            return function(*arguments, **named)

        return wrapped

    monkeypatch.setattr(train.Trainer, "evaluate", slow(train.Trainer.evaluate, 1000.0))
    monkeypatch.setattr(feed, "probe_loss", slow(feed.probe_loss, 100.0))
    monkeypatch.setattr(feed, "loss", slow(feed.loss, 1.0))
    steps = run.run_epoch().steps
    assert run.seconds == 5.0 + steps
    assert run.run_epoch().seconds == 5.0 + run.records[-1].steps
    assert run.finish().cpu_seconds == 5.0 + run.records[-1].steps


def test_the_weights_of_the_best_validation_epoch_are_tested(problem, monkeypatch):
    subject = trainer(problem)
    run = train.TrainRun("full", subject, PlainFeed(problem, batch_size=64, num_epochs=3, seed=0), seed=0)
    errors = iter([3.0, 1.0, 2.0])
    states = []

    def evaluate(self, model, part):
        states.append({key: value.clone() for key, value in model.state_dict().items()})
        return train.Evaluation(Metrics(next(errors, 9.0), 0.0, 0.0), np.zeros(5, np.float32))

    monkeypatch.setattr(train.Trainer, "evaluate", evaluate)
    for _ in range(3):
        run.run_epoch()
    found = run.finish()
    assert found.best.epoch == 1
    tested = states[-1]
    assert all(torch.equal(tested[key], states[1][key]) for key in tested)
    assert not torch.equal(tested["head.weight"], states[2]["head.weight"])


# --- taking turns ----------------------------------------------------------------------------------------------------


def quick_options(tmp_path, **settings):
    return DemoOptions(data="synthetic", quick=True, output=tmp_path / "out", **settings).resolve()


def test_runs_take_turns_and_stay_within_one_epoch_of_each_other(problem, tmp_path):
    options = quick_options(tmp_path, epochs=4, runs=("full-short", "soft-random", "nodes"))
    group = Group(options, trainer(problem), seed=0)
    group.start()
    planned = group.planned
    done = dict.fromkeys(planned, 0)
    for name, found, epochs in group.turns():
        done[name] += 1
        assert found.epoch == done[name] - 1
        assert epochs == planned[name]
        shares = [count / planned[run] for run, count in done.items()]
        assert max(shares) - min(shares) <= 1 / min(planned.values())
    assert done == planned
    assert [found.name for found in group.finish()] == ["full", "full-short", "soft-random", "nodes"]


def test_the_long_run_gets_as_many_epochs_as_fit_into_the_full_runs_time(problem, tmp_path):
    options = quick_options(tmp_path, epochs=10, runs=("nodes-long",))
    assert options.runs == ("full", "nodes", "nodes-long")
    group = Group(options, trainer(problem), seed=0)
    group.start()
    # The first epoch of each is slow and must not count: 4 s against 1.5 s after it.
    for name, seconds in (("full", (20.0, 24.0, 28.0)), ("nodes", (20.0, 21.5, 23.0))):
        group._runs[name].records = list(record(name, seconds=seconds, errors=(1.0,) * 3, steps=(1, 2, 3)).epochs)
    assert group._create("nodes-long").feed.num_epochs == math.floor(10 * 4.0 / 1.5)


# --- numbers to words ------------------------------------------------------------------------------------------------


def test_rows_are_means_over_seeds_against_the_full_run_of_the_same_seed():
    runs = [
        record("full", 0, mae=1.0, seconds=(10.0, 20.0), errors=(2.0, 1.0)),
        record("nodes", 0, mae=0.9, seconds=(4.0, 10.0), errors=(1.0, 0.8)),
        record("full", 1, mae=2.0, seconds=(20.0, 40.0), errors=(3.0, 2.0)),
        record("nodes", 1, mae=2.2, seconds=(5.0, 10.0), errors=(3.0, 2.0)),
    ]
    full, nodes = summarize(runs)
    assert full.mae == (1.5, pytest.approx(math.sqrt(0.5)))
    assert full.mae_change == (0.0, 0.0)
    assert full.speedup == (1.0, 0.0)
    assert nodes.mae_change[0] == pytest.approx(0.0)
    assert nodes.mae_change[1] == pytest.approx(math.sqrt(200))
    assert nodes.speedup[0] == pytest.approx(3.0)
    assert nodes.overhead == pytest.approx(100 * 0.4 / 10)
    assert nodes.overhead_of_full == pytest.approx(100 * (0.4 / 20 + 0.4 / 40) / 2)
    assert nodes.target_share == pytest.approx((4 / 20 + 10 / 40) / 2)


def test_a_target_that_one_seed_never_reached_is_never_reached():
    runs = [record("full", 0), record("nodes", 0), record("full", 1), record("nodes", 1, errors=(2.0, 1.1))]
    assert summarize(runs)[1].target_share is None


def test_a_seed_without_a_full_run_is_refused():
    with pytest.raises(ValueError, match=r"every seed must have a full run, got none for \[1\]"):
        summarize([record("full", 0), record("nodes", 1)])


def test_the_table_is_aligned_and_holds_every_cell():
    rows = summarize([record("full", mae=0.04321), record("nodes", mae=0.04, seconds=(4.0, 8.0))])
    labels = {"full": "full training", "nodes": "drawn nodes"}
    layout = columns(rows, labels, "kW")
    text = as_text(rows, layout)
    heading, rule, full, nodes = text.splitlines()
    assert len({len(line) for line in (heading, rule, full, nodes)}) == 1
    assert nodes.split() == ["drawn", "nodes", *cells(rows, layout)[2][1:]]
    assert "0.04321" in full
    assert "-7.4%" in nodes
    assert "2.50x" in nodes
    assert "5.00%" in nodes
    assert "2.00%" in nodes
    assert "in kW" in legend(layout)


def findings(*runs, **more):
    """One sentence a line; every run is called by its name."""
    return "\n".join(verdict.sentences(summarize(runs), {run.name: run.name for run in runs}, num_seeds=1, **more))


def test_findings_say_when_pruning_wins_loses_and_makes_no_difference():
    text = findings(
        record("full", mae=1.0),
        record("full-short", mae=1.1, seconds=(5.0, 10.0)),
        record("soft-random", mae=1.2, seconds=(5.0, 10.0)),
        record("st-prune", mae=1.105, seconds=(5.0, 10.0)),
        record("nodes", mae=1.001, seconds=(4.0, 8.0), errors=(3.0, 2.0)),
        record("nodes-long", mae=0.9, errors=(1.0, 0.9)),
    )
    for pattern in (
        r"^Soft-random .*20\.0% higher: faster, but less accurate\.",
        r"^Nodes .*the same test MAE within the noise \(\+0\.1%\): pruning costs nothing here\.",
        r"^Nodes-long .*10\.0% lower: pruning wins here\.",
        r"^Nodes-long .*after 50% of the full run's time",
        r"^Against .*no different within the noise: st-prune \(\+0\.5%\); worse: soft-random \(\+9\.1%\)",
        r"^Against .*gains nothing over simply training for fewer steps",
        r"^Deciding .*4\.00% of its own",
        r"^One seed",
    ):
        assert re.search(pattern, text, re.MULTILINE), pattern
    text = findings(record("full"), record("full-short", mae=1.1), record("st-prune", mae=1.05))
    assert re.search(r"^Against .*better: st-prune \(-4\.5%\)", text, re.MULTILINE)
    assert "gains nothing" not in text


def test_overhead_is_judged_by_the_full_runs_time_and_longer_runs_apart():
    long = record("nodes-long", steps=(10, 20), plan_seconds=1.0, score_seconds=1.0)
    text = findings(record("full"), record("st-prune", score_seconds=0.2), long)
    assert re.search(r"at most 1\.50% of the full run's time \(st-prune.*within the limit of 2%", text)
    assert re.search(r"nodes-long takes 2\.0 times as many steps.*cost 10\.00%.*above the limit of 2%", text)


def test_a_scoring_loss_faster_than_the_plain_one_is_a_saving_unless_another_run_pays():
    saving = record("st-prune", score_seconds=-0.2)
    text = findings(record("full"), saving)
    assert "Deciding and scoring saved at least 0.50% of the full run's time (st-prune" in text
    assert "the fused loss with scores took less time than the plain masked loss alone" in text
    text = findings(record("full"), saving, record("nodes"))
    assert re.search(r"cost at most.*\(nodes", text)
    assert "saved" not in text


def test_findings_name_the_nodes_that_flatter_node_pruning():
    runs = record("full"), record("nodes")
    assert "50 of the 192 nodes are constant or copy another" in findings(*runs, num_nodes=192, repeated_nodes=50)
    assert "copy another" not in findings(*runs)


def test_the_worth_of_the_loader_is_told():
    before, after = delivery.DeliveryTimes(2.0, 0.5, 1.0), delivery.DeliveryTimes(1.5, 0.05, 1.0)
    text = verdict.delivery_sentence({"DataLoader": before, "WindowLoader": after})
    assert "2.00 s with batches of a DataLoader and 1.50 s with WindowLoader (-25%)" in text
    assert "500 ms and 50 ms" in text


def test_the_calendar_puts_windows_at_their_hour_and_day():
    series = small_series(days=7)
    first_step = np.arange(12, 600, 5)
    share = np.zeros(len(first_step), np.float32)
    monday_noon = int(np.flatnonzero(first_step == 47 + 5 * 0)[0])
    share[monday_noon] = 1.0
    calendar = figures.Calendar(share, first_step, 5, 96, series.time_of_day, series.day_of_week, None)
    grid = figures._by_day(calendar)
    assert grid.shape == (96, 7)
    assert np.argwhere(grid == 1.0).tolist() == [[slot, 0] for slot in range(47, 52)]
    week = figures._by_week(calendar)
    assert week.shape == (24, 7)
    assert np.argwhere(week > 0).tolist() == [[11, 0]]
    assert np.isnan(grid[:12, 0]).all()


def test_the_report_names_the_nodes_that_still_improve():
    early, late = np.array([1.0, 1.0, 2.0, 4.0], np.float32), np.array([1.0, 0.5, 1.99, 4.4], np.float32)
    text = report._nodes(np.stack([9 * early, early, late]), ("a", "b", "c", "d"))
    # The second of three epochs is the half: b fell by 50%, c by 0.5%, d rose.
    assert "After epoch 2 the error of 1 of 4 nodes still fell by more than 2%" in text
    assert "holds 98% of the gain; first among them: b." in text
    assert "gain" not in report._nodes(np.stack([early, early]), ("a", "b", "c", "d"))


def test_the_report_shows_how_often_nodes_were_drawn_where_the_draws_differ():
    series = small_series(days=7, nodes=5)
    node_mae = np.linspace(1, 2, 15, dtype=np.float32).reshape(3, 5)

    def page(drawn):
        return report._where(record("nodes", node_mae=node_mae, drawn=np.array(drawn)), "nodes", series)

    even, uneven, whole = page([30, 31, 29, 30, 30]), page([10, 90, 30, 30, 30]), page([0, 0, 0, 0, 0])
    assert "about equally often, in 29.0% to 31.0% of the windows" in even
    assert "It drew nodes in 10.0% to 90.0% of the windows" in uneven
    assert "drew" not in whole
    sizes = [len(re.search('base64,([^"]+)', text)[1]) for text in (even, uneven, whole)]
    # The uneven draws are a picture more.
    assert sizes[0] == sizes[2] < sizes[1]


# --- end to end ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    result = run_demo(DemoOptions(data="synthetic", quick=True, epochs=3, seeds=2, output=folder))
    return folder, result


def test_a_quick_demo_makes_every_run_and_writes_what_it_returns(outcome):
    folder, result = outcome
    stored = json.loads((folder / "results.json").read_text())
    assert stored == json.loads(json.dumps(result))
    assert [row["name"] for row in stored["rows"]] == list(DEFAULT_RUNS)
    assert [(run["seed"], run["name"]) for run in stored["runs"]] == [(s, name) for s in (0, 1) for name in DEFAULT_RUNS]
    assert stored["machine"]["cores"] >= 1
    # More than torch alone, less than this machine has.
    assert 100 < stored["peak_memory_mib"] < 2**20
    assert set(stored["delivery"]) == {"DataLoader", "WindowLoader"}


def test_a_quick_demo_counts_what_every_run_used(outcome):
    _, result = outcome
    num_windows, num_nodes = result["data"]["train_windows"], result["data"]["nodes"]
    runs = {run["name"]: run for run in result["runs"] if run["seed"] == 0}
    assert runs["full"]["windows"] == 3 * num_windows
    assert runs["full"]["pairs"] == 3 * num_windows * num_nodes
    assert runs["nodes"]["windows"] == 3 * num_windows
    assert runs["nodes"]["pairs"] == 3 * num_windows * math.ceil(0.3 * num_nodes)
    # The first epoch scores everything, the second keeps half, the third is annealed.
    assert runs["st-prune"]["windows"] == 2 * num_windows + round(num_windows / 2)
    assert runs["full-short"]["steps"] == runs["st-prune"]["steps"] < runs["full"]["steps"]
    assert runs["soft-random"]["windows"] < runs["infobatch"]["windows"] < runs["full"]["windows"]
    for run in runs.values():
        assert run["best_validation_mae"] == min(epoch["validation_mae"] for epoch in run["epochs"])
        assert run["seconds"] == run["epochs"][-1]["seconds"] > 0
    assert runs["st-prune"]["plan_seconds"] > 0
    first = [run["epochs"][0]["validation_mae"] for run in runs.values() if run["name"] in ("full", "soft-random")]
    assert first[0] != first[1]


def test_a_quick_demos_report_stands_alone_and_shows_the_numbers(outcome):
    folder, result = outcome
    page = (folder / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "<script" not in page
    images = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert len(images) == 5
    for image in images:
        svg = base64.b64decode(image).decode()
        assert svg.rstrip().endswith("</svg>")
        assert not re.search(r'href="(?!#|data:)', svg)
    rows = {row["name"]: row for row in result["rows"]}
    for name, text in result["labels"].items():
        assert text in page
        assert f"{rows[name]['overhead_of_full']:.2f}%" in page or name in ("full", "full-short")
    for sentence in result["findings"]:
        assert sentence.replace("'", "&#x27;") in page
    assert "±" in page
    for way in ("DataLoader", "WindowLoader"):
        assert f"<td>{way}</td><td>{result['delivery'][way]['training']:.2f} s</td>" in page


def test_a_demo_of_one_method_trains_it_and_the_full_run_only(tmp_path, capsys):
    result = run_demo(DemoOptions(data="synthetic", quick=True, epochs=2, runs=("top-k",), model="staeformer", output=tmp_path))
    assert [row["name"] for row in result["rows"]] == ["full", "top-k"]
    out, err = capsys.readouterr()
    assert result["table"] in out
    last = result["runs"][-1]["epochs"][-1]
    # The bar: share done, time spent and left, data in use, validation MAE.
    assert re.search(r"all runs +100% .* 4/4 \[\d\d:\d\d < 00:00", err)
    assert f"keep 100%, val MAE {last['validation_mae']:.4g}" in err
    assert str(pathlib.Path(tmp_path) / "report.html") in out
    assert f"at most {result['peak_memory_mib']:,.0f} MiB of memory" in out
    assert f"at most {result['peak_memory_mib']:,.0f} MiB in RAM" in (tmp_path / "report.html").read_text()


def test_nodes_drawn_by_error_are_a_run_and_a_picture(tmp_path):
    options = DemoOptions(data="synthetic", quick=True, epochs=3, runs=("nodes", "nodes-priority"), output=tmp_path)
    result = run_demo(options)
    runs = {run["name"]: run for run in result["runs"]}
    assert list(runs) == ["full", "nodes", "nodes-priority"]
    assert runs["nodes-priority"]["pairs"] == runs["nodes"]["pairs"] < runs["full"]["pairs"]
    assert runs["nodes-priority"]["test"] != runs["nodes"]["test"]
    assert "of nodes by error: the error of every node" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(("runs", "epochs"), [(("full",), 1), (("st-prune", "nodes"), 2)])
def test_the_same_seed_gives_the_same_numbers(tmp_path, runs, epochs):
    options = DemoOptions(data="synthetic", quick=True, epochs=epochs, runs=runs, output=tmp_path)
    first, second = (run_demo(options) for _ in range(2))
    assert (tmp_path / "report.html").exists()
    for one, other in zip(first["runs"], second["runs"], strict=True):
        assert one["test"] == other["test"]
        assert one["windows"] == other["windows"]


def test_auto_device_is_one_that_works():
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
