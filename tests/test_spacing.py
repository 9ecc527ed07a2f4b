"""draw_spaced: exact spacing, maximal, uniform in its phases."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stprune import testing
from stprune.ops import draw_spaced
from stprune.reference import spacing as reference


def check(scores: torch.Tensor, spacing: int, threshold: float, kept: torch.Tensor) -> None:
    """The promises, straight from their words: O(n^2)."""
    n = scores.numel()
    high = (scores >= threshold) | scores.isnan()
    mask = torch.zeros(n, dtype=torch.bool)
    mask[kept] = True
    assert kept.dtype == torch.int64
    assert torch.equal(kept, mask.nonzero().flatten()), "ascending and distinct"
    assert bool(mask[high].all()), "every high window is kept"
    place = torch.arange(n)
    near = (place[:, None] - place).abs() < spacing
    allowed = ~near | (high[:, None] & high) | torch.eye(n, dtype=torch.bool)
    assert bool(allowed[mask][:, mask].all()), "two windows too close"
    assert bool((~allowed[:, mask]).any(1)[~mask].all()), "a window could be added"


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(0, 80), spacing=st.integers(1, 30), share=st.sampled_from([0.0, 0.03, 0.2, 1.0]),
    nan=st.sampled_from([0.0, 0.02]), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_promises(n: int, spacing: int, share: float, nan: float, seed: int, epoch: int) -> None:
    generator = torch.Generator().manual_seed(seed % 1000)
    scores = torch.rand(n, generator=generator)
    scores[torch.rand(n, generator=generator) < nan] = math.nan
    kept = draw_spaced(scores, spacing=spacing, threshold=1 - share, seed=seed, epoch=epoch)
    check(scores, spacing, 1 - share, kept)
    assert torch.equal(kept, reference.draw_spaced(scores, spacing, 1 - share, seed, epoch))


def test_edges() -> None:
    low = torch.zeros(10)
    assert draw_spaced(low, spacing=1, threshold=1.0, seed=0, epoch=0).tolist() == list(range(10))
    assert draw_spaced(low, spacing=12, threshold=0.0, seed=0, epoch=0).tolist() == list(range(10))
    assert len(draw_spaced(low, spacing=12, threshold=1.0, seed=0, epoch=0)) == 1
    middle = low.clone()
    middle[4] = 1.0
    assert draw_spaced(middle, spacing=6, threshold=1.0, seed=0, epoch=0).tolist() == [4]
    assert draw_spaced(middle, spacing=5, threshold=1.0, seed=0, epoch=0).tolist() == [4, 9]
    middle[4] = math.inf  # nothing is known of it
    assert draw_spaced(middle, spacing=6, threshold=math.inf, seed=0, epoch=0).tolist() == [4]
    for scores in testing.awkward(testing.named_keys("normal", 300)):
        check(scores, 7, 1.0, draw_spaced(scores, spacing=7, threshold=1.0, seed=1, epoch=1))


def test_phases_are_uniform_and_change_with_the_epoch() -> None:
    scores = torch.zeros(1000)
    scores[500] = 1.0
    counts = torch.zeros(1000)
    epochs = 6000
    for epoch in range(epochs):
        counts[draw_spaced(scores, spacing=10, threshold=1.0, seed=7, epoch=epoch)] += 1
    assert counts[500] == epochs
    assert float(counts[491:500].sum() + counts[501:510].sum()) == 0
    testing.assert_chi_square(counts[0:10], torch.full((10,), epochs / 10))
    testing.assert_chi_square(counts[510:520], torch.full((10,), epochs / 10))
    # The two runs draw their phases independently.
    both = torch.zeros(10, 10)
    for epoch in range(epochs):
        kept = draw_spaced(scores, spacing=10, threshold=1.0, seed=7, epoch=epoch)
        both[int(kept[0]), int(kept[kept >= 510][0]) - 510] += 1
    testing.assert_chi_square(both, torch.full((10, 10), epochs / 100))


def test_seeds_differ_and_results_repeat() -> None:
    scores = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    draws = {
        tuple(draw_spaced(scores, spacing=24, threshold=0.999, seed=seed, epoch=epoch).tolist())
        for seed in (0, 1, 2**32, 2**63 - 1)
        for epoch in (0, 1, 2**32 - 1)
        for _ in range(2)
    }
    assert len(draws) == 12
