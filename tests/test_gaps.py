"""Gaps in time: which windows are left out, and that every part of the package numbers the others alike."""

import copy
import datetime
import pickle

import numpy as np
import pytest
import torch

from stprune import PruningSampler, WindowDataset, WindowLoader, stationarity
from stprune.testing import assert_same
from stprune.windows import ChunkedSeries, chunk_order, count_chunk_reads, score_dataset
from stprune.windows.clock import time_features

pandas = pytest.importorskip("pandas")
HOUR = np.timedelta64(1, "h")


def hours(*numbers, unit="s"):
    return (np.datetime64("2024-01-01T00", "h") + np.array(numbers) * HOUR).astype(f"M8[{unit}]")


def series_with_gaps(times=400, nodes=3, seed=0):
    """A series with eight hours missing here and there, and its times."""
    kept = np.sort(np.random.default_rng(seed).permutation(times + 8)[:times])
    return torch.randn(times, nodes, 1, generator=torch.Generator().manual_seed(seed)), hours(*kept)


def whole_windows(times, length, stride, start, stop):
    """First rows of the windows without a gap, found by looking at every step of each."""
    rows = range(start, stop - length + 1, stride)
    return [row for row in rows if all(step == HOUR for step in np.diff(times[row : row + length]))]


def test_no_window_is_cut_across_a_gap():
    series, times = torch.arange(5.0)[:, None], hours(7, 8, 9, 14, 15)
    windows = WindowDataset(series, history=1, horizon=1, timestamps=times)
    loader = WindowLoader(series, batch_size=8, history=1, horizon=1, timestamps=times)
    assert windows.starts.tolist() == [0, 1, 3]
    assert len(windows) == loader.num_windows == 3
    assert windows.num_dropped == loader.num_dropped == 1
    for each in (windows, loader):
        assert "(3 windows of 1 + 1 steps, stride 1, 1 left out over gaps, rows [0, 5) of" in repr(each)
    assert [y[0, 0, 0].item() for _, y in (windows[i] for i in range(3))] == [1, 2, 4]
    assert next(iter(loader))[2].flatten().tolist() == [1, 2, 4]


@pytest.mark.parametrize(
    "options",
    [{}, {"history": 2, "horizon": 1, "stride": 3}, {"history": 7, "horizon": 2, "stride": 2, "start": 31, "stop": 333}],
)
def test_dataset_and_loader_give_the_same_windows_for_the_same_ids(options):
    series, times = series_with_gaps()
    windows = WindowDataset(series, timestamps=times, **options)
    length = windows.history + windows.horizon
    assert windows.starts.tolist() == whole_windows(times, length, windows.stride, windows.start, windows.stop)
    even = WindowDataset(series, **options)
    assert windows.num_dropped == len(even) - len(windows) > 0
    loader = WindowLoader(series, batch_size=50, timestamps=times, **options)
    for each in (loader, copy.deepcopy(loader), pickle.loads(pickle.dumps(loader))):
        ids = torch.cat([index for index, _, _ in each])
        assert torch.equal(ids, torch.arange(len(windows)))
        for got, want in zip((torch.cat(part) for part in list(zip(*each, strict=True))[1:]), windows.batch(ids), strict=True):
            assert_same(got, want)
    assert torch.equal(pickle.loads(pickle.dumps(windows))[-1][0], windows[len(windows) - 1][0])
    with pytest.raises(IndexError, match=f"got {len(windows)}$"):
        windows[len(windows)]


def test_windows_over_gaps_can_be_kept_or_refused():
    series, times = series_with_gaps()
    for make in (WindowDataset, lambda *args, **options: WindowLoader(*args, batch_size=4, **options)):
        kept = make(series, timestamps=times, gaps="keep")
        assert len(kept) == len(make(series))
        assert kept.num_dropped == 0
        with pytest.raises(
            ValueError, match=r"timestamps must have no gap inside a window, got 2024-\S+ in row \d+ after 2024"
        ):
            make(series, timestamps=times, gaps="raise")
        with pytest.raises(ValueError, match='timestamps must be given for gaps="raise", got None'):
            make(series, gaps="raise")
        with pytest.raises(ValueError, match="gaps must be one of drop, keep, raise, got 'no'"):
            make(series, timestamps=times, gaps="no")
        # A gap that no window lies over is no reason to refuse.
        assert (
            make(series[:60], timestamps=hours(*range(30), *range(99, 129)), gaps="raise", stride=30, history=12).num_dropped
            == 0
        )
    with pytest.raises(ValueError, match='leave a window of 24 rows without a gap, got none of 37; gaps="keep"'):
        WindowDataset(series[:60], timestamps=hours(*(i + i // 20 for i in range(60))))


def test_a_gap_is_a_missing_row_not_an_uneven_clock():
    months = np.arange("2020-01", "2024-01", dtype="M8[M]").astype("M8[D]")
    jitter = hours(*range(48), unit="ms") + np.arange(48) % 7 * np.timedelta64(90, "s")
    for times in (months, jitter, hours(*range(48))):
        assert WindowDataset(torch.zeros(48, 1), timestamps=times, gaps="raise").num_dropped == 0
    missing = np.delete(months, 30)
    assert WindowDataset(torch.zeros(47, 1), history=2, horizon=1, timestamps=missing).num_dropped == 2


@pytest.mark.parametrize(("numbers", "row"), [((0, 1, 1, 2, 3), 2), ((0, 1, 2, 3, 2), 4)])
def test_times_that_do_not_increase_are_refused_with_row_and_value(numbers, row):
    times, series = hours(*numbers), torch.zeros(5, 1)
    message = f"timestamps must increase with the rows, got {times[row]} in row {row} after {times[row - 1]}"
    for make in (
        lambda: WindowDataset(series, history=1, horizon=1, timestamps=times, gaps="keep"),
        lambda: WindowLoader(series, history=1, horizon=1, timestamps=times, batch_size=1),
        lambda: stationarity(series, history=1, horizon=1, timestamps=times),
        lambda: time_features(5, timestamps=times),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_a_sampler_of_another_size_is_told_of_the_gaps():
    series, times = series_with_gaps()
    dropped = WindowDataset(series, timestamps=times).num_dropped
    with pytest.raises(ValueError, match=rf"{377 - dropped} samples, one a window \({dropped} more lie over gaps .*, got 377"):
        WindowLoader(series, PruningSampler(377, num_epochs=2), batch_size=4, timestamps=times)


def test_stored_series_and_chunk_order_skip_gaps():
    series, times = series_with_gaps(2000)
    windows = WindowDataset(series, timestamps=times)
    sampler = PruningSampler(len(windows), num_epochs=4, keep_ratio=0.5, method="soft-random")
    sampler.set_epoch(1)
    stored = ChunkedSeries(series, chunk=50, memory_chunks=8)
    loader = WindowLoader(stored, sampler, batch_size=32, timestamps=times, order="chunk", prefetch=0)
    ids = []
    for index, x, y in loader:
        for got, want in zip((x, y), windows.batch(index), strict=True):
            assert_same(got, want)
        ids.append(index)
    ids = torch.cat(ids)
    assert torch.equal(ids.sort().values, sampler.plan.indices)
    rows = {"chunk": 50, "history": 12, "horizon": 12, "memory_chunks": 8, "starts": windows.starts}
    assert torch.equal(ids, chunk_order(sampler.plan, **rows, seed=sampler.seed, epoch=1))
    assert count_chunk_reads(ids, **rows).reads == stored.reads <= 1.6 * 40
    with pytest.raises(ValueError, match=f"order must lie in .*, got {len(windows)}"):
        count_chunk_reads(torch.tensor([len(windows)]), **rows)


def test_drift_and_statistics_are_those_of_the_windows_that_are_left():
    xarray = pytest.importorskip("xarray")
    series, times = series_with_gaps()
    for stride in (1, 3):
        options = {"history": 5, "horizon": 4, "stride": stride}
        windows = WindowDataset(series, timestamps=times, **options)
        kept = windows.starts // stride
        drift = stationarity(series, **options)
        assert torch.equal(stationarity(series, timestamps=times, **options), drift[kept])
        array = xarray.DataArray(series[..., 0].numpy(), dims=("time", "node"), coords={"time": times})
        for each in (array, array.chunk(time=70)):
            for per_node in (False, True):
                got = score_dataset(each, per_node=per_node, **options)
                every = score_dataset(each, per_node=per_node, gaps="keep", **options)
                assert got["start"].values.tolist() == windows.starts.tolist()
                assert np.array_equal(got["time"].values, times[windows.starts])
                assert len(every["start"]) == len(drift)
                for name in got.data_vars:
                    assert np.array_equal(got[name].values, every[name].values[kept])


# --- what counts as timestamps ---------------------------------------------------------------------------------------


def test_times_of_every_kind_are_the_same_times():
    series, times = torch.zeros(30, 1), hours(*range(10), *range(14, 34))
    want = WindowDataset(series, history=3, horizon=2, timestamps=times)
    index = pandas.DatetimeIndex(times)
    same = [times.astype(f"M8[{unit}]") for unit in ("h", "m", "ms", "us", "ns")]
    same += [index, pandas.Series(index), list(index), times.astype("M8[us]").astype(datetime.datetime).tolist(), list(times)]
    for each in same:
        windows = WindowDataset(series, history=3, horizon=2, timestamps=each)
        loader = WindowLoader(series, history=3, horizon=2, timestamps=each, batch_size=99)
        assert windows.starts.tolist() == want.starts.tolist()
        assert_same(windows.batch(range(len(want)))[0], want.batch(range(len(want)))[0])
        assert_same(next(iter(loader))[1], want.batch(range(len(want)))[0])
        assert_same(time_features(30, timestamps=each), time_features(30, timestamps=times))


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (hours(*range(30)).astype(str), r"got <U\d+; text becomes times by numpy.array"),
        (pandas.DatetimeIndex(hours(*range(30))).tz_localize("UTC"), "got object; .*without a time zone .*tz_convert"),
        ([*pandas.DatetimeIndex(hours(*range(29))), pandas.NaT], "got object; objects must be datetime, not NaT"),
        (list(range(30)), "got int64$"),
        (torch.arange(30), "got int64$"),
    ],
)
def test_what_is_no_time_is_refused_with_advice(times, message):
    for make in (WindowDataset, lambda *args, **options: WindowLoader(*args, batch_size=4, **options)):
        with pytest.raises(TypeError, match=f"^Window(Dataset|Loader): timestamps must be a datetime64 array, {message}"):
            make(torch.zeros(30, 1), timestamps=times)


def test_features_of_ones_own_beside_timestamps():
    series, times = series_with_gaps()
    loader = WindowLoader(series, batch_size=8, timestamps=times, time_features=torch.arange(400.0)[:, None])
    assert loader.num_dropped > 0
    index, x, _ = next(iter(loader))
    assert x.shape[-1] == 2
    assert torch.equal(x[:, 0, 0, 1].long(), WindowDataset(series, timestamps=times).starts[index])
