"""Reused output buffers: the same bits, a view of the buffer's front, no fresh memory, and nothing written on an error."""

import functools
import sys

import pytest
import torch

import stprune
from stprune import testing
from stprune.ops import draw_threshold
from stprune.ops.plan_budget import Buffers, plan_budget
from stprune.ops.strata import checked_strata

N, K = 40_001, 9_000
KEYS = testing.named_keys("normal", N).abs() + 0.01
CHANCE = (KEYS / KEYS.max()).double()
WIDE_KEYS, NARROW_CHANCE = KEYS.double(), CHANCE.float()
COUNT = round(float(CHANCE.sum()))


def flat(result):
    return [part for part in (result if isinstance(result, tuple) else (result,)) if part is not None]


def op_of(name):
    return "draw_weighted" if name == "race" else name.split()[0]


def index_buffer(size):
    return torch.full((size,), -7, dtype=torch.int64)


STRATA = {0: None, **{number: checked_strata("test", torch.arange(N) * 7919 % number, N) for number in (5, 400)}}


def plan(number, out):
    """What is kept and its weights, which lie in the first two buffers."""
    settings = {"alpha": 0.5, "count": K, "minimum": 0.05, "seed": 1, "epoch": 2, "strata": STRATA[number]}
    return plan_budget(KEYS, **settings, out=out)[:2]


def plan_buffers(size):
    return Buffers(index_buffer(size), torch.full((size,), -7.0), torch.full((size,), -7, dtype=torch.int32))


CALLS = {
    # name: call(out), buffers of a given size
    "select": (lambda out: stprune.select(KEYS, K, out=out), index_buffer),
    "select rows": (lambda out: stprune.select(KEYS[:40_000].view(4, -1), K // 4, out=out), index_buffer),
    "topk": (lambda out: stprune.topk(KEYS, K, out=out), lambda size: (torch.full((size,), -7.0), index_buffer(size))),
    "topk unsorted": (
        lambda out: stprune.topk(WIDE_KEYS, K, sorted=False, out=out),
        lambda size: (torch.full((size,), -7.0, dtype=torch.float64), index_buffer(size)),
    ),
    "draw": (lambda out: stprune.draw(CHANCE, seed=1, epoch=2, out=out), index_buffer),
    "draw count": (lambda out: stprune.draw(NARROW_CHANCE, seed=1, epoch=2, count=COUNT, out=out), index_buffer),
    "draw_weighted": (
        lambda out: stprune.draw_weighted(KEYS, K, seed=1, epoch=2, out=out),
        lambda size: (index_buffer(size), torch.full((size,), -7.0)),
    ),
    "race": (
        lambda out: stprune.draw_weighted(KEYS, K, seed=1, epoch=2, law="race", out=out),
        lambda size: (index_buffer(size), None),
    ),
    "shuffle": (lambda out: stprune.shuffle(KEYS, seed=1, epoch=2, out=out), lambda size: torch.full((size,), -7.0)),
    "draw_threshold": (
        lambda out: draw_threshold(KEYS, 0.5, seed=1, epoch=2, out=out),
        lambda size: (index_buffer(size), torch.full((size,), -7.0)),
    ),
    "draw_threshold exact": (
        lambda out: draw_threshold(KEYS, 0.4, seed=3, epoch=4, exact_count=True, out=out),
        lambda size: (index_buffer(size), torch.full((size,), -7.0)),
    ),
    **{f"plan_budget {number} strata": (functools.partial(plan, number), plan_buffers) for number in STRATA},
}
EACH = pytest.mark.parametrize("name", CALLS)


@EACH
def test_same_result_at_the_front_of_the_buffer(name, threads):
    call, make = CALLS[name]
    expected = flat(call(None))
    for count in (1, 3):
        threads(count)
        out = make(N + 5)
        # A plan's third buffer is scratch.
        for result, buffer, wanted in zip(flat(call(out)), flat(out)[: len(expected)], expected, strict=True):
            testing.assert_same(result, wanted)
            assert result.data_ptr() == buffer.data_ptr()
            assert torch.equal(buffer[: wanted.numel()].view(wanted.shape), wanted)
            assert bool((buffer[wanted.numel() :] == -7).all()), "written behind the result"


@EACH
def test_exact_room_is_enough_and_one_less_is_an_error(name):
    call, make = CALLS[name]
    expected = flat(call(None))
    size = expected[0].numel()
    for result, wanted in zip(flat(call(make(size))), expected, strict=True):
        testing.assert_same(result, wanted)
    large, small = make(size), make(size - 1)
    for place, buffer in enumerate(flat(small)):
        out = buffer
        if isinstance(large, tuple):
            parts = [*large]
            parts[place] = buffer
            out = tuple(parts) if type(large) is tuple else type(large)(*parts)
        with pytest.raises(ValueError, match=rf"{op_of(name)}: out.* must have at least {size} elements, got {size - 1}"):
            call(out)
        for part in flat(out):
            assert bool((part == -7).all())


@EACH
def test_second_call_takes_no_memory_for_its_result(name):
    call, make = CALLS[name]
    out = make(N)
    call(out)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call(out)
    largest = max((event.cpu_memory_usage for event in profile.events()), default=0)
    assert largest < 4096, f"allocated {largest} bytes"


@pytest.mark.skipif(sys.platform != "linux", reason="counts page faults")
def test_repeated_calls_fetch_no_fresh_memory_from_the_system():
    """Not even for scratch: what an epoch freed serves the next."""
    import resource

    n = 2_000_000
    keys = torch.rand(n, generator=torch.Generator().manual_seed(1)) * 0.9 + 0.05
    indices, weights = index_buffer(n), torch.zeros(n)
    for call in (
        lambda: stprune.select(keys, n // 2, out=indices),
        lambda: stprune.draw(keys, seed=1, epoch=2, out=indices),
        lambda: stprune.draw_weighted(keys, n // 2, seed=1, epoch=2, out=(indices, weights)),
        lambda: stprune.shuffle(keys, seed=1, epoch=2, out=weights),
        lambda: draw_threshold(keys, 0.5, seed=1, epoch=2, out=(indices, weights)),
    ):
        faults = []
        for _ in range(6):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            call()
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        # The result alone has hundreds of pages of 4 KiB.
        assert min(faults[2:]) < 32, faults


@EACH
def test_bad_buffers(name):
    call, make = CALLS[name]
    out = make(N)
    as_pair = isinstance(out, tuple)
    first = out[0] if as_pair else out

    def given(buffer):
        if isinstance(out, Buffers):
            return out._replace(indices=buffer)
        return (buffer, *out[1:]) if as_pair else buffer

    op = op_of(name)
    with pytest.raises(TypeError, match=rf"{op}: out.* must be torch.{str(first.dtype)[6:]}, got torch.int16"):
        call(given(torch.zeros(N, dtype=torch.int16)))
    with pytest.raises(TypeError, match=rf"{op}: out.* must be a tensor, got list"):
        call(given([1, 2]))
    with pytest.raises(ValueError, match=rf"{op}: out.* must have one dimension"):
        call(given(first.view(1, -1)))
    with pytest.raises(ValueError, match=rf"{op}: out.* must be contiguous"):
        call(given(first.repeat(2)[::2]))
    assert bool((first == -7).all())


def test_buffer_must_not_overlap_the_input():
    memory = torch.zeros(1000, dtype=torch.float64)
    keys, out = memory[:600], memory.view(torch.int64)[500:]
    with pytest.raises(ValueError, match="select: out must not overlap another argument, got 800 bytes"):
        stprune.select(keys, 100, out=out)
    with pytest.raises(ValueError, match="shuffle: out must not overlap"):
        stprune.shuffle(memory, seed=0, epoch=0, out=memory)
    assert torch.equal(stprune.select(keys, 300, out=memory.view(torch.int64)[600:]), torch.arange(300))
    ids = torch.zeros(2000, dtype=torch.int64)
    with pytest.raises(ValueError, match="topk: out values must not overlap"):
        stprune.topk(torch.rand(500).double(), 500, out=(ids.view(torch.float64)[:600], ids[:600]))
    with pytest.raises(ValueError, match="draw_weighted: out weights must not overlap"):
        stprune.draw_weighted(torch.rand(500) + 0.1, 400, seed=0, epoch=0, out=(ids[:600], ids.view(torch.float32)[:600]))


def test_a_draw_that_fits_by_chance_only():
    """How many a Bernoulli draw keeps is known in the end: a buffer that is too small then stays as it was."""
    p = torch.full((1000,), 0.5)
    size = stprune.draw(p, seed=3, epoch=4).numel()
    assert 400 < size < 600
    out = index_buffer(size - 1)
    with pytest.raises(ValueError, match=f"draw: out must have at least {size} elements, got {size - 1}"):
        stprune.draw(p, seed=3, epoch=4, out=out)
    assert bool((out == -7).all())
