"""Windows of a series: cutting, splitting, time features, drift and strata."""

from __future__ import annotations

import copy
import functools
import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from stprune import WindowLoader
from stprune.reference.stationarity import stationarity as reference
from stprune.windows import WindowDataset, split_windows, stationarity, stratify
from stprune.windows import drift as drift_module


def noise(times: int, nodes: int = 5, channels: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(times, nodes, channels, generator=torch.Generator().manual_seed(seed))


# --- WindowDataset ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("history", "horizon", "stride"), [(12, 12, 1), (1, 1, 1), (5, 3, 2), (30, 10, 1), (3, 5, 60)])
def test_windows_are_slices(history: int, horizon: int, stride: int) -> None:
    series = noise(40)
    windows = WindowDataset(series, history=history, horizon=horizon, stride=stride)
    starts = list(range(0, 40 - history - horizon + 1, stride))
    assert len(windows) == len(starts)
    assert torch.equal(windows.starts, torch.tensor(starts))
    assert windows.starts.dtype == torch.int64
    for i, start in enumerate(starts):
        x, y = windows[i]
        assert torch.equal(x, series[start : start + history])
        assert torch.equal(y, series[start + history : start + history + horizon])


def test_no_window_leaves_its_rows() -> None:
    rows = torch.arange(50.0)[:, None, None]
    windows = WindowDataset(rows, history=4, horizon=3, start=11, stop=30)
    seen = torch.cat([torch.cat(windows[i]).flatten() for i in range(len(windows))])
    assert seen.min() == 11
    assert seen.max() == 29
    assert len(windows) == 19 - 7 + 1


def test_windows_of_tensors_and_writable_arrays_are_views() -> None:
    series = noise(30)
    for source in (series, series.numpy()):
        x, y = WindowDataset(source, history=4, horizon=3, target_channels=[1])[2]
        assert x.data_ptr() == series[2].data_ptr()
        assert y.data_ptr() == series[6, 0, 1:].data_ptr()


def test_two_dimensions_are_one_channel() -> None:
    series = noise(30)[:, :, 0]
    x, y = WindowDataset(series, history=4, horizon=3)[0]
    assert x.shape == (4, 5, 1)
    assert y.shape == (3, 5, 1)
    assert torch.equal(x[..., 0], series[:4])


def test_read_only_arrays_give_writable_copies_without_a_warning() -> None:
    array = noise(30).numpy().copy()
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x, _ = WindowDataset(array, history=4, horizon=3)[0]
    assert np.array_equal(array[:4], x.numpy())
    before = array.copy()
    x += 1
    assert np.array_equal(array, before)


@pytest.mark.parametrize("channels", [0, [0], [2], [0, 1], [2, 0], (1, 2), np.int64(1)])
def test_target_channels(channels: object) -> None:
    series = noise(30, channels=3)
    x, y = WindowDataset(series, history=4, horizon=3, target_channels=channels)[3]
    wanted = [channels] if isinstance(channels, (int, np.integer)) else list(channels)  # type: ignore[call-overload]
    assert x.shape[2] == 3
    assert torch.equal(y, series[7:10][..., wanted])


@pytest.mark.parametrize("kind", ["tensor", "array", "read_only", "memmap", "int16", "bfloat16"])
@pytest.mark.parametrize("as_tensor", [True, False])
def test_batch_equals_stacked_windows(kind: str, as_tensor: bool, tmp_path) -> None:  # type: ignore[no-untyped-def]
    values, read_only = noise(60), noise(60).numpy()
    read_only.flags.writeable = False
    np.save(tmp_path / "a.npy", read_only)
    series = {
        "tensor": values,
        "array": values.numpy(),
        "read_only": read_only,
        "memmap": np.load(tmp_path / "a.npy", mmap_mode="r"),
        "int16": (values * 100).to(torch.int16),
        "bfloat16": values.bfloat16(),
    }[kind]
    windows = WindowDataset(series, history=6, horizon=4, stride=3, start=2, target_channels=[1, 0])  # type: ignore[arg-type]
    ids = [0, 5, len(windows) - 1, 5, -1]
    x, y = windows.batch(torch.tensor(ids) if as_tensor else ids)
    listed = windows.__getitems__(ids)
    assert torch.equal(x, torch.stack([a for a, _ in listed]))
    assert torch.equal(y, torch.stack([b for _, b in listed]))
    assert x.is_contiguous()
    assert y.is_contiguous()
    assert windows.batch([])[0].shape == (0, 6, 5, 2)


def test_index_rules() -> None:
    windows = WindowDataset(noise(30), history=4, horizon=3)
    assert len(windows) == 24
    assert torch.equal(windows[-1][1], windows[23][1])
    assert torch.equal(windows[torch.tensor(3)][0], windows[np.int32(3)][0])
    for bad in (24, -25):
        with pytest.raises(IndexError, match=r"index must lie in \[-24, 24\)"):
            windows[bad]
        with pytest.raises(IndexError, match=f"got {bad}"):
            windows.batch([0, bad])
    for wrong in ([0.0], torch.tensor([1.0]), [True], torch.tensor(2), [[1]]):
        with pytest.raises(TypeError, match="flat sequence of ints"):
            windows.batch(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        windows[1.0]  # type: ignore[index]
    assert len(list(iter(windows))) == 24  # type: ignore[call-overload]


def test_time_features_from_the_row_number() -> None:
    windows = WindowDataset(noise(60), history=4, horizon=3, steps_per_day=5, first_step=32)
    for i in (0, 7, len(windows) - 1):
        x, y = windows[i]
        rows = torch.arange(i, i + 4) + 32
        assert x.shape == (4, 5, 4)
        assert y.shape == (3, 5, 2)
        assert torch.equal(x[:, 3, 2], (rows % 5 / 5).float())
        assert torch.equal(x[:, 0, 3], (rows // 5 % 7 / 7).float())
        assert torch.equal((x[..., 2] * 5).round(), (rows % 5).float()[:, None].expand(4, 5))
    x, _ = windows.batch([7, 1])
    assert torch.equal(x[0], windows[7][0])
    assert torch.equal(x[1], windows[1][0])
    assert bool((x[..., 2:] >= 0).all())
    assert bool((x[..., 2:] < 1).all())


def test_time_features_from_timestamps() -> None:
    # 2024-01-01 is a Monday; two hours are missing, so that row numbers would drift away from the clock.
    times = np.datetime64("2024-01-01T00:00") + np.arange(200).astype("timedelta64[h]")
    times = np.delete(times, [30, 31])
    windows = WindowDataset(noise(198), history=4, horizon=3, timestamps=times, gaps="keep")
    x, _ = windows[28]
    hours = torch.tensor([28, 29, 32, 33])
    assert torch.allclose(x[:, 0, 2], (hours % 24 / 24).float())
    assert torch.allclose(x[:, 0, 3], (hours // 24 / 7).float())
    regular = np.datetime64("2024-01-01") + np.arange(198).astype("timedelta64[h]")
    by_clock = WindowDataset(noise(198), history=4, horizon=3, timestamps=regular)
    by_row = WindowDataset(noise(198), history=4, horizon=3, steps_per_day=24)
    assert torch.equal(by_clock[170][0], by_row[170][0])


def test_loader_collates_windows() -> None:
    series = noise(40)
    windows = WindowDataset(series, history=4, horizon=3)
    batches = list(DataLoader(windows, batch_size=10))
    assert torch.equal(torch.cat([x for x, _ in batches]), series.unfold(0, 4, 1).movedim(-1, 1)[:34])


@pytest.mark.parametrize("shape", [(30, 4, 2), (30, 4)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_memory_maps_travel_by_name(tmp_path, shape: tuple[int, ...], order: str) -> None:  # type: ignore[no-untyped-def]
    array = np.asarray(np.random.default_rng(0).normal(size=shape).astype(np.float32), order=order)  # type: ignore[call-overload]
    np.save(tmp_path / "series.npy", array)
    windows = WindowDataset(np.load(tmp_path / "series.npy", mmap_mode="r"), history=4, horizon=3)
    message = pickle.dumps(windows)
    # 960 bytes of numbers stay on disk; a pickle of them would be larger than this message.
    assert array.tobytes()[:64] not in message
    restored = pickle.loads(message)
    assert isinstance(restored.series, np.memmap)
    assert torch.equal(restored.batch(range(24))[0], windows.batch(range(24))[0])
    assert torch.equal(copy.deepcopy(windows)[5][1], windows[5][1])


def test_parts_of_memory_maps_travel_by_value(tmp_path) -> None:  # type: ignore[no-untyped-def]
    array = np.random.default_rng(0).normal(size=(30, 4, 2)).astype(np.float32)
    np.save(tmp_path / "series.npy", array)
    part = np.load(tmp_path / "series.npy", mmap_mode="r")[5:]
    restored = pickle.loads(pickle.dumps(WindowDataset(part, history=4, horizon=3)))
    assert np.array_equal(restored[0][0].numpy(), array[5:9])


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers(tmp_path, context: str) -> None:  # type: ignore[no-untyped-def]
    np.save(tmp_path / "series.npy", noise(40).numpy())
    windows = WindowDataset(np.load(tmp_path / "series.npy", mmap_mode="r"), history=4, horizon=3, steps_per_day=7)
    loader = DataLoader(windows, batch_size=16, num_workers=1, multiprocessing_context=context)
    seen = torch.cat([x for x, _ in loader])
    assert torch.equal(seen, windows.batch(range(len(windows)))[0])


GOOD, TIMES = noise(30), np.zeros(30, "M8[s]")
UNALIGNED = np.zeros(60 * 9, dtype=np.uint8)[1:].view(np.uint8)[: 60 * 8].view("<f4").reshape(30, 4)


@pytest.mark.parametrize("kind", [WindowDataset, functools.partial(WindowLoader, batch_size=4)])
@pytest.mark.parametrize(
    ("error", "message", "series", "options"),
    [
        (TypeError, "series must be a torch tensor or a numpy array, got list", [[1.0]], {}),
        (TypeError, "pass its .values", type("Frame", (), {"values": 1})(), {}),
        (TypeError, "real numbers", GOOD.to(torch.complex64), {}),
        (TypeError, "real numbers", GOOD > 0, {}),
        (TypeError, "real numbers", np.array([["a"]]), {}),
        (TypeError, "native byte order", GOOD.numpy().astype(">f4"), {}),
        (ValueError, r"must be \[time, node\].* \(30,\); for a single node pass series\[:, None\]", GOOD[:, 0, 0], {}),
        (ValueError, r"for a grid pass series.reshape\(30, 10, 1\)$", torch.zeros(30, 5, 2, 1), {}),
        (ValueError, "must be aligned, with strides of whole elements >= 0, .*ascontiguousarray", GOOD.numpy()[::-1], {}),
        (ValueError, "strides of whole elements >= 0", GOOD.numpy()[:, ::-1], {}),
        (ValueError, "must be aligned, with strides of whole elements >= 0", UNALIGNED, {}),
        (ValueError, "must not be empty", GOOD[:, :0], {}),
        (ValueError, "history must be at least 1, got 0", GOOD, {"history": 0}),
        (ValueError, "horizon must be at least 1, got 0", GOOD, {"horizon": 0}),
        (TypeError, "horizon must be an integer, got 2.0", GOOD, {"horizon": 2.0}),
        (ValueError, "stride must be at least 1, got 0", GOOD, {"stride": 0}),
        (TypeError, "stride must be an integer, got True", GOOD, {"stride": True}),
        (ValueError, r"start must lie in \[0, 30\], got -1", GOOD, {"start": -1}),
        (ValueError, r"stop must lie in \[0, 30\], got 31", GOOD, {"stop": 31}),
        (TypeError, "stop must be an int", GOOD, {"stop": 30.0}),
        (ValueError, r"rows \[start, stop\) must hold at least history \+ horizon = 24 rows, got 23", GOOD, {"stop": 23}),
        (ValueError, r"target_channels must .*lie in \[0, .*got \[?2\]?", GOOD, {"target_channels": 2}),
        (ValueError, "target_channels must be distinct", GOOD, {"target_channels": [0, 0]}),
        (TypeError, "target_channels must be an int", GOOD, {"target_channels": [0.0]}),
        ((TypeError, ValueError), "target_channels must be (.*one|an int)", GOOD, {"target_channels": []}),
        (ValueError, "steps_per_day must be at least 1, got 0", GOOD, {"steps_per_day": 0}),
        (ValueError, "first_step must be at least 0", GOOD, {"steps_per_day": 24, "first_step": -1}),
        (TypeError, "float32 or float64", GOOD.half(), {"steps_per_day": 24}),
        (TypeError, "timestamps must be a datetime64 array, got int64", GOOD, {"timestamps": np.arange(30)}),
        (ValueError, "timestamps must be one time for each of the 30 rows", GOOD, {"timestamps": TIMES[1:]}),
        (ValueError, "1 of them NaT", GOOD, {"timestamps": np.array(["2024"] * 29 + ["NaT"], "M8[s]")}),
        (ValueError, "got both", GOOD, {"timestamps": TIMES + np.arange(30), "steps_per_day": 3}),
    ],
)
def test_window_errors(kind, error, message, series, options) -> None:
    name = "WindowDataset" if kind is WindowDataset else "WindowLoader"
    with pytest.raises(error, match=f"^{name}: .*({message})"):
        kind(series, **options)


# --- split_windows ---------------------------------------------------------------------------------------------------


def test_split_is_the_basicts_convention() -> None:
    parts = split_windows(17856, 12, 12)
    series = torch.zeros(17856, 1, 1)
    counts = [len(WindowDataset(series, start=start, stop=stop)) for start, stop in parts]
    assert counts == [10690, 3548, 3549]
    assert split_windows(17856, 12, 12, (0.6, 0.2, 0.2)) == parts


@settings(deadline=None)
@given(st.integers(400, 5000), st.integers(1, 10), st.integers(1, 10), st.tuples(*[st.integers(1, 9)] * 3))
def test_split_parts_touch_and_share_no_row(num_times: int, history: int, horizon: int, ratios: tuple[int, ...]) -> None:
    (a, b), (c, d), (e, f) = split_windows(num_times, history, horizon, ratios)
    assert (a, f) == (0, num_times)
    assert (b, d) == (c, e)
    assert b == num_times * ratios[0] // sum(ratios)
    assert d - c == num_times * ratios[1] // sum(ratios)


def test_split_keeps_rows_that_binary_fractions_would_lose() -> None:
    # 0.7 * 10 / (0.7 + 0.1 + 0.2) is below 7 in floating point.
    assert split_windows(1000, 1, 1, (0.7, 0.1, 0.2)) == ((0, 700), (700, 800), (800, 1000))
    assert split_windows(90, 1, 1, (0.6, 0.2, 0.2))[0] == (0, 54)


def test_split_errors() -> None:
    with pytest.raises(ValueError, match="validation part at least history \\+ horizon = 24 rows, got 20 of 100"):
        split_windows(100, 12, 12)
    with pytest.raises(ValueError, match="three positive"):
        split_windows(1000, 12, 12, (6, 4))
    with pytest.raises(ValueError, match="three positive"):
        split_windows(1000, 12, 12, (6, 4, 0))
    with pytest.raises(ValueError, match="three positive"):
        split_windows(1000, 12, 12, (6, 4, float("nan")))
    with pytest.raises(TypeError, match="num_times must be an int"):
        split_windows(1000.0, 12, 12)  # type: ignore[arg-type]


# --- stationarity ----------------------------------------------------------------------------------------------------


def named_series(name: str) -> torch.Tensor:
    base = noise(180, 6, 1, seed=3)
    if name == "offset":
        return base + 1e6
    if name == "scale_drop":
        base[:90] *= 1000
        return base
    if name == "offset_drop":
        base[:90] += 1e6
        return base
    if name == "constant_stretches":
        base[20:80, :3] = 0.1
        base[100:150, 4] = -7.3
        return base
    if name == "constant_node":
        base[:, 2] = 0.1
        return base
    if name == "night":
        base = base.abs() * 100
        base[(torch.arange(180) % 24) < 7] = 0
        return base
    if name == "nan":
        base[torch.rand(base.shape, generator=torch.Generator().manual_seed(1)) < 0.4] = float("nan")
        base[60:110, :5] = float("nan")
        base[:, 5] = float("nan")
        return base
    if name == "channels":
        return noise(180, 4, 3, seed=5)
    if name == "float64":
        return base.double() * 1e-30
    assert name == "normal"
    return base


SERIES = [
    "normal",
    "offset",
    "scale_drop",
    "offset_drop",
    "constant_stretches",
    "constant_node",
    "night",
    "nan",
    "channels",
    "float64",
]


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.dtype == torch.float32
    # float32 rounds by 6e-8; the absolute part is for drifts that are 0 but for float64 rounding at an offset of 1e6.
    torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("name", SERIES)
@pytest.mark.parametrize(("history", "horizon", "stride"), [(12, 12, 1), (1, 1, 1), (1, 7, 3), (50, 20, 4), (170, 10, 1)])
@pytest.mark.parametrize("block", [None, 64])
def test_stationarity_matches_reference(
    name: str, history: int, horizon: int, stride: int, block: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if block is not None:  # many blocks of rows and of columns instead of one
        monkeypatch.setattr(drift_module, "BLOCK", block)
    series = named_series(name)
    before = series.clone()
    actual = stationarity(series, history=history, horizon=horizon, stride=stride)
    assert_same(actual, reference(series, history=history, horizon=horizon, stride=stride))
    assert len(actual) == len(WindowDataset(series, history=history, horizon=horizon, stride=stride))
    assert torch.equal(series.nan_to_num(99.0), before.nan_to_num(99.0))


@pytest.mark.parametrize("name", ["normal", "night", "nan"])
def test_stationarity_with_mask_and_null_value(name: str) -> None:
    series = named_series(name)
    mask = torch.rand(series.shape, generator=torch.Generator().manual_seed(2)) < 0.7
    options = {"history": 9, "horizon": 5, "stride": 2}
    for extra in ({"mask": mask}, {"null_value": 0.0}, {"mask": mask, "null_value": 0.0}):
        expected = reference(series, **options, **extra)  # type: ignore[arg-type]
        assert_same(stationarity(series, **options, **extra), expected)  # type: ignore[arg-type]
        array_mask = {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in extra.items()}
        assert_same(stationarity(series.numpy(), **options, **array_mask), expected)  # type: ignore[arg-type]


def test_null_values_that_went_through_a_scaler_are_missing() -> None:
    series = named_series("night").numpy()
    scaled = (series - np.float32(207.2227)) / np.float32(156.4805) * np.float32(156.4805) + np.float32(207.2227)
    assert 0 < abs(scaled[series == 0]).max() < 5e-5
    options = {"history": 9, "horizon": 5, "stride": 2}
    for source in (torch.from_numpy(scaled), torch.from_numpy(scaled).double()):
        missing = torch.where(torch.from_numpy(series == 0), torch.nan, source)
        found = stationarity(source, null_value=0.0, null_tolerance=5e-5, **options)
        exact = stationarity(source, null_value=0.0, **options)
        assert torch.equal(found.nan_to_num(-1), stationarity(missing, **options).nan_to_num(-1))
        assert not torch.equal(found.nan_to_num(-1), exact.nan_to_num(-1))


def test_stationarity_by_hand() -> None:
    # Node 0: 0 0 | 4 4, population std 2, drift 2. Node 1: 1 1 | 1 5: mean 2, std sqrt(3), drift 2 / sqrt(3).
    series = torch.tensor([[0.0, 1.0], [0.0, 1.0], [4.0, 1.0], [4.0, 5.0]])
    expected = (2 + 2 / 3**0.5) / 2
    assert stationarity(series, history=2, horizon=2).item() == pytest.approx(expected, rel=1e-6)
    missing = series.clone()
    missing[2:, 1] = float("nan")
    assert stationarity(missing, history=2, horizon=2).item() == 2.0
    missing[2:, 0] = float("nan")
    assert stationarity(missing, history=2, horizon=2).isnan().item()


def test_stationarity_of_constants_is_unknown() -> None:
    # In float64 the mean of 0.1 is not 0.1: a deviation of 1e-17 must not be divided by.
    for times in (30, 37, 100):
        for dtype in (torch.float32, torch.float64):
            series = torch.full((times, 3), 0.1, dtype=dtype)
            assert stationarity(series, history=4, horizon=4).isnan().all()
            assert reference(series, history=4, horizon=4).isnan().all()


def test_stationarity_of_rows(tmp_path) -> None:  # type: ignore[no-untyped-def]
    series = noise(90)
    expected = reference(series[20:70], history=6, horizon=4, stride=3)
    assert_same(stationarity(series, history=6, horizon=4, stride=3, start=20, stop=70), expected)
    np.save(tmp_path / "a.npy", series.numpy())
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert_same(stationarity(mapped, history=6, horizon=4, stride=3, start=20, stop=70), expected)


def test_stationarity_is_the_same_bits_for_every_thread_count(threads) -> None:  # type: ignore[no-untyped-def]
    series = noise(400, 37, 2)
    threads(1)
    one = stationarity(series, history=12, horizon=12)
    threads(4)
    assert torch.equal(one, stationarity(series, history=12, horizon=12))


def test_stationarity_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift_module, "BLOCK", 4096)
    largest = 0
    original = drift_module._block

    def watched(cube, mask, *cut):  # type: ignore[no-untyped-def]
        nonlocal largest
        block = original(cube, mask, *cut)
        largest = max(largest, block.numel())
        return block

    monkeypatch.setattr(drift_module, "_block", watched)
    # Neither can be read in place: one has a mask, the other a dtype that is widened.
    for nodes, window in ((3, 12), (3, 600), (80, 12)):
        series = torch.randn(6000, nodes)
        for options in ({"series": series, "mask": series < 1}, {"series": series.bfloat16()}):
            largest = 0
            stationarity(**options, history=window, horizon=window)  # type: ignore[arg-type]
            assert 0 < largest <= max(drift_module.BLOCK, 4 * window * nodes, 1024 * nodes)


def test_stationarity_is_the_drift_of_window_stats() -> None:
    from stprune.ops import window_stats

    for name in SERIES:
        series = named_series(name)
        for options in ({"history": 12, "horizon": 12}, {"history": 5, "horizon": 2, "stride": 3, "null_value": 0.0}):
            drift = window_stats(series, **options).drift  # type: ignore[arg-type]
            everything = torch.ones_like(series, dtype=torch.bool)
            for actual in (stationarity(series, **options), stationarity(series, mask=everything, **options)):  # type: ignore[arg-type]
                assert torch.equal(actual.nan_to_num(-1), drift.nan_to_num(-1))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 5), st.integers(0, 30), st.integers(1, 4), st.integers(0, 2**31))
def test_stationarity_matches_reference_anywhere(
    history: int, horizon: int, stride: int, extra: int, nodes: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (history + horizon + extra, nodes)
    series = torch.randint(0, 4, shape, generator=generator).double()
    series[torch.rand(shape, generator=generator) < 0.3] = float("nan")
    options = {"history": history, "horizon": horizon, "stride": stride}
    assert_same(stationarity(series, **options), reference(series, **options))


def test_stationarity_errors() -> None:
    series = noise(30)
    infinite = series.clone()
    infinite[7, 1, 0] = float("-inf")
    cases = [
        (ValueError, "null_tolerance must lie in", series, {"null_value": 0.0, "null_tolerance": -1.0}),
        (ValueError, "strides of whole elements >= 0, .*ascontiguousarray", series.numpy()[:, ::-1], {}),
        (TypeError, "series must be a torch tensor", [[1.0]], {}),
        (ValueError, "history must be at least 1", series, {"history": 0}),
        (ValueError, "at least history \\+ horizon = 24 rows, got 20", series, {"stop": 20}),
        (ValueError, "finite or NaN, got -inf in row 7", infinite, {}),
        (TypeError, "mask must be bool, got torch.float32", series, {"mask": series}),
        (TypeError, "mask must be bool, got list", series, {"mask": [True]}),
        (ValueError, r"mask must have the shape of series, \(30, 5, 2\), got \(30, 5\)", series, {"mask": series[..., 0] > 0}),
    ]
    for error, message, source, options in cases:
        with pytest.raises(error, match=message):
            stationarity(source, **{"history": 12, "horizon": 12, **options})  # type: ignore[arg-type]
    valid = stationarity(infinite, history=12, horizon=12, mask=~infinite.isinf())
    assert valid.isfinite().all()


# --- stratify --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_strata_are_equal_without_ties(dtype: torch.dtype) -> None:
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    labels = stratify(order.to(dtype), num_strata=8)
    assert labels.dtype == torch.int64
    assert torch.equal(labels, order // 10)


def test_default_number_of_strata() -> None:
    assert stratify(torch.arange(100.0)).max() == 7


def test_ties_share_a_label() -> None:
    values = torch.tensor([3.0, 1.0, 1.0, 1.0, 1.0, 2.0, 3.0, 4.0])
    assert stratify(values, num_strata=4).tolist() == [2, 0, 0, 0, 0, 1, 2, 2]
    assert stratify(torch.ones(9), num_strata=4).tolist() == [0] * 9


def test_missing_values_join_the_last_stratum() -> None:
    nan, inf = float("nan"), float("inf")
    assert stratify(torch.tensor([nan, 1.0, 2.0, nan, 3.0, 4.0]), num_strata=2).tolist() == [1, 0, 0, 1, 1, 1]
    assert stratify(torch.tensor([inf, 1.0, -inf, nan]), num_strata=3).tolist() == [2, 1, 0, 2]
    assert stratify(torch.tensor([nan, nan])).tolist() == [0, 0]
    assert stratify(torch.tensor([])).tolist() == []


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.0, -0.0, 0.5, 1.0, 2.0, 3.0, float("nan")]), max_size=60), st.integers(1, 12))
def test_strata_rules(items: list[float], num_strata: int) -> None:
    values = torch.tensor(items)
    labels = stratify(values, num_strata=num_strata)
    assert labels.unique().tolist() == list(range(len(labels.unique())))
    assert len(labels.unique()) <= num_strata
    known = [(value, label) for value, label in zip(items, labels.tolist(), strict=True) if value == value]
    for value, label in known:
        for other, other_label in known:
            assert value != other or label == other_label
            assert value <= other or label >= other_label
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(0))
    assert torch.equal(stratify(values[order], num_strata=num_strata), labels[order])


def test_stratify_errors() -> None:
    with pytest.raises(ValueError, match=r"values must be \[n\], got shape \(2, 2\)"):
        stratify(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="num_strata must be at least 1, got 0"):
        stratify(torch.zeros(2), num_strata=0)
    with pytest.raises(TypeError, match="num_strata must be an int"):
        stratify(torch.zeros(2), num_strata=2.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="float or integer tensor, got torch.bool"):
        stratify(torch.zeros(2) > 0)
    with pytest.raises(TypeError, match="float or integer tensor, got list"):
        stratify([1.0])  # type: ignore[arg-type]
