"""NeuralForecast: a model's windows drawn by the sampler's plans, and weighted by them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import neuralforecast
import torch
from neuralforecast.common._base_model import BaseModel

from stprune import PrunedMean, PruningSampler
from stprune.integrations.requirements import require_functions

_OP = "PruningModel"
_PRIVATE = {
    "_fit": {"dataset", "batch_size", "shuffle_train"},
    "_create_windows": {"batch", "step"},
    "_sample_windows": {"windows_temporal", "static", "static_cols", "temporal_cols", "w_idxs", "final_condition"},
    "_normalization": {"windows", "y_idx"},
    "_parse_windows": {"batch", "windows"},
}
"""What is not public and yet needed, with the arguments that are given: a model draws its windows inside its training step."""


class PruningModel(BaseModel):  # type: ignore[misc]
    """Mixin before a model of NeuralForecast: `class PrunedNHITS(PruningModel, NHITS): pruning = {"num_epochs": 3}`.

    A training step of NeuralForecast draws `windows_batch_size` windows at random, and a run is `max_steps` of them: it knows
    no epochs, so that only fewer steps save time. Here the windows of a step are the next ones of the plan, and `max_steps`
    must be the sampler's `total_steps`, which the error names. Loss and validation stay NeuralForecast's own.

    Sample i is the i-th window that NeuralForecast would draw from, of all series in their order: `batch_size` must be at
    least their number, and they are not shuffled.

    Attributes:
        pruning: arguments of the PruningSampler, but for the number of windows.
        sampler: the run's sampler, once the first step has counted the windows.

    Raises:
        TypeError: the loss is that of a distribution.
        ValueError: `batch_size` or `max_steps` breaks its rule, or a column gives sample weights.
        RuntimeError: this version of neuralforecast lacks a function that is needed.

    Source:
        `BaseModel.training_step` of NeuralForecast 3.3.
    """

    pruning: ClassVar[dict[str, Any]] = {}
    sampler: PruningSampler | None = None
    _batches: Iterator[Any] = iter(())

    def _fit(self, dataset: Any, batch_size: int, **named: Any) -> Any:
        require_functions(_OP, BaseModel, _PRIVATE, "neuralforecast 3.3", neuralforecast.__version__)
        if self.loss.is_distribution_output:
            raise TypeError(f"{_OP}: loss must be a point loss, got {type(self.loss).__name__}")
        if batch_size < dataset.n_groups:
            raise ValueError(f"{_OP}: batch_size must be at least the number of series {dataset.n_groups}, got {batch_size}")
        self.sampler = None
        return super()._fit(dataset, batch_size, **{**named, "shuffle_train": False})

    def _next_ids(self, num_windows: int) -> torch.Tensor:
        """The ids [B] of the next step."""
        size, sampler = self.windows_batch_size or num_windows, self.sampler
        if sampler is None:
            sampler = self.sampler = PruningSampler(num_windows, **self.pruning)
            total = sampler.total_steps(size)
            if self.max_steps != total:
                raise ValueError(
                    f"{_OP}: max_steps must be the total_steps {total} of {num_windows} windows, got {self.max_steps}"
                )
            self._batches = iter(sampler.batches(size))
        ids = next(self._batches, None)
        if ids is None:
            sampler.set_epoch(sampler.epoch + 1)
            self._batches = iter(sampler.batches(size))
            ids = next(self._batches)
        return torch.from_numpy(ids.copy())

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """As NeuralForecast's, on the windows of the plan."""
        if self.RECURRENT:
            self.h = self.h_train
        all_windows, static, static_cols, available, weights, columns = self._create_windows(batch, step="train")
        if weights is not None:
            raise ValueError(f"{_OP}: sample_weight must be no column of the data")
        index = self._next_ids(len(available)).to(all_windows.device)
        assert self.sampler is not None
        windows = self._sample_windows(
            windows_temporal=all_windows,
            static=static,
            static_cols=static_cols,
            temporal_cols=columns,
            w_idxs=index,
            final_condition=available,
        )
        windows = self._normalization(windows=windows, y_idx=batch["y_idx"])
        y, y_mask, target, mask, hist_exog, futr_exog, stat_exog = self._parse_windows(batch, windows)
        given = {"insample_y": y, "insample_mask": y_mask}
        given |= {"hist_exog": hist_exog, "futr_exog": futr_exog, "stat_exog": stat_exog}
        prediction = self.loss.domain_map(self(given))

        def of_one(*parts: torch.Tensor) -> torch.Tensor:
            target, prediction, y, mask = (part.unsqueeze(0) for part in parts)
            return self.loss(y=target, y_hat=prediction, y_insample=y, mask=mask)

        losses = torch.vmap(of_one)(target, prediction, y, mask)
        # A window counts for as many entries as it has, as in NeuralForecast's own mean.
        losses = losses.view(-1, *[1] * (mask.ndim - 1)).expand_as(mask)
        loss = PrunedMean(self.sampler)(losses, index, mask=mask > 0)
        self.log("train_loss", loss.detach(), batch_size=len(index), prog_bar=True, on_epoch=True)
        self.train_trajectories.append((self.global_step, loss.item()))
        self.h = self.horizon_backup
        return loss

    def on_train_end(self) -> None:
        """Forget the iterator, which cannot be copied as models are, and hold what was trained on against the plan."""
        super().on_train_end()
        self._batches = iter(())
        if self.sampler is not None:
            self.sampler.finish()
