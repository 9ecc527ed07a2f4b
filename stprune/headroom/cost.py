"""What a training step costs, by the number of nodes in it."""

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
    """Seconds per window of a training step with m nodes: c0 + c1 m + c2 m^2.

    Attributes:
        c0: what does not depend on the nodes, the step's own share included.
        c1: per node.
        c2: per pair of nodes, as in attention over nodes; 0 where the cost is linear.
    """

    c0: float
    c1: float
    c2: float

    def at(self, num_drawn: Numbers) -> Array:
        """Seconds per window with so many nodes."""
        m = np.asarray(num_drawn, dtype=np.float64)
        return self.c0 + self.c1 * m + self.c2 * m * m


@dataclass(frozen=True)
class StepTimes:
    """Measured steps.

    Attributes:
        sizes: [K] int64, nodes per window, ascending.
        seconds: [rounds, K] float64 per window.
    """

    sizes: NDArray[np.int64]
    seconds: Array


def sizes_to_time(num_nodes: int) -> NDArray[np.int64]:
    """Numbers of nodes worth timing: all, and halvings of it down to a 32nd.

    Example:
        >>> sizes_to_time(192).tolist(), sizes_to_time(3).tolist()
        ([6, 12, 24, 48, 96, 192], [1, 2, 3])
    """
    halvings = {max(1, round(num_nodes / 2**power)) for power in range(6)}
    return np.array(sorted(halvings), dtype=np.int64)


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
        sizes: [K] ascending numbers of nodes to time; None for `sizes_to_time`.

    Returns:
        The times.
    """
    num_nodes = batches[0][0].shape[2]
    sizes = sizes_to_time(num_nodes) if sizes is None else sizes
    maker = optimizer([parameter for parameter in model.parameters() if parameter.requires_grad])
    rng = np.random.default_rng([seed, 1])
    device = batches[0][0].device
    index = torch.arange(len(batches[0][0]), device=device)
    rounds: list[Array] = []
    # The first round warms up allocators, kernels and the optimizer's state, and is dropped.
    for number in range(_MOST_ROUNDS + 1):
        if number > FEWEST_ROUNDS and time.perf_counter() > deadline:
            break
        x, y = batches[0]
        row = np.empty(len(sizes))
        for place in rng.permutation(len(sizes)):
            count = int(sizes[place])
            _wait(device)
            started = time.perf_counter()
            if count == num_nodes:
                forecast, target = model(x), y
            else:
                node = draw_nodes(index, num_nodes=num_nodes, count=count, seed=seed, epoch=number)
                forecast, target = model(gather_nodes(x, node), node=node), gather_nodes(y, node)
            value = batch_mean(*entries(forecast, target, loss, null_value, null_tolerance))
            maker.zero_grad(set_to_none=True)
            value.backward()
            maker.step()
            _wait(device)
            row[place] = (time.perf_counter() - started) / len(x)
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


def fit_cost(sizes: NDArray[np.int64], seconds: Array) -> StepCost:
    """Least squares of the relative errors with coefficients that are not negative.

    Relative, since a clock's errors grow with what it measures. A quadratic term needs at least four sizes.

    Args:
        sizes: [K] nodes per window.
        seconds: [K] per window, positive.

    Returns:
        The cost. Exact data of a cost of this form give its coefficients back.

    Example:
        >>> import numpy as np
        >>> cost = fit_cost(np.array([1, 2, 4, 8]), np.array([3.5, 4.0, 5.0, 7.0]))
        >>> round(cost.c0, 6), round(cost.c1, 6), round(cost.c2, 6)
        (3.0, 0.5, 0.0)
    """
    m = sizes.astype(np.float64)
    columns = [np.ones_like(m), m] + ([m * m] if len(m) >= 4 else [])
    matrix = np.stack(columns, axis=1) / seconds[:, None]
    best, least = np.zeros(len(columns)), np.inf
    # The best of all sets of free coefficients whose solution is feasible is the constrained solution; three have seven.
    for some in itertools.chain.from_iterable(itertools.combinations(range(len(columns)), n) for n in range(1, 4)):
        chosen = list(some)
        solution = np.linalg.lstsq(matrix[:, chosen], np.ones(len(m)), rcond=None)[0]
        if (solution < 0).any():
            continue
        error = float(np.square(matrix[:, chosen] @ solution - 1).sum())
        # A term more must earn its place by more than rounding.
        if error < least - 1e-12:
            best, least = np.zeros(len(columns)), error
            best[chosen] = solution
    return StepCost(float(best[0]), float(best[1]), float(best[2]) if len(best) > 2 else 0.0)
