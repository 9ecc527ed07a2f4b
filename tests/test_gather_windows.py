"""gather_windows against slicing window by window, and against the reference, bit for bit."""

import contextlib
import itertools

import pytest
import torch

from stprune import testing
from stprune.ops import gather_windows
from stprune.ops._window_recipe import LAYOUTS
from stprune.reference.precision import accumulator
from stprune.testing import assert_same

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
CODE = -32768


def make_series(times=40, nodes=7, channels=3, dtype=torch.float32, nans=True):
    generator = torch.Generator().manual_seed(times + nodes + channels)
    if dtype == torch.int16:
        raw = torch.randint(-3000, 3000, (times, nodes, channels), generator=generator, dtype=dtype)
        return raw.masked_fill(torch.rand(raw.shape, generator=generator) < 0.1, CODE) if nans else raw
    values = torch.randn(times, nodes, channels, generator=generator, dtype=torch.float64) * 50 + 200
    if nans:
        values[torch.rand(values.shape, generator=generator) < 0.1] = torch.nan
        values[0, 0, 0], values[1, 0, 0], values[2, 0, 0] = torch.inf, -torch.inf, -0.0
    return values.to(dtype)


def make_nodes(batch, count, num_nodes):
    generator = torch.Generator().manual_seed(batch)
    return torch.stack([torch.randperm(num_nodes, generator=generator)[:count] for _ in range(batch)]).reshape(batch, count)


def slice_windows(
    series,
    start,
    history,
    horizon,
    node=None,
    layout="BTNC",
    mean=None,
    std=None,
    normalize_target=False,
    time_features=None,
    target_channels=None,
    scale=None,
    offset=None,
    missing=None,
    fill=None,
    dtype=None,
):
    """The definition, one window after the other, on the whole decoded series."""
    if series.dim() == 2:
        series = series[:, :, None]
    wide = accumulator(series.dtype)
    dtype = dtype or (wide if series.dtype == torch.int16 else series.dtype)

    def table(value):
        return value.to(wide) if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=wide)

    values = series.to(wide)
    if scale is not None:
        values = values * table(scale)
    if offset is not None:
        values = values + table(offset)
    if missing is not None:
        values = torch.where(series == missing, torch.tensor(torch.nan, dtype=wide), values)
    normal = values
    if mean is not None or std is not None:
        normal = (values - table(0.0 if mean is None else mean)) / table(1.0 if std is None else std)
    inputs = normal if fill is None else torch.where(normal.isnan(), torch.tensor(fill, dtype=wide), normal)
    targets = normal if normalize_target else values
    xs, ys = [], []
    for b, row in enumerate(start.tolist()):
        x, y = inputs[row : row + history], targets[row + history : row + history + horizon]
        if node is not None:
            x, y = x[:, node[b]], y[:, node[b]]
        x = x.to(dtype)
        if time_features is not None:
            features = time_features[row : row + history].to(dtype)
            x = torch.cat([x, features[:, None, :].expand(-1, x.shape[1], -1)], dim=2)
        if target_channels is not None:
            y = y[..., [target_channels] if isinstance(target_channels, int) else list(target_channels)]
        xs.append(x)
        ys.append(y.to(dtype))
    letters = layout if "C" in layout else layout + "C"
    order = ["BTNC".index(axis) for axis in letters]
    both = [torch.stack(parts).permute(order).contiguous() for parts in (xs, ys)]
    return tuple(part if "C" in layout else part.squeeze(-1) for part in both)


def check(series, start, *, history, horizon, **options):
    got = gather_windows(series, start, history=history, horizon=horizon, **options)
    want = slice_windows(series, start, history, horizon, **options)
    for actual, expected in zip(got, want, strict=True):
        assert_same(actual, expected)
        assert actual.is_contiguous()
    return got


STARTS = torch.tensor([0, 23, 5, 5, 11])


# --- matches slicing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [*FLOATS, torch.int16])
@pytest.mark.parametrize("drawn", [False, True])
def test_every_layout_and_dtype_copies_and_normalizes(layout, dtype, drawn):
    channels = 3 if "C" in layout else 1
    series = make_series(channels=channels, dtype=dtype)
    node = make_nodes(5, 4, 7) if drawn else None
    decode = {"scale": 0.07, "offset": 11.3, "missing": CODE} if dtype == torch.int16 else {}
    check(series, STARTS, history=12, horizon=5, layout=layout, node=node, **decode)
    for table in (torch.tensor(1.0), torch.arange(1.0, 1 + channels), torch.linspace(1, 9, 7)[:, None]):
        options = {"mean": 200 * table, "std": table / 3, "fill": 0.0, **decode}
        check(series, STARTS, history=12, horizon=5, layout=layout, node=node, **options)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if "C" in name])
@pytest.mark.parametrize("drawn", [False, True])
def test_time_features_and_target_channels(layout, drawn):
    for dtype, targets in itertools.product((torch.float32, torch.float64), (None, 1, [2, 0], [0, 1])):
        series = make_series(dtype=dtype)
        features = torch.rand(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        check(
            series,
            STARTS,
            history=6,
            horizon=3,
            layout=layout,
            node=make_nodes(5, 3, 7) if drawn else None,
            time_features=features,
            target_channels=targets,
            mean=torch.full((7, 3), 190.0),
            std=7,
            normalize_target=True,
        )


def test_layouts_without_channels_take_one_target_of_one_channel():
    series = make_series(channels=1)
    x, y = check(series[:, :, 0], STARTS, history=4, horizon=2, layout="BNT", target_channels=0)
    assert x.shape == (5, 7, 4)
    assert y.shape == (5, 7, 2)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int16])
def test_float32_outputs_of_every_dtype(dtype):
    series = make_series(dtype=dtype)
    for options in ({}, {"mean": 199.7, "std": 3.3}, {"fill": -1.5}):
        x, y = check(series, STARTS, history=7, horizon=2, dtype=torch.float32, **options)
        assert x.dtype == y.dtype == torch.float32


def test_a_step_of_int16_decoding_may_be_left_out():
    series = make_series(dtype=torch.int16)
    scale, offset = torch.tensor([0.1, 0.01, 3.0]), torch.linspace(-5, 5, 7)[:, None]
    for given in itertools.product((None, scale), (None, offset), (None, CODE), (None, 0.25)):
        options = dict(zip(("scale", "offset", "missing", "fill"), given, strict=True))
        for node in (None, make_nodes(5, 2, 7)):
            check(series, STARTS, history=4, horizon=2, node=node, target_channels=[2, 1], **options)


def strides_of(series):
    """The same values in other strides, none of them copied by the op."""
    times, nodes, channels = series.shape
    time_inner = series.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    channel_outer = series.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    every_second = torch.zeros(2 * times, nodes, channels, dtype=series.dtype)
    every_second[::2] = series
    some_nodes = torch.zeros(times, nodes + 3, channels, dtype=series.dtype)
    some_nodes[:, 2:-1] = series
    some_channels = torch.zeros(times, nodes, channels + 2, dtype=series.dtype)
    some_channels[..., 1:-1] = series
    shifted = torch.zeros(series.numel() + 1, dtype=series.dtype)[1:].view(series.shape)
    shifted.copy_(series)
    return [time_inner, channel_outer, every_second[::2], some_nodes[:, 2:-1], some_channels[..., 1:-1], shifted]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int16])
def test_every_stride_of_the_series(channels, dtype):
    series = make_series(channels=channels, dtype=dtype)
    for view in strides_of(series):
        assert torch.equal(view.nan_to_num(), series.nan_to_num())
        for layout, node in itertools.product(("BTNC", "BCNT", "BNTC"), (None, make_nodes(5, 3, 7))):
            check(view, STARTS, history=5, horizon=4, layout=layout, node=node)
            check(view, STARTS, history=5, horizon=4, layout=layout, node=node, mean=3.0, std=0.7, dtype=torch.float32)


# Around the kernel's tiles: 1,024 values in a row, 4,096 in all where rows interleave, 16 nodes at least.
SHAPES = [
    (1, 1),
    (1, 2),
    (15, 1),
    (17, 1),
    (341, 3),
    (342, 3),
    (1023, 1),
    (1024, 1),
    (1025, 1),
    (2, 1030),
    (3, 1024),
    (2100, 1),
]


@pytest.mark.parametrize(("nodes", "channels"), SHAPES)
def test_sizes_around_the_tiles(nodes, channels):
    series = make_series(12, nodes, channels)
    start = torch.tensor([3, 0])
    mean = torch.arange(float(nodes * channels)).reshape(nodes, channels)
    node = make_nodes(2, max(1, nodes // 2), nodes)
    for drawn, layout in itertools.product((None, node), ("BTNC", "BCNT", "BCTN")):
        check(series, start, history=6, horizon=3, layout=layout, node=drawn)
        check(series, start, history=6, horizon=3, layout=layout, node=drawn, mean=mean, std=2.0, normalize_target=True)


def test_long_windows_interleave_in_small_tiles():
    series = make_series(700, 40, 1)
    check(series, torch.tensor([0, 90]), history=300, horizon=310, layout="BNT", mean=2.0)


# --- edges ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("history", "horizon"), [(1, 1), (1, 39), (39, 1), (20, 20)])
def test_first_and_last_window(history, horizon):
    series = make_series(40, 1, 1)
    for layout in LAYOUTS:
        check(series, torch.tensor([40 - history - horizon, 0]), history=history, horizon=horizon, layout=layout)


def test_no_windows_and_no_nodes():
    series = make_series()
    x, y = gather_windows(series, torch.empty(0, dtype=torch.int64), history=12, horizon=5, layout="BCNT")
    assert x.shape == (0, 3, 7, 12)
    assert y.shape == (0, 3, 7, 5)
    x, y = gather_windows(series, STARTS, history=2, horizon=1, node=torch.empty(5, 0, dtype=torch.int64))
    assert x.shape == (5, 2, 0, 3)
    assert y.shape == (5, 1, 0, 3)


def test_a_node_may_repeat_and_nodes_keep_their_order():
    series = make_series()
    x, _ = check(series, torch.tensor([0, 1]), history=2, horizon=1, node=torch.tensor([[6, 0, 6], [3, 2, 1]]))
    assert_same(x[:, :, 0][0], x[:, :, 2][0])


def test_strided_starts_and_nodes():
    start = torch.tensor([0, 99, 23, 99, 5])[::2]
    node = make_nodes(3, 7, 7)[:, ::3]
    check(make_series(), start, history=12, horizon=5, node=node)


def test_copies_keep_the_payload_of_a_nan():
    bits = torch.full((10, 2), 0x7FA12345, dtype=torch.int32)
    x, _ = gather_windows(bits.view(torch.float32), torch.tensor([1]), history=3, horizon=2, layout="BNT")
    assert bool((x.view(torch.int32) == 0x7FA12345).all())


@pytest.mark.parametrize("isa", testing.isas() or [None])
def test_half_precision_is_converted_exactly_by_every_instruction_set(isa):
    with testing.isa(isa) if isa else contextlib.nullcontext():
        every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.float16).reshape(64, 1024)
        wide, _ = gather_windows(every, torch.arange(63), history=1, horizon=1, dtype=torch.float32)
        assert_same(wide[:, 0, :, 0], every[:63].float())
        # Rounding to half: ties, halves' denormals and what overflows, from float32 arithmetic.
        x, _ = gather_windows(every, torch.arange(63), history=1, horizon=1, mean=1 / 3, std=1.7)
        assert_same(x[:, 0, :, 0], ((every[:63].float() - 1 / 3) / 1.7).half())
        x, _ = gather_windows(every[:, :1021], torch.arange(63), history=1, horizon=1, std=3e-2)
        assert_same(x[:, 0, :, 0], (every[:63, :1021].float() / 3e-2).half())


def test_denormals_survive():
    series = make_series(nans=False) * 1e-41
    x, _ = check(series, STARTS, history=3, horizon=2, mean=1e-42, std=0.5)
    assert float(x.abs().max()) > 0


def test_the_series_is_not_modified():
    series = make_series()
    before = series.clone()
    gather_windows(series, STARTS, history=12, horizon=5, mean=3.0, fill=0.0)
    assert_same(series, before)


def test_windows_of_more_than_two_billion_values_apart():
    # Every row is the same memory: a stride of 0 costs nothing, and offsets are still rows times stride elsewhere.
    row = torch.arange(6.0).reshape(1, 3, 2)
    series = row.expand(3_000_000_000, 3, 2)
    x, y = gather_windows(series, torch.tensor([2_999_999_995, 0]), history=2, horizon=2)
    assert_same(x, row.expand(2, 2, 3, 2).contiguous())
    assert_same(y, x)


# --- out -----------------------------------------------------------------------------------------------------------------


def test_out_is_written_over_and_returned():
    series = make_series()
    first = gather_windows(series, STARTS, history=12, horizon=5, layout="BCNT")
    pointers = [part.data_ptr() for part in first]
    second = gather_windows(series, STARTS.flip(0), history=12, horizon=5, layout="BCNT", out=first)
    assert second[0] is first[0]
    assert second[1] is first[1]
    assert [part.data_ptr() for part in second] == pointers
    for actual, expected in zip(second, slice_windows(series, STARTS.flip(0), 12, 5, layout="BCNT"), strict=True):
        assert_same(actual, expected)


def test_out_of_another_form_is_refused_untouched():
    series = make_series()
    good = [torch.full((5, 12, 7, 3), 9.0), torch.full((5, 5, 7, 3), 9.0)]
    for place, bad in (
        (0, torch.full((5, 12, 7, 2), 9.0)),
        (1, torch.full((5, 5, 7, 3), 9.0, dtype=torch.float64)),
        (1, torch.full((5, 5, 3, 7), 9.0).transpose(2, 3)),
    ):
        out = list(good)
        out[place] = bad
        with pytest.raises(ValueError, match=rf"gather_windows: {'xy'[place]} of out must be contiguous torch.float32 \["):
            gather_windows(series, STARTS, history=12, horizon=5, out=tuple(out))
        assert all(bool((part == 9.0).all()) for part in out)
    with pytest.raises(TypeError, match="out must be a pair"):
        gather_windows(series, STARTS, history=12, horizon=5, out=good[0])


# --- errors ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [-1, 24, 2**62])
def test_starts_out_of_range(bad):
    out = (torch.full((2, 12, 7, 3), 9.0), torch.full((2, 5, 7, 3), 9.0))
    with pytest.raises(ValueError, match=rf"gather_windows: start must lie in \[0, 23\], got {bad}$"):
        gather_windows(make_series(), torch.tensor([0, bad]), history=12, horizon=5, out=out)
    assert all(bool((part == 9.0).all()) for part in out)


@pytest.mark.parametrize("bad", [-1, 7, -(2**62)])
def test_nodes_out_of_range(bad):
    with pytest.raises(ValueError, match=rf"gather_windows: node must lie in \[0, 6\], got {bad}$"):
        gather_windows(make_series(), torch.tensor([0, 1]), history=12, horizon=5, node=torch.tensor([[0, 1], [2, bad]]))


def test_the_kernel_itself_refuses_what_would_read_out_of_bounds():
    series, x, y = make_series(), torch.empty(1, 12, 7, 3), torch.empty(1, 5, 7, 3)

    def call(start=0, node=None, channels=(0, 1, 2), x=x, mean=None, features=None):
        torch.ops.stprune.gather_windows(
            series, torch.tensor([start]), node, mean, mean, None, None, None, None, features, list(channels), False, True, x, y
        )

    call()
    for wrong in (
        {"start": 24},
        {"start": -1},
        {"node": torch.full((1, 7), 7)},
        {"channels": (0, 1, 3)},
        {"channels": (0, 1)},
        {"x": torch.empty(1, 12, 7, 2)},
        {"mean": torch.zeros(7, 2)},
        {"features": torch.zeros(39, 1), "x": torch.empty(1, 12, 7, 4)},
    ):
        with pytest.raises((RuntimeError, IndexError)):
            call(**wrong)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"series": [[1.0]]}, TypeError, "series must be a tensor, got list"),
        ({"series": torch.zeros(40, 7, dtype=torch.int32)}, TypeError, "series must be float32, .* or int16, got torch.int32"),
        ({"series": torch.zeros(40)}, ValueError, r"series must be \[time, node\] or .*, got shape \(40,\)"),
        ({"series": torch.zeros(40, 0)}, ValueError, "series must not be empty"),
        ({"series": torch.zeros(16, 7)}, ValueError, r"series must hold at least history \+ horizon = 17 rows, got 16"),
        ({"series": torch.zeros(40, 7, requires_grad=True)}, ValueError, "series must not require a gradient"),
        ({"series": torch.zeros(40, 7).to_sparse()}, TypeError, "series must be a dense tensor"),
        ({"start": torch.tensor([0.0])}, TypeError, "start must be int64, got torch.float32"),
        ({"start": torch.tensor([0], dtype=torch.int32)}, TypeError, "start must be int64"),
        ({"start": torch.tensor([[0]])}, ValueError, "start must have one dimension"),
        ({"history": 0}, ValueError, "history must be at least 1, got 0"),
        ({"horizon": 1.5}, TypeError, "horizon must be an integer, got 1.5"),
        ({"node": torch.tensor([0])}, ValueError, r"node must have shape \[B, m\] with B = 1, got \(1,\)"),
        ({"node": torch.tensor([[0], [0]])}, ValueError, r"node must have shape \[B, m\] with B = 1"),
        ({"node": torch.tensor([[0.0]])}, TypeError, "node must be int64"),
        ({"layout": "NBTC"}, ValueError, "layout must be one of BTNC, .*, got 'NBTC'"),
        ({"layout": "BTN"}, ValueError, "layout must have a C when x has 3 channels, got 'BTN'"),
        ({"mean": torch.zeros(4)}, ValueError, r"mean must be a number or broadcast to .* = \[7, 3\], got shape \(4,\)"),
        ({"mean": torch.nan}, ValueError, "mean must be finite, got nan"),
        ({"mean": "1"}, TypeError, "mean must be a number, got '1'"),
        ({"std": 0.0}, ValueError, "std must be greater than 0, got 0"),
        ({"std": torch.tensor([1.0, -2.0, 1.0])}, ValueError, "std must be greater than 0, got -2"),
        ({"std": torch.tensor([1.0, torch.inf, 1.0])}, ValueError, "std must be finite, got inf"),
        ({"std": 1e-60}, ValueError, "std must be greater than 0, got 0"),
        ({"normalize_target": True}, ValueError, "normalize_target must be False without mean and std, got True"),
        ({"scale": 2.0}, ValueError, "scale must be None unless series is int16, got 2.0 with torch.float32"),
        ({"missing": 0}, ValueError, "missing must be None unless series is int16"),
        ({"fill": torch.inf}, ValueError, "fill must be finite, got inf"),
        ({"dtype": torch.float64}, TypeError, "dtype must be float32 for a series of torch.float32, got torch.float64"),
        ({"time_features": torch.zeros(39, 2)}, ValueError, "time_features must be .* a row for each of 40, got shape"),
        ({"time_features": torch.zeros(40, 2, dtype=torch.int64)}, TypeError, "time_features must be float32"),
        ({"target_channels": 3}, ValueError, r"target_channels must lie in \[0, 2\], got 3"),
        ({"target_channels": [0, 0]}, ValueError, r"target_channels must be distinct and at least one, got \[0, 0\]"),
        ({"target_channels": []}, ValueError, "target_channels must be distinct and at least one"),
        ({"target_channels": "0"}, TypeError, "target_channels must be an int or ints"),
    ],
)
def test_errors(change, error, message):
    arguments = {"series": make_series(nans=False), "start": torch.tensor([0]), "history": 12, "horizon": 5, **change}
    series, start = arguments.pop("series"), arguments.pop("start")
    with pytest.raises(error, match="^gather_windows: " + message):
        gather_windows(series, start, **arguments)


def test_time_features_need_more_than_sixteen_bits():
    series = make_series(dtype=torch.bfloat16)
    with pytest.raises(TypeError, match="dtype must be float32 or float64 for time_features, got torch.bfloat16"):
        gather_windows(series, STARTS, history=2, horizon=1, time_features=torch.zeros(40, 1))
    check(series, STARTS, history=2, horizon=1, time_features=torch.rand(40, 1), dtype=torch.float32)


def test_missing_must_fit_into_int16():
    with pytest.raises(ValueError, match=r"missing must lie in \[-32768, 32767\], got 40000"):
        gather_windows(make_series(dtype=torch.int16), STARTS, history=2, horizon=1, missing=40000)


# --- opcheck, repeatability --------------------------------------------------------------------------------------------------
