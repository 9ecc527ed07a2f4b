"""Generated series: traffic on a road network whose structure is known, and the demand of the demo."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stprune.study.calendars import counted_calendar
from stprune.study.graph import Edges, FloatArray, IntArray

# Bell curves over the day: hour of the middle, width in hours.
_BELLS = ((7.8, 1.2), (13.0, 2.5), (17.5, 1.6), (20.5, 2.0))
# Height of the bells on working days and at weekends, for homes, offices, through roads and leisure.
_HEIGHTS = np.array(
    [
        [[1.0, 0.2, 0.5, 0.2], [0.4, 0.3, 1.0, 0.1], [0.7, 0.6, 0.8, 0.2], [0.2, 0.4, 0.4, 0.8]],
        [[0.1, 0.5, 0.3, 0.3], [0.0, 0.2, 0.2, 0.1], [0.2, 0.7, 0.5, 0.2], [0.1, 1.0, 0.6, 0.9]],
    ]
)
_SPREAD = 0.2  # standard deviation of the unpredictable part, of the logarithm
_NOISE_SHARE = 0.2  # of the unpredictable part's variance: what the next step has forgotten
_MEMORY_HOURS, _DIFFUSION_HOURS = 4.0, 2.0
_DRIFT = 0.1
_INCIDENT_HOPS, _INCIDENT_HOURS = 2, 3.0


class Traffic(NamedTuple):
    """A generated series with what it was made of.

    Attributes:
        values: [time, node] float32, positive.
        expected: [time, node] float32: rhythm and drift, all that is known beforehand.
        edges: the road network.
        incidents: [incidents, 2] int64: node and first step of every incident.
    """

    values: FloatArray
    expected: FloatArray
    edges: Edges
    incidents: IntArray


def traffic(
    *,
    num_nodes: int = 900,
    num_steps: int = 28 * 96,
    steps_per_day: int = 96,
    r: float = 0.1,
    incidents: float = 0.01,
    seed: int = 0,
) -> Traffic:
    """Generate traffic: `values = expected * exp(0.2 u - 0.02) * (1 - drop)`.

    - `expected` is a level per node times a shape of the day: rush hours of four groups of nodes that lie together (homes,
      offices, through roads, leisure), other shapes at weekends, shifted by up to half an hour, and a drift per node.
    - `u` is the unpredictable part, with mean 0 and variance 1: `u = sqrt(r) common + sqrt(1 - r) own`. All nodes have
      `common` alike (weather, demand); `own` is made of shocks to single nodes that diffuse along the roads and fade in
      hours. Both hold 20% white noise and have the same correlation from step to step. `r` is the mean correlation of `u`
      between two nodes, as eq. 14 of methods/README.md has it of gradients; neighbours correlate more, others less.
    - `drop` is of incidents: on a day so many a node, 1% by default, lose 40 to 90% of their traffic at once, neighbours up to
      two edges away less and later, all recover within three hours.
    - The road network is a grid with shifted crossings and half of the vertical roads, in random numbering; it is connected.
      Weights are `exp(-distance**2 / 2)` of the grid's unit.

    Args:
        num_nodes: N, at least 2.
        num_steps: T, at least 24; the series begins with a Monday.
        steps_per_day: steps in 24 hours.
        r: in [0, 1), correlation of the unpredictable part between nodes. Everything else is the same for every r.
        incidents: in [0, 1], incidents a node and day. Everything else is the same for every number of them.
        seed: one seed gives one series; no global random state is used.

    Returns:
        The series and its parts. 8,600 nodes x 2,000 steps take a few seconds and less than 1 GB.

    Raises:
        ValueError: an argument lies outside its range.
    """
    for name, number, least in (("num_nodes", num_nodes, 2), ("num_steps", num_steps, 24), ("steps_per_day", steps_per_day, 1)):
        if number < least:
            raise ValueError(f"traffic: {name} must be at least {least}, got {number}")
    if not 0 <= r < 1:
        raise ValueError(f"traffic: r must lie in [0, 1), got {r}")
    if not 0 <= incidents <= 1:
        raise ValueError(f"traffic: incidents must lie in [0, 1], got {incidents}")
    rng = np.random.default_rng([seed, num_nodes, num_steps, steps_per_day])
    edges, place = _roads(rng, num_nodes)
    expected = _expected(rng, place, num_steps, steps_per_day)
    neighbour, share = _neighbours(edges)
    values = _unpredictable(rng, neighbour, share, num_steps, 24 / steps_per_day, r)
    values *= _SPREAD
    values -= _SPREAD**2 / 2
    np.exp(values, out=values)
    values *= expected
    count = math.ceil(incidents * num_nodes * num_steps / steps_per_day)
    happened = _add_incidents(rng, values, neighbour, share > 0, count, steps_per_day)
    return Traffic(values, expected, edges, happened)


def _roads(rng: np.random.Generator, num_nodes: int) -> tuple[Edges, NDArray[np.float64]]:
    """The network and the place of every node, [node, 2]."""
    side = math.ceil(math.sqrt(num_nodes))
    cell = np.arange(num_nodes)
    place = np.stack(np.divmod(cell, side), 1) + rng.uniform(-0.3, 0.3, (num_nodes, 2))
    across = cell[(cell % side < side - 1) & (cell + 1 < num_nodes)]
    down = cell[cell + side < num_nodes]
    # The first vertical road joins all horizontal ones.
    down = down[(down % side == 0) | (rng.random(len(down)) < 0.5)]
    one, other = np.concatenate([across, down]), np.concatenate([across + 1, down + side])
    weight = np.exp(-np.square(place[one] - place[other]).sum(1) / 2).astype(np.float32)
    number = rng.permutation(num_nodes)
    source, target = number[np.concatenate([one, other])], number[np.concatenate([other, one])]
    moved = np.empty_like(place)
    moved[number] = place
    return Edges(num_nodes, source, target, np.concatenate([weight, weight])), moved / side


def _neighbours(edges: Edges) -> tuple[IntArray, FloatArray]:
    """[node, 4] neighbours and their shares of a node's weights; a node itself with share 0 where it has fewer."""
    order = np.argsort(edges.source, kind="stable")
    source = edges.source[order]
    place = np.arange(len(source)) - np.searchsorted(source, source)
    neighbour = np.tile(np.arange(edges.num_nodes)[:, None], (1, 4))
    share = np.zeros((edges.num_nodes, 4), np.float32)
    neighbour[source, place] = edges.target[order]
    share[source, place] = edges.weight[order]
    return neighbour, share / share.sum(1, keepdims=True)


def _expected(rng: np.random.Generator, place: NDArray[np.float64], num_steps: int, steps_per_day: int) -> FloatArray:
    num_nodes = len(place)
    centre, use = rng.random((12, 2)), np.arange(12) % 4
    group = use[np.square(place[:, None] - centre).sum(2).argmin(1)]
    hour = 24 / steps_per_day * np.arange(steps_per_day)[:, None] - rng.uniform(-0.5, 0.5, num_nodes)
    day = np.full((2, steps_per_day, num_nodes), 0.15)
    for bell, (middle, width) in enumerate(_BELLS):
        distance = (hour - middle + 12) % 24 - 12
        day += _HEIGHTS[:, group, bell][:, None] * np.exp(-np.square(distance / width) / 2)
    day *= 100 * rng.lognormal(0.0, 0.5, num_nodes)
    step = np.arange(num_steps)
    weekend = (step // steps_per_day % 7 >= 5).astype(np.int64)
    expected: FloatArray = day.astype(np.float32)[weekend, step % steps_per_day]
    drift = rng.normal(0.0, _DRIFT, num_nodes).astype(np.float32)
    expected *= np.exp((step / num_steps).astype(np.float32)[:, None] * drift)
    return expected


def _unpredictable(
    rng: np.random.Generator, neighbour: IntArray, share: FloatArray, num_steps: int, hours: float, r: float
) -> FloatArray:
    """[time, node] float32: the part `u`."""
    kept, moved = math.exp(-hours / _MEMORY_HOURS), 1 - math.exp(-hours / _DIFFUSION_HOURS)
    # What happened before the first step fades three times as long as the memory lasts.
    early = math.ceil(3 * _MEMORY_HOURS / hours)
    own = rng.standard_normal((early + num_steps, len(neighbour)), dtype=np.float32)
    stay, go = np.float32(kept * (1 - moved)), np.float32(kept * moved) * share
    for before, now in itertools.pairwise(own):
        now += stay * before + np.einsum("nk,nk->n", go, before[neighbour])
    own = own[early:]
    own /= own.std(0)
    # Neighbours that are alike would make the network's mean vary more than that of independent nodes: the mean is r's alone.
    mean = own.mean(1, keepdims=True)
    own -= (1 - 1 / (math.sqrt(own.shape[1]) * mean.std())) * mean
    lag = float((own[1:] * own[:-1]).mean())
    common = _autoregressive(rng.standard_normal(num_steps), lag)
    for part in (own, common):
        part *= math.sqrt(1 - _NOISE_SHARE)
    noise = rng.standard_normal(own.shape, dtype=np.float32)
    noise *= np.float32(math.sqrt(_NOISE_SHARE))
    own += noise
    common += math.sqrt(_NOISE_SHARE) * rng.standard_normal(num_steps)
    own *= np.float32(math.sqrt(1 - r))
    own += (math.sqrt(r) * common).astype(np.float32)[:, None]
    return own


def _autoregressive(shock: NDArray[np.float64], lag: float) -> NDArray[np.float64]:
    """A first-order autoregression with that correlation at lag 1, scaled to variance 1."""
    level = np.empty_like(shock)
    last = 0.0
    for step, each in enumerate(shock):
        level[step] = last = lag * last + each
    return level / level.std()


def _add_incidents(
    rng: np.random.Generator, values: FloatArray, neighbour: IntArray, real: NDArray[np.bool_], count: int, steps_per_day: int
) -> IntArray:
    """Lowers the values in place; [count, 2]: node and first step."""
    num_steps, num_nodes = values.shape
    incidents = np.stack([rng.integers(num_nodes, size=count), rng.integers(num_steps, size=count)], 1)
    depths = rng.uniform(0.4, 0.9, count)
    length = max(2, round(_INCIDENT_HOURS * steps_per_day / 24))
    delay = max(1, length // 12)
    recovery = (1 - np.arange(length) / length) ** 2
    for (node, start), depth in zip(incidents.tolist(), depths.tolist(), strict=True):
        reached, ring = {node}, [node]
        for hop in range(_INCIDENT_HOPS + 1):
            first = start + hop * delay
            rows = values[first : first + length, ring]
            values[first : first + length, ring] = rows * (1 - depth * 0.6**hop * recovery[: len(rows), None])
            ring = sorted({int(n) for each in ring for n in neighbour[each][real[each]]} - reached)
            reached |= set(ring)
    return incidents


def demand(*, num_days: int = 120, num_nodes: int = 64, seed: int = 0) -> FloatArray:
    """Generate a demand-like series: daily and weekly shapes, nodes that differ, weather and noise.

    Args:
        num_days: days of 96 quarter hours.
        num_nodes: nodes.
        seed: one seed gives one series; no global random state is used.

    Returns:
        [time, node] float32 in arbitrary units; the series begins with a Monday.
    """
    rng = np.random.default_rng([seed, num_days, num_nodes])
    steps = num_days * 96
    time_of_day, day_of_week = counted_calendar(steps, 96)
    clock = 2 * np.pi * time_of_day[:, None]
    scale = rng.lognormal(0.0, 0.6, num_nodes)
    phase = rng.normal(0.0, 0.6, num_nodes)
    evening = rng.uniform(0.0, 0.8, num_nodes)
    weekend = np.where(day_of_week[:, None] >= 5, rng.uniform(0.4, 1.2, num_nodes), 1.0)
    shape = 1.5 - np.cos(clock + phase) + evening * np.sin(2 * clock + phase)
    # Weather: one slow random walk that pulls every node, each with its own sensitivity.
    weather = _autoregressive(rng.normal(0.0, 1.0, steps), 0.995)
    share = rng.normal(0.0, 0.3, num_nodes)
    noise = rng.normal(0.0, 1.0, (steps, num_nodes)) * rng.uniform(0.02, 0.3, num_nodes)
    values: FloatArray = (scale * (weekend * shape + share * weather[:, None] + noise)).astype(np.float32)
    return values
