"""The series of a study: names and options, files, generated traffic, graphs, and the windows of the parts."""

import importlib.util
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import stprune
from stprune.models import STID
from stprune.study import series as series_module
from stprune.study import simbench
from stprune.study.graph import Edges, nearest_nodes
from stprune.study.problem import HISTORY, HORIZON, prepare, split_windows
from stprune.study.series import label, load
from stprune.study.traffic import traffic

CPU = torch.device("cpu")
WINDOW = HISTORY + HORIZON


def small_series():
    return load("demand?nodes=5&days=14")


@pytest.fixture(scope="module")
def problem():
    return prepare(small_series(), device=CPU)


# --- names and options -----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Writes a folder as those of the real series are: 96 steps x 10 nodes x 2 channels on a ring."""

    def write(**meta):
        place = tmp_path / "Ring"
        place.mkdir(exist_ok=True)
        data = np.arange(96 * 10 * 2, dtype=np.float32).reshape(96, 10, 2)
        ring = np.roll(np.eye(10, dtype=np.float32), 1, 0) * np.arange(1, 11, dtype=np.float32)
        np.savez(place / "data.npz", data=data, adj=ring)
        (place / "meta.json").write_text(json.dumps(meta))
        return place, data[:, :, 0], ring

    return write


def test_a_folder_is_read_with_its_graph_and_its_licence(folder):
    place, values, ring = folder(source="github somebody/ring", licence="MIT", step="1 h")
    series = load(str(place))
    assert series.name == "Ring"
    assert np.array_equal(series.values, values)
    assert series.values.dtype == np.float32
    assert np.array_equal(series.edges.dense(), ring)
    assert series.source == "github somebody/ring; licence: MIT"
    assert (series.steps_per_day, series.null_value) == (24, None)
    assert series.day_of_week[[0, 23, 24]].tolist() == [0, 0, 1]
    assert series.time_of_day[[1, 25]].tolist() == pytest.approx([1 / 24, 1 / 24])


def test_a_smaller_series_has_evenly_spaced_nodes_their_edges_and_the_first_steps(folder):
    place, values, ring = folder(step="1 h")
    series = load(f"{place}?nodes=4&steps=30&stride=2&null=7")
    node = [0, 2, 5, 7]
    assert np.array_equal(series.values, values[:60:2, node])
    assert np.array_equal(series.edges.dense(), ring[np.ix_(node, node)])
    assert series.node_names == ("0", "2", "5", "7")
    assert (series.steps_per_day, series.null_value) == (12, 7.0)
    assert series.day_of_week.tolist() == [0] * 12 + [1] * 12 + [2] * 6
    assert series.time_of_day[:3].tolist() == pytest.approx([0, 1 / 12, 2 / 12])
    assert np.array_equal(load(f"{place}?nodes=10&steps=96").values, values)


@pytest.mark.parametrize(
    ("step", "what", "per_day"),
    [
        ("10 min", "", 144),
        ("5 min", "speed", 288),
        ("1 h", "", 24),
        ("1 day", "", 1),
        ("10 min (108/day)", "metro", 108),
        ("10 min", "25 weekdays (05:00-23:00)", 108),
        ("15 min", "(06:30-23:00)", 66),
        ("7 min", "", None),
        ("0 min", "", None),
        ("often", "", None),
        ("10 min", "(23:00-05:00)", None),
    ],
)
def test_steps_of_a_day_come_from_what_the_folder_says(folder, step, what, per_day):
    place, *_ = folder(step=step, what=what)
    if per_day is None:
        with pytest.raises(ValueError, match=r"^load: data must say its steps per day, as in PATH\?per_day=96, got Ring"):
            load(str(place))
    else:
        assert load(str(place)).steps_per_day == per_day
    assert load(f"{place}?per_day=12").steps_per_day == 12


def test_a_series_of_working_days_has_no_weekends(folder):
    place, *_ = folder(step="2 h", what="8 weekdays")
    assert load(str(place)).day_of_week[::12].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]


def test_a_folders_description_must_be_json(folder):
    place, *_ = folder()
    (place / "meta.json").write_text("{")
    with pytest.raises(ValueError, match=r"^load: data must have a meta\.json of JSON text, got "):
        load(str(place))


def test_names_of_series_are_short():
    assert label("traffic?nodes=900&r=0.1") == "traffic, nodes=900, r=0.1"
    assert label("/far/away/ERA5?null=0&per_day=24") == "ERA5"
    assert small_series().name == "demand, nodes=5, days=14"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("demand?size=3", "have known options, got 'size'; the nearest is '.*', all are nodes, days, steps, seed, null"),
        ("demand?node=3", "have known options, got 'node'; the nearest is 'nodes', all are"),
        ("demand?nodes=3&nodes=4", "have each option at most once, got 'nodes=4'"),
        ("demand?", None),
        ("demand?nodes", r"have a whole number for nodes, got ''"),
        ("demand?nodes=3.5", r"have a whole number for nodes, got '3\.5'"),
        ("demand?nodes=0", r"have nodes in \[1, inf\), got 0"),
        ("demand?seed=-1", r"have seed in \[0, inf\), got -1"),
        ("demand?null=much", r"have a number for null, got 'much'"),
        ("demand?null=nan", r"have null in \[-inf, inf\), got nan"),
        ("demand?days=2&steps=200", r"have days or steps, not both"),
        ("demand?per_day=24", "have known options, got 'per_day'"),
        ("traffic?r=1", r"have r in \[0, 1\), got 1"),
        ("traffic?r=-0.1", r"have r in \[0, 1\), got -0\.1"),
        ("simbench?r=0.1", "have known options, got 'r'; .* all are nodes, steps, stride, null"),
    ],
)
def test_options_that_cannot_be_are_refused(data, message):
    if message is None:
        assert load(data).values.shape == (120 * 96, 64)
        return
    with pytest.raises(ValueError, match=f"^load: data must {message}"):
        load(data)


def test_more_than_a_file_has_is_refused(folder):
    place, *_ = folder(step="1 h")
    for option, message in (
        ("nodes=11", "ask for at most the 10 nodes there are, got 11"),
        ("steps=97", "ask for at most the 96 steps there are, got 97"),
        ("stride=2&steps=49", "ask for at most the 48 steps there are, got 49"),
        ("stride=5", "have a stride that divides its day, got 5 for 24 steps per day"),
    ):
        with pytest.raises(ValueError, match=f"^load: data must {message}"):
            load(f"{place}?{option}")


def test_a_name_of_nothing_is_refused():
    with pytest.raises(
        FileNotFoundError, match="^load: data must be simbench, demand, traffic or an existing path, got synthetic"
    ):
        load("synthetic")


def test_a_path_is_read_with_its_own_time_stamps(tmp_path):
    values = np.arange(600, dtype=np.float32).reshape(300, 2)
    times = np.datetime64("2024-02-29T00:00") + np.arange(300) * np.timedelta64(60, "m")
    lines = [f"{time}," + ",".join(str(v) for v in row) for time, row in zip(times, values, strict=True)]
    path = tmp_path / "load.csv"
    path.write_text("time,a,b\n" + "\n".join(lines) + "\n")
    series = load(str(path))
    assert np.array_equal(series.values, values)
    assert (series.steps_per_day, series.node_names, series.edges) == (24, ("a", "b"), None)
    assert series.time_of_day[:3].tolist() == pytest.approx([0, 1 / 24, 2 / 24])
    assert series.day_of_week[0] == 3  # a Thursday
    assert series.source == "read from load.csv"


# --- the real series -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "per_day", "edges", "windows"),
    [
        ("BJMetro_10min", (2700, 276), 108, 630, (1597, 517, 517)),
        ("ERA5_t2m_UK_2019_03", (744, 1617), 24, None, (423, 126, 126)),
        ("HangzhouMetro", (2700, 80), 108, None, (1597, 517, 517)),
        ("LosLoop_METRLA_week1", (2016, 207), 288, 2833, (1186, 380, 381)),
        ("MontevideoBus", (744, 675), 24, None, (423, 126, 126)),
    ],
)
def test_the_real_series_are_ready_for_training(real_data, name, shape, per_day, edges, windows):
    series = load(str(real_data / name))
    assert series.name == name
    with np.load(real_data / name / "data.npz") as archive:
        assert np.array_equal(series.values, archive["data"][:, :, 0])
    assert series.values.shape == shape
    assert series.steps_per_day == per_day
    assert "licence: " in series.source
    assert (None if series.edges is None else len(series.edges.weight)) == edges
    split = prepare(series, device=CPU).split
    assert (len(split.train), len(split.validation), len(split.test)) == windows


def test_the_real_calendars(real_data):
    assert load(str(real_data / "BJMetro_10min")).day_of_week.max() == 4
    era = load(str(real_data / "ERA5_t2m_UK_2019_03"))
    assert era.day_of_week[[0, 24]].tolist() == [4, 5]


def test_a_series_shorter_than_five_windows_is_refused(real_data):
    with pytest.raises(ValueError, match="the series must have at least 120 steps for a 6:2:2 split, got 61"):
        prepare(load(str(real_data / "EnglandCovid")), device=CPU)


# The night in which the clock is put back: 2:45 is followed by 2:00 again.
STAMPS = ["30.10.2016 02:45", "30.10.2016 02:00", "31.10.2016 00:00", "31.12.2016 23:45"]


@pytest.fixture
def write_profiles(tmp_path, monkeypatch):
    """Writes a file of SimBench's form, of 4 rows and 2 columns."""
    monkeypatch.setattr(simbench, "STEPS", 4)
    monkeypatch.setattr(simbench, "NODES", 2)

    def write(names, stamps):
        path = tmp_path / "LoadProfile.csv"
        lines = [f"{stamp};" + ";".join(str(step + 0.25 * i) for i in range(len(names))) for step, stamp in enumerate(stamps)]
        path.write_text("\n".join([";".join(["time", *names]), *lines]) + "\n")
        return path

    return write


def test_simbench_columns_and_clock_are_read_from_the_file(write_profiles, monkeypatch):
    path = write_profiles(["a_pload", "a_qload"], STAMPS)
    monkeypatch.setattr(simbench, "find_profiles", lambda: path)
    series = load("simbench")
    assert series.values.dtype == np.float32
    assert series.values.tolist() == [[0.0, 0.25], [1.0, 1.25], [2.0, 2.25], [3.0, 3.25]]
    assert series.time_of_day.tolist() == pytest.approx([11 / 96, 8 / 96, 0.0, 95 / 96])
    assert series.day_of_week.tolist() == [6, 6, 0, 5]
    assert series.node_names == ("a_pload", "a_qload")
    assert "Open Database License" in series.source


@pytest.mark.parametrize(
    ("names", "stamps", "message"),
    [
        (["a_pload"], STAMPS, "columns must be time and 2 load profiles"),
        (["a_pload", "a_other"], STAMPS, "columns must be time and 2 load profiles"),
        (["a_pload", "a_qload"], STAMPS[:3], "values must be 4 x 2, got 3 x 2"),
        (["a_pload", "a_qload"], ["2016-01-01"] * 4, "time stamps must be dd.mm.yyyy HH:MM"),
    ],
)
def test_another_file_than_simbench_is_refused(write_profiles, monkeypatch, names, stamps, message):
    path = write_profiles(names, stamps)
    monkeypatch.setattr(simbench, "find_profiles", lambda: path)
    with pytest.raises(ValueError, match=f"LoadProfile.csv: {message}"):
        simbench.read_profiles()


def test_simbench_that_is_not_installed_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ModuleNotFoundError, match="the package simbench is not installed; install it with `pip install --no-deps"
    ):
        load("simbench")


def test_real_simbench_is_a_leap_year_of_192_profiles():
    if importlib.util.find_spec("simbench") is None:
        pytest.skip("simbench is not installed")
    series = load("simbench")
    assert series.values.shape == (366 * 96, 192)
    assert series.values.dtype == np.float32
    assert np.isfinite(series.values).all()
    assert series.day_of_week[0] == 4  # a Friday
    # The clock jumps by an hour in March and October, so the count of steps and the clock differ in between.
    counted = np.arange(len(series.values)) % 96
    clock = np.rint(series.time_of_day * 96).astype(int)
    shifted = counted != clock
    assert shifted.any()
    assert not shifted[: 60 * 96].any()
    assert not shifted[-60 * 96 :].any()


# --- generated series ------------------------------------------------------------------------------------------------


def correlation(residual):
    """Mean correlation between two different nodes, of [time, node]."""
    residual = (residual - residual.mean(0)) / residual.std(0)
    count = residual.shape[1]
    return float((np.square(residual.sum(1)).mean() / count - 1) / (count - 1))


@pytest.mark.parametrize("data", ["demand?nodes=5&days=14", "traffic?nodes=30&steps=1344"])
def test_a_generated_series_is_made_by_its_name_alone(data):
    before = np.random.get_state()[1].tolist()
    series, again, other = load(data), load(data), load(f"{data}&seed=1")
    assert np.array_equal(series.values, again.values)
    assert not np.array_equal(series.values, other.values)
    assert np.random.get_state()[1].tolist() == before
    assert series.values.dtype == np.float32
    assert series.values.shape == (14 * 96, len(series.node_names))
    assert series.steps_per_day == 96
    assert series.day_of_week[[0, 95, 96]].tolist() == [0, 0, 1]


@pytest.mark.parametrize(("nodes", "steps", "per_day"), [(2, 50, 24), (101, 600, 288), (900, 400, 96), (8600, 130, 96)])
def test_traffic_has_the_size_asked_for_and_a_connected_network(nodes, steps, per_day):
    series = load(f"traffic?nodes={nodes}&steps={steps}&per_day={per_day}")
    assert series.values.shape == (steps, nodes)
    assert series.steps_per_day == per_day
    assert float(series.values.min()) > 0
    assert np.isfinite(series.values).all()
    edges = series.edges
    assert set(zip(edges.source.tolist(), edges.target.tolist(), strict=True)) == set(
        zip(edges.target.tolist(), edges.source.tolist(), strict=True)
    )
    assert np.bincount(edges.source, minlength=nodes).max() <= 4
    assert (edges.source != edges.target).all()
    assert ((edges.weight > 0) & (edges.weight < 1)).all()
    assert connected(edges)


def connected(edges):
    component = np.arange(edges.num_nodes)
    while True:
        smallest = component.copy()
        np.minimum.at(smallest, edges.source, component[edges.target])
        if np.array_equal(smallest, component):
            return not component.any()
        component = smallest[smallest]


def test_every_small_network_is_connected():
    for seed in range(20):
        assert connected(traffic(num_nodes=4 + seed % 3, num_steps=24, seed=seed).edges), seed


@pytest.mark.parametrize("nodes", [100, 400])
@pytest.mark.parametrize("r", [0.0, 0.05, 0.3, 0.8])
def test_traffics_residuals_correlate_by_r(nodes, r):
    made = traffic(num_nodes=nodes, num_steps=2000, r=r)
    residual = np.log(made.values / made.expected)
    # Incidents are not common to all.
    assert correlation(residual) == pytest.approx(r, abs=0.006 + 0.02 * r)
    # The same of what is new in every step.
    lag = float(np.corrcoef(residual[1:].ravel(), residual[:-1].ravel())[0, 1])
    assert correlation(residual[1:] - lag * residual[:-1]) == pytest.approx(r, abs=0.006 + 0.02 * r)
    assert residual.std(0).mean() == pytest.approx(0.2, abs=0.01)


def test_only_the_share_in_common_depends_on_r():
    low, high = (traffic(num_nodes=50, num_steps=700, r=r) for r in (0.0, 0.9))
    assert np.array_equal(low.expected, high.expected)
    assert np.array_equal(low.incidents, high.incidents)
    for one, other in zip(low.edges, high.edges, strict=True):
        assert np.array_equal(one, other)


def test_traffic_diffuses_along_the_roads():
    made = traffic(num_nodes=200, num_steps=3000, r=0.2)
    residual = np.log(made.values / made.expected)
    found = np.corrcoef(residual.T)
    near = found[made.edges.source, made.edges.target].mean()
    assert near > np.mean(found) + 0.1
    # A neighbour's past says something of a node's present that its own past does not.
    past, now = residual[:-1], residual[1:]
    neighbours = np.zeros_like(past)
    np.add.at(neighbours.T, made.edges.source, past.T[made.edges.target])
    own = past - past.mean(0)
    new = now - now.mean(0) - (own * now).mean() / np.square(own).mean() * own
    assert np.corrcoef(new.ravel(), neighbours.ravel())[0, 1] > 0.02


def test_traffic_has_rush_hours_by_group_and_other_weekends():
    made = traffic(num_nodes=300, num_steps=14 * 96)
    days = made.expected.reshape(14, 96, 300)
    peaks = days[0].argmax(0) * 24 / 96
    assert (np.abs(peaks - 7.8) < 1.6).sum() > 20
    assert (np.abs(peaks - 17.5) < 1.6).sum() > 20
    shape = days / days.mean(1, keepdims=True)
    np.testing.assert_allclose(shape[0], shape[1], rtol=0.02)
    np.testing.assert_allclose(shape[0], shape[7], rtol=0.05)
    assert np.abs(shape[0] - shape[5]).mean() > 0.2
    # Drift: the level of a node changes from week to week by its own share.
    change = np.log(days[7:].mean((0, 1)) / days[:7].mean((0, 1)))
    assert 0.02 < change.std() < 0.1


def test_incidents_drop_at_once_spread_and_recover():
    made = traffic(num_nodes=400, num_steps=3000, r=0.0)
    residual = np.log(made.values / made.expected)
    node, start = made.incidents[made.incidents[:, 1] < 2900].T
    node, start = node[start > 0], start[start > 0]
    assert len(made.incidents) == math.ceil(0.01 * 400 * 3000 / 96)
    assert np.median(residual[start, node]) < -0.7
    assert -0.4 < np.median(residual[start + 6, node]) < -0.1
    assert abs(np.median(residual[start - 1, node])) < 0.1
    assert abs(np.median(residual[start + 14, node])) < 0.1
    beside = {int(n): made.edges.target[made.edges.source == n] for n in node}
    later = [residual[s + 1, beside[int(n)]].mean() for n, s in zip(node, start, strict=True)]
    assert -0.7 < np.median(later) < -0.3


def test_incidents_are_as_many_as_asked_for_and_change_nothing_else():
    usual, none, many = (load(f"traffic?nodes=50&steps=960{more}") for more in ("", "&incidents=0", "&incidents=0.2"))
    assert np.array_equal(usual.values, load("traffic?nodes=50&steps=960&incidents=0.01").values)
    assert (usual.values <= none.values).all()
    assert (many.values <= none.values).all()
    assert 0 < (usual.values < none.values).mean() < 0.05 < (many.values < none.values).mean()
    assert len(traffic(num_nodes=50, num_steps=960, incidents=0.2).incidents) == 100


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_nodes": 1}, "num_nodes must be at least 2, got 1"),
        ({"num_steps": 23}, "num_steps must be at least 24, got 23"),
        ({"steps_per_day": 0}, "steps_per_day must be at least 1, got 0"),
        ({"r": 1.0}, r"r must lie in \[0, 1\), got 1.0"),
        ({"r": math.nan}, r"r must lie in \[0, 1\), got nan"),
        ({"incidents": -0.1}, r"incidents must lie in \[0, 1\], got -0.1"),
    ],
)
def test_traffic_that_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=f"^traffic: {message}"):
        traffic(**settings)


def test_a_simple_forecasters_errors_correlate_more_with_larger_r():
    found = []
    for r in (0.0, 0.1, 0.3, 0.6):
        series = load(f"traffic?nodes=150&days=21&r={r}")
        week = series.values.reshape(3, 7 * 96, 150)
        usual = week[:2].mean(0)
        # An hour ago against the usual, carried forward.
        ratio = week[2] / usual
        found.append(correlation(ratio[4:] - ratio[:-4]))
    assert found[0] < 0.02
    assert found == pytest.approx([0.0, 0.1, 0.3, 0.6], abs=0.06)


def measured_r(r):
    """What `headroom` finds for a small STID after some steps of training."""
    problem = prepare(load(f"traffic?nodes=60&days=10&r={r}"), device=CPU)
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = STID(60, steps_per_day=96, dim=4, num_layers=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    order = torch.randperm(len(problem.split.train), generator=generator)
    for index in order.repeat(4).split(32):
        x, y = problem.cut(problem.split.train, index)
        optimizer.zero_grad()
        (model(x) * problem.std + problem.mean - y).abs().mean().backward()
        optimizer.step()
    x, y = problem.cut(problem.split.train, order[:64])
    return stprune.headroom(model, [(x, (y - problem.mean) / problem.std)], num_windows=64, seconds=1.5).r


def test_headrooms_r_rises_with_traffics():
    found = [measured_r(r) for r in (0.0, 0.3, 0.9)]
    assert found[0] + 0.02 < found[1] < found[2] - 0.02


# --- graphs ----------------------------------------------------------------------------------------------------------


def brute_force(values, k):
    """The graph of the k most correlated nodes, node by node in float64."""
    num_nodes = values.shape[1]
    values = np.where(np.isfinite(values), values, np.nanmean(values, 0)).astype(np.float64)
    graph = np.zeros((num_nodes, num_nodes))
    for one in range(num_nodes):
        found = []
        for other in set(range(num_nodes)) - {one}:
            a, b = values[:, one] - values[:, one].mean(), values[:, other] - values[:, other].mean()
            size = math.sqrt((a @ a) * (b @ b))
            found.append((a @ b / size if size > 1e-9 else 0.0, other))
        for weight, other in sorted(found, reverse=True)[:k]:
            if weight > 0:
                graph[one, other] = graph[other, one] = weight
    return graph


@pytest.mark.parametrize("rows", [1, 7, 1024])
def test_the_graph_of_a_series_without_one_joins_its_most_correlated_nodes(rows):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(40, 30)) @ rng.normal(size=(30, 25)) + 5
    values[3, 4] = np.nan
    values[:, 7] = 2.3  # constant: no edges
    values[:, 8] = -values[:, 9]
    values = values.astype(np.float32)
    graph = nearest_nodes(torch.from_numpy(values), num_neighbours=4, rows=rows).dense()
    np.testing.assert_allclose(graph, brute_force(values, 4), atol=1e-5)
    assert np.array_equal(graph, graph.T)
    assert not graph[7].any()
    assert ((graph > 0).sum(1)[np.arange(25) != 7] >= 3).all()


def test_few_nodes_and_nodes_without_likeness_have_the_edges_there_are():
    values = torch.tensor([[1.0, -1.0], [2.0, -2.0], [4.0, -4.0]])
    assert len(nearest_nodes(values).weight) == 0
    assert nearest_nodes(-values[:, :1]).dense().tolist() == [[0.0]]
    assert nearest_nodes(values.abs()).dense() == pytest.approx(np.array([[0.0, 1.0], [1.0, 0.0]]))


def test_a_problems_graph_is_the_series_own_or_made_of_the_training_part_when_asked(folder):
    series = small_series()
    problem = prepare(series, device=CPU)
    problem.cut(problem.split.train, torch.tensor([0]))
    assert "adjacency" not in vars(problem)
    graph = problem.adjacency
    assert graph.dtype == torch.float32
    assert problem.adjacency is graph
    np.testing.assert_allclose(graph, brute_force(series.values[: problem.split.train.stop], 8), atol=1e-5)
    # Nothing of what comes later is looked at.
    series.values[problem.split.train.stop :] *= -1
    assert torch.equal(prepare(series, device=CPU).adjacency, graph)
    ring = np.roll(np.eye(5, dtype=np.float32), 1, 0)
    own = prepare(replace(series, edges=Edges.of(ring)), device=CPU)
    assert np.array_equal(own.adjacency.numpy(), ring)


# --- windows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", [5, 900, 8600])
@pytest.mark.parametrize(
    ("num_steps", "per_day"),
    [(120, 96), (744, 24), (2016, 288), (2700, 108), (1344, 96), (35_136, 96), (105_120, 288), (200_000, 24)],
)
def test_windows_of_the_parts_do_not_touch_and_cover_every_time_of_day(num_steps, per_day, nodes):
    split = split_windows(num_steps, per_day, nodes)
    borders = 0, int(num_steps * 0.6), int(num_steps * 0.8), num_steps
    parts = (split.train, split.validation, split.test)
    for part, start, stop in zip(parts, borders, borders[1:], strict=False):
        rows = part.first_rows
        assert len(part) == len(rows) >= 1
        assert rows[0] == start
        assert rows[-1] + WINDOW <= stop
        # Not one more would fit.
        assert rows[-1] + part.stride + WINDOW > stop
        assert len(part) >= min(32, stop - start - WINDOW + 1)
        if len(part) >= per_day:
            assert len(set((rows % per_day).tolist())) == per_day
    assert len(split.train) >= min(4200, borders[1] - WINDOW + 1)


def test_a_series_too_short_for_the_parts_is_refused():
    with pytest.raises(ValueError, match="the series must have at least 120 steps for a 6:2:2 split, got 119"):
        split_windows(119, 24, 5)


def test_windows_are_slices_of_the_series(problem):
    series = small_series()
    part = problem.split.train
    index = torch.tensor([0, 7, 400])
    x, y = problem.cut(part, index)
    normal = (series.values - problem.mean) / problem.std
    node = torch.tensor([[3, 1], [0, 4], [2, 2]])
    few_x, few_y = problem.cut(part, index, node)
    for row, begin in enumerate(part.first_rows[[0, 7, 400]]):
        past, future = slice(begin, begin + HISTORY), slice(begin + HISTORY, begin + WINDOW)
        torch.testing.assert_close(x[row, ..., 0], torch.from_numpy(normal[past].astype(np.float32)), rtol=1e-5, atol=1e-6)
        assert torch.equal(y[row, ..., 0], torch.from_numpy(series.values[future]))
        clock = torch.from_numpy(series.time_of_day[past])[:, None].expand(-1, 5)
        week = torch.from_numpy(series.day_of_week[past] / 7).float()[:, None].expand(-1, 5)
        assert torch.equal(x[row, ..., 1], clock)
        assert torch.equal(x[row, ..., 2], week)
        assert torch.equal(few_x[row], x[row][:, node[row]])
        assert torch.equal(few_y[row], y[row][:, node[row]])
    assert problem.pairs == len(part) * 5


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
    series = replace(small_series(), null_value=-9.0)
    series.values[5, 0] = np.nan
    series.values[20, 1] = -9.0
    problem = prepare(series, device=CPU)
    assert not problem.complete
    x, y = problem.cut(problem.split.train, torch.tensor([0]))
    assert float(x[0, 5, 0, 0]) == 0.0
    assert math.isnan(float(y[0, 20 - HISTORY, 1, 0]))
    assert int(torch.isnan(y).sum()) == 1
    seen = np.delete(series.values[: problem.split.train.stop].ravel(), [5 * 5, 20 * 5 + 1])
    assert problem.mean == pytest.approx(seen.mean(dtype=np.float64), rel=1e-6)
    assert problem.std == pytest.approx(seen.std(dtype=np.float64), rel=1e-6)
    assert series.values[20, 1] == -9.0


def test_zeros_are_values_unless_said_otherwise(folder):
    place, values, _ = folder(step="1 h")
    assert (values == 0).sum() == 1
    longer = replace(load(str(place)), values=np.tile(values, (2, 1)), time_of_day=np.zeros(192, np.float32))
    longer = replace(longer, day_of_week=np.zeros(192, np.int64))
    assert prepare(longer, device=CPU).complete
    assert not prepare(replace(longer, null_value=load(f"{place}?null=0").null_value), device=CPU).complete


@pytest.mark.parametrize("value", [3.0, np.nan])
def test_a_constant_or_missing_training_part_is_refused(value):
    series = small_series()
    series.values[:] = value
    with pytest.raises(ValueError, match="at least two different values"):
        prepare(series, device=CPU)


@pytest.mark.parametrize(("part", "name"), [(slice(806, 1075), "validation"), (slice(1075, None), "test")])
def test_a_part_without_targets_is_refused_before_any_run(part, name):
    series = small_series()
    assert len(series.values) == 1344
    series.values[part] = np.nan
    with pytest.raises(ValueError, match=f"the windows of the {name} part must have targets, got missing values only"):
        prepare(series, device=CPU)


def test_infinite_values_are_refused():
    series = small_series()
    series.values[3, 2] = -np.inf
    with pytest.raises(ValueError, match="values must be finite or NaN, got infinite ones"):
        prepare(series, device=CPU)


def test_every_name_in_the_documented_table_is_known():
    for kind, options in series_module._OPTIONS.items():
        row = next(line for line in load.__doc__.splitlines() if line.strip().startswith((f"| `{kind}`", f"| {kind} |")))
        assert tuple(row.rsplit("|", 2)[1].strip().split(", ")) == options
