"""UniformPlan: an epoch of equally likely samples, of which nothing is stored."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from stprune.ops import permute


@dataclass(frozen=True)
class UniformPlan:
    """The first `count` samples of the epoch's counter-based permutation: an exact uniform draw without a list of it.

    It has what an `EpochPlan` has. `indices` and `weights` are made when somebody asks, of `count` elements; training asks
    for neither.

    Attributes:
        epoch: the epoch it was made for.
        count: kept samples.
        num_samples: size of the training set.
        seed: what the permutation is keyed by, together with the epoch.
        mean_weight: num_samples / count, the weight of every kept sample.
    """

    epoch: int
    count: int
    num_samples: int
    seed: int

    def __len__(self) -> int:
        return self.count

    @property
    def mean_weight(self) -> float:
        """The weight of every kept sample, 1 / probability."""
        return self.num_samples / self.count if self.count else 1.0

    @property
    def is_full(self) -> bool:
        """Whether every sample is kept."""
        return self.count == self.num_samples

    @functools.cached_property
    def indices(self) -> torch.Tensor:
        """[count] int64 kept ids, ascending; made now."""
        return self.order(0, self.count).sort().values

    @property
    def weights(self) -> torch.Tensor:
        """[count] float32, one value expanded."""
        return torch.full((1,), self.mean_weight).expand(self.count)

    def order(self, start: int, stop: int) -> torch.Tensor:
        """Ids at positions [start, stop) of the epoch's shuffled order, [stop - start] int64."""
        return permute(self.num_samples, start, stop, seed=self.seed, epoch=self.epoch)

    def lookup(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights [B] of ids [B], 0 where an id is not in the plan, and whether it is; makes `indices`."""
        kept = self.indices.to(index.device)
        if not self.count:
            return torch.zeros(index.shape, device=index.device), torch.zeros_like(index, dtype=torch.bool)
        known = kept[torch.searchsorted(kept, index.contiguous()).clamp_max(self.count - 1)] == index
        return torch.where(known, self.mean_weight, 0.0), known

    def to(self, device: torch.device | str) -> UniformPlan:
        """Itself: there is nothing to move."""
        return self


class UniformWeights:
    """The one weight of a `UniformPlan`, for training steps to look up.

    Args:
        plan: the epoch's plan.
        device: the training device.
    """

    def __init__(self, plan: UniformPlan, device: torch.device) -> None:
        self._num_samples = plan.num_samples
        self._weight = torch.tensor([plan.mean_weight], dtype=torch.float32, device=device)

    def arguments(self, *, per_step: bool) -> tuple[None, torch.Tensor, torch.Tensor | None, int]:
        """What `pruned_step` takes of a plan."""
        return None, self._weight, self._weight[0] if per_step else None, self._num_samples
