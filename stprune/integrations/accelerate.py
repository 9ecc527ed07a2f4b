"""Hugging Face Accelerate: a loader that `prepare` does not share out a second time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from accelerate import Accelerator
from accelerate.data_loader import DataLoaderStateMixin
from accelerate.state import GradientState
from accelerate.utils import send_to_device

from stprune.integrations.requirements import sampler_of

_OP = "PruningLoader"
_END = object()


class PruningLoader(DataLoaderStateMixin):  # type: ignore[misc]
    """The training loader of an Accelerate run, each of whose processes trains on its own share of the sampler's plan.

    Accelerate shares the batches of a DataLoader out among its processes, but a PruningSampler has done so already: half of
    the plan would be lost on two processes. This is no DataLoader, so that `accelerator.prepare` hands it back as it is. It
    does what a prepared loader does: it moves batches to the process's device, and says which one is an epoch's last, so that
    `accelerator.accumulate` takes a step there.

    Its state is the sampler's, with the scores of every process: `accelerator.register_for_checkpointing(loader)`. A resumed
    run begins where it was saved, so do not call `accelerator.skip_first_batches` for it, which is refused. Prepare loaders
    for evaluation as usual. Do not prepare the scheduler: step it where `accelerator.sync_gradients` is true, and it takes
    `sampler.total_steps(batch_size, accumulate=n)` steps on any number of processes.

    Args:
        accelerator: the run's Accelerator.
        loader: a DataLoader, StatefulDataLoader or WindowLoader with a PruningSampler, or with its `batches`. Its batch size
            is that of one process, and its batches hold the ids of their samples.

    Raises:
        TypeError: `loader` has no PruningSampler.
        ValueError: the accelerator splits or dispatches batches.

    Source:
        `BatchSamplerShard`, `DataLoaderShard` and `GradientState` of Accelerate 1.15.
    """

    def __init__(self, accelerator: Accelerator, loader: Any) -> None:
        for name in ("split_batches", "dispatch_batches"):
            if getattr(accelerator, name):
                raise ValueError(f"{_OP}: {name} must be off, as every process draws whole batches of its own, got True")
        self.accelerator = accelerator
        self.loader = loader
        self.sampler = sampler_of(_OP, loader)
        self.gradient_state = GradientState()

    @property
    def dataset(self) -> Any:
        """Not given, as Accelerate asks for it to shorten or to rebuild a loader."""
        raise AttributeError(f"{_OP}: skip_first_batches must not be called, as the sampler's state knows where to go on")

    def __len__(self) -> int:
        """Batches of this process in the whole epoch; the first pass after `load_state_dict` may have fewer."""
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        device = self.accelerator.device if self.accelerator.device_placement else None
        self.begin()
        try:
            batches = iter(self.loader)
            batch = next(batches, _END)
            while batch is not _END:
                following = next(batches, _END)
                self.end_of_dataloader = following is _END
                if device is not None:
                    batch = send_to_device(batch, device, non_blocking=self.accelerator.non_blocking)
                yield batch
                batch = following
        finally:
            self.end()

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch: the sampler's `set_epoch`."""
        self.sampler.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The sampler's state with every process's scores: a collective, as `accelerator.save_state` is."""
        self.sampler.synchronize()
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.sampler.load_state_dict(state)
