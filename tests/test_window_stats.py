"""window_stats: six statistics of every window, against a reference that materialises the windows."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stprune import stationarity, testing
from stprune.ops import WindowStats, window_stats
from stprune.reference import window_stats as reference

NAN = float("nan")
SHAPES = [(6, 6, 1), (1, 1, 1), (1, 0, 1), (5, 0, 2), (20, 7, 3), (144, 144, 1), (3, 60, 1), (60, 3, 2), (4, 4, 50)]


def random(times: int, nodes: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(times, nodes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def adversarial(name: str, times: int = 700, nodes: int = 19) -> torch.Tensor:
    """Series on which running sums lose their digits, float32."""
    x = random(times, nodes, 1)
    time = torch.arange(times, dtype=torch.float64)[:, None]
    if name == "traffic":
        x = 200 + 100 * (time * 2 * math.pi / 96).sin() + 30 * x
    elif name == "offset":
        x = 1e6 + x
    elif name == "scale drop":
        x = torch.where(time % 200 < 100, 1000.0, 1.0) * x
    elif name == "huge scale drop":
        x = torch.where(time % 200 < 100, 1e7, 1e-3) * x
    elif name == "zeros at night":
        x = torch.where(time % 96 < 40, 0.0, 1000 + 100 * x)
    elif name == "constant":
        x = torch.full_like(x, 0.1) + torch.arange(nodes)
    elif name == "random walk":
        x = 100 * x.cumsum(0)
    elif name == "gaps":
        x = torch.where(random(times, nodes, 2) < -1.0, NAN, 50 + x)
    elif name == "gap stretches":
        x[(time[:, 0] % 150 < 70)] = NAN
        x[:, 3] = NAN
        x[300:420, ::2] = 7.0
    elif name == "few values":
        x = torch.where(random(times, nodes, 2) < 1.6, NAN, 1e5 + x)
    elif name == "outliers":
        x = torch.where(random(times, nodes, 2) > 2.2, 1e6, x)
    return x.float()


NAMES = (
    "traffic", "offset", "scale drop", "huge scale drop", "zeros at night", "constant", "random walk", "gaps",
    "gap stretches", "few values", "outliers",
)  # fmt: skip


def expected(x: torch.Tensor, history: int, horizon: int, stride: int, per_node: bool, null_value=None) -> list[torch.Tensor]:
    """float64, in the order of WindowStats."""
    flat = x.reshape(x.shape[0], -1)
    valid = reference.valid_entries(flat, null_value)
    std = torch.stack(
        [
            values.double().std(correction=0) if values.numel() and values.max() > values.min() else torch.zeros(()).double()
            for values in (flat[valid[:, i], i] for i in range(flat.shape[1]))
        ]
    )
    inverse = torch.where(std > 0, 1 / std, 0.0)
    length = history + horizon
    starts = range(0, flat.shape[0] - length + 1, stride)
    windows = torch.stack([flat[s : s + length] for s in starts])
    kept = torch.stack([valid[s : s + length] for s in starts])
    mean, variance, trend, acf, drift, known, drifts, entries = reference._measure(windows.double(), kept, history, inverse)
    missing = 1 - entries / length
    if per_node:
        return [mean, variance, drift, trend, acf, missing]
    means = [value.nan_to_num().sum(1) / known.sum(1) for value in (mean, variance, trend, acf)]
    return [*means[:2], drift.nan_to_num().sum(1) / drifts.sum(1), *means[2:], missing.mean(1)]


def assert_close(actual: WindowStats, wanted: list[torch.Tensor], length: int, scale: float = 0.0) -> None:
    """2e-7 relative, float32 rounding being 6e-8; cancelling statistics beside the size of what cancels in them."""
    spread = wanted[1].nan_to_num().sqrt()
    slack = {
        "mean": 1e-9 * (spread + scale),
        "variance": torch.zeros(()),
        "drift": torch.tensor(1e-9),
        "trend": 1e-9 * (spread + scale) / length,
        "autocorrelation": torch.tensor(1e-8),
        "missing": torch.tensor(1e-7),
    }
    for name, value, want in zip(WindowStats._fields, actual, wanted, strict=True):
        assert value.dtype == torch.float32
        assert value.shape == want.shape, name
        assert torch.equal(value.isnan(), want.isnan()), name
        error = (value.double() - want).abs().nan_to_num()
        assert bool((error <= 2e-7 * want.abs().nan_to_num() + slack[name]).all()), (name, float(error.max()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("per_node", [True, False])
@pytest.mark.parametrize(("history", "horizon", "stride"), SHAPES)
def test_matches_reference(name: str, per_node: bool, history: int, horizon: int, stride: int) -> None:
    x = adversarial(name)
    actual = window_stats(x, history=history, horizon=horizon, stride=stride, per_node=per_node)
    # Means over nodes of different level cancel beside the level itself.
    scale = 0.0 if per_node else float(x.nan_to_num().abs().max()) * 1e-3
    assert_close(actual, expected(x, history, horizon, stride, per_node), history + horizon, scale)


def test_longest_windows() -> None:
    x = adversarial("scale drop", times=2500, nodes=3)
    assert_close(window_stats(x, history=1008, horizon=1008, per_node=True), expected(x, 1008, 1008, 1, True), 2016)
    x[700, 1] = NAN
    assert_close(window_stats(x, history=2015, horizon=1, per_node=True), expected(x, 2015, 1, 1, True), 2016)


def test_by_hand() -> None:
    x = torch.tensor([[1.0], [2.0], [4.0], [7.0]])
    stats = window_stats(x, history=2, horizon=2, per_node=True)
    d = np.array([1.0, 2.0, 4.0, 7.0]) - 3.5
    assert stats.mean.item() == 3.5
    assert stats.variance.item() == np.float32((d * d).mean())
    assert stats.trend.item() == 2.0  # (-1.5 * 1 - 0.5 * 2 + 0.5 * 4 + 1.5 * 7) / 5
    assert stats.autocorrelation.item() == pytest.approx((d[1:] * d[:-1]).sum() / (d * d).sum(), rel=1e-7)
    assert stats.drift.item() == pytest.approx(4.0 / d.std(), rel=1e-7)
    assert stats.missing.item() == 0.0
    gap = window_stats(torch.tensor([[1.0], [NAN], [4.0], [7.0]]), history=2, horizon=2, per_node=True)
    times, values = np.array([0, 2, 3]), np.array([1.0, 4.0, 7.0])
    assert gap.trend.item() == pytest.approx(np.polyfit(times, values, 1)[0], rel=1e-6)
    assert gap.autocorrelation.item() == pytest.approx(0.0, abs=1e-12)  # (4 - 4) * (7 - 4)
    assert gap.missing.item() == 0.25


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6, -3e-30, 1e30])
@pytest.mark.parametrize("gaps", [False, True])
def test_constant_windows_are_exactly_constant(value: float, gaps: bool) -> None:
    x = random(400, 18).float() * 1e5
    x[100:200] = value
    if gaps:
        x[110::7] = NAN
    inside = slice(100, 200 - 24 + 1)
    for per_node in (True, False):
        stats = window_stats(x, history=12, horizon=12, per_node=per_node)
        for part in (stats.variance, stats.trend, stats.autocorrelation, stats.drift):
            assert bool((part[inside] == 0).all())
            assert bool((part[:70] != 0).all())


def test_unknown_is_nan_and_enters_no_mean() -> None:
    x = random(60, 4).float()
    x[:, 2] = NAN
    x[10:40, 1] = NAN
    x[:, 3] = 5.0
    nodes = window_stats(x, history=6, horizon=6, per_node=True)
    assert bool(nodes.mean[:, 2].isnan().all())
    assert bool(nodes.mean[12:25, 1].isnan().all())
    assert bool(nodes.drift[:, 3].isnan().all())
    assert bool((nodes.missing[:, 2] == 1).all())
    whole = window_stats(x, history=6, horizon=6)
    assert torch.allclose(whole.variance, nodes.variance.nanmean(1), rtol=1e-6)
    assert torch.allclose(whole.drift, nodes.drift.nanmean(1), rtol=1e-6)
    assert torch.allclose(whole.missing, nodes.missing.mean(1), rtol=1e-6)
    nothing = window_stats(torch.full((20, 3), NAN), history=3, horizon=3)
    assert all(bool(value.isnan().all()) for value in nothing[:5])
    assert bool((nothing.missing == 1).all())


def test_null_value_is_missing() -> None:
    x = random(200, 9).float()
    x[random(200, 9, 5) > 1] = 0.0
    with_nan = torch.where(x == 0, NAN, x)
    for per_node in (True, False):
        a = window_stats(x, history=7, horizon=5, null_value=0.0, per_node=per_node)
        b = window_stats(with_nan, history=7, horizon=5, per_node=per_node)
        for one, other in zip(a, b, strict=True):
            testing.assert_same(one, other)
    rounded = torch.where(x == 0, 0.1, x.double()).float()
    c = window_stats(rounded, history=7, horizon=5, null_value=0.1)
    testing.assert_same(c.missing, window_stats(with_nan, history=7, horizon=5).missing)


@pytest.mark.parametrize("name", ["traffic", "gaps", "gap stretches"])
@pytest.mark.parametrize(("history", "horizon", "stride"), [(12, 12, 1), (30, 10, 3), (1, 1, 1), (4, 4, 10), (5, 6, 7)])
def test_a_window_is_a_function_of_its_rows(name: str, history: int, horizon: int, stride: int) -> None:
    x = adversarial(name, nodes=37)
    inverse = torch.linspace(0, 2, 37, dtype=torch.float64)
    length = history + horizon
    call = torch.ops.stprune.window_stats
    for per_node in (False, True):
        whole, _ = call(x, history, horizon, stride, 0, None, inverse, per_node)
        for first in (1, 5, 7, 23, 40, 333):
            start = first * stride
            if start + length > x.shape[0]:
                continue
            part, _ = call(
                x[start : start + 2 * length + 60], history, horizon, stride, start % length, None, inverse, per_node
            )
            testing.assert_same(part, whole[:, first : first + part.shape[1]])


@pytest.mark.parametrize("name", ["traffic", "gaps"])
def test_same_bits_for_every_thread_count_and_instruction_set(name: str, threads) -> None:
    x = adversarial(name, times=900, nodes=53)
    options = [{"history": 12, "horizon": 12, "per_node": p, "stride": s} for p in (True, False) for s in (1, 5)]
    threads(1)
    one = [window_stats(x, **o) for o in options]  # type: ignore[arg-type]
    for count in (2, 3, 7):
        threads(count)
        for want, o in zip(one, options, strict=True):
            for a, b in zip(window_stats(x, **o), want, strict=True):  # type: ignore[arg-type]
                testing.assert_same(a, b)
    for isa in testing.isas():
        with testing.isa(isa):
            for want, o in zip(one, options, strict=True):
                for a, b in zip(window_stats(x, **o), want, strict=True):  # type: ignore[arg-type]
                    testing.assert_same(a, b)


def test_more_columns_than_a_span() -> None:
    x = random(40, reference.SPAN + 33).float() + 3
    assert_close(window_stats(x, history=5, horizon=5), expected(x, 5, 5, 1, False), 10, 1e-2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int16, torch.uint8, torch.int32])
def test_dtypes(dtype: torch.dtype) -> None:
    x = (random(120, 5) * 20 + 90).to(dtype)
    wide = x.double()
    assert_close(window_stats(x, history=6, horizon=3, per_node=True), expected(wide, 6, 3, 1, True), 9)


def test_layouts() -> None:
    x = random(90, 12).float()
    want = window_stats(x, history=6, horizon=3, per_node=True)
    cube = torch.stack([x, x + 1], -1)
    for series in (
        cube[..., 0],
        x.T.contiguous().T,
        x.numpy(),
        np.asfortranarray(x.numpy()),
        torch.cat([x, x], 1)[:, :12],
        torch.cat([torch.zeros(90, 1), x], 1)[:, 1:],
    ):
        for a, b in zip(window_stats(series, history=6, horizon=3, per_node=True), want, strict=True):
            testing.assert_same(a, b)
    channels = window_stats(cube, history=6, horizon=3, per_node=True)
    assert channels.mean.shape == (82, 12, 2)
    testing.assert_same(channels.variance[..., 0].contiguous(), want.variance)


def test_memory_map(tmp_path, recwarn: pytest.WarningsRecorder) -> None:  # type: ignore[no-untyped-def]
    x = random(90, 12).float()
    np.save(tmp_path / "x.npy", x.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for a, b in zip(window_stats(mapped, history=6, horizon=3), window_stats(x, history=6, horizon=3), strict=True):
        testing.assert_same(a, b)
    assert not recwarn.list


def test_node_std() -> None:
    x = random(100, 6).float()
    std = torch.tensor([1.0, 2.0, 0.0, NAN, 4.0, 0.5])
    stats = window_stats(x, history=4, horizon=4, per_node=True, node_std=std)
    plain = window_stats(x, history=4, horizon=4, per_node=True, node_std=np.ones(6))
    assert torch.equal(stats.drift[:, 4], plain.drift[:, 4] / 4)
    assert bool(stats.drift[:, 2:4].isnan().all())
    testing.assert_same(stats.mean, plain.mean)


@pytest.mark.parametrize("name", NAMES)
def test_moments_match_reference_and_give_the_deviation(name: str) -> None:
    from stprune.ops.window_stats import deviation

    x = adversarial(name, times=2 * reference.MOMENT_ROWS + 77, nodes=21)
    actual, want = torch.ops.stprune.node_moments(x, None), reference.node_moments(x, None)
    assert torch.equal(actual[:, :2].nan_to_num(), want[:, :2].nan_to_num())
    assert torch.allclose(actual[:, 2:], want[:, 2:], rtol=1e-11, atol=1e-9 * float(want[:, 2].abs().max()))
    std = deviation(actual)
    for i in range(21):
        values = x[:, i][~x[:, i].isnan()].double()
        if values.numel() == 0 or values.max() == values.min():
            assert std[i] == 0
        else:
            assert std[i].item() == pytest.approx(values.std(correction=0).item(), rel=1e-10)


@pytest.mark.parametrize("name", ["traffic", "gaps", "offset", "scale drop"])
def test_drift_is_that_of_stationarity(name: str) -> None:
    x = adversarial(name)
    drift = window_stats(x, history=12, horizon=7, stride=2).drift
    assert torch.allclose(drift, stationarity(x, history=12, horizon=7, stride=2), rtol=3e-7, atol=1e-8)


@settings(max_examples=40, deadline=None)
@given(
    times=st.integers(1, 90), nodes=st.integers(1, 40), history=st.integers(1, 20), horizon=st.integers(0, 20),
    stride=st.integers(1, 30), share=st.sampled_from([0.0, 0.02, 0.5, 0.95]), seed=st.integers(0, 99), per_node=st.booleans(),
)  # fmt: skip
def test_matches_reference_anywhere(times, nodes, history, horizon, stride, share, seed, per_node) -> None:  # type: ignore[no-untyped-def]
    x = 10 + random(times, nodes, seed)
    x[torch.rand(times, nodes, generator=torch.Generator().manual_seed(seed)) < share] = NAN
    x = x.float()
    if times < history + horizon:
        with pytest.raises(ValueError, match="series must have at least history"):
            window_stats(x, history=history, horizon=horizon)
        return
    actual = window_stats(x, history=history, horizon=horizon, stride=stride, per_node=per_node)
    assert_close(actual, expected(x, history, horizon, stride, per_node), history + horizon, 1e-2)


def test_nothing_is_modified_and_repeats() -> None:
    x = adversarial("gaps")
    before = x.clone()
    a, b = (window_stats(x, history=5, horizon=5) for _ in range(2))
    testing.assert_same(x, before)
    for one, other in zip(a, b, strict=True):
        testing.assert_same(one, other)


def test_errors() -> None:
    x = random(30, 3).float()
    bad_value = x.clone()
    bad_value[7, 1] = math.inf
    good = {"history": 4, "horizon": 2}
    cases = [
        (TypeError, "series must be a tensor or array", "x", good),
        (TypeError, "series must be a tensor or array", x.bool(), good),
        (TypeError, "series must hold real numbers", np.array(["a"]), good),
        (TypeError, "series must be a tensor or array", x.long(), good),
        (ValueError, r"series must be \[time, node\]", x[:, 0], good),
        (ValueError, "series must not be empty", x[:, :0], good),
        (ValueError, "series must have at least history", x, {"history": 20, "horizon": 11}),
        (ValueError, "history must lie in", x, {**good, "history": 0}),
        (TypeError, "history must be an integer", x, {**good, "history": 4.0}),
        (ValueError, "horizon must lie in", x, {**good, "horizon": -1}),
        (ValueError, "stride must lie in", x, {**good, "stride": 0}),
        (TypeError, "null_value must be a number", x, {**good, "null_value": "0"}),
        (TypeError, "node_std must be a tensor", x, {**good, "node_std": [1.0, 2.0, 3.0]}),
        (ValueError, "node_std must have the shape", x, {**good, "node_std": torch.ones(4)}),
        (ValueError, "node_std must be finite and at least 0", x, {**good, "node_std": -torch.ones(3)}),
        (ValueError, "got an infinite entry in row 7", bad_value, good),
        (ValueError, "got an infinite entry in row 7", bad_value, {**good, "per_node": True}),
    ]
    for error, message, series, options in cases:
        with pytest.raises(error, match=rf"^window_stats: .*{message}"):
            window_stats(series, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_an_infinite_entry_is_one_error_and_no_warning(value):
    # Several blocks of moments, so that the infinite one is merged with those before and after it.
    series = np.random.default_rng(0).normal(size=(3 * reference.MOMENT_ROWS + 5, 2))
    series[1500, 1] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="got an infinite entry in row 1500"):
            window_stats(series, history=4, horizon=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tolerance_finds_null_values_that_went_through_a_scaler_and_back(dtype):
    series = torch.rand(60, 5, generator=torch.Generator().manual_seed(0), dtype=dtype) + 1.0
    clean, returned = series.clone(), series.clone()
    clean[::7, 2], returned[::7, 2] = 0.0, 1.5e-5
    expected = window_stats(clean, history=4, horizon=4, null_value=0.0)
    for value, true in zip(
        window_stats(returned, history=4, horizon=4, null_value=0.0, null_tolerance=5e-5), expected, strict=True
    ):
        assert torch.equal(value, true)
    assert not torch.equal(window_stats(returned, history=4, horizon=4, null_value=0.0).mean, expected.mean)
