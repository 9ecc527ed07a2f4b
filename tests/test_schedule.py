"""Keep ratio as a function of the epoch."""

import pytest

from stprune.schedule import Schedule


def test_step_is_the_ratio_then_one():
    schedule = Schedule("step", 100, 0.3, 0.875)
    assert [schedule(e) for e in (0, 86, 87, 99)] == [0.3, 0.3, 1.0, 1.0]


@pytest.mark.parametrize(
    ("anneal", "num_epochs", "first"), [(0.29, 100, 29), (0.875, 30, 26), (0.7, 10, 7), (0.1, 30, 3), (1.0, 5, 5)]
)
def test_first_annealed_epoch_is_the_floor_of_the_exact_product(anneal, num_epochs, first):
    schedule = Schedule("step", num_epochs, 0.5, anneal)
    assert schedule.first_annealed == first
    assert [schedule(e) == 1.0 for e in range(num_epochs)] == [e >= first for e in range(num_epochs)]


def test_cosine_rises_monotonically_to_one():
    schedule = Schedule("cosine", 20, 0.4, 0.5)
    ratios = [schedule(e) for e in range(20)]
    assert ratios[:10] == [0.4] * 10
    assert all(a < b for a, b in zip(ratios[9:], ratios[10:], strict=False))
    assert ratios[-1] == 1.0


def test_none_never_rises():
    assert {Schedule("none", 10, 0.25, 0.5)(e) for e in range(10)} == {0.25}


def test_a_function_is_asked_and_checked():
    assert Schedule(lambda e: 1 / (e + 1), 10, 0.5, 0.5)(3) == 0.25
    with pytest.raises(ValueError, match=r"schedule\(2\) must lie in \(0, 1\], got 0"):
        Schedule(lambda e: 0.0, 10, 0.5, 0.5)(2)


def test_unknown_name():
    with pytest.raises(ValueError, match="schedule must be one of step, cosine, none or a function, got 'linear'"):
        Schedule("linear", 10, 0.5, 0.5)
