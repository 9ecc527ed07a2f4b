"""WindowLoader against DataLoader over WindowDataset, and what it promises about memory and threads."""

import copy
import gc
import pickle
import re
import subprocess
import sys
import threading
import time
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler

import stprune
from stprune import IndexedDataset, PrunedLoss, PruningSampler, WindowDataset
from stprune.loader import WindowLoader
from stprune.models import STID
from stprune.prefetch import Memory, in_background
from stprune.testing import assert_same
from stprune.windows import ChunkedSeries
from stprune.windows import mapped as mapped_module
from stprune.windows.clock import time_features
from stprune.windows.mapped import RELEASE_BYTES


def make_series(times=200, nodes=6, channels=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(times)
    return (torch.randn(times, nodes, channels, generator=generator, dtype=torch.float64) * 20 + 100).to(dtype)


def assert_batches_equal(got, want):
    got, want = list(got), list(want)
    assert len(got) == len(want)
    for mine, theirs in zip(got, want, strict=True):
        assert len(mine) == len(theirs)
        for actual, expected in zip(mine, theirs, strict=True):
            assert_same(actual, expected)


def usual(windows, sampler, batch_size, drop_last=False):
    """What a DataLoader gives, flattened to (index, x, y)."""
    loader = DataLoader(IndexedDataset(windows), batch_size=batch_size, sampler=sampler, drop_last=drop_last)
    return [(index, x, y) for index, (x, y) in loader]


def workers():
    return [thread for thread in threading.enumerate() if thread.name == "stprune-prefetch"]


# --- the same batches as WindowDataset ------------------------------------------------------------------------------


@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"history": 1, "horizon": 1},
        {"history": 30, "horizon": 7, "stride": 5, "start": 11, "stop": 180},
        {"target_channels": 1},
        {"target_channels": [1, 0], "steps_per_day": 24, "first_step": 30},
        {"timestamps": np.datetime64("2024-02-28T22:40") + np.arange(200) * np.timedelta64(35, "m")},
        {"history": 100, "horizon": 100},
    ],
)
def test_in_order_without_a_sampler(options, prefetch):
    series = make_series()
    loader = WindowLoader(series, batch_size=16, prefetch=prefetch, **options)
    want = usual(WindowDataset(series, **options), None, 16)
    assert len(loader) == len(want)
    assert_batches_equal(loader, want)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("batch_size", [1, 7, 177, 178])
def test_the_last_batch(batch_size, drop_last):
    series = make_series()
    loader = WindowLoader(series, batch_size=batch_size, drop_last=drop_last)
    want = usual(WindowDataset(series), None, batch_size, drop_last)
    assert len(loader) == len(want)
    assert_batches_equal(loader, want)


@pytest.mark.parametrize("drop_last", [False, True])
def test_a_pruning_sampler_orders_and_prunes(drop_last):
    series = make_series()
    sampler = PruningSampler(177, num_epochs=4, keep_ratio=0.4, method="soft-random")
    loader = WindowLoader(series, sampler, batch_size=16, drop_last=drop_last)
    for epoch in range(4):
        loader.set_epoch(epoch)
        assert sampler.epoch == epoch
        want = usual(WindowDataset(series), sampler, 16, drop_last)
        assert len(loader) == len(want)
        assert_batches_equal(loader, want)
        assert_batches_equal(loader, want)


def test_drawn_nodes_are_the_samplers():
    series = make_series(nodes=20)
    sampler = PruningSampler(177, num_epochs=3, method="soft-random", num_nodes=20, node_ratio=0.3)
    loader = WindowLoader(series, sampler, batch_size=16, steps_per_day=24)
    windows = WindowDataset(series, steps_per_day=24)
    for epoch in range(3):
        loader.set_epoch(epoch)
        seen = 0
        for index, node, x, y in loader:
            assert_same(node, sampler.nodes(index))
            full_x, full_y = windows.batch(index)
            assert_same(x, stprune.gather_nodes(full_x, node))
            assert_same(y, stprune.gather_nodes(full_y, node))
            seen += len(index)
        assert seen == len(sampler)


def test_any_sized_iterable_of_ids_is_a_sampler():
    series = make_series()
    loader = WindowLoader(series, [3, 176, 3, 0, 9], batch_size=2)
    assert len(loader) == 3
    assert [index.tolist() for index, _, _ in loader] == [[3, 176], [3, 0], [9]]
    chosen = RandomSampler(range(177), generator=torch.Generator().manual_seed(5))
    order = [i for index, _, _ in WindowLoader(series, chosen, batch_size=50) for i in index.tolist()]
    assert order == list(RandomSampler(range(177), generator=torch.Generator().manual_seed(5)))
    assert list(WindowLoader(series, [], batch_size=2)) == []


@pytest.mark.parametrize("layout", ["BTNC", "BCNT", "TBNC"])
def test_layout_normalization_and_decoding_are_gather_windows(layout):
    series = make_series().round().to(torch.int16)
    options = {
        "layout": layout,
        "scale": 0.1,
        "offset": torch.tensor([1.0, 2.0]),
        "missing": 100,
        "mean": torch.linspace(5, 9, 6)[:, None],
        "std": 3.0,
        "fill": 0.0,
        "normalize_target": True,
        "target_channels": 0,
        "time_features": torch.rand(200, 3),
    }
    for index, x, y in WindowLoader(series, batch_size=50, stride=3, start=4, **options):
        want = stprune.ops.gather_windows(series, 4 + 3 * index, history=12, horizon=12, **options)
        assert_same(x, want[0])
        assert_same(y, want[1])


def test_features_of_the_clock_are_those_of_window_dataset():
    stamps = np.datetime64("1969-12-30T05:00") + np.arange(200) * np.timedelta64(25, "m")
    for dtype in (torch.float32, torch.float64):
        series = make_series(dtype=dtype)
        for clock in ({"steps_per_day": 7, "first_step": 3}, {"steps_per_day": 288}, {"timestamps": stamps}):
            x, _ = WindowDataset(series, history=199, horizon=1, **clock)[0]
            assert_same(x[:, 0, 2:], time_features(200, dtype=dtype, **clock)[:199])


# --- training -------------------------------------------------------------------------------------------------------


def parts(batch, sampler):
    """Index, drawn nodes or None, x and y of a batch of either loader."""
    if len(batch) == 2:
        index, (x, y) = batch
        if sampler.node_ratio == 1:
            return index, None, x, y
        node = sampler.nodes(index)
        return index, node, stprune.gather_nodes(x, node), stprune.gather_nodes(y, node)
    return batch if len(batch) == 4 else (batch[0], None, *batch[1:])


@pytest.mark.parametrize(("node_ratio", "node_sampler"), [(1.0, "uniform"), (0.5, "uniform"), (0.5, "priority")])
def test_training_through_either_loader_gives_the_same_losses(node_ratio, node_sampler):
    series, options = make_series(nodes=8, channels=1), {"steps_per_day": 24, "target_channels": 0}
    results = []
    for make in (
        lambda sampler: DataLoader(IndexedDataset(WindowDataset(series, **options)), batch_size=32, sampler=sampler),
        lambda sampler: WindowLoader(series, sampler, batch_size=32, **options),
    ):
        nodes = {"num_nodes": 8, "node_ratio": node_ratio, "node_sampler": node_sampler}
        sampler = PruningSampler(177, num_epochs=4, keep_ratio=0.5, seed=3, **nodes)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = STID(8, history=12, horizon=12, steps_per_day=24, dim=8, num_layers=1)
        loader, criterion, optimizer = make(sampler), PrunedLoss(sampler), torch.optim.Adam(model.parameters(), lr=1e-2)
        losses = []
        for epoch in range(4):
            sampler.set_epoch(epoch)
            for batch in loader:
                index, node, x, y = parts(batch, sampler)
                optimizer.zero_grad()
                loss = criterion(model(x, node=node), y, index, node)
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
        results.append((losses, sampler.table.scores))
    assert len(results[0][0]) > 12
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("prefetch", [0, 3])
def test_resumes_in_the_middle_of_an_epoch(prefetch):
    series = make_series()

    def loader():
        sampler = PruningSampler(177, num_epochs=3, method="soft-random", keep_ratio=0.5, seed=1)
        return WindowLoader(series, sampler, batch_size=16, prefetch=prefetch)

    first = loader()
    first.set_epoch(1)
    whole = list(first)
    # A framework saves when it likes: after two steps, while more batches are made ahead and one is delivered.
    batches = iter(first)
    for index, _, _ in (next(batches), next(batches)):
        first.sampler.update(index, torch.ones(len(index)))
    next(batches)
    second = loader()
    going = iter(second)
    second.load_state_dict(first.state_dict())
    assert len(second) == len(whole)
    assert_batches_equal(going, whole[2:])
    assert len(second) == len(whole)
    assert_batches_equal(second, whole)


# --- iterators ------------------------------------------------------------------------------------------------------


def test_iterators_are_independent():
    sampler = PruningSampler(177, num_epochs=3, method="soft-random", num_nodes=6, node_ratio=0.5)
    loader = WindowLoader(make_series(), sampler, batch_size=32)
    want = list(loader)
    one, two = iter(loader), iter(loader)
    assert_batches_equal([next(one), next(one)], want[:2])
    assert_batches_equal(two, want)
    assert_batches_equal(one, want[2:])


def test_an_iterator_keeps_the_epoch_it_began_in():
    sampler = PruningSampler(177, num_epochs=3, method="soft-random", keep_ratio=0.5, num_nodes=6, node_ratio=0.5)
    loader = WindowLoader(make_series(), sampler, batch_size=8)
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        want = list(loader)
        going, later = iter(loader), iter(loader)
        first = next(going)
        loader.set_epoch(epoch + 1)
        assert_batches_equal([first, *going], want)
        assert_batches_equal(later, loader)


def train_badly(loader):
    for _ in loader:
        raise KeyError


@pytest.mark.parametrize("how", ["break", "close", "raise", "drop", "never begun", "exhausted"])
def test_an_abandoned_iterator_ends_its_thread(how):
    loader = WindowLoader(make_series(), batch_size=4, prefetch=3)
    assert workers() == []
    if how == "break":
        for _ in loader:
            assert len(workers()) == 1
            break
    elif how == "raise":
        with pytest.raises(KeyError):
            train_badly(loader)
    elif how == "never begun":
        iter(loader)
    elif how == "exhausted":
        assert len(list(loader)) == 45
    else:
        iterator = iter(loader)
        next(iterator)
        assert len(workers()) == 1
        if how == "close":
            iterator.close()
        del iterator
    gc.collect()
    assert workers() == []


def test_a_process_may_end_in_the_middle_of_an_epoch():
    code = """
import torch
from stprune.loader import WindowLoader
iterator = iter(WindowLoader(torch.zeros(5000, 200), batch_size=64, prefetch=4))
next(iterator)
print("over")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "over\n"), done.stderr


@pytest.mark.parametrize("prefetch", [0, 2])
def test_errors_in_the_thread_reach_the_caller(prefetch):
    loader = WindowLoader(make_series(), [0, 1, 2, 177, 3], batch_size=1, prefetch=prefetch)
    seen = []
    with pytest.raises(ValueError, match=r"WindowLoader: sampler must yield ids in \[0, 176\], got 177"):
        seen.extend(index.item() for index, _, _ in loader)
    assert seen in ([0, 1, 2], [])
    iterator = iter(loader)
    assert [next(iterator)[0].item() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError):
        next(iterator)
    with pytest.raises(StopIteration):
        next(iterator)
    assert workers() == []
    with pytest.raises(TypeError, match="float"):
        list(WindowLoader(make_series(), [0.5], batch_size=1))


def test_what_lies_in_memory_is_cut_when_asked_for_and_files_are_read_ahead(tmp_path):
    series = make_series()
    np.save(tmp_path / "series.npy", series.numpy())
    mapped = np.load(tmp_path / "series.npy", mmap_mode="r")
    for source, ahead in ((series, 0), (series.numpy(), 0), (mapped, 2), (ChunkedSeries(mapped, chunk=50, memory_chunks=2), 2)):
        loader = WindowLoader(source, batch_size=32)
        assert loader.prefetch == ahead
        iterator = iter(loader)
        next(iterator)
        assert len(workers()) == (ahead > 0)
        del iterator
        gc.collect()
        assert WindowLoader(source, batch_size=32, prefetch=1).prefetch == 1


def test_no_more_is_made_ahead_than_asked_for():
    class Counting:
        taken = 0

        def __len__(self):
            return 100

        def __iter__(self):
            for i in range(100):
                self.taken = i + 1
                yield i

    for prefetch in (0, 1, 4):
        sampler = Counting()
        iterator = iter(WindowLoader(make_series(), sampler, batch_size=2, prefetch=prefetch))
        for used in (1, 2, 3):
            next(iterator)
            deadline = time.monotonic() + 10
            while sampler.taken < 2 * (used + prefetch) and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.02)
            assert sampler.taken == 2 * (used + prefetch)


def test_results_come_in_order_however_long_each_takes():
    def slow(i):
        time.sleep(0.002 * (i % 3))
        return i

    assert list(in_background(iter(range(20)), slow, 5)) == list(range(20))


# --- memory ---------------------------------------------------------------------------------------------------------


def test_batches_are_the_callers_to_keep():
    loader = WindowLoader(make_series(), batch_size=16)
    kept = list(loader)
    pointers = {part.data_ptr() for _, x, y in kept for part in (x, y)}
    assert len(pointers) == 2 * len(kept)
    for _ in loader:
        pass
    assert_batches_equal(kept, usual(WindowDataset(make_series()), None, 16))
    for _, x, _ in kept:
        x.fill_(-1)
    assert_batches_equal(loader, usual(WindowDataset(make_series()), None, 16))


def test_memory_is_used_again_once_nothing_refers_to_it():
    loader = WindowLoader(make_series(), batch_size=16, prefetch=0)
    pointers = set()
    for _ in range(3):
        for _, x, _ in loader:
            pointers.add(x.data_ptr())
            del x
    assert len(pointers) <= 2
    assert all(pointer % 64 == 0 for pointer in pointers)


@pytest.mark.parametrize("keep", ["view", "graph", "numpy"])
def test_memory_in_use_is_never_given_out(keep):
    memory = Memory(2)
    x = memory.empty((4, 3), torch.float32)
    x.fill_(1.5)
    place = x.data_ptr()
    if keep == "view":
        holder = x[1:, 2]
    elif keep == "numpy":
        holder = x.numpy()
    else:
        weight = torch.ones(4, 3, requires_grad=True)
        holder = (x * weight).sum()
    del x
    assert memory.empty((4, 3), torch.float32).data_ptr() != place
    if keep == "graph":
        holder.backward()
        assert torch.equal(weight.grad, torch.full((4, 3), 1.5))
    del holder
    gc.collect()
    both = [memory.empty((4, 3), torch.bfloat16), memory.empty((2, 3), torch.float32)]
    assert place in {part.data_ptr() for part in both}


def test_a_lender_that_is_gone_takes_nothing_back():
    memory = Memory(2)
    x = memory.empty((4, 3), torch.float64).fill_(2.5)
    gone = weakref.ref(memory)
    del memory
    gc.collect()
    assert gone() is None
    assert torch.equal(x, torch.full((4, 3), 2.5, dtype=torch.float64))
    del x
    gc.collect()


def test_spare_memory_is_bounded():
    memory = Memory(2)
    held = [memory.empty((10,), torch.float32) for _ in range(8)]
    del held
    assert len(memory._spare) == 2
    assert len(memory._lent) == 0
    assert memory.empty((100,), torch.float64).numel() == 100


# --- memory maps and arrays -----------------------------------------------------------------------------------------


@pytest.fixture
def mapped(tmp_path):
    series = make_series(nodes=50).numpy()
    np.save(tmp_path / "series.npy", series)
    return np.load(tmp_path / "series.npy", mmap_mode="r")


def test_a_read_only_map_is_read_without_a_copy_or_a_warning(mapped):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader = WindowLoader(mapped, batch_size=16)
        got = list(loader)
    assert loader._recipe.series.data_ptr() == mapped.ctypes.data
    assert_batches_equal(got, usual(WindowDataset(torch.from_numpy(np.array(mapped))), None, 16))


def test_parts_of_a_map(mapped):
    part = mapped[20:150, 3:40:2]
    assert_batches_equal(WindowLoader(part, batch_size=16), usual(WindowDataset(torch.from_numpy(np.array(part))), None, 16))
    flat = mapped[:, :, 0]
    assert_batches_equal(WindowLoader(flat, batch_size=16), usual(WindowDataset(torch.from_numpy(np.array(flat))), None, 16))


@pytest.mark.parametrize("how", [pickle.dumps, copy.deepcopy])
@pytest.mark.parametrize("kind", ["map", "array", "tensor"])
def test_copies_give_the_same_batches(mapped, how, kind):
    series = {"map": mapped, "array": np.array(mapped), "tensor": torch.from_numpy(np.array(mapped))}[kind]
    sampler = PruningSampler(177, num_epochs=3, method="soft-random", num_nodes=50, node_ratio=0.5)
    loader = WindowLoader(series, sampler, batch_size=16, mean=3.0)
    want = list(loader)
    if how is pickle.dumps:
        data = pickle.dumps(loader)
        assert (len(data) < 20_000) == (kind == "map"), "a map must travel as its file's name"
        other = pickle.loads(data)
    else:
        other = copy.deepcopy(loader)
    assert_batches_equal(other, want)
    other.set_epoch(2)
    assert sampler.epoch == 0


def test_another_process_reads_the_same_map(mapped, tmp_path):
    loader = WindowLoader(mapped, batch_size=16)
    (tmp_path / "loader").write_bytes(pickle.dumps(loader))
    code = "import pickle, sys; print(sum(float(x.sum()) for _, x, _ in pickle.load(open(sys.argv[1], 'rb'))))"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "loader")], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == str(sum(float(x.sum()) for _, x, _ in loader)), done.stderr


def file_pages():
    """MiB of files mapped into this process."""
    with open("/proc/self/status") as status:
        return int(re.search(r"RssFile:\s+(\d+) kB", status.read()).group(1)) / 1024


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_pages_of_a_map_do_not_pile_up(tmp_path):
    size = 8 * RELEASE_BYTES
    series = np.memmap(tmp_path / "big", dtype=np.float32, mode="w+", shape=(4096, size // 4096 // 4, 1))
    before = file_pages()
    most = 0.0
    for _ in WindowLoader(series, batch_size=16, stride=24, history=12, horizon=12, prefetch=1):
        most = max(most, file_pages())
    # What is read between two releases, and the batch the thread is at.
    limit = (RELEASE_BYTES + 2 * 16 * 24 * series[0].nbytes) / 2**20
    assert most - before < limit + 16
    assert size / 2**20 > 3 * limit


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_pages_of_a_map_do_not_pile_up_within_a_batch(tmp_path):
    size = 8 * RELEASE_BYTES
    series = np.memmap(tmp_path / "big", dtype=np.float32, mode="w+", shape=(4096, size // 4096 // 4))
    before, read = file_pages(), 0
    for part in mapped_module.MappedPages(series).portions(len(series), series[0].nbytes):
        read += len(series[part].sum(1))
        assert file_pages() - before < RELEASE_BYTES / 2**20 + 16
    assert read == len(series)


@pytest.mark.parametrize("layout", ["BTNC", "BCNT", "TBNC"])
def test_a_batch_read_by_parts_is_the_whole_batch(tmp_path, monkeypatch, layout):
    monkeypatch.setattr(mapped_module, "RELEASE_BYTES", 3000)  # windows of 24 rows take 1,152 bytes: two at a time
    values = make_series().numpy()
    np.save(tmp_path / "series.npy", values)
    for node_ratio in (1.0, 0.5):
        loaders = [
            WindowLoader(
                series,
                PruningSampler(177, num_epochs=1, num_nodes=6, node_ratio=node_ratio),
                batch_size=17,
                steps_per_day=24,
                layout=layout,
            )
            for series in (values, np.load(tmp_path / "series.npy", mmap_mode="r"))
        ]
        assert_batches_equal(*loaders)


def test_a_copy_on_write_map_keeps_what_was_written_to_it(tmp_path):
    np.save(tmp_path / "series.npy", np.zeros((5000, 4096), dtype=np.float32))
    series = np.load(tmp_path / "series.npy", mmap_mode="c")
    series[:, 0] = 7.0
    for _, x, y in WindowLoader(series, batch_size=64, stride=50, prefetch=0):
        assert bool((x[:, :, 0] == 7).all())
        assert bool((y[:, :, 0] == 7).all())
    assert bool((series[:, 0] == 7).all())


# --- errors ---------------------------------------------------------------------------------------------------------


FOUR_NODES = PruningSampler(27, num_epochs=2, num_nodes=4, node_ratio=0.5)
GRIDS = ChunkedSeries(np.zeros((50, 4, 3, 2), "f4"), chunk=9, memory_chunks=9)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"series": np.zeros((50, 3), dtype=np.int32)}, TypeError, "series must be float32, .* got torch.int32"),
        ({"series": GRIDS}, ValueError, r"series must be .*, got shape \(50, 4, 3, 2\)"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": True}, TypeError, "batch_size must be an integer, got True"),
        ({"prefetch": -1}, ValueError, "prefetch must be at least 0, got -1"),
        ({"layout": "XYZ"}, ValueError, "layout must be one of"),
        ({"std": 0}, ValueError, "std must be greater than 0, got 0"),
        ({"steps_per_day": 24, "time_features": torch.zeros(50, 1)}, ValueError, "must be None with steps_per_day"),
        ({"sampler": 7}, TypeError, "sampler must be a PruningSampler, a sized iterable of ids or None, got int"),
        ({"sampler": PruningSampler(26, num_epochs=2)}, ValueError, "sampler must have 27 samples, one a window, got 26"),
        ({"sampler": FOUR_NODES}, ValueError, "sampler must have num_nodes = 3 as the series has, got 4"),
    ],
)
def test_errors(change, error, message):
    arguments = {"series": torch.zeros(50, 3), "sampler": None, "batch_size": 4, **change}
    with pytest.raises(error, match=f"^WindowLoader: .*{message}"):
        WindowLoader(arguments.pop("series"), arguments.pop("sampler"), **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "exactly one of steps_per_day and timestamps must be given, got neither"),
        ({"steps_per_day": 3, "timestamps": np.zeros(4, "M8[s]")}, ValueError, "must be given, got both"),
        ({"steps_per_day": 3, "first_step": -1}, ValueError, "first_step must be at least 0, got -1"),
        ({"steps_per_day": 3, "dtype": torch.float16}, TypeError, "must be float32 or float64, got torch.float16"),
    ],
)
def test_errors_of_the_clock(arguments, error, message):
    with pytest.raises(error, match=f"^time_features: .*{message}"):
        time_features(4, **arguments)


def test_a_loader_without_a_pruning_sampler_has_an_empty_state():
    class Stateful(list):
        def state_dict(self):
            return {"epoch": 3}

    for sampler in (None, [1, 2], Stateful([1, 2])):
        loader = WindowLoader(torch.zeros(50, 3), sampler, batch_size=4)
        assert loader.state_dict() == {}
        loader.load_state_dict({})
        loader.set_epoch(3)
        with pytest.raises(ValueError, match="WindowLoader.load_state_dict: state must be empty .* got \\['epoch'\\]"):
            loader.load_state_dict({"epoch": 3})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("prefetch", [0, 3])
def test_batches_on_the_gpu_are_those_on_the_cpu(resident, prefetch):
    series = make_series(nodes=50)
    sampler = PruningSampler(177, num_epochs=3, method="soft-random", num_nodes=50, node_ratio=0.5)
    want = list(WindowLoader(series, sampler, batch_size=16, mean=3.0))
    loader = WindowLoader(
        series.cuda() if resident else series, sampler, batch_size=16, mean=3.0, device="cuda", prefetch=prefetch
    )
    got = list(loader)
    assert all(part.is_cuda for batch in got for part in batch)
    assert_batches_equal([[part.cpu() for part in batch] for batch in got], want)
