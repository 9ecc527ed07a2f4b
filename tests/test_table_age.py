"""table_age and count_nonfinite: what moves, and what they refuse."""

import pytest
import torch

from stprune import testing
from stprune.ops.table_age import count_nonfinite, table_age


def table(n):
    generator = torch.Generator().manual_seed(n)
    scores = torch.randn(n, generator=generator)
    scores[torch.rand(n, generator=generator) < 0.1] = torch.inf
    scores[torch.rand(n, generator=generator) < 0.1] = torch.nan
    return scores, torch.randint(0, 256, (n,), generator=generator, dtype=torch.uint8)


def test_what_moves():
    scores = torch.tensor([1.0, 1.0, 1.0, torch.inf, torch.nan, torch.nan])
    # known; known; known, scored and trained on; never scored; known, scored and fresh; known, in some batch
    marks = torch.tensor([8, 8, 13, 0, 11, 0x38], dtype=torch.uint8)
    assert count_nonfinite(scores, marks) == 2
    table_age(scores, marks, mean=3.0, keep=0.5)
    testing.assert_same(scores, torch.tensor([2.0, 2.0, 1.0, torch.inf, torch.nan, torch.nan]))
    assert marks.tolist() == [8, 8, 8, 0, 10, 8]
    assert count_nonfinite(scores, marks) == 2


@pytest.mark.skipif(not testing.isas(), reason="the compiled CPU library is not built")
def test_bad_tables_are_refused():
    scores, marks = table(3)
    for bad in ((scores[:2], marks), (scores, marks.bool())):
        with pytest.raises(RuntimeError, match="table_age: (s|m)"):
            table_age(*bad, mean=0.0, keep=0.5)
        with pytest.raises(RuntimeError, match="count_nonfinite: (s|m)"):
            count_nonfinite(*bad)
