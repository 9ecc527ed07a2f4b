"""examples/readout.py: runs as it says, draws without bias from a ring whose slots are used again, and forgets their states."""

import torch
from example_checks import check_table, example, printed

import stprune

MODULE = example("readout")
STATES, SYMBOLS = MODULE.stream(64)


def table_of(unknown=4):
    """Scores of a ring of 64 of which some are unknown."""
    table = stprune.ScoreTable(64, beta=0.0)
    table.update(torch.arange(64), 0.1 + 3 * torch.rand(64, generator=torch.Generator().manual_seed(0)) ** 4)
    table.forget(torch.arange(unknown) * 7)
    return table


def test_the_short_form_prints_its_table():
    rows = ["full ring", "newest, equal cost", "uniform draws", "score draws"]
    check_table(printed(MODULE), rows, ("samples", "seconds"))


def gradients(law, draws=1000, weighted=True):
    scores, readout, found = table_of().scores, torch.linspace(-0.2, 0.2, STATES.shape[1]), []
    for step in range(draws):
        slots, weight = MODULE.chosen(law, scores, 63, 0, step)
        weight = weight if weighted else torch.full_like(weight, len(scores) / len(slots))
        found.append(MODULE.gradient(readout, STATES[slots], SYMBOLS[slots], weight, len(scores))[0])
    return torch.stack(found)


def test_draws_from_the_ring_are_unbiased_and_unweighted_or_newest_ones_are_not():
    (full,) = gradients("full ring", draws=1)

    def errors(found):
        return ((found.mean(0) - full).abs() / (found.std(0) / len(found) ** 0.5)).max()

    assert errors(gradients("score draws")) < 4
    assert errors(gradients("uniform draws")) < 4
    assert errors(gradients("score draws", weighted=False)) > 4
    assert (gradients("newest, equal cost", draws=1) - full).abs().max() > 0.1 * full.abs().max()


def test_unknown_states_are_drawn_first_and_count_for_one():
    for step in range(20):
        slots, weight = MODULE.chosen("score draws", table_of().scores, 63, 0, step)
        assert set(range(0, 28, 7)) <= set(slots.tolist())
        assert (weight[torch.isin(slots, torch.arange(4) * 7)] == 1).all()


def test_every_new_state_is_trained_on_at_once_though_its_slot_was_scored_before(monkeypatch):
    monkeypatch.setattr(MODULE, "RING", 16)
    steps, chosen = [], MODULE.chosen

    def watched(law, scores, newest, seed, step):
        slots, weight = chosen(law, scores, newest, seed, step)
        steps.append((step % 16 == newest, newest in slots.tolist(), int((scores == torch.inf).sum()), len(slots)))
        return slots, weight

    monkeypatch.setattr(MODULE, "chosen", watched)
    errors, trained = MODULE.learn("score draws", STATES, SYMBOLS, 0)
    assert len(errors) == len(steps) == 64
    assert all(own and drawn and unknown == 1 for own, drawn, unknown, _ in steps)
    assert trained == sum(number for *_, number in steps)


def test_the_readout_comes_near_the_best_one():
    states, symbols = MODULE.stream(1500)
    errors, _ = MODULE.learn("score draws", states, symbols, 0)
    best = MODULE.least_error(states, symbols)
    assert best < errors[1000:].square().mean() < 1.3 * best
