"""Inputs made for a rare path of a kernel: the arguments of an op, which are those of its reference."""

import itertools
import math

import torch
from named_inputs import SCORES, probabilities, sample_positions, scores_of, window_with_a_tie

from stprune import testing
from stprune.nodes.pair_table import PairTable
from stprune.reference import budget
from stprune.reference.random import DRAW, WEIGHTED, words, words_at
from stprune.testing import FLOATS

SPECIAL = {}
"""Name: (op, function that yields arguments)."""
WIDE = FLOATS[:2]
LARGE = budget.SAMPLED + 12_345  # more scores than the budget takes a sample of


def special(op, *arguments):
    """Take a function as an input of an op, once for each of `arguments`."""

    def take(function):
        for given in arguments or ((),):
            name = " ".join([op, function.__name__, *map(str, given)]).replace("torch.", "")
            SPECIAL[name] = (op, lambda given=given: function(*given))
        return function

    return take


def generator(seed=31):
    return torch.Generator().manual_seed(seed)


@special("select", *((dtype,) for dtype in WIDE))
def every_rank(dtype):
    """Ranks next to both ends and around ties take the rare paths: bracket ends, misses, the radix search."""
    n = 20_000
    keys = testing.named_keys("normal", n, dtype)
    keys[100:3000], keys[5000:5100], keys[7000:7300], keys[9000:9300] = 0.25, math.nan, math.inf, -math.inf
    return ((keys, k) for k in [*range(1, 500, 7), *range(7000, 11_000, 31), *range(n - 700, n + 1, 13)])


def misleading(n, positions, dtype=torch.float32):
    """Keys that are larger, or smaller, where a sample looks: the bracket misses on either side."""
    keys = torch.zeros(n, dtype=dtype)
    for i, position in enumerate(positions):
        keys[position] = 1.0 + i
    rest = keys == 0
    keys[rest] = -torch.rand(int(rest.sum()), generator=generator(1), dtype=dtype)
    return ((signed, k) for signed in (keys, -keys) for k in (1, 100, n // 2, n - 5))


@special("select", *((dtype,) for dtype in WIDE))
def misleading_sample_of_the_gpu(dtype):
    return misleading(60_000, sample_positions(60_000), dtype)


@special("select")
def misleading_sample_of_the_cpu():
    """The CPU's sample takes runs of 16 neighbours."""
    n, run = 50_000, 16
    starts = sample_positions(n // run, int(1.5 * n ** (2 / 3)) // run + 1)
    return misleading(n, [run * start + place for start in starts for place in range(run)])


@special("select", *((dtype,) for dtype in FLOATS))
def neighbours_alike(dtype):
    """A sample takes runs of neighbours: like keys side by side make it worth less, and gather candidates in few chunks."""
    n = 5 * testing.CHUNK + 13
    stairs = torch.arange(n) // 300 % 17 + torch.rand(n, generator=generator(3)) / 8
    plateau = torch.randn(n, generator=generator(3)) * 100
    plateau[testing.CHUNK : 2 * testing.CHUNK] = torch.rand(testing.CHUNK, generator=generator(3))
    return ((keys.to(dtype), k) for keys in (stairs, plateau) for k in (20, n // 10, n // 2, n - 9))


@special("select")
def candidates_crowd():
    """Sorted keys, or ties in one stretch, put all codes of the bracket into a few segments, which have no room for them."""
    yield torch.arange(100_000.0), 40_000
    keys = torch.rand(100_000, generator=generator(2))
    keys[30_000:33_000] = 0.5
    for k in (47_000, 49_000, 50_000, 51_000):
        yield keys, k


@special("draw_spaced")
def high_windows_far_apart():
    """A high window that is the nearest one for hundreds of chunks of a GPU's kernel."""
    n = (1 << 21) + 300_000
    for places in ([], [5, n - 3]):
        scores = torch.zeros(n)
        scores[places] = 2.0
        yield scores, 700_000, 1.0, 3, 4


@special("select", *((n,) for n in (4097, 2 * testing.CHUNK, 2 * testing.CHUNK + 64, 3 * testing.CHUNK + 63)))
def candidates_at_edges(n):
    """The keys around the threshold, some of them equal, are the first and last of words and chunks and the very last."""
    edges = [i for start in (0, 64, 2048, testing.CHUNK, 2 * testing.CHUNK, n) for i in (start - 1, start) if 0 <= i < n]
    for ties in (1, 3):
        keys = torch.where(torch.rand(n, generator=generator(n)) < 0.5, -1e6, 1e6) + torch.arange(n)
        for place, i in enumerate(edges):
            keys[i] = float(place // ties)
        above = int((keys > 1e5).sum())
        for k in range(above - 2, above + len(edges) + 3):
            yield keys, k


@special("topk", (torch.float16,), (torch.bfloat16,))
def every_16_bit_key(dtype):
    """All 65,536 bit patterns, and every alignment of the tail."""
    keys = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(dtype)
    for k in (1, 1000, 1024, 30_000, 32_768, 65_535, 65_536):
        yield keys, k, False
    yield keys, 65_536, True
    for start in range(1, 40, 3):
        part = keys[start::997].clone()
        yield part, part.numel(), True


@special("check_range", *((dtype,) for dtype in WIDE))
def bad_values(dtype):
    """The first of two is found."""
    for bad in (math.nan, -1e-9, 1.5, math.inf, -math.inf):
        p = probabilities("mixed", 30_000, dtype)
        p[[29_999, 12_345]] = bad
        yield p, 1.0, False


@special("check_range")
def largest_float():
    yield torch.tensor([0.0, 3e38, 1e-45]), torch.finfo(torch.float32).max, False


@special("draw", *itertools.product((3, 5000), (-0.5, -0.4, 0.4, 0.5)))
def count_half_an_item_off(n, off):
    """The rest is spread over the items."""
    p = torch.full((n,), 0.5, dtype=torch.float64)
    count = (n + 1) // 2
    p *= (count - off) / float(p.sum())
    return ((p, count, 0, epoch) for epoch in range(10))


@special("draw")
def rest_in_several_rounds():
    """Few free items close to their bounds cannot take their share in one round."""
    for values, count in (([0.99, 0.7], 3002), ([0.9999, 0.9, 0.8], 3003), ([1e-4, 0.3], 3000), ([1e-9, 1e-4, 0.4], 3000)):
        p = torch.zeros(9000, dtype=torch.float64)
        p[::3] = 1.0
        p[1], p[4], p[7] = (*values, 0.0)[:3]
        yield p, count, 3, 1
    # Many items close to one, so that a round drops thousands of them in many blocks.
    for off in (0.49, -0.49):
        p = 1 - torch.rand(30_000, generator=generator(5), dtype=torch.float64) ** 8 * 1e-4
        p[::5] = 0.5
        count = round(float(p.sum()))
        p[::5] += (count + off - float(p.sum())) / p[::5].numel()
        yield p, count, 3, 1


@special("draw", *itertools.product((1, 63, 64, 4097, testing.CHUNK + 65), WIDE))
def next_to_their_words(n, dtype):
    """Chances at, just above and just below word / 2^32, and the ends of [0, 1]: a comparison rounded anywhere would show."""
    at = words(n, seed=5, epoch=6, stream=DRAW, device=torch.device("cpu")).double() / 2**32
    ends = torch.tensor([0.0, -0.0, 1.0, 1 - 2.0**-24, 1e-45, 2.0**-126, 2.0**-33, 0.5], dtype=dtype)
    exact = at.to(dtype)
    for p in (
        exact,
        torch.nextafter(exact, torch.ones((), dtype=dtype)),
        torch.nextafter(exact, torch.zeros((), dtype=dtype)),
        (at + 2.0**-32).to(dtype),
        (at - 2.0**-33).clamp(min=0).to(dtype),
        ends.repeat(n)[:n],
        torch.where(torch.arange(n) % 64 == 63, ends[2], exact),
    ):
        yield p, None, 5, 6


@special("draw_weighted", *itertools.product((4097, testing.CHUNK, 2 * testing.CHUNK + 63), (False, True)))
def keys_next_to_the_threshold(n, race):
    """Weights that make all keys nearly agree: whoever is taken for certain by too rough an estimate is seen."""
    u = (words_at(torch.arange(n), seed=7, epoch=8, stream=WEIGHTED).double() + 0.5) * 2.0**-32
    numerator = -u.log() if race else u
    for spread, scale in itertools.product((1e-6, 1e-4, 1e-2), (1.0, 1e-28, 1e26)):
        target = 1 + spread * torch.randn(n, generator=generator(n), dtype=torch.float64)
        w = (numerator / target * scale).float()
        for k in (n // 100, n // 2, n - 3):
            yield w, k, 7, 8, race


@special("draw_threshold", *itertools.product((64, 2049, 2 * testing.CHUNK + 63), WIDE))
def first_and_last_of_words(n, dtype):
    """The first sample of every word lies below the mean, and the last has no score yet."""
    scores = scores_of("lognormal", n, dtype)
    scores[::64], scores[63::64] = 0.01, math.inf
    return ((scores, keep, False, 3, 4) for keep in (2.0**-33, 0.3, 1 - 2.0**-33, 1.0))


@special("draw_threshold")
def pool_that_keeps_one_or_none():
    return ((torch.tensor([1.0, 1.0, 5.0]), 0.2, True, 3, epoch) for epoch in range(30))


@special("inclusion_budget", *((kind,) for kind in SCORES))
def with_a_sample(kind):
    scores = scores_of(kind, LARGE, torch.float32)
    return ((scores, 0.5, float(round(ratio * LARGE)), least) for ratio, least in ((0.5, 0.1), (0.02, 0.0), (0.97, 0.5)))


@special("inclusion_budget")
def misleading_sample():
    """Whatever the sample sees is large, or is small, and everything else is not."""
    place = words(budget.SAMPLE, seed=0, epoch=0, stream=budget.STREAM) * (LARGE >> 8) >> 24
    for seen, others in ((5.0, 1e-3), (1e-3, 5.0)):
        scores = torch.full((LARGE,), others)
        scores[place] = seen
        for alpha, ratio in ((0.5, 0.3), (1.0, 0.5)):
            yield scores, alpha, float(round(ratio * LARGE)), ratio / 5


@special("inclusion_budget")
def half_of_the_sizes_open():
    """They lie within the bracket's reach of being certain; and all of them."""
    scores = torch.ones(LARGE)
    yield scores, 0.5, LARGE - 1.0, 0.5
    scores = scores.clone()
    scores[::2] = 1e-6
    for alpha, ratio in ((0.5, 0.3), (1.0, 0.5)):
        yield scores, alpha, float(round(ratio * LARGE)), ratio / 5


AROUND_THE_SMALL = (2, 3, 1000, 1023, 1024, 1025, 1089, 10_007, 50_000)  # from 1,024 on an order is computed in a grid


@special("permute")
def whole_orders():
    return ((torch.empty(n, dtype=torch.int64), n, 0, 3, 4, 9) for n in AROUND_THE_SMALL)


@special("shuffle")
def whole_shuffles():
    return ((torch.arange(n) * 3, 5, 2) for n in AROUND_THE_SMALL)


@special("permute")
def beyond_32_bits():
    for n in ((1 << 24) + 12_345, (1 << 31) + 7, (1 << 32) + 5, (1 << 40) - 7, 1 << 40):
        for start in (0, n // 2, n - 1000):
            yield torch.empty(1000, dtype=torch.int64), n, start, 3, 4, 9


WINDOWS = torch.tensor([0, 1, 63, 64, (1 << 32) - 1, 1 << 32, (1 << 40) + 3, (1 << 56) - 1, *range(100, 104)])


# Around the GPU's tiles of 1,024 nodes and the most that it sorts in shared memory.
DRAWN = ((1, 1), (2, 1), (7, 3), (63, 10), (64, 64), (65, 64), (192, 58), (1025, 300), (8600, 2580), (8600, 1), (10_240, 1))


DRAWN += ((10_241, 5000),)


@special("draw_nodes", *DRAWN)
def nodes(num_nodes, count):
    yield WINDOWS[: 12 if num_nodes < 2000 else 2], num_nodes, count, 5, 6
    yield WINDOWS[:0], num_nodes, count, 5, 6


@special("draw_nodes")
def equal_words():
    """32-bit words of 8,600 nodes collide once in a hundred windows; the smaller node comes first."""
    window, rank = window_with_a_tie(8600)
    return ((torch.tensor([window]), 8600, count, 5, 6) for count in (rank - 1, rank, rank + 1, rank + 2))


@special("draw_nodes_weighted", *itertools.product(("lognormal", "equal", "extreme"), DRAWN))
def nodes_by_weight(kind, sizes):
    num_nodes, count = sizes
    index = WINDOWS[: 12 if num_nodes < 2000 else 2]
    weights = torch.ones(len(index), num_nodes)
    if kind == "lognormal":
        weights = torch.randn(weights.shape, generator=generator(len(index) * num_nodes)).exp()
    elif kind == "extreme":
        weights, weights[:, 0] = weights * 1e-30, 1e30
    yield weights, index, count, 5, 6


@special("draw_nodes_by_score", *itertools.product(("float32", "bfloat16", "int8"), (*DRAWN, (63, 62), (192, 192))))
def nodes_by_score(storage, sizes):
    """Windows with some unknown scores, with none known, zeros, equal ones, one large beside subnormal ones, huge ones."""
    num_nodes, count = sizes
    windows = 9 if num_nodes < 2000 else 2
    scores = torch.exp(3 * torch.randn(9, num_nodes, generator=generator(num_nodes)))
    scores[:3][torch.rand(3, num_nodes, generator=generator()) < 0.2] = torch.inf
    scores[3], scores[4], scores[5], scores[5, 0], scores[6] = torch.inf, 0.0, 1e-42, 1.0, 2.5
    scores[7] *= 1e-43
    scores[8] *= 1e30
    table = PairTable(windows, num_nodes, storage=storage)
    table.update(torch.arange(windows), torch.arange(num_nodes).expand(windows, -1), scores[:windows])
    index = torch.randperm(windows, generator=generator())
    for floor in (0.25, 1.0, 1e-30):
        yield *table.columns, index, num_nodes, count, floor, 5, 6
    yield *table.columns, index[:0], num_nodes, count, 0.25, 5, 6


@special("keep_pairs", (1,), (7,), (1500,))
def pairs_of_windows_again_and_of_none(count):
    """Windows that come twice in a batch, that came before, and ids outside of the table."""
    kept = (
        torch.zeros(9, count, dtype=torch.int32),
        torch.rand(9, count, generator=generator()),
        torch.zeros(9, dtype=torch.bool),
    )
    kept[0][2:5] = 3
    kept[2][3] = True
    for ids in ([0, 2, 8, 1], [1, 3, 1, 6, 1], [9, -1, 6, 2**40, 6, -(2**62)], [-3, 9], []):
        index = torch.tensor(ids, dtype=torch.int64)
        node = torch.randint(5000, (len(ids), count), generator=generator(len(ids)))
        yield index, node, torch.rand(node.shape, generator=generator(1)), *kept


def nodes_of(samples, num_nodes, count, repeats):
    if repeats:
        return torch.randint(max(1, num_nodes // 10), (samples, count), generator=generator())
    return torch.stack([torch.randperm(num_nodes, generator=generator(seed))[:count] for seed in range(samples)])


GATHERED = ((1, 1, 1, 1), (3, 2, 7, 1), (2, 3, 50, 3), (4, 12, 170, 2), (2, 5, 9, 600), (3, 4, 7, 5), (3, 4, 7, 64))


ANY = (torch.bool, torch.uint8, torch.int32, torch.int64, *FLOATS, torch.complex64, torch.complex128)


@special("gather_nodes", *((dtype,) for dtype in ANY))
def arrays_and_windows_of_one_series(dtype):
    """The windows overlap in memory."""
    for shape in GATHERED:
        node = torch.randint(shape[2], (shape[0], 30), generator=generator())
        series = (torch.rand((shape[0] + shape[1], *shape[2:]), generator=generator(1)) * 250).to(dtype)
        windows = series.as_strided(shape, (series.stride(0), *series.stride()))
        yield windows, node
        yield windows.clone(memory_format=torch.contiguous_format), node
        yield series[: shape[1]].expand(shape), node


@special("gather_nodes_backward", *itertools.product(FLOATS, (False, True)))
def gradients(dtype, repeats):
    for samples, outer, num_nodes, count, inner in (
        (1, 1, 1, 1, 1),
        (3, 4, 60, 20, 1),
        (2, 5, 700, 300, 3),
        (4, 12, 300, 90, 2),
    ):
        grad = (torch.randn(samples, outer, count, inner, generator=generator(1)) * 3).to(dtype)
        yield grad, nodes_of(samples, num_nodes, count, repeats), num_nodes


@special("gather_nodes_backward", (torch.bfloat16,), (torch.float16,))
def narrow_floats(dtype):
    """One gradient a node: the backward widens and narrows every value there is. Two a node: their sum is rounded once."""
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)
    yield every.view(1, 1, -1, 1), torch.arange(1 << 16).unsqueeze(0), 1 << 16
    pairs = (torch.randn(2, 5000, generator=generator(4)) * torch.logspace(-9, 4.9, 5000)).to(dtype)
    yield pairs.view(1, 1, -1, 1), torch.arange(5000).repeat(2).unsqueeze(0), 5000
