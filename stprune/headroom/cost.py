"""What a training step costs, by its windows and nodes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stprune.headroom.gradients import Array, Numbers
from stprune.headroom.losses import Loss, batch_mean, entries
from stprune.ops import draw_nodes, gather_nodes

FEWEST_ROUNDS = 3
_MOST_ROUNDS = 40

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class StepCost:
    """Seconds of a training step of B windows with m nodes: step + B (c0 + c1 m + c2 m^2).

    Attributes:
        step: what does not depend on the batch.
        c0: per window.
        c1: per window and node.
        c2: per window and pair of nodes, as in attention over nodes; 0 where the cost is linear.
    """

    step: float
    c0: float
    c1: float
    c2: float

    def at(self, batch_size: Numbers, num_drawn: Numbers) -> Array:
        """Seconds of a step with so many windows and nodes."""
        m = np.asarray(num_drawn, dtype=np.float64)
        return self.step + np.asarray(batch_size, dtype=np.float64) * (self.c0 + self.c1 * m + self.c2 * m * m)


@dataclass(frozen=True)
class StepTimes:
    """Measured steps.

    Attributes:
        sizes: [K, 2] int64, windows and nodes a window.
        seconds: [rounds, K] float64.
    """

    sizes: NDArray[np.int64]
    seconds: Array


def sizes_to_time(batch_size: int, num_nodes: int) -> NDArray[np.int64]:
    """Windows and nodes worth timing: all of both; of each a quarter, a 16th and a 64th; and an eighth of both.

    Example:
        >>> sizes_to_time(8, 16).tolist()
        [[1, 2], [1, 16], [2, 16], [8, 1], [8, 4], [8, 16]]
    """
    parts = [(4**k, 1) for k in range(4)] + [(1, 4**k) for k in range(4)] + [(8, 8)]
    sizes = {(max(1, batch_size // windows), max(1, num_nodes // nodes)) for windows, nodes in parts}
    return np.array(sorted(sizes), dtype=np.int64)


def time_steps(
    model: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    *,
    loss: Loss,
    null_value: float | None,
    null_tolerance: float = 0.0,
    optimizer: MakeOptimizer,
    seed: int,
    deadline: float,
    progress: Callable[[int], None],
    sizes: NDArray[np.int64] | None = None,
) -> StepTimes:
    """Time whole training steps: drawing and gathering nodes, forward, loss, backward, optimizer.

    The sizes take turns in an order that changes every round, so that a drift of the machine hits all alike. The step with
    all nodes neither draws nor gathers.

    Args:
        model: in training mode; it is trained.
        batches: pairs (x, y) on the model's device.
        loss: of entries, unreduced.
        null_value, null_tolerance: what target values mean missing, as for `entries`.
        optimizer: makes the optimizer of parameters.
        seed: of orders and node draws.
        deadline: time.perf_counter() after which no new round is begun, once there are 3.
        progress: called with 1 after every round.
        sizes: [K, 2] windows and nodes to time; None for `sizes_to_time`.

    Returns:
        The times.
    """
    all_x, all_y = batches[0]
    # In one piece, since `gather_nodes` copies the whole of a batch that is not, where a loader reads the drawn nodes only.
    whole_x, whole_y = all_x.contiguous(), all_y.contiguous()
    num_nodes = all_x.shape[2]
    sizes = sizes_to_time(len(all_x), num_nodes) if sizes is None else sizes
    maker = optimizer([parameter for parameter in model.parameters() if parameter.requires_grad])
    rng = np.random.default_rng([seed, 1])
    device = all_x.device
    # One thread's time on the processor does not count what other processes take of it.
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    index = torch.arange(len(all_x), device=device)
    rounds: list[Array] = []
    # The first round warms up allocators, kernels and the optimizer's state, and is dropped.
    for number in range(_MOST_ROUNDS + 1):
        if number > FEWEST_ROUNDS and time.perf_counter() > deadline:
            break
        row = np.empty(len(sizes))
        for place in rng.permutation(len(sizes)):
            windows, count = sizes[place].tolist()
            _wait(device)
            started = clock()
            if count == num_nodes:
                forecast, target = model(all_x[:windows]), all_y[:windows]
            else:
                node = draw_nodes(index[:windows], num_nodes=num_nodes, count=count, seed=seed, epoch=number)
                forecast = model(gather_nodes(whole_x[:windows], node), node=node)
                target = gather_nodes(whole_y[:windows], node)
            value = batch_mean(*entries(forecast, target, loss, null_value, null_tolerance))
            maker.zero_grad(set_to_none=True)
            value.backward()
            maker.step()
            _wait(device)
            row[place] = clock() - started
        if number:
            rounds.append(row)
            progress(1)
    return StepTimes(sizes, np.stack(rounds))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def typical(seconds: Array) -> Array:
    """[K] lower quartile of [rounds, K] times: a shared machine's stalls only ever add, and often to more than half of them.

    Not lower: a busy machine interrupts every long step and few short ones, so that the fastest make few nodes look too cheap.

    Example:
        >>> import numpy as np
        >>> typical(np.array([[1.0], [1.1], [1.2], [9.0], [9.0]])).tolist()
        [1.1]
    """
    quartile: Array = np.quantile(seconds, 0.25, axis=0)
    return quartile


def fit_cost(times: StepTimes) -> StepCost:
    """Least squares of the typical times' relative errors with coefficients that are not negative.

    Relative, since a clock's errors grow with what it measures.

    Args:
        times: of steps.

    Returns:
        The cost. Exact data of a cost of this form, measured at `sizes_to_time` of many windows and nodes, give its
        coefficients back.

    Example:
        >>> import numpy as np
        >>> sizes = np.array([[1, 1], [1, 8], [2, 4], [4, 2], [4, 8], [8, 1]])
        >>> cost = fit_cost(StepTimes(sizes, StepCost(3.0, 0.0, 0.5, 0.0).at(*sizes.T)[None]))
        >>> round(cost.step, 6), round(cost.c0, 6), round(cost.c1, 6), round(cost.c2, 6)
        (3.0, 0.0, 0.5, 0.0)
    """
    windows, nodes = times.sizes.astype(np.float64).T
    columns = np.stack([np.ones_like(nodes), windows, windows * nodes, windows * nodes * nodes], axis=1)
    matrix = columns / typical(times.seconds)[:, None]
    best, least = np.zeros(4), np.inf
    # The best of all sets of free coefficients whose solution is feasible is the constrained solution; four have fifteen.
    for some in itertools.chain.from_iterable(itertools.combinations(range(4), n) for n in range(1, 5)):
        chosen = list(some)
        solution = np.linalg.lstsq(matrix[:, chosen], np.ones(len(matrix)), rcond=None)[0]
        if (solution < 0).any():
            continue
        error = float(np.square(matrix[:, chosen] @ solution - 1).sum())
        # A term more must earn its place by more than rounding.
        if error < least - 1e-12:
            best, least = np.zeros(4), error
            best[chosen] = solution
    return StepCost(*best.tolist())


def fit_error(times: StepTimes, cost: StepCost) -> float:
    """Largest relative distance of the fitted cost from the times of the measured steps."""
    return float(np.abs(cost.at(*times.sizes.T) / typical(times.seconds) - 1).max())
