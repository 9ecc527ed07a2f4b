"""score_dataset: the statistics of windows on Dask have the bits of those in memory."""

from __future__ import annotations

import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from stprune.ops import window_stats
from stprune.reference.window_stats import MOMENT_ROWS, SPAN
from stprune.windows.score_dataset import score_dataset

xarray = pytest.importorskip("xarray")
pytest.importorskip("dask.array")


def series(times: int = 1300, shape: tuple[int, ...] = (3, 7), gaps: float = 0.01) -> Any:
    generator = np.random.default_rng(0)
    values = generator.normal(size=(times, *shape)).cumsum(0).astype(np.float32)
    values[generator.random(values.shape) < gaps] = np.nan
    dims = ("time", "lat", "lon")[: values.ndim]
    return xarray.DataArray(values, dims=dims, coords={"time": np.arange(times) * 2}, name="t2m")


def assert_equal(result: Any, array: Any, **options: Any) -> None:
    """Bit for bit what window_stats gives for the same values."""
    values = array.values
    node_std = options.pop("node_std", None)
    flat = values.reshape(len(values), -1)
    want = window_stats(flat, node_std=node_std, **options)
    assert set(result.data_vars) == set(want._fields)
    for name, value in want._asdict().items():
        actual = result[name].values
        assert actual.dtype == np.float32
        assert np.array_equal(actual.reshape(value.shape), value.numpy(), equal_nan=True), name


@pytest.mark.parametrize("chunks", [{"time": 100}, {"time": 57, "lat": 2, "lon": 4}, {"time": 1000, "lat": 1}, {"time": -1}])
@pytest.mark.parametrize("per_node", [False, True])
@pytest.mark.parametrize(("history", "horizon", "stride"), [(12, 12, 1), (100, 44, 3), (2, 3, 700)])
def test_equals_memory_for_every_chunking(
    chunks: dict[str, int], per_node: bool, history: int, horizon: int, stride: int
) -> None:
    array = series()
    options = {"history": history, "horizon": horizon, "stride": stride, "per_node": per_node}
    assert_equal(score_dataset(array.chunk(chunks), **options), array, **options)


@pytest.mark.parametrize(
    ("array", "chunks"),
    [
        # Blocks of moments cross chunks.
        (series(2 * MOMENT_ROWS + 300), [{"time": r} for r in (MOMENT_ROWS - 1, MOMENT_ROWS, MOMENT_ROWS + 1, 400)]),
        # More columns than a span.
        (series(50, (2 * SPAN + 100,)), [{"time": 20, "lat": w} for w in (1000, SPAN, SPAN + 1, 2 * SPAN + 100)]),
        # The last chunk holds no window's start, and chunks are shorter than a window.
        (series(60), [{"time": r} for r in (1, 5, 9, 10, 41, 59)]),
    ],
    ids=["moments", "span", "short"],
)
def test_equals_memory_where_chunks_end_awkwardly(array: Any, chunks: list[dict[str, int]]) -> None:
    for each in chunks:
        assert_equal(score_dataset(array.chunk(each), history=5, horizon=5), array, history=5, horizon=5)


def test_variable_dimensions_null_value_and_std() -> None:
    array = series(gaps=0.0).astype("int16")
    dataset = xarray.Dataset({"flow": array.transpose("lat", "time", "lon").chunk(time=300), "other": array.lat})
    options = {"history": 6, "horizon": 3, "null_value": 0.0}
    result = score_dataset(dataset, variable="flow", **options)
    assert_equal(result, array, **options)
    assert result["missing"].values.max() > 0
    std = np.linspace(0.5, 2, 21).reshape(3, 7)
    given = score_dataset(dataset["flow"], node_std=xarray.DataArray(std), **options)
    assert_equal(given, array, node_std=std.reshape(-1), **options)
    assert not np.array_equal(given["drift"].values, result["drift"].values)
    assert np.array_equal(given["variance"].values, result["variance"].values)


def test_null_values_within_the_tolerance_are_missing() -> None:
    array = series(gaps=0.0).round(0)
    shifted, missing = array.where(array != 2, np.float32(2.00003)), array.where(array != 2)
    options = {"history": 6, "horizon": 3}
    for source in (shifted, shifted.chunk(time=200)):
        assert_equal(score_dataset(source, null_value=2.0, null_tolerance=5e-5, **options), missing, **options)


def test_coordinates() -> None:
    array = series().assign_coords(lat=[10, 20, 30])
    for source in (array, array.chunk(time=500)):
        result = score_dataset(source, history=4, horizon=4, stride=10, per_node=True)
        assert result["mean"].dims == ("window", "lat", "lon")
        assert result["start"].values[:3].tolist() == [0, 10, 20]
        assert result["time"].values[:3].tolist() == [0, 20, 40]
        assert result["lat"].values.tolist() == [10, 20, 30]
        assert_equal(result, array, history=4, horizon=4, stride=10, per_node=True)


def test_lazy_values_go_to_a_store(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("zarr")
    array = series()
    array.to_dataset().chunk(time=200).to_zarr(tmp_path / "in.zarr", consolidated=False)
    source = xarray.open_zarr(tmp_path / "in.zarr", consolidated=False)
    lazy = score_dataset(source, history=6, horizon=6, per_node=True, compute=False)
    assert hasattr(lazy["mean"].data, "dask")
    lazy.drop_encoding().chunk(window=500).to_zarr(tmp_path / "out.zarr", consolidated=False)
    assert_equal(xarray.open_zarr(tmp_path / "out.zarr", consolidated=False), array, history=6, horizon=6, per_node=True)


def test_errors() -> None:
    array = series(times=40)
    both = xarray.Dataset({"a": array, "b": array})
    infinite = array.copy()
    infinite[7, 0, 0] = np.inf
    good = {"history": 4, "horizon": 2}
    cases = [
        (TypeError, "dataset must be an xarray", array.values, good),
        (TypeError, "dataset must hold floats or integers of at most 32 bits, got int64", xarray.ones_like(array, int), good),
        (ValueError, "variable must be one of a, b, got None", both, good),
        (ValueError, "variable must be one of a, b, got 'c'", both, {**good, "variable": "c"}),
        (ValueError, "variable must be None", array, {**good, "variable": "c"}),
        (ValueError, "time_dim must be one of time, lat, lon, got 'day'", array, {**good, "time_dim": "day"}),
        (ValueError, "dataset must not be empty", array[:, :0], good),
        (ValueError, "dataset must have at least history", array, {"history": 40, "horizon": 1}),
        (ValueError, "history must lie in", array, {**good, "history": 0}),
        (ValueError, "stride must lie in", array, {**good, "stride": 0}),
        (TypeError, "null_value must be a number", array, {**good, "null_value": "x"}),
        (ValueError, "node_std must have the shape", array, {**good, "node_std": np.ones(4)}),
    ]
    for error, message, dataset, options in cases:
        for source in (dataset, dataset.chunk() if hasattr(dataset, "chunk") else dataset):
            with pytest.raises(error, match=rf"^score_dataset: .*{message}"):
                score_dataset(source, **options)  # type: ignore[arg-type]
    for source in (infinite, infinite.chunk(time=10)):
        with pytest.raises(ValueError, match="series must be finite or NaN"):
            score_dataset(source, **good)


# --- two worker processes --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    cloudpickle = pytest.importorskip("cloudpickle")
    # This file is not importable where the workers start.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with (
        distributed.LocalCluster(
            n_workers=2, processes=True, threads_per_worker=1, memory_limit="1GiB", dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as connected,
    ):
        yield connected
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def slowly(block: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    time.sleep(0.03)
    return block


def pids(client: Any) -> dict[str, int]:
    return client.run(os.getpid)  # type: ignore[no-any-return]


def test_two_worker_processes_equal_memory(client: Any, tmp_path: pathlib.Path) -> None:
    pytest.importorskip("zarr")
    array = series()
    array.to_dataset().chunk(time=250).to_zarr(tmp_path / "series.zarr", consolidated=False)
    result = score_dataset(xarray.open_zarr(tmp_path / "series.zarr", consolidated=False), history=12, horizon=12)
    assert_equal(result, array, history=12, horizon=12)
    assert os.getpid() not in pids(client).values()
    assert len(pids(client)) == 2


def test_a_killed_worker_loses_nothing(client: Any) -> None:
    array = series()
    lazy = array.chunk(time=50)
    lazy = lazy.copy(data=lazy.data.map_blocks(slowly, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32)))
    before = set(pids(client).values())
    done: list[Any] = []
    worker = threading.Thread(target=lambda: done.append(score_dataset(lazy, history=12, horizon=12)), daemon=True)
    worker.start()
    # Into the first pass, when results already lie in the memory of both workers.
    deadline = time.monotonic() + 60
    scheduler = client.cluster.scheduler
    while sum(state.state == "memory" for state in list(scheduler.tasks.values())) < 5:
        assert worker.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(min(before), signal.SIGKILL)
    assert not done
    worker.join(timeout=120)
    assert_equal(done[0], array, history=12, horizon=12)
    assert min(before) not in set(pids(client).values())
