"""WindowLoader in chunk order, and over stored series: same samples, each chunk read about once, bounded memory."""

import pathlib
import pickle

import numpy as np
import pytest
import torch

from stprune import PruningSampler, WindowLoader
from stprune.testing import assert_same
from stprune.windows import ChunkedSeries, chunk_order, count_chunk_reads

TIMES, NODES, CHUNK, MEMORY = 2000, 5, 50, 8
IN_CHUNKS = {"order": "chunk", "chunk_rows": CHUNK, "memory_chunks": MEMORY}
WINDOWS = TIMES - 23


@pytest.fixture(scope="module")
def values():
    return np.random.default_rng(0).normal(size=(TIMES, NODES, 2)).astype(np.float32)


def make_sampler(**settings):
    settings = {"num_epochs": 4, "keep_ratio": 0.5, "method": "soft-random", "seed": 7, **settings}
    return PruningSampler(WINDOWS, **settings)


def ids_of(loader):
    return torch.cat([batch[0] for batch in loader])


def assert_batches_equal(got, want):
    for mine, theirs in zip(got, want, strict=True):
        for actual, expected in zip(mine, theirs, strict=True):
            assert_same(actual, expected)


UNEVEN = (30, 50, 1, 19, 50)


def stored(kind, values, folder):
    """The values in a store of 50-row chunks, or of chunks of several sizes, and the chunk to be told for it."""
    if kind == "h5":
        file = pytest.importorskip("h5py").File(folder / "s.h5", "w")
        return file.create_dataset("x", data=values, chunks=(CHUNK, 5, 2)), None
    if kind == "zarr":
        return pytest.importorskip("zarr").create_array(str(folder / "s.zarr"), data=values, chunks=(CHUNK, 3, 2)), None
    if kind == "memmap":
        np.save(folder / "s.npy", values)
        return np.load(folder / "s.npy", mmap_mode="r"), CHUNK
    if kind in ("dask", "uneven dask"):
        dask = pytest.importorskip("dask.array")
        rows = CHUNK if kind == "dask" else UNEVEN * (len(values) // sum(UNEVEN)) + (len(values) % sum(UNEVEN),)
        return dask.from_array(values, chunks=(rows, 5, 1)), None
    if kind in ("tensor", "swapped"):
        return (torch.from_numpy(values) if kind == "tensor" else values.astype(">f4")), CHUNK
    xarray = pytest.importorskip("xarray")
    array = xarray.DataArray(values, dims=("time", "node", "channel"), name="v")
    if kind == "xarray":
        return array, CHUNK
    pytest.importorskip("zarr")
    array.to_dataset().to_zarr(folder / "x.zarr", consolidated=False, encoding={"v": {"chunks": (CHUNK, 5, 2)}})
    # Without Dask where chunks is None: the array then says in its encoding how the store is cut.
    lazily = {} if kind == "open_zarr" else {"chunks": None}
    return xarray.open_zarr(folder / "x.zarr", consolidated=False, **lazily)["v"], None


KINDS = ["h5", "zarr", "memmap", "dask", "uneven dask", "tensor", "swapped", "xarray", "open_zarr", "open_zarr without dask"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_store_is_read_chunk_by_chunk_and_each_once(values, tmp_path, kind):
    array, chunk = stored(kind, values, tmp_path)
    # As many as a window lies in.
    series = ChunkedSeries(array, chunk=chunk, memory_chunks=3 if kind == "uneven dask" else 2)
    chunks = TIMES // CHUNK if kind != "uneven dask" else len(array.chunks[0])
    assert series.chunk == CHUNK
    assert_batches_equal(WindowLoader(series, batch_size=64), WindowLoader(torch.from_numpy(values), batch_size=64))
    assert series.reads == chunks


def test_the_tasks_of_dask_run_once_a_chunk_in_chunk_order(values):
    dask = pytest.importorskip("dask.array")
    loads = []

    def load(block, block_info):
        loads.append(block_info[None]["chunk-location"][0])
        return block

    for rows in (CHUNK, UNEVEN * 13 + (50,)):
        array = dask.from_array(values, chunks=(rows, 5, 2)).map_blocks(load, dtype=np.float32, meta=np.empty((0, 0, 0), "f4"))
        loads.clear()
        series = ChunkedSeries(array, memory_chunks=MEMORY)
        for _ in WindowLoader(series, make_sampler(), batch_size=32, order="chunk"):
            assert sum(map(len, series._cache.values())) <= MEMORY * CHUNK
        assert len(loads) == series.reads <= 1.6 * len(array.chunks[0])
        assert set(loads) == set(range(len(array.chunks[0])))


def test_what_chunked_series_cannot_read_is_refused_at_once(values):
    dask = pytest.importorskip("dask.array")
    dataset = pytest.importorskip("xarray").DataArray(values, name="v").to_dataset()
    unknown = dask.from_array(values, chunks=(CHUNK, 5, 2))
    cases = [
        (TypeError, "array must be a single array with shape and dtype, got Dataset", dataset),
        (TypeError, "array must be a single array with shape and dtype, got list", [1.0]),
        (TypeError, "shape of array must be an integer, got nan", unknown[unknown[:, 0, 0] > 0]),
        (TypeError, "in a dtype that NumPy has, got a tensor of torch.bfloat16 on cpu", torch.zeros(9, 2).bfloat16()),
        (TypeError, "array must lie in host memory, .* on meta", torch.zeros(9, 2, device="meta")),
        (ValueError, r"array must be \[time, node\]", np.zeros(())),
    ]
    for error, message, array in cases:
        with pytest.raises(error, match=f"^ChunkedSeries: .*{message}"):
            ChunkedSeries(array, chunk=3, memory_chunks=2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layout": "BCTN", "target_channels": 1, "mean": 3.0, "std": 2.0, "steps_per_day": 96},
        {"stride": 3, "start": 40, "stop": 1500, "history": 60, "horizon": 7},
    ],
)
def test_a_stored_series_gives_the_batches_of_the_series_in_memory(values, tmp_path, kind, options):
    array, chunk = stored(kind, values, tmp_path)
    series = ChunkedSeries(array, chunk=chunk, memory_chunks=MEMORY)
    want = list(WindowLoader(torch.from_numpy(values), batch_size=64, **options))
    loader = WindowLoader(series, batch_size=64, **options)
    assert_batches_equal(loader, want)
    # Two iterators share what is held.
    for one, other, expected in zip(loader, loader, want, strict=True):
        assert_batches_equal([one, other], [expected, expected])


def test_drawn_nodes_and_codes_of_a_stored_series(values):
    codes = (values[:, :, :1] * 100).astype(np.int16)
    codes[100:110] = -9
    options = {"batch_size": 32, "scale": 0.01, "offset": 1.0, "missing": -9, "fill": 0.0, "layout": "BTN"}
    loaders = [
        WindowLoader(series, make_sampler(num_nodes=NODES, node_ratio=0.4), **options)
        for series in (torch.from_numpy(codes), ChunkedSeries(codes[:, :, 0], chunk=CHUNK, memory_chunks=3))
    ]
    assert_batches_equal(*loaders)
    assert next(iter(loaders[1]))[1].shape == (32, 2)


def test_chunk_order_reads_each_chunk_about_once_and_holds_no_more_than_asked(values):
    reads = {}
    for order in ("sampler", "chunk"):
        sampler = make_sampler()
        sampler.set_epoch(1)
        series = ChunkedSeries(values, chunk=CHUNK, memory_chunks=MEMORY)
        loader = WindowLoader(series, sampler, batch_size=32, order=order, prefetch=0)
        ids = []
        for index, _, _ in loader:
            assert len(series._cache) <= MEMORY
            ids.append(index)
        ids = torch.cat(ids)
        # The very samples of the plan, each once, whatever the order.
        assert torch.equal(ids.sort().values, sampler.plan.indices)
        reads[order] = series.reads
        counted = count_chunk_reads(ids, chunk=CHUNK, history=12, horizon=12, memory_chunks=MEMORY)
        assert counted.reads == series.reads
        assert counted.chunks == TIMES // CHUNK
    assert reads["chunk"] <= 1.6 * TIMES // CHUNK
    assert reads["sampler"] > 15 * TIMES // CHUNK


def test_the_reads_that_the_readme_tells():
    sampler = PruningSampler(35_040 - 23, num_epochs=4, keep_ratio=0.5, method="soft-random")
    sampler.set_epoch(1)
    settings = {"chunk": 96, "history": 12, "horizon": 12, "memory_chunks": 32}
    plain = count_chunk_reads(sampler.plan.order(0, len(sampler.plan)), **settings)
    chunked = count_chunk_reads(chunk_order(sampler.plan, **settings, seed=0, epoch=1), **settings)
    readme = (pathlib.Path(__file__).resolve().parents[1] / "benchmarks" / "README.md").read_text()
    assert f"{chunked.reads} reads of {chunked.chunks} chunks, where a plain shuffle reads {plain.reads:,}" in readme


def test_chunk_order_is_new_in_every_epoch_and_the_same_for_equal_seeds(values):
    sampler, again = make_sampler(keep_ratio=1.0), make_sampler(keep_ratio=1.0)
    loader, other = (WindowLoader(torch.from_numpy(values), each, batch_size=32, **IN_CHUNKS) for each in (sampler, again))
    first = ids_of(loader)
    assert torch.equal(first, ids_of(loader))
    for each in (loader, other):
        each.set_epoch(1)
    second = ids_of(loader)
    assert not torch.equal(first, second)
    assert torch.equal(second, ids_of(other))
    assert torch.equal(second.sort().values, torch.arange(WINDOWS))
    # Mixed: neighbours in a batch are no neighbours in time, and a batch spans several runs of chunks.
    assert float((second.diff().abs() == 1).float().mean()) < 0.05
    assert int(second[:32].max() - second[:32].min()) > 3 * CHUNK


@pytest.mark.parametrize("ranks", [1, 3])
def test_chunk_order_resumes_in_the_middle_of_an_epoch_and_shards(values, ranks):
    samplers = [make_sampler(num_replicas=ranks, rank=rank, drop_last=True) for rank in range(ranks)]
    loaders = [WindowLoader(torch.from_numpy(values), each, batch_size=16, **IN_CHUNKS) for each in samplers]
    seen = []
    for each in loaders:
        each.set_epoch(1)
        each = iter(each)
        seen += [next(each)[0] for _ in range(3)]
    whole = torch.cat([ids_of(each) for each in loaders])
    assert whole.unique().numel() == whole.numel() >= len(samplers[0].plan) - ranks
    # Trained on three batches by every rank; what is left comes afterwards, on one rank.
    for sampler, first in zip(samplers, seen[::3], strict=True):
        for index in (first, *seen[1:3]) if ranks == 1 else (first,):
            sampler.update(index, torch.ones(len(index)))
    resumed = make_sampler(num_replicas=1, rank=0, drop_last=True)
    loader = WindowLoader(torch.from_numpy(values), resumed, batch_size=16, **IN_CHUNKS)
    loader.load_state_dict(loaders[0].state_dict())
    left = ids_of(loader)
    done = torch.cat(seen if ranks == 1 else seen[::3])
    assert torch.equal(torch.cat([done, left]).sort().values, samplers[0].plan.indices)


def test_chunk_order_of_the_epoch_after_a_finished_one(values):
    first, second = (WindowLoader(torch.from_numpy(values), make_sampler(), batch_size=64, **IN_CHUNKS) for _ in range(2))
    first.set_epoch(1)
    for index, _, _ in first:
        first.sampler.update(index, torch.ones(len(index)))
    second.load_state_dict(first.state_dict())
    got = ids_of(second)
    first.set_epoch(2)
    assert torch.equal(got, ids_of(first))


def test_a_copy_of_a_loader_reads_by_itself(values):
    series = ChunkedSeries(values, chunk=CHUNK, memory_chunks=2)
    loader = WindowLoader(series, batch_size=200)
    want = list(loader)
    copy = pickle.loads(pickle.dumps(loader))
    reads = series.reads
    assert_batches_equal(copy, want)
    assert series.reads == reads


PAIRS = {"num_nodes": NODES, "granularity": "pair"}


@pytest.mark.parametrize(
    ("error", "message", "sampler", "options"),
    [
        (ValueError, "order must be one of sampler, chunk, got 'time'", {}, {"order": "time"}),
        (ValueError, 'order must be "sampler" without a PruningSampler', None, IN_CHUNKS),
        (ValueError, "order must be .* without a PruningSampler of windows", PAIRS, IN_CHUNKS),
        (ValueError, 'order must be "sampler" where sharded=True', {"sharded": True, "method": "top-k"}, IN_CHUNKS),
        (ValueError, 'chunk_rows must be None unless order is "chunk", got 5', {}, {"chunk_rows": 5}),
        (ValueError, 'memory_chunks must be None unless order is "chunk", got 5', {}, {"memory_chunks": 5}),
        (TypeError, "chunk_rows must be an integer, got None", {}, IN_CHUNKS | {"chunk_rows": None}),
        (ValueError, "chunk_rows must be at least 1, got 0", {}, IN_CHUNKS | {"chunk_rows": 0}),
        (TypeError, "memory_chunks must be an integer, got None", {}, IN_CHUNKS | {"memory_chunks": None}),
        (ValueError, "memory_chunks must be at least 4, got 3", {}, IN_CHUNKS | {"chunk_rows": 9, "memory_chunks": 3}),
    ],
)
def test_errors(values, error, message, sampler, options):
    with pytest.raises(error, match=f"^WindowLoader: {message}"):
        WindowLoader(values, None if sampler is None else make_sampler(**sampler), batch_size=8, **options)


def test_stored_numbers_that_no_batch_can_hold_are_refused():
    with pytest.raises(TypeError, match="^WindowLoader: series must be float32"):
        WindowLoader(ChunkedSeries(np.zeros((50, 2), np.int32), chunk=10, memory_chunks=2), batch_size=8)
