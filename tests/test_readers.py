"""Readers: every format, what they keep, and one clear refusal for every kind of damage or trickery."""

from __future__ import annotations

import json
import pathlib
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from stprune.data import Series, read_series
from stprune.data.series import BLOCK

Path = pathlib.Path
TIMES, NODES, CHANNELS = 30, 4, 2


def cube(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=shape or (TIMES, NODES, CHANNELS)).astype(np.float32)


def clock(times: int = TIMES, minutes: int = 15, start: str = "2024-01-01T00:00") -> np.ndarray[Any, Any]:
    return np.datetime64(start, "us") + np.arange(times) * np.timedelta64(minutes, "m")


def refuse(path: Path, message: str, error: type[Exception] = ValueError, **options: Any) -> None:
    """The reader raises once, names the file and the rule."""
    with pytest.raises(error, match=message) as caught:
        read_series(path, **options)
    text = str(caught.value)
    assert text.startswith("read_series: ")
    assert path.name in text
    assert len(text) < 700


class Bomb:
    """Unpickling it leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (exec, (f"open({str(self.mark)!r}, 'w').close()",))


@pytest.fixture
def mark(tmp_path: Path) -> Any:
    """A path that exists as soon as anything was unpickled."""
    place = tmp_path / "unpickled"
    yield place
    assert not place.exists()


def test_the_bomb_goes_off(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "unpickled")))
    assert (tmp_path / "unpickled").exists()


# --- npz, npy --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "uint8", ">f4", ">i2"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed, np.save])
def test_numpy_files(tmp_path: Path, save: Callable[..., None], dtype: str, order: str) -> None:
    data = np.asarray(np.arange(TIMES * NODES * CHANNELS).reshape(TIMES, NODES, CHANNELS) % 200, dtype=dtype, order=order)  # type: ignore[call-overload]
    path = tmp_path / ("PEMS08.npy" if save is np.save else "PEMS08.npz")
    save(path, **{"arr" if save is np.save else "data": data})
    series = read_series(path)
    assert (series.name, series.values.dtype, series.notes) == ("PEMS08", np.float32, ())
    assert series.values.flags.c_contiguous
    assert series.values.flags.writeable
    assert not isinstance(series.values, np.memmap)
    assert np.array_equal(series.values, data.astype(np.float32))


@pytest.mark.parametrize(("shape", "wanted"), [((9,), (9, 1, 1)), ((9, 3), (9, 3, 1)), ((9, 3, 2), (9, 3, 2))])
def test_dimensions(tmp_path: Path, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", cube(*shape))
    assert np.array_equal(read_series(tmp_path / "a.npy").values, cube(*shape).reshape(wanted))
    assert read_series(str(tmp_path / "a.npy")).name == "a"


def test_npz_with_graph_times_and_names(tmp_path: Path) -> None:
    graph = np.eye(NODES, dtype=np.float64)
    folder = tmp_path / "Losloop"
    folder.mkdir()
    np.savez(folder / "data.npz", data=cube(), adj=graph, time=clock().astype("datetime64[s]"), names=list("abcd"), lat=[1.0])
    for path in (folder, folder / "data.npz"):
        series = read_series(path)
        assert (series.name, series.steps_per_day, series.node_ids) == ("Losloop", 96, ("a", "b", "c", "d"))
        assert series.adjacency is not None
        assert series.adjacency.dtype == np.float32
        assert np.array_equal(series.adjacency, graph)
        assert np.array_equal(series.timestamps, clock())  # type: ignore[arg-type]
        assert series.notes == ("arrays not read: lat",)


def test_npz_key(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", x=cube(seed=1), y=cube(seed=2))
    assert np.array_equal(read_series(tmp_path / "two.npz", key="y").values, cube(seed=2))
    refuse(tmp_path / "two.npz", r"data must be in the archive \(name another with key=\), got the arrays \['x', 'y'\]")
    refuse(tmp_path / "two.npz", "z must be in the archive", key="z")
    missing = np.where(cube() > 1, np.nan, cube())
    np.savez(tmp_path / "one.npz", speed=missing)
    assert np.array_equal(read_series(tmp_path / "one.npz").values, missing, equal_nan=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_largest_his_is_denormalised(tmp_path: Path, dtype: Any) -> None:
    raw = np.random.default_rng(0).integers(0, 400, (500, 7)).astype(np.float64)
    raw[::3, 2] = 0
    mean, std = raw.mean(), raw.std()
    features = np.random.default_rng(1).random((500, 7, 2))
    data = np.concatenate([((raw - mean) / std)[..., None], features], axis=-1).astype(dtype)
    folder = tmp_path / "sd" / "2019"
    folder.mkdir(parents=True)
    np.savez_compressed(folder / "his.npz", data=data, mean=mean, std=std)
    for path in (folder, folder / "his.npz"):
        series = read_series(path)
        assert np.allclose(series.values[..., 0], raw, rtol=1e-6, atol=1e-4)
        assert np.array_equal(series.values[..., 0] == 0, raw == 0)
        assert np.array_equal(series.values[..., 1:], features.astype(np.float32))
        assert series.channels == ("value", "time_of_day", "day_of_week")
        assert "de-normalised" in series.notes[0]
    np.savez(folder / "other.npz", data=data, mean=mean, std=std)
    other = read_series(folder / "other.npz")
    assert np.array_equal(other.values, data.astype(np.float32))
    assert other.notes == ("arrays not read: mean, std",)
    for bad, message in (
        ({"mean": mean, "std": 0.0}, "std must be positive, got 0.0"),
        ({"mean": [1.0, 2.0], "std": 1.0}, "mean must need at most max_bytes = 8 bytes"),
        ({"mean": np.nan, "std": 1.0}, "mean must be one finite number"),
    ):
        np.savez(folder / "his.npz", data=data, **bad)
        refuse(folder / "his.npz", message)


def test_npz_never_unpickles(tmp_path: Path, mark: Path) -> None:
    bomb = np.empty((2, 2), dtype=object)
    bomb[:] = Bomb(mark)
    np.savez(tmp_path / "a.npz", data=bomb)
    refuse(tmp_path / "a.npz", "data must hold numbers, never Python objects")
    for key in ("adj", "time", "names"):
        np.savez(tmp_path / "b.npz", data=cube(), **{key: bomb})
        refuse(tmp_path / "b.npz", f"{key} must hold numbers, never Python objects")
    np.save(tmp_path / "c.npy", bomb)
    refuse(tmp_path / "c.npy", "array must hold numbers, never Python objects")
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("data.npy", pickle.dumps(Bomb(mark)))
    refuse(tmp_path / "d.npz", "data must be a readable array of numbers")
    for suffix in (".pkl", ".pickle", ".pt"):
        (tmp_path / f"data{suffix}").write_bytes(pickle.dumps(Bomb(mark)))
        refuse(tmp_path / f"data{suffix}", "a pickle, which is never read")
    # Under a text suffix a pickle is just bad text.
    (tmp_path / "data.csv").write_bytes(pickle.dumps(Bomb(mark)))
    refuse(tmp_path / "data.csv", "data.csv: ")


def npy(shape: str, data: bytes = b"", header: str | None = None) -> bytes:
    """The bytes of a .npy file, whose header may lie."""
    text = (header or f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}").encode()
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy("(4, 2)", b"\0" * 31), r"have the bytes its header declares for shape \(4, 2\), got 31"),
        (npy("(4, 2)", b"\0" * 33), "have the bytes its header declares"),
        (npy(f"({10**9}, {10**9})", b"\0" * 64), "have the bytes its header declares"),
        (npy(f"({2**62}, 4)"), "have the bytes its header declares"),
        (npy("(-4, -2)", b"\0" * 32), "be a readable"),
        (npy("", header="open('x')"), "be a readable"),
        (npy("", header="[" * 5000), "be a readable"),
        (b"\x93NUMPY", "be a readable"),
        (np.zeros((4, 0)), "(not be empty|be a readable)"),
        (np.zeros(()), r"be \[time, node\]"),
        (np.zeros((3, 2, 2, 1)), r"\(reshape a grid to \[time, height \* width, channel\]\), got shape \(3, 2, 2, 1\)"),
        (np.zeros(4, "c8"), "hold real numbers, got dtype complex64"),
        (np.zeros(4, bool), "hold real numbers, got dtype bool"),
        (np.array(["1", "2"]), "hold real numbers"),
        (np.array([1, None]), "never Python objects"),
        (np.zeros(4, [("a", "f4")]), "hold real numbers"),
        (np.array([1, np.inf], "f4"), r"finite in float32 \(NaN is missing\), got inf in row 1"),
        (np.array([1e39, 0]), r"finite in float32 .*, got 1e\+39 in row 0"),
    ],
)
def test_bad_arrays(tmp_path: Path, content: Any, message: str) -> None:
    if not isinstance(content, bytes):
        np.save(tmp_path / "a.npy", content)
        content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content)
    refuse(tmp_path / "a.npy", message)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.npy", content)
    refuse(tmp_path / "a.npz", message)


def test_nothing_is_allocated_beyond_max_bytes(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", data=np.zeros((1000, 100), np.float32))
    refuse(tmp_path / "a.npz", "data must need at most max_bytes = 399999 bytes, got 400000", max_bytes=399_999)
    assert read_series(tmp_path / "a.npz", max_bytes=400_000).values.shape == (1000, 100, 1)
    # The float64 that is read counts as well as the float32 that is made.
    np.savez_compressed(tmp_path / "b.npz", data=np.zeros((1000, 100)))
    refuse(tmp_path / "b.npz", "data must need at most max_bytes = 799999 bytes, got 800000", max_bytes=799_999)
    np.save(tmp_path / "c.npy", np.zeros((1000, 100), np.int8))
    refuse(tmp_path / "c.npy", "array must need at most max_bytes = 399999 bytes, got 400000", max_bytes=399_999)


def test_npy_is_read_block_by_block(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4000, 1000)))  # 32 MB
    tracemalloc.start()
    read_series(tmp_path / "a.npy")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The float32 result, and one block's search for infinite entries.
    assert peak < 4000 * 1000 * 4 + 3 * BLOCK


def test_damaged_archives(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "whole.npz", data=cube(300, 40, 1))
    raw = (tmp_path / "whole.npz").read_bytes()
    for size in (5, 40, 200, len(raw) // 2, len(raw) - 10):
        (tmp_path / "cut.npz").write_bytes(raw[:size])
        refuse(tmp_path / "cut.npz", "cut.npz: archive must be a complete .npz")
    middle = len(raw) // 2
    (tmp_path / "bits.npz").write_bytes(raw[:middle] + bytes(b ^ 255 for b in raw[middle : middle + 9]) + raw[middle + 9 :])
    refuse(tmp_path / "bits.npz", "data must be a readable array of numbers, got ")
    with zipfile.ZipFile(tmp_path / "twice.npz", "w") as archive:
        archive.writestr("data.npy", npy("(1,)", b"\0" * 4))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("data.npy", npy("(1,)", b"\0" * 4))
    refuse(tmp_path / "twice.npz", "name every array once")
    with zipfile.ZipFile(tmp_path / "none.npz", "w"):
        pass
    refuse(tmp_path / "none.npz", "data must be in the archive")
    locked = bytearray(raw)
    locked[6] |= 1  # the encryption flag in the local and the central header
    locked[raw.rindex(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "locked.npz").write_bytes(bytes(locked))
    refuse(tmp_path / "locked.npz", "data must be a readable array of numbers, got .*encrypted")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"adj": np.eye(3)}, r"adj must be \[4, 4\], got shape \(3, 3\)"),
        ({"adj": np.full((4, 4), np.nan)}, "adj must be finite"),
        ({"adj": np.array([["a"] * 4] * 4)}, "adj must (hold real numbers|need at most)"),
        ({"time": clock()[:-1]}, r"time must be one time for each of 30 rows, got shape \(29,\)"),
        ({"time": clock()[::-1]}, "time must increase strictly"),
        ({"time": np.repeat(clock(15), 2)}, "time must increase strictly, got 2024-01-01T00:00:00.000000 in row 1"),
        (
            {"time": np.where(np.arange(30) == 7, np.datetime64("NaT"), clock())},
            "time must not be missing, got no time in row 7",
        ),
        ({"names": list("abc")}, "names must name 4 nodes, got 3 names"),
        ({"time": ["2024-01-01"] * 29 + ["soon"]}, "time must hold dates of one form, got 'soon' in row 29"),
        ({"time": np.zeros(TIMES, bool)}, "time must hold datetime64 or text such as 2024-01-31T08:00, got dtype bool"),
        ({"adj": np.zeros((3000, 3000))}, "adj must need at most max_bytes = 128 bytes, got 72000000"),
        ({"time": np.zeros(10**6, "datetime64[s]")}, "time must need at most max_bytes"),
        ({"names": ["x" * 10**6]}, "names must need at most max_bytes"),
        ({"names": list("abca")}, "names must name every node once, got 'a' twice"),
    ],
)
def test_inconsistent_side_arrays(tmp_path: Path, extra: dict[str, Any], message: str) -> None:
    np.savez_compressed(tmp_path / "a.npz", data=cube(), **extra)
    refuse(tmp_path / "a.npz", message)


def written(tmp_path: Path, times: Any) -> Series:
    np.savez(tmp_path / "a.npz", data=np.zeros((len(times), 1)), time=times)
    return read_series(tmp_path / "a.npz")


def test_a_gap_stays_in_the_times_and_leaves_steps_per_day(tmp_path: Path) -> None:
    times = np.delete(clock(31), 12)
    series = written(tmp_path, times)
    assert np.array_equal(series.timestamps, times)  # type: ignore[arg-type]
    assert series.steps_per_day == 96
    assert series.notes == ("time: 1 of 29 steps are not the usual 0:15:00",)


@pytest.mark.parametrize(
    ("hours", "steps_per_day"),
    [
        ([7, 8, 9, 14, 15], 24),
        ([0, 3, 6, 12], 8),
        ([0, 5, 10, 15], None),
        ([0, 1, 3, 7, 12], None),
        ([0, 48, 96], None),
        ([0], None),
    ],
)
def test_steps_per_day_is_the_most_frequent_step_or_none(tmp_path: Path, hours: list[int], steps_per_day: int | None) -> None:
    times = np.datetime64("2024-01-01", "h") + np.array(hours)
    series = written(tmp_path, times)
    assert np.array_equal(series.timestamps, times)  # type: ignore[arg-type]
    assert series.steps_per_day == steps_per_day


@pytest.mark.parametrize(
    "times",
    [
        *(clock(TIMES, 60).astype(f"datetime64[{unit}]") for unit in ("h", "m", "s", "ms", "us", "ns")),
        [str(t) for t in clock(TIMES, 60)],
        [f"{t}Z".encode() for t in clock(TIMES, 60).astype("datetime64[s]")],
        [t.astype(object).strftime("%d.%m.%Y %H:%M") for t in clock(TIMES, 60)],
    ],
)
def test_times_of_any_unit_and_as_text(tmp_path: Path, times: Any) -> None:
    series = written(tmp_path, times)
    assert series.timestamps is not None
    assert series.timestamps.dtype == np.dtype("datetime64[us]")
    assert np.array_equal(series.timestamps, clock(TIMES, 60))
    assert series.steps_per_day == 24


def test_times_without_a_unit_are_left_out(tmp_path: Path) -> None:
    series = written(tmp_path, np.arange(5))
    assert (series.timestamps, series.steps_per_day) == (None, None)
    assert series.notes == ("time: numbers without a unit, so no timestamps (store datetime64 or text)",)


# --- HDF5 ------------------------------------------------------------------------------------------------------------


def write_frame(
    path: Path,
    data: np.ndarray[Any, Any],
    *,
    key: str = "df",
    names: Any = None,
    times: Any = None,
    kind: str = "datetime64",
    split: int | None = None,
    **options: Any,
) -> None:
    """A frame as pandas' to_hdf(format='fixed') lays it out."""
    h5py = pytest.importorskip("h5py")
    columns = np.array([f"77{i}".encode() for i in range(data.shape[1])]) if names is None else np.asarray(names)
    with h5py.File(path, "a") as file:
        group = file.create_group(key)
        group.attrs["pandas_type"] = np.bytes_(b"frame")
        group.attrs["axis0_variety"] = group.attrs["axis1_variety"] = np.bytes_(b"regular")
        group["axis0"] = columns
        ticks = clock(len(data), 5).astype("datetime64[ns]").astype(np.int64) if times is None else times
        group["axis1"] = ticks
        group["axis1"].attrs["kind"] = np.bytes_(kind.encode())
        group["axis1"].attrs["freq"] = np.bytes_(pickle.dumps("never read", protocol=0).replace(b"\n", b" "))
        parts = [np.arange(data.shape[1])] if split is None else [np.arange(split)[::-1], np.arange(split, data.shape[1])]
        for number, part in enumerate(parts):
            group[f"block{number}_items"] = columns[part]
            group.create_dataset(f"block{number}_values", data=data[:, part], **options)


@pytest.mark.parametrize(("key", "unit"), [("df", ""), ("speed", "[s]"), ("t", "[ms]"), ("t", "[us]"), ("t", "text")])
@pytest.mark.parametrize("dtype", ["float64", "float32", "int64"])
@pytest.mark.parametrize("options", [{}, {"chunks": True, "compression": "gzip"}, {"split": 2}])
@pytest.mark.parametrize("names", [[b"770", b"771", b"772", b"773"], [400001, 400017, 3, 4]])
def test_pandas_frames(tmp_path: Path, key: str, unit: str, dtype: str, options: dict[str, Any], names: list[Any]) -> None:
    data = (cube(TIMES, NODES) * 100).astype(dtype)
    if unit == "text":
        ticks, kind = np.array([str(t).encode() for t in clock(TIMES, 5)]), "string"
    else:
        ticks, kind = clock(TIMES, 5).astype(f"datetime64{unit or '[ns]'}").astype(np.int64), f"datetime64{unit}"
    write_frame(tmp_path / "a.h5", data, key=key, names=names, times=ticks, kind=kind, **options)
    series = read_series(tmp_path / "a.h5")
    assert np.array_equal(series.values[..., 0], data.astype(np.float32))
    assert series.node_ids == tuple(n.decode() if isinstance(n, bytes) else str(n) for n in names)
    assert np.array_equal(series.timestamps, clock(TIMES, 5))  # type: ignore[arg-type]
    assert series.steps_per_day == 288


def test_frames_of_pandas(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("tables", reason="PyTables, which pandas writes HDF with, is not installed")
    data, times = cube(TIMES, NODES), pandas.date_range("2024-01-01", periods=TIMES, freq="15min")
    for names in (list("abcd"), [773869, 767541, 767542, 717447]):
        pandas.DataFrame(data, times, names).to_hdf(tmp_path / "a.h5", key="df", mode="w")
        series = read_series(tmp_path / "a.h5")
        assert np.array_equal(series.values[..., 0], data)
        assert np.array_equal(series.timestamps, clock())  # type: ignore[arg-type]
        assert series.node_ids == tuple(map(str, names))
        assert series.notes == ()


def test_plain_hdf_and_keys(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["flow"] = cube()
        file["speed"] = cube(seed=1)
        file["grid"] = cube(6, 3, 2, 1)
    assert np.array_equal(read_series(tmp_path / "a.h5", key="speed").values, cube(seed=1))
    refuse(tmp_path / "a.h5", r"hold one pandas frame or array \(or name one with key=\), got \['flow', 'grid', 'speed'\]")
    refuse(tmp_path / "a.h5", "grid must .*reshape a grid to", key="grid")
    refuse(tmp_path / "a.h5", "other must hold one pandas frame", key="other")


def test_frame_without_times_or_names(tmp_path: Path, mark: Path) -> None:
    h5py = pytest.importorskip("h5py")
    write_frame(tmp_path / "a.h5", cube(TIMES, NODES), times=np.arange(TIMES), kind="integer")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["df/axis0"], file["df/block0_items"]
        raw = np.frombuffer(pickle.dumps([Bomb(mark)] * NODES), np.uint8)
        for name in ("axis0", "block0_items"):
            pickled = file["df"].create_dataset(name, (NODES,), dtype=h5py.vlen_dtype(np.uint8))
            pickled[0] = raw
    series = read_series(tmp_path / "a.h5")
    assert series.node_ids is None
    assert series.timestamps is None
    assert np.array_equal(series.values[..., 0], cube(TIMES, NODES))
    assert len(series.notes) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, h: f.attrs.__setitem__("pandas_type", np.bytes_(b"frame_table")), "column names are pickled"),
        (lambda f, h: f.attrs.__setitem__("axis0_variety", np.bytes_(b"multi")), "plain index, got a MultiIndex"),
        (lambda f, h: f.__delitem__("axis1"), "df/axis1 must be a data set of the frame"),
        (lambda f, h: f.__delitem__("block0_values"), "df/block0_values must be a data set of the frame"),
        (lambda f, h: swap(f, np.zeros((TIMES, 3))), r"be \[30, 4\], at most 4 columns, got shape \(30, 3\)"),
        (lambda f, h: swap(f, np.zeros((5, NODES))), r"be \[30, 4\], at most 4 columns, got shape \(5, 4\)"),
        (lambda f, h: swap(f, np.full((TIMES, NODES), np.inf)), "finite in float32"),
        (lambda f, h: swap(f, np.full((TIMES, NODES), b"a")), "hold real numbers"),
        (lambda f, h: swap(f, np.array([b"a"] * NODES), "axis0"), "name (every node once|columns of axis0)"),
        (lambda f, h: swap(f, np.array([b"770", b"771", b"772", b"9"]), "block0_items"), "name columns of axis0"),
        (lambda f, h: swap(f, np.array([b"770"] * 4), "block0_items"), "have values for every column, got 3"),
        (lambda f, h: swap(f, clock()[::-1].astype(np.int64), "axis1", "datetime64[us]"), "df/axis1 must increase"),
        (lambda f, h: swap(f, np.array([b"soon"] * TIMES), "axis1", "string"), "df/axis1 must hold dates of one form"),
        (lambda f, h: swap(f, np.zeros(TIMES), "axis1", "datetime64"), "df/axis1 must hold int64 times"),
        (lambda f, h: swap(f, np.arange(TIMES), "axis1", "datetime64[D]"), "count s, ms, us or ns"),
        (lambda f, h: swap(f, h.ExternalLink("other.h5", "/x")), "df/block0_values must be a data set of the frame"),
        (lambda f, h: swap(f, h.SoftLink("/df/axis1")), "df/block0_values must be a data set of the frame"),
        (lambda f, h: swap(f, h.VirtualLayout((TIMES, NODES), "f4")), "stored in the file itself"),
        (lambda f, h: swap(f, {"external": [("secret.bin", 0, TIMES * NODES * 4)]}), "stored in the file itself"),
        (lambda f, h: swap(f, {"chunks": (10, 2)}), "be stored in full"),
        (lambda f, h: swap(f, {"shape": (2**40,), "chunks": (1024,)}, "axis1"), "need at most max_bytes"),
    ],
)
def test_bad_frames(tmp_path: Path, change: Callable[[Any, Any], Any], message: str) -> None:
    h5py = pytest.importorskip("h5py")
    write_frame(tmp_path / "a.h5", cube(TIMES, NODES))
    with h5py.File(tmp_path / "a.h5", "a") as file:
        change(file["df"], h5py)
    refuse(tmp_path / "a.h5", message)


def swap(frame: Any, data: Any, name: str = "block0_values", kind: str | None = None) -> None:
    """Puts something else in the place of a data set: an array, a link, a virtual layout, or a creation's options."""
    del frame[name]
    if type(data).__name__ == "VirtualLayout":
        data[:] = pytest.importorskip("h5py").VirtualSource("other.h5", "x", (TIMES, NODES))
        frame.create_virtual_dataset(name, data)
    elif isinstance(data, dict):
        frame.create_dataset(name, **{"shape": (TIMES, NODES), "dtype": "f4"} | data)
    else:
        frame[name] = data
    if kind is not None:
        frame[name].attrs["kind"] = np.bytes_(kind.encode())


def test_hdf_never_unpickles(tmp_path: Path, mark: Path) -> None:
    h5py = pytest.importorskip("h5py")
    message = np.void(pickle.dumps(Bomb(mark)))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        pickled = file.create_dataset("data", (3, 3), dtype=h5py.vlen_dtype(np.uint8))
        pickled[0, 0] = np.frombuffer(bytes(message), np.uint8)
    refuse(tmp_path / "a.h5", "data must hold numbers, never Python objects")
    write_frame(tmp_path / "b.h5", cube(TIMES, NODES))
    with h5py.File(tmp_path / "b.h5", "a") as file:
        for place in ("df", "df/axis0", "df/axis1", "df/block0_values"):
            file[place].attrs["info"] = file[place].attrs["freq"] = message
    assert np.array_equal(read_series(tmp_path / "b.h5").values[..., 0], cube(TIMES, NODES))


def test_truncated_hdf(tmp_path: Path) -> None:
    write_frame(tmp_path / "whole.h5", cube(2000, NODES))
    raw = (tmp_path / "whole.h5").read_bytes()
    for size in (9, 100, 3000, len(raw) - 100):
        (tmp_path / "cut.h5").write_bytes(raw[:size])
        refuse(tmp_path / "cut.h5", "file must be a complete HDF5 file")


def test_largest_years(tmp_path: Path) -> None:
    folder = tmp_path / "sd"
    folder.mkdir()
    for year, seed in ((2018, 1), (2019, 2)):
        ticks = clock(TIMES, 15, f"{year}-12-31T16:30").astype("datetime64[ns]").astype(np.int64)
        write_frame(folder / f"sd_his_{year}.h5", cube(TIMES, NODES, seed=seed), key="t", times=ticks)
    series = read_series(folder)
    assert series.name == "sd"
    assert np.array_equal(series.values[..., 0], np.concatenate([cube(TIMES, NODES, seed=1), cube(TIMES, NODES, seed=2)]))
    assert series.timestamps is not None
    assert str(series.timestamps[TIMES])[:10] == "2019-12-31"
    ticks = clock(TIMES).astype("datetime64[ns]").astype(np.int64)
    write_frame(folder / "sd_his_2020.h5", cube(TIMES, NODES), key="t", times=ticks - 4 * 366 * 86400 * 10**9)
    refuse(folder, "times must increase strictly")
    refuse(folder, "key must be left out, as LargeST", key="t")
    (folder / "sd_his_2020.h5").unlink()
    write_frame(folder / "sd_his_2020.h5", cube(TIMES, NODES), key="t", names=[b"1", b"2", b"3", b"4"])
    with pytest.raises(ValueError, match=r"sd_his_2020.h5: columns must name the nodes of sd_his_2018.h5"):
        read_series(folder)


# --- BasicTS ---------------------------------------------------------------------------------------------------------


def write_basicts_0(folder: Path, data: np.ndarray[Any, Any], **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "data.dat").write_bytes(data.astype("<f4").tobytes())
    description = {
        "name": "PEMS08",
        "shape": list(data.shape),
        "frequency (minutes)": 5,
        "feature_description": ["flow", "time of day"],
        "regular_settings": {"NULL_VAL": float("nan")},
    }
    (folder / "desc.json").write_text(json.dumps(description | changes))
    return folder


def test_basicts_0(tmp_path: Path, mark: Path) -> None:
    folder = write_basicts_0(tmp_path / "x", cube())
    (folder / "adj_mx.pkl").write_bytes(pickle.dumps(Bomb(mark)))
    series = read_series(folder)
    assert np.array_equal(series.values, cube())
    assert series.name == "PEMS08"
    assert series.steps_per_day == 288
    assert series.channels == ("flow", "time of day")
    assert series.adjacency is None
    assert series.notes == ("adj_mx.pkl is a pickle and was not read",)
    np.save(folder / "adj_mx.npy", np.eye(NODES))
    assert np.array_equal(read_series(folder).adjacency, np.eye(NODES))  # type: ignore[arg-type]
    assert isinstance(series.values, np.ndarray)
    assert not isinstance(series.values, np.memmap)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": [31, 4, 2]}, "data.dat: file must have 992 bytes, as desc.json declares .*, got 960"),
        ({"shape": [10**18, 4, 2]}, "data.dat: file must have"),
        ({"shape": [-30, -4, 2]}, "desc.json: shape must be a list of positive ints"),
        ({"shape": [30.0, 4, 2]}, "shape must be a list of positive ints"),
        ({"shape": [30, 4, 2, 1]}, r"shape must be \[time, node\]"),
        ({"shape": []}, r"shape must be \[time, node\]"),
        ({"shape": None}, "shape must be a list of positive ints"),
        ({"frequency (minutes)": -5}, r"frequency \(minutes\) must be a positive number"),
        ({"frequency (minutes)": "5"}, r"frequency \(minutes\) must be a positive number"),
        (b"{", "desc.json: file must be valid JSON"),
        (b"[1]", "desc.json: file must be a JSON object"),
        (b"[" * 100_000, "desc.json: file must be valid JSON"),
        (b" " * 2**24 + b" ", "desc.json: file must have at most"),
    ],
)
def test_bad_descriptions(tmp_path: Path, changes: Any, message: str) -> None:
    folder = write_basicts_0(tmp_path / "data", cube(), **(changes if isinstance(changes, dict) else {}))
    if isinstance(changes, bytes):
        (folder / "desc.json").write_bytes(changes)
    refuse(folder, message)


def test_bad_basicts_0_files(tmp_path: Path) -> None:
    folder = write_basicts_0(tmp_path / "data", cube())
    refuse(folder, "file must need at most max_bytes = 959", max_bytes=959)
    infinite = cube()
    infinite[17, 2, 1] = np.inf
    refuse(write_basicts_0(folder, infinite), "got inf in row 17")
    (folder / "desc.json").unlink()
    refuse(folder, "desc.json must be in a BasicTS 0.x folder")


def write_basicts_1(folder: Path, lengths: tuple[int, ...] = (18, 6, 6), dtype: str = "float64", **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    data, features = cube(sum(lengths), NODES), cube(sum(lengths), 2, seed=1)
    row = 0
    for split, length in zip(("train", "val", "test"), lengths, strict=True):
        np.save(folder / f"{split}_data.npy", data[row : row + length].astype(dtype))
        np.save(folder / f"{split}_timestamps.npy", features[row : row + length])
        row += length
    meta = {
        "name": "ETTh1",
        "frequency (minutes)": 60,
        "shape": [sum(lengths), NODES],
        "timestamps_description": ["time of day", "day of week"],
    }
    (folder / "meta.json").write_text(json.dumps(meta | changes))
    return folder


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_basicts_1(tmp_path: Path, dtype: str) -> None:
    folder = write_basicts_1(tmp_path / "x", dtype=dtype)
    np.save(folder / "train_data.npy", np.asfortranarray(cube(TIMES, NODES)[:18]))
    series = read_series(folder)
    assert np.array_equal(series.values[..., 0], cube(TIMES, NODES))
    assert (series.name, series.steps_per_day, series.splits) == ("ETTh1", 24, ((0, 18), (18, 24), (24, 30)))
    assert np.array_equal(series.time_features, cube(TIMES, 2, seed=1))  # type: ignore[arg-type]
    assert series.time_feature_names == ("time of day", "day of week")
    (folder / "meta.json").unlink()
    for kind in ("datetime64[s]", "str"):
        for split, part in zip(("train", "val", "test"), np.split(clock().astype(kind), [18, 24]), strict=True):
            np.save(folder / f"{split}_timestamps.npy", part)
        series = read_series(folder)
        assert np.array_equal(series.timestamps, clock())  # type: ignore[arg-type]
        assert (series.steps_per_day, series.time_features) == (96, None)
    for file in folder.glob("*_timestamps.npy"):
        file.unlink()
    series = read_series(folder)
    assert (series.time_features, series.timestamps, series.steps_per_day, series.name) == (None, None, None, "x")


@pytest.mark.parametrize(
    ("file", "array", "message"),
    [
        (
            "val_data",
            cube(6, NODES + 1),
            r"val_data.npy must have the width and kind of train_data.npy, \(4, 1\) .*got \(5, 1\)",
        ),
        ("val_data", cube(6, NODES, 2), r"got \(4, 2\)"),
        ("val_data", np.array([[{}]], dtype=object), "never Python objects"),
        ("val_data", cube(6), r"got \(1, 1\)"),
        ("val_data", cube(6, NODES, 1, 1), r"be \[time, node\]"),
        ("val_data", cube(0, NODES), "(not be empty|be a readable)"),
        ("val_data", None, "val_data.npy must be there, as for the other splits of BasicTS 1.x, got no such file"),
        ("val_data", cube(7, NODES), r"shape must be that of the three splits, \(31, 4, 1\), got \[30, 4\]"),
        ("val_timestamps", cube(5, 2), r"timestamps must have one row for each row of data, got \[18, 5, 6\]"),
        ("val_timestamps", cube(6, 3), "have the width and kind of train_timestamps.npy"),
        ("val_timestamps", np.array([["a", "b"]] * 6), "have the width and kind of train_timestamps.npy"),
        ("val_timestamps", None, "val_timestamps.npy must be there"),
        ("adj_mx", np.eye(3), r"be \[4, 4\], got shape \(3, 3\)"),
    ],
)
def test_bad_basicts_1(tmp_path: Path, file: str, array: Any, message: str) -> None:
    folder = write_basicts_1(tmp_path / "data")
    if array is None:
        (folder / f"{file}.npy").unlink()
    else:
        np.save(folder / f"{file}.npy", array)
    refuse(folder, message)
    write_basicts_1(folder, dtype="float32")
    (folder / "adj_mx.npy").unlink(missing_ok=True)
    refuse(folder, "three splits must need at most max_bytes = 479", max_bytes=479)
    raw = (folder / "test_data.npy").read_bytes()
    (folder / "test_data.npy").write_bytes(raw[:-1])
    refuse(folder, "test_data.npy: array must have the bytes its header declares")


# --- CSV -------------------------------------------------------------------------------------------------------------


def write_csv(
    path: Path, data: np.ndarray[Any, Any], times: list[str] | None = None, delimiter: str = ",", end: str = "\n"
) -> None:
    header = ([] if times is None else ["time"]) + [f"n{i}" for i in range(data.shape[1])]
    lines = [delimiter.join(header)]
    for row, values in enumerate(data):
        cells = ([] if times is None else [times[row]]) + [repr(float(v)) if v == v else "" for v in values]
        lines.append(delimiter.join(cells))
    path.write_bytes((end.join(lines) + end).encode())


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("form", [None, "counter", "%Y-%m-%d %H:%M:%S", "%d.%m.%Y %H:%M", "%Y/%m/%d %H:%M", "%m/%d/%Y %H:%M"])
def test_csv(tmp_path: Path, delimiter: str, end: str, missing: bool, form: str | None) -> None:
    data, dates, stamps = cube(TIMES, NODES), clock(TIMES, 60, "2024-01-20T23:00"), None
    if missing:
        data[4, 1] = data[7, 3] = np.nan
    if form is not None:
        stamps = [str(i) if form == "counter" else t.astype(object).strftime(form) for i, t in enumerate(dates)]
    write_csv(tmp_path / "a.csv", data, stamps, delimiter, end)
    series = read_series(tmp_path / "a.csv")
    assert np.array_equal(series.values[..., 0], data, equal_nan=True)
    assert series.node_ids == ("n0", "n1", "n2", "n3")
    if form in (None, "counter"):
        assert series.timestamps is None
        assert len(series.notes) == (form == "counter")
    else:
        assert np.array_equal(series.timestamps, dates)  # type: ignore[arg-type]
        assert series.steps_per_day == 24


def test_csv_forms(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("773869,767541\n1,2\n3,4\n\n\n")
    assert read_series(path).node_ids == ("773869", "767541")
    path.write_text("\ufeffdate;a b\n2024-01-01;1e3\n2024-01-02;NaN\n", encoding="utf-8")
    series = read_series(path)
    assert series.node_ids == ("a b",)
    assert series.steps_per_day == 1
    assert np.array_equal(series.values.ravel(), [1000, np.nan], equal_nan=True)
    path.write_text('"date","a,b","c"\n"2024-01-01 00:00","1","2"\n"2024-01-01 00:30","N/A"," null "\n')
    series = read_series(path)
    assert series.node_ids == ("a,b", "c")
    assert np.array_equal(series.values[..., 0], [[1, 2], [np.nan, np.nan]], equal_nan=True)
    path.write_text(",a\n2024-03-01T00:00:00Z,1\n2024-03-01T00:30:00Z,2\n")
    assert read_series(path).steps_per_day == 48
    path.write_text("time,a\n2024-03-31 01:00+01:00,1\n2024-03-31 03:00+02:00,2\n")
    series = read_series(path)
    assert str(series.timestamps[0]) == "2024-03-31T00:00:00.000000"  # type: ignore[index]
    assert series.steps_per_day == 24
    assert series.notes == ("time: offsets from UTC subtracted, times are UTC",)
    path.write_text("0.5,1.5\n2.5,3\n")
    refuse(path, r"header must name the nodes \(a file without header needs header=False\)")
    series = read_series(path, header=False)
    assert series.values[..., 0].tolist() == [[0.5, 1.5], [2.5, 3.0]]
    assert series.node_ids is None
    path.write_text("1\n2\n3\n")
    assert read_series(path, header=False).values.ravel().tolist() == [1, 2, 3]
    path.write_text("30/01/2024,1\n31/01/2024,2\n01/02/2024,3\n")
    assert str(read_series(path, header=False).timestamps[2])[:10] == "2024-02-01"  # type: ignore[index]


@pytest.mark.parametrize("lines", [1, 7, 2048])
def test_csv_blocks(tmp_path: Path, lines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stprune.data.text.LINES", lines)
    data = cube(50, 3)
    data[20, 1] = np.nan
    write_csv(tmp_path / "a.csv", data, [str(t) for t in clock(50)])
    assert np.array_equal(read_series(tmp_path / "a.csv").values[..., 0], data, equal_nan=True)
    broken = (tmp_path / "a.csv").read_text().splitlines()
    broken[41] = broken[41].replace(",", ",x", 1)
    (tmp_path / "a.csv").write_text("\n".join(broken))
    refuse(tmp_path / "a.csv", "line 42 must hold a number in cell 2, got 'x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3\n", "line 3 must have 2 cells, got 1"),
        ("a,b\n1,2\n3,4,5\n", "line 3 must have 2 cells, got 3"),
        ("a,b\n1\n", "header must have as many cells as the row below"),
        ("a,b\n1,2\n3,x\n", "line 3 must hold a number in cell 2, got 'x'"),
        ("a,b\n1,2\n3,1_0\n", "line 3 must hold a number in cell 2, got '1[?_]0'"),
        ("a,b\n1,2\n3,0x10\n", "line 3 must hold a number in cell 2"),
        ("a;b\n1,5;2\n", "line 2 must hold a number in cell 1, got '1,5'"),
        ("a,b\n1,2\n3,inf\n", r"finite in float32 \(NaN is missing\), got inf in row 1"),
        ("a,b\n1,2\n3,1e40\n", "finite in float32"),
        ("a,a\n1,2\n", "header must name every node once, got 'a' twice"),
        ("a,b\n", "have a row of numbers below its header, got 1 lines"),
        ("\n\n", "have a row of numbers below its header, got 2 lines"),
        ("a,b\n1,2\n\n3,4\n", "no blank line between its rows, got line 3"),
        ("a\n1\n\n3\n", "no blank line between its rows"),
        ("a,b\n1,2\n3,\0\n", "be text, got a NUL character in line 3"),
        ("time\n2024-01-01\n", "header must name at least one node"),
        ('a,b\n"1\n2",3\n', "must have"),
        ('a,b\n1,2\n"3,4\n5,6"\n', "line 3 must have 2 cells, got 1"),
        ("a,b\n1,2\n3,True\n", "line 3 must hold a number in cell 2, got 'True'"),
        ("time,a\n2024-01-02,1\n2024-01-02,2\n", "time must increase strictly, got 2024-01-02T.* in row 1"),
        ("time,a\n2024-01-02,1\n2024-01-01,2\n", "time must increase strictly"),
        ("time,a\n2024-01-01,1\n2024-13-01,2\n", "time must hold dates of one form"),
        ("time,a\n2024-01-01,1\nyesterday,2\n", "time must hold dates of one form, got 'yesterday' in line 3"),
        ("time,a\n2024-01-01,1\n02.01.2024,2\n", "time must hold dates of one form, got '02.01.2024' in line 3"),
        ("time,a\n2024-01-01,1\n,2\n", "time must hold dates of one form, got '' in line 3"),
        ("time,a\n01/02/2024,1\n01/03/2024,1\n01/04/2024,1\n", None),
        ("time,a\n01/02/2024 00:00,1\n01/02/2024 00:05,1\n", "time must be either month/day/year or day/month/year"),
        ("time,a\n1,1\n1,2\n", "time must hold times, or row numbers that increase, got '1' in line 3"),
        ("time,a\n1,1\nx,2\n", "time must hold times, or row numbers that increase, got 'x' in line 3"),
    ],
)
def test_bad_csv(tmp_path: Path, text: str, message: str | None) -> None:
    (tmp_path / "a.csv").write_text(text)
    if message is None:  # the regular reading wins: three days in January, not the 2nd of three months
        assert read_series(tmp_path / "a.csv").steps_per_day == 1
    else:
        refuse(tmp_path / "a.csv", message)


def test_bad_csv_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"a,b\n1,\xff\n")
    refuse(tmp_path / "a.csv", "be UTF-8 text")
    (tmp_path / "a.csv").write_bytes(b"a" * 200_000 + b",b\n1,2\n")
    refuse(tmp_path / "a.csv", "have readable cells")
    write_csv(tmp_path / "b.csv", cube(TIMES, NODES))
    refuse(tmp_path / "b.csv", "file must need at most max_bytes = 479 bytes, got 480", max_bytes=479)
    # 10,000 columns and 10,000 almost empty lines claim 400 MB in 80 kB.
    (tmp_path / "c.csv").write_text(",".join(map(str, range(10_000))) + "\n" + "1," * 9_999 + "1\n" + "1\n" * 10_000)
    refuse(tmp_path / "c.csv", "line 3 must have 10000 cells, got 1")


def local_clock(start: str, times: int, spring: str, autumn: str) -> list[str]:
    """A regular series on a wall clock that is an hour ahead from ``spring`` to ``autumn``, both in standard time."""
    standard = clock(times, 30, start)
    summer = (standard >= np.datetime64(spring)) & (standard < np.datetime64(autumn))
    return [str(t) for t in standard + summer * np.timedelta64(60, "m")]


@pytest.mark.parametrize(("start", "shift"), [("2016-01-01T00:00", 0), ("2016-07-01T00:00", 60)])
def test_daylight_saving_clock_becomes_standard_time(tmp_path: Path, start: str, shift: int) -> None:
    times = 366 * 48 if not shift else 250 * 48
    stamps = local_clock(start, times, "2016-03-27T02:00", "2016-10-30T02:00")
    if not shift:
        assert "2016-03-27T02:30:00.000000" not in stamps
    assert stamps.count("2016-10-30T02:30:00.000000") == 2
    write_csv(tmp_path / "a.csv", np.zeros((times, 1), np.float32), stamps)
    series = read_series(tmp_path / "a.csv")
    assert np.array_equal(series.timestamps, clock(times, 30, start))  # type: ignore[arg-type]
    assert series.steps_per_day == 48
    assert series.notes == ("time: daylight-saving wall clock moved to standard time",)


def test_other_repeated_hours_are_refused(tmp_path: Path) -> None:
    week_day = local_clock("2016-01-01T00:00", 366 * 48, "2016-03-28T02:00", "2016-10-30T02:00")
    two_hours = local_clock("2016-10-01T00:00", 60 * 48, "2016-01-01T02:00", "2016-10-30T02:00")
    repeated = two_hours[: 40 * 48] + two_hours[39 * 48 : 41 * 48]
    for stamps in (week_day, repeated):
        write_csv(tmp_path / "a.csv", np.zeros((len(stamps), 1), np.float32), stamps)
        refuse(tmp_path / "a.csv", "time must increase strictly")


# --- netCDF, Zarr ----------------------------------------------------------------------------------------------------


def write_grid(path: Path, kind: str, change: Callable[[Any], Any] = lambda d: d, **options: Any) -> Path:
    """Two variables on a 3 x 2 grid and one that has no time; the kind is a form of netCDF, zarr2 or zarr3."""
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("zarr" if kind in ZARR else "netCDF4")
    coords = {"time": clock(TIMES, 60), "lat": [50.0, 51.0, 52.0], "lon": [-1.0, 0.5]}
    dataset = xarray.Dataset(
        {
            "t2m": (("time", "lat", "lon"), cube(TIMES, 3, 2)),
            "wind": (("lat", "lon", "time"), cube(3, 2, TIMES, seed=1)),
            "height": (("lat", "lon"), np.zeros((3, 2))),
        },
        coords=coords,
    )
    path = path.with_suffix(".zarr" if kind in ZARR else ".nc")
    if kind in ZARR:
        change(dataset).to_zarr(path, zarr_format=int(kind[-1]), **options)
    else:
        change(dataset).to_netcdf(path, engine="netcdf4", format=kind, **options)
    return path


ZARR = ("zarr2", "zarr3")
KINDS = ("NETCDF4", "NETCDF3_CLASSIC", *ZARR)
quiet = pytest.mark.filterwarnings("ignore::Warning")  # of Zarr, about what it will change


@quiet
@pytest.mark.parametrize("kind", KINDS)
def test_grids(tmp_path: Path, kind: str) -> None:
    path = write_grid(tmp_path / "era", kind)
    series = read_series(path)
    assert (series.name, series.channels, series.steps_per_day) == ("era", ("t2m", "wind"), 24)
    assert np.array_equal(series.values[..., 0], cube(TIMES, 3, 2).reshape(TIMES, 6))
    assert np.array_equal(series.values[..., 1], cube(3, 2, TIMES, seed=1).reshape(6, TIMES).T)
    assert np.array_equal(series.timestamps, clock(TIMES, 60))  # type: ignore[arg-type]
    assert series.node_ids == ("50.0,-1.0", "50.0,0.5", "51.0,-1.0", "51.0,0.5", "52.0,-1.0", "52.0,0.5")
    assert series.notes == ("variables not read: height",)
    assert np.array_equal(read_series(path, key="wind").values, series.values[..., 1:])
    refuse(path, "other must be a variable of the file", key="other")
    refuse(path, "height must have the dimension 'time'", key="height")
    refuse(path, "need at most max_bytes = 1000", max_bytes=1000)


@quiet
@pytest.mark.parametrize("kind", KINDS)
def test_channel_order(tmp_path: Path, kind: str) -> None:
    names = ["wind", "flux", "t2m", "a", "z", "humidity"]
    change = lambda d: d[["t2m"]].assign({n: d["t2m"] + i for i, n in enumerate(names)})[names]
    series = read_series(write_grid(tmp_path / "a", kind, change))
    # A Zarr folder has no order of its own.
    assert series.channels == tuple(sorted(names) if kind in ZARR else names)
    for channel, label in enumerate(series.channels):
        assert np.allclose(series.values[..., channel], cube(TIMES, 3, 2).reshape(TIMES, 6) + names.index(label))


@quiet
@pytest.mark.parametrize("kind", KINDS)
def test_packed_grids(tmp_path: Path, kind: str) -> None:
    expected = cube(TIMES, 3, 2)
    expected[4, 1, 1] = np.nan
    packed = {"t2m": {"dtype": "int16", "scale_factor": 0.001, "_FillValue": -32768}}
    path = write_grid(tmp_path / "a", kind, lambda d: d.assign(t2m=(("time", "lat", "lon"), expected)), encoding=packed)
    values = read_series(path, key="t2m").values[..., 0]
    assert np.allclose(values, expected.reshape(TIMES, 6), atol=6e-4, equal_nan=True)


@quiet
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.isel(time=slice(None, None, -1)), "time must increase strictly"),
        (lambda d: d.isel(time=[0, 1, 1, 2]), "time must increase strictly"),
        (lambda d: d.assign_coords(time=np.arange(TIMES)[::-1]), "time must increase strictly"),
        (lambda d: d.rename(time="step").drop_vars("step"), "dimensions must have one of time"),
        (lambda d: d[["height"]].expand_dims(x=2), "dimensions must have one of time"),
        (lambda d: d.assign(flux=(("time", "level"), np.zeros((TIMES, 3)))), "(flux|t2m|wind) must have the dimensions"),
        (lambda d: d.assign(t2m=d["t2m"] * np.inf), "finite in float32"),
        (lambda d: d.isel(time=slice(0, 0)).transpose("time", ...), "not be empty|complete|have chunks"),
        (lambda d: d.assign(word=("time", ["a"] * TIMES)), "(hold real numbers|have the dimensions)"),
    ],
)
def test_bad_grids(tmp_path: Path, kind: str, change: Any, message: str) -> None:
    refuse(write_grid(tmp_path / "a", kind, change), message)


@quiet
@pytest.mark.parametrize("kind", KINDS)
def test_stations_and_numbered_times(tmp_path: Path, kind: str) -> None:
    def change(dataset: Any) -> Any:
        flat = dataset[["t2m"]].isel(lon=0, drop=True).rename(lat="station")
        flat["station"] = np.array(["abc", "de", "f"], dtype=object if kind in ZARR else None)
        return flat.assign_coords(time=np.arange(TIMES))

    series = read_series(write_grid(tmp_path / "a", kind, change))
    assert (series.node_ids, series.timestamps) == (("abc", "de", "f"), None)
    assert series.notes == ("time: numbers without a unit, so no timestamps (store datetime64 or text)",)
    assert np.array_equal(series.values[..., 0], cube(TIMES, 3, 2)[:, :, 0])


@pytest.mark.parametrize("unlimited", [[], ["time"]])
@pytest.mark.parametrize("kind", ["NETCDF4", "NETCDF3_CLASSIC", "NETCDF3_64BIT", "NETCDF3_64BIT_DATA"])
def test_truncated_netcdf(tmp_path: Path, kind: str, unlimited: list[str]) -> None:
    path = write_grid(tmp_path / "a", kind, lambda d: d.transpose("time", ...), unlimited_dims=unlimited)
    assert read_series(path).values.shape == (TIMES, 6, 2)
    raw = path.read_bytes()
    for size in (6, 30, 200, len(raw) // 3, len(raw) // 2, len(raw) - 8):
        path.write_bytes(raw[:size])
        refuse(path, "must (be a complete netCDF file|begin as its suffix)")


def test_classic_netcdf_of_one_record_variable(tmp_path: Path) -> None:
    netcdf = pytest.importorskip("netCDF4")
    path = tmp_path / "a.nc"
    # Three bytes in each record: the only record variable is stored without padding.
    with netcdf.Dataset(path, "w", format="NETCDF3_CLASSIC") as file:
        file.createDimension("time", None)
        file.createDimension("node", 3)
        file.createVariable("flow", "i1", ("time", "node"))[:] = np.arange(90).reshape(30, 3)
    assert np.array_equal(read_series(path).values.ravel(), np.arange(90))
    path.write_bytes(path.read_bytes()[:-4])
    refuse(path, "be a complete netCDF file of")


def test_vast_netcdf(tmp_path: Path) -> None:
    netcdf = pytest.importorskip("netCDF4")
    with netcdf.Dataset(tmp_path / "a.nc", "w") as file:
        file.createDimension("time", 2**40)
        file.createVariable("time", "f8", ("time",), chunksizes=(1024,), zlib=True)
    refuse(tmp_path / "a.nc", "time must need at most max_bytes")


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@quiet
@pytest.mark.parametrize("name", ["time", "t2m"])
@pytest.mark.parametrize("filters", [[{"id": "pickle"}], None])
def test_zarr_never_unpickles(tmp_path: Path, mark: Path, name: str, filters: Any) -> None:
    numcodecs = pytest.importorskip("numcodecs")
    bomb = np.empty(TIMES, dtype=object)
    bomb[:] = Bomb(mark)
    pickled = {"dtype": "|O", "shape": [TIMES], "chunks": [TIMES], "filters": filters, "compressor": None}
    path = write_grid(tmp_path / "a", "zarr2")
    for chunk in (path / name).glob("[0-9]*"):
        chunk.write_bytes(numcodecs.Pickle().encode(bomb))
    edit(path / name / ".zarray", lambda content: content.update(pickled))
    refuse(path, "array must hold numbers or text, never Python objects")
    # Metadata kept in one file beside the arrays' own is not believed.
    path = write_grid(tmp_path / "b", "zarr2", consolidated=True)
    edit(path / ".zmetadata", lambda content: content["metadata"][f"{name}/.zarray"].update(pickled))
    assert read_series(path, key="t2m").steps_per_day == 24


@quiet
@pytest.mark.parametrize("kind", ZARR)
@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("meta", lambda c: c.update(shape=[2**40, 3, 2]), "shape must need at most max_bytes"),
        ("meta", lambda c: c.update(shape=[-1, 3, 2]), "shape must be a list of non-negative ints"),
        ("meta", b"{", "file must be valid JSON"),
        ("chunk", b"not a chunk", "store must be a complete Zarr group"),
        ("chunk", None, "array must have chunks, got none"),
    ],
)
def test_bad_zarr(tmp_path: Path, kind: str, file: str, change: Any, message: str) -> None:
    path = write_grid(tmp_path / "a", kind)
    names = {"meta": ".zarray", "chunk": "0.0.0"} if kind == "zarr2" else {"meta": "zarr.json", "chunk": "c/0/0/0"}
    place = path / "t2m" / names[file]
    if change is None:
        (place if kind == "zarr2" else place.parents[2]).rename(tmp_path / "moved")
    elif isinstance(change, bytes):
        place.write_bytes(change)
    else:
        edit(place, change)
    refuse(path, message)


# --- damage anywhere -------------------------------------------------------------------------------------------------


def save_npz(path: Path) -> None:
    np.savez_compressed(path, data=cube(), adj=np.eye(NODES), time=clock(), names=list("abcd"))


WRITERS: dict[str, Callable[[Path], Any]] = {
    "a.npz": save_npz,
    "a.npy": lambda path: np.save(path, cube()),
    "a.h5": lambda path: write_frame(path, cube(TIMES, NODES), chunks=True, compression="gzip"),
    "a.csv": lambda path: write_csv(path, cube(TIMES, NODES), [str(t) for t in clock()]),
    "zero": lambda path: write_basicts_0(path, cube()),
    "one": write_basicts_1,
    "b.nc": lambda path: write_grid(path, "NETCDF4"),
    "c.nc": lambda path: write_grid(path, "NETCDF3_CLASSIC"),
    "d.zarr": lambda path: write_grid(path, "zarr2"),
    "e.zarr": lambda path: write_grid(path, "zarr3"),
}


@quiet
@pytest.mark.parametrize("name", WRITERS)
def test_damaged_bytes_give_a_series_or_one_refusal(tmp_path: Path, name: str) -> None:
    random, target = np.random.default_rng(7), tmp_path / name
    WRITERS[name](target)
    files = sorted(f for f in target.rglob("*") if f.is_file()) if target.is_dir() else [target]
    refusals = []
    for _ in range(40):
        file = files[random.integers(len(files))]
        whole = file.read_bytes()
        damaged = bytearray(whole)
        for _ in range(random.integers(1, 6)):
            # Headers are where one byte changes most.
            damaged[random.integers(min(len(whole), 600))] = random.integers(256)
        file.write_bytes(damaged)
        try:
            assert isinstance(read_series(target, max_bytes=2**26), Series)
        except ValueError as error:
            refusals.append(str(error))
        file.write_bytes(whole)
    assert refusals
    assert all(text.startswith("read_series: ") for text in refusals)
    assert isinstance(read_series(target), Series)


@quiet
@pytest.mark.parametrize("name", WRITERS)
def test_arguments_that_mean_nothing_are_refused(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    if name in ("a.npy", "a.csv", "zero", "one"):
        refuse(tmp_path / name, "key must be left out", key="data")
    if name != "a.csv":
        refuse(tmp_path / name, "header must be left out", header=False)


# --- paths, suffixes, options ----------------------------------------------------------------------------------------


def test_paths(tmp_path: Path) -> None:
    for wrong in (3, b"a.csv", None, ["a.csv"]):
        with pytest.raises(TypeError, match="path must be a str or os.PathLike"):
            read_series(wrong)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="path must exist, got .*missing.npz"):
        read_series(tmp_path / "missing.npz")
    np.save(tmp_path / "a.npy", cube())
    with pytest.raises(TypeError, match="key must be a str"):
        read_series(tmp_path / "a.npy", key=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="max_bytes must be an int"):
        read_series(tmp_path / "a.npy", max_bytes=1e9)  # type: ignore[arg-type]
    assert isinstance(read_series(tmp_path / "a.npy"), Series)


def test_suffix_and_content(tmp_path: Path) -> None:
    np.savez(tmp_path / "real.npz", data=cube())
    raw = (tmp_path / "real.npz").read_bytes()
    for suffix in (".npy", ".h5", ".nc", ".csv"):
        (tmp_path / f"a{suffix}").write_bytes(raw)
        refuse(tmp_path / f"a{suffix}", f"begin as its suffix '{suffix}' says")
    for suffix in (".npz", ".h5", ".nc", ".npy"):
        (tmp_path / f"b{suffix}").write_text("a,b\n1,2\n")
        refuse(tmp_path / f"b{suffix}", f"begin as its suffix '{suffix}' says")
        (tmp_path / f"empty{suffix}").touch()
        refuse(tmp_path / f"empty{suffix}", "not be empty, got 0 bytes")
    (tmp_path / "a.feather").write_bytes(b"FEA1....")
    refuse(tmp_path / "a.feather", "file must be one of .npz, .npy, .h5")
    (tmp_path / "without_suffix").write_bytes(raw)
    assert np.array_equal(read_series(tmp_path / "without_suffix").values, cube())
    # Text that begins like a magic number is still text.
    (tmp_path / "pk.csv").write_text("PK,CDF\n1,2\n")
    assert read_series(tmp_path / "pk.csv").node_ids == ("PK", "CDF")


def test_unknown_folders(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    refuse(folder, r"folder must hold one of .*, got \[\]")
    (folder / "data_in12_out12.pkl").touch()
    refuse(folder, "got pickles, which are never read")


@pytest.mark.parametrize(
    ("file", "module"),
    [("a.h5", "h5py"), ("a.nc", "netCDF4"), ("a.nc", "xarray"), ("a.zarr", "zarr"), ("a.csv", "pandas"), ("a.grib", "cfgrib")],
)
def test_missing_libraries(tmp_path: Path, file: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if file == "a.zarr":
        (tmp_path / file).mkdir()
        (tmp_path / file / ".zgroup").write_text('{"zarr_format": 2}')
    else:
        (tmp_path / file).write_bytes({"a.csv": b"a,b\n1,2\n", "a.grib": b"GRIB"}.get(file, b"\x89HDF\r\n\x1a\n"))
    extra = "grib" if module == "cfgrib" else "data"
    monkeypatch.setitem(sys.modules, module, None)
    refuse(tmp_path / file, rf"needs {module}: pip install stprune\[{extra}\]", RuntimeError)


def test_numpy_files_need_no_optional_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("h5py", "xarray", "netCDF4", "zarr", "pandas", "cfgrib"):
        monkeypatch.setitem(sys.modules, module, None)
    for name in ("a.npz", "a.npy", "zero", "one"):
        WRITERS[name](tmp_path / name)
        assert isinstance(read_series(tmp_path / name), Series)
    np.savez(tmp_path / "text.npz", data=cube(), time=clock().astype(str))
    refuse(tmp_path / "text.npz", r"needs pandas: pip install stprune\[data\]", RuntimeError)
    blocked = f"import sys; sys.modules.update(dict.fromkeys({('h5py', 'xarray', 'netCDF4', 'zarr', 'pandas')}))"
    subprocess.run([sys.executable, "-c", f"{blocked}; import stprune.data"], check=True)


# --- the real series -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "graph", "steps_per_day"),
    [
        ("BJMetro_10min", (2700, 276, 2), True, None),
        ("ERA5_t2m_UK_2019_03", (744, 1617, 1), False, 24),
        ("EnglandCovid", (61, 129, 1), False, None),
        ("HangzhouMetro", (2700, 80, 1), False, None),
        ("LosLoop_METRLA_week1", (2016, 207, 1), True, 288),
        ("MontevideoBus", (744, 675, 1), False, None),
    ],
)
def test_real_series(real_data: Path, name: str, shape: tuple[int, ...], graph: bool, steps_per_day: int | None) -> None:
    series = read_series(real_data / name)
    with np.load(real_data / name / "data.npz", allow_pickle=False) as archive:
        assert np.array_equal(series.values, archive["data"])
        for key, found in (("adj", series.adjacency), ("names", series.node_ids), ("time", series.timestamps)):
            assert found is None if key not in archive else np.array_equal(found, archive[key])  # type: ignore[arg-type]
    assert (series.name, series.values.shape) == (name, shape)
    assert ((series.adjacency is not None), series.steps_per_day) == (graph, steps_per_day)


def test_real_grib(tmp_path: Path, real_data: Path) -> None:
    pytest.importorskip("cfgrib", reason="cfgrib is not installed")
    folder = real_data / "ERA5_t2m_UK_2019_03"
    series = read_series(folder / "era5-2mt-2019-03-uk.grib")
    stored = read_series(folder)
    assert series.channels == ("t2m",)
    assert np.array_equal(series.timestamps, stored.timestamps)  # type: ignore[arg-type]
    assert np.allclose(series.values, stored.values, atol=1e-3)
    assert (series.steps_per_day, len(set(series.node_ids or ()))) == (24, 1617)
    (tmp_path / "cut.grib").write_bytes((folder / "era5-2mt-2019-03-uk.grib").read_bytes()[:10_000])
    refuse(tmp_path / "cut.grib", "be a complete GRIB file")
    refuse(folder / "era5-2mt-2019-03-uk.grib", "other must be a variable of the file", key="other")


def test_simbench_profiles(tmp_path: Path) -> None:
    import importlib.util

    spec = importlib.util.find_spec("simbench")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package simbench is not installed")
    folder = Path(next(iter(spec.submodule_search_locations)), "networks", "1-complete_data-mixed-all-0-sw")
    series = read_series(folder / "LoadProfile.csv")
    assert series.values.shape == (35136, 192, 1)
    assert series.steps_per_day == 96
    assert np.array_equal(series.timestamps, clock(35136, 15, "2016-01-01"))  # type: ignore[arg-type]
    assert np.isfinite(series.values).all()
