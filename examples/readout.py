"""A linear readout of filters with fixed poles, trained online: at each step on a few states of a ring of past ones.

Stands for the fixed-pole RNN (arXiv 2602.21454), in spirit, as no code is published: symbols are detected in what a channel
made of them. A state's score is its last error. The newest state takes the slot of the oldest, which the table forgets:
unknown states are drawn first and count for 1, the others are drawn by score, with unbiased weights.
"""

import argparse
import itertools
import time

import torch

import stprune

RING, DRAWN = 256, 8


def stream(steps):
    """States [steps, 12] of filters that a channel's output goes into, and the symbols [steps] that went into the channel."""
    g = torch.Generator().manual_seed(0)
    symbols = torch.randint(0, 2, (steps,), generator=g) * 2.0 - 1
    received = symbols + 0.5 * symbols.roll(1) - 0.3 * symbols.roll(2) + 0.5 * torch.randn(steps, generator=g)
    poles, state, states = torch.linspace(-0.9, 0.9, 12), torch.zeros(12), []
    for value in received:
        state = poles * state + (1 - poles.square()).sqrt() * value
        states.append(state)
    return torch.stack(states), symbols


def chosen(law, scores, newest, seed, step):
    """Slots of a ring that a step is trained on, and what each counts for in the sum over the ring."""
    held, few = len(scores), min(DRAWN, len(scores))
    if law == "score draws":
        return stprune.draw_weighted(scores, few, seed=seed, epoch=step)
    if law == "uniform draws":
        slots = stprune.draw_weighted(torch.ones(held), few, seed=seed, epoch=step)[0]
    else:
        slots = (newest - torch.arange(held if law == "full ring" else few)) % held
    return slots, torch.full((len(slots),), held / len(slots))


def gradient(readout, states, symbols, weight, held):
    """The gradient of the ring's mean squared error, from some of its states; and their errors."""
    error = states @ readout - symbols
    return (weight * error) @ states / held, error


def learn(law, states, symbols, seed, rate=0.05):
    """Errors [steps] on each symbol before it was trained on, states trained on."""
    ring = torch.zeros(RING, states.shape[1]), torch.zeros(RING)
    table, readout, errors, trained = stprune.ScoreTable(RING, beta=0.0), torch.zeros(states.shape[1]), [], 0
    for step, (state, symbol) in enumerate(zip(states, symbols, strict=True)):
        errors.append(state @ readout - symbol)
        newest, held = step % RING, min(step + 1, RING)
        ring[0][newest], ring[1][newest] = state, symbol
        table.forget(torch.tensor([newest]))
        slots, weight = chosen(law, table.scores[:held], newest, seed, step)
        change, error = gradient(readout, ring[0][slots], ring[1][slots], weight, held)
        readout -= rate * change
        table.update(slots, 0.5 + error.abs())  # bounded from below, and so are the chances, and the weights from above
        trained += len(slots)
    return torch.stack(errors), trained


def least_error(states, symbols):
    """Squared error of the readout that ordinary least squares finds on the whole stream."""
    x, y = states.double(), symbols.double()[:, None]  # the filters are too much alike for float32
    return (x @ torch.linalg.lstsq(x, y).solution - y).square().mean().item()


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=3, choices=range(3, 10))
    args = parser.parse_args(arguments)
    states, symbols = stream(300 if args.quick else 2500)
    runs, measures = ("full ring", "newest, equal cost", "uniform draws", "score draws"), ("squared error", "symbol errors %")
    rows = torch.zeros(len(runs), args.seeds, 4)
    for seed, (at, law) in itertools.product(range(args.seeds), enumerate(runs)):
        begin = time.perf_counter()
        errors, trained = learn(law, states, symbols, seed)
        wrong = 100 * (errors.abs() > 1).float().mean()
        rows[at, seed] = torch.tensor([errors.square().mean(), wrong, trained, time.perf_counter() - begin])
    print(f"{'run':20}" + "".join(f"{measure:>20}" for measure in measures) + "   samples seconds")
    for name, mean, spread in zip(runs, rows.mean(1).tolist(), rows.std(1).tolist(), strict=True):
        cells = "".join(f"{m:>11.4f} ± {s:.4f}" for m, s in zip(mean[:2], spread, strict=False))
        print(f"{name:20}{cells}{mean[2]:>10,.0f}{mean[3]:>8.1f}")
    print(f"In hindsight the best readout has the squared error {least_error(states, symbols):.4f}.")
    for at, other in list(enumerate(runs))[:-1]:
        spread, mean = torch.std_mean(rows[-1, :, 0] - rows[at, :, 0])  # 2.5: Student's t for three seeds, 95%
        word = "more" if abs(mean) > 2.5 * spread else "not more"
        print(f"score draws, squared error: {mean:+.4f} ± {spread:.4f} against {other}, {word} than the seeds differ.")


if __name__ == "__main__":
    main()
