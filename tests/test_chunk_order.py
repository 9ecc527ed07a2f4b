"""chunk_order: every kept window once, every chunk about once, within the memory bound."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stprune import testing
from stprune.windows import ChunkedSeries, chunk_order, count_chunk_reads


def kept_windows(n: int, ratio: float, seed: int = 0) -> torch.Tensor:
    return (torch.rand(n, generator=torch.Generator().manual_seed(seed)) < ratio).nonzero().flatten()


@settings(max_examples=120, deadline=None)
@given(
    n=st.integers(0, 600), ratio=st.sampled_from([0.02, 0.3, 1.0]), chunk=st.integers(1, 90), history=st.integers(1, 30),
    horizon=st.integers(0, 30), stride=st.integers(1, 5), start=st.integers(0, 200), extra=st.integers(1, 12),
    seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_every_window_once_and_reads_within_the_bound(
    n: int, ratio: float, chunk: int, history: int, horizon: int, stride: int, start: int, extra: int, seed: int, epoch: int
) -> None:
    indices = kept_windows(n, ratio, seed % 1000)
    reach = -(-(history + horizon - 1) // chunk)
    rows = {"chunk": chunk, "history": history, "horizon": horizon, "stride": stride, "start": start}
    for run in (None, extra):
        order = chunk_order(indices, **rows, memory_chunks=reach + extra, seed=seed, epoch=epoch, run_chunks=run)
        assert torch.equal(order.sort().values, indices)
        counted = count_chunk_reads(order, **rows, memory_chunks=reach + extra)
        length = run or max(1, min(extra, (reach + extra) // 4))
        # Every run that holds windows reads its own chunks and those it reaches into, at most.
        runs = len(set(((start + stride * indices) // (chunk * length)).tolist()))
        assert counted.chunks <= counted.reads <= runs * (length + reach)


def test_order_is_random_keyed_and_independent_of_the_input_order() -> None:
    rows = {"chunk": 100, "history": 12, "horizon": 12, "memory_chunks": 8}
    indices = kept_windows(8000, 0.5)
    one = chunk_order(indices, **rows, seed=5, epoch=1)
    assert torch.equal(one, chunk_order(indices.flip(0), **rows, seed=5, epoch=1))
    for other in ({"seed": 6, "epoch": 1}, {"seed": 5, "epoch": 2}):
        assert not torch.equal(one, chunk_order(indices, **rows, **other))
    before = torch.get_rng_state()
    chunk_order(indices, **rows, seed=5, epoch=1)
    assert torch.equal(before, torch.get_rng_state())
    # Neighbours in the order are not neighbours in time, and groups come from everywhere.
    assert float((one[1:] - one[:-1]).abs().lt(3).double().mean()) < 0.05
    assert int((one[:300] // 100).unique().numel()) >= 4


def test_places_are_uniform_with_memory_for_everything() -> None:
    counts = torch.zeros(12, 12)
    rows = {"chunk": 5, "history": 2, "horizon": 1, "memory_chunks": 3}
    epochs = 2000
    for epoch in range(epochs):
        counts[torch.arange(12), chunk_order(torch.arange(12), **rows, seed=0, epoch=epoch)] += 1
    testing.assert_chi_square(counts, torch.full((12, 12), epochs / 12))


def test_first_group_is_uniform_over_runs() -> None:
    counts = torch.zeros(20)
    rows = {"chunk": 5, "history": 1, "horizon": 0, "memory_chunks": 4}
    epochs = 2000
    for epoch in range(epochs):
        counts[chunk_order(torch.arange(100), **rows, seed=3, epoch=epoch)[0] // 5] += 1
    testing.assert_chi_square(counts, torch.full((20,), epochs / 20))


def test_chunked_series(tmp_path: pathlib.Path) -> None:
    h5py = pytest.importorskip("h5py")
    values = np.arange(70.0).reshape(35, 2)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        data = file.create_dataset("x", data=values, chunks=(8, 2))
        for series in (ChunkedSeries(data, memory_chunks=2), ChunkedSeries(values, chunk=8, memory_chunks=2)):
            assert len(series) == 35
            for begin, end in ((0, 35), (5, 6), (7, 9), (30, 35), (33, 99), (-5, -1), (4, 4), (9, 2)):
                assert np.array_equal(series[begin:end], values[begin:end])
    series = ChunkedSeries(values, chunk=10, memory_chunks=1)
    copy = series[0:3]
    copy += 1
    assert np.array_equal(series[0:3], values[0:3])
    assert series.reads == 1


def test_errors() -> None:
    indices = torch.arange(100)
    good = {"chunk": 10, "history": 12, "horizon": 12, "memory_chunks": 8, "seed": 0, "epoch": 0}
    cases = [
        (TypeError, "indices must be a tensor", [1, 2], good),
        (TypeError, "indices must be int64", indices.int(), good),
        (ValueError, "indices must be at least 0, got -1", indices - 1, good),
        (ValueError, "chunk must be at least 1, got 0", indices, {**good, "chunk": 0}),
        (ValueError, "history must be at least 1", indices, {**good, "history": 0}),
        (ValueError, "horizon must be at least 0", indices, {**good, "horizon": -1}),
        (ValueError, "stride must be at least 1", indices, {**good, "stride": 0}),
        (ValueError, "start must be at least 0", indices, {**good, "start": -1}),
        (ValueError, "memory_chunks must be at least 4 for windows of 24 rows", indices, {**good, "memory_chunks": 3}),
        (ValueError, r"run_chunks must lie in \[1, 5\], got 6", indices, {**good, "run_chunks": 6}),
        (ValueError, "seed must lie in", indices, {**good, "seed": -1}),
    ]
    for error, message, value, options in cases:
        with pytest.raises(error, match=f"^chunk_order: {message}"):
            chunk_order(value, **options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="^count_chunk_reads: order must be int64"):
        count_chunk_reads(indices.double(), chunk=1, history=1, horizon=1, memory_chunks=1)
    with pytest.raises(ValueError, match="^ChunkedSeries: chunk must be given"):
        ChunkedSeries(np.zeros((3, 2)), memory_chunks=1)
    with pytest.raises(TypeError, match="^ChunkedSeries: rows must be a slice"):
        ChunkedSeries(np.zeros((3, 2)), chunk=1, memory_chunks=1)[0]  # type: ignore[index]
    with pytest.raises(ValueError, match="^ChunkedSeries: rows must have step 1, got 2"):
        ChunkedSeries(np.zeros((3, 2)), chunk=1, memory_chunks=1)[::2]
