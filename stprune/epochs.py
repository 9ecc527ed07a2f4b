"""Epochs: those of a run, one after the other - which is under way, by which plan, how far it has come, and its state."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils.data.distributed import DistributedSampler

from stprune.granularity import Granularity
from stprune.ops import _check
from stprune.passes import num_parts
from stprune.plan import Plan
from stprune.plan_memory import PlanMemory
from stprune.planner import Planner
from stprune.ranks import Ranks
from stprune.running import Running
from stprune.table import LAYOUT, unpickled

OP = "PruningSampler"
_VERSION = 3


class Epochs(DistributedSampler[int]):
    """The part of a `PruningSampler` that goes from epoch to epoch; it hands out no ids itself.

    Args:
        planner: the run's rule for its epochs.
        units: what a sample is.
        ranks: who trains on shares of each epoch.
        drop_last, sharded: as `PruningSampler` has them.

    Attributes:
        table: the samples' scores.
        epoch: the epoch under way.
        last_pass: how many passes have begun; of the last one, its first position, and the order of its ids if that is not the
            plan's.
    """

    def __init__(self, planner: Planner, units: Granularity, ranks: Ranks, *, drop_last: bool, sharded: bool) -> None:
        # DistributedSampler.__init__ is not called: it would ask for a process group and fix the length.
        self._planner, self._units, self._ranks = planner, units, ranks
        self.method, self.schedule, self.num_epochs = planner.method, planner.schedule, planner.schedule.num_epochs
        self.node_sampler, self.drop_last, self.sharded = units.node_sampler, drop_last, sharded
        # Pairs are too many to keep scores that nobody reads.
        self.table: Any = planner.table(units.num_samples, ranks, lean=sharded or units.kind == "pair")
        self.epoch, self.shuffle = 0, True
        self._memory = PlanMemory(units.num_samples)
        self.last_pass: tuple[int, int, torch.Tensor | None] = 0, 0, None
        self._running: Running | None = None
        self._agreed = False  # the ranks have compared their settings in this epoch
        self._warned: frozenset[str] = frozenset()

    def __getstate__(self) -> dict[str, Any]:
        """State for copies, which share no memory that this sampler plans in."""
        self._memory.keep()
        return self.__dict__ | {"_memory": PlanMemory(self.table.num_samples), "layout": LAYOUT}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores a copy; a pickle of another version of stprune is refused."""
        self.__dict__.update(unpickled(OP, state))

    @property
    def num_replicas(self) -> int:  # type: ignore[override]
        """Number of ranks."""
        return self._ranks.both[0]

    @property
    def rank(self) -> int:  # type: ignore[override]
        """This process's rank."""
        return self._ranks.both[1]

    # --- from one epoch to the next ----------------------------------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch: exchange scores between ranks, age the table, and plan. A second call for it does nothing.

        Where another epoch ends with it, the samples counted in that one are held against its plan, as by `finish`.

        A collective where ranks exchange scores: every rank calls it, for the same epoch. After `load_state_dict` of a state
        from the middle of this epoch it goes on there; of a state whose epoch was over it begins that epoch anew.

        Args:
            epoch: in [0, num_epochs), or [0, 2^32) without it.

        Raises:
            ValueError: `epoch` lies outside the run; on every rank: a setting is not the same on every rank, or on one of them
                the last epoch's ids did not tell samples apart, or a batch on a GPU held an id that is not in the plan (once).
        """
        epoch = self._checked_epoch(f"{OP}.set_epoch", epoch)
        running = self._running
        if running is not None and epoch == self.epoch:
            if not self._agreed:
                self._agree(epoch)
            if running.finished:
                self.resume_at(0)
            return
        fault = self._hold_against_plan()
        scheduled = self.schedule(epoch)  # a user's function: what it raises is raised before anything has changed
        self._agree(epoch, fault)
        if epoch != self.epoch:
            self.synchronize()
            self.node_sampler.advance()
            # From here on a second call goes on where this one stopped.
            self._running, passed, self.epoch = None, epoch - self.epoch, epoch
            if passed > 0:
                self.table.advance(passed)
            else:
                self.table.restart()
        self._units.begin(self._ranks)
        self._begin(self._make_plan(scheduled))
        self._report_nonfinite()

    def finish(self) -> None:
        """End the run: hold the samples counted in its last epoch against the plan. A second call changes nothing.

        One warning a run tells that they differ, by all numbers: validation losses that came in as training, steps that a
        framework left out, ids of another data set. Another one tells, here or in the second `set_epoch`, that
        node_ratio="auto" was left without a choice. Silent, as they belong to correct training: several losses of every sample
        (two criteria, SAM, gradient checkpointing), padding, a dropped last batch, epochs resumed in the middle or left out.

        Raises:
            ValueError: a batch on a GPU held an id that is not in the plan; told once.
        """
        if fault := self._hold_against_plan(at_end=True):
            raise ValueError(fault)

    def _hold_against_plan(self, *, at_end: bool = False) -> str:
        """Warn of what differs; what must be raised, or ""."""
        text, raised = ("", False) if self._running is None else self._running.fault(self._needs_scores, at_end=at_end)
        # Ranks take what the first one is told.
        untold = self._units.untold * (self._running is not None and self.rank == 0)
        for name, warning in (("counts", text * (not raised)), ("node_ratio", untold)):
            if warning:
                self._warn(name, warning)
        return text * raised

    def _agree(self, epoch: int, fault: str = "") -> None:
        """Compare settings, and where each rank stands, with the other ranks; a collective."""
        self._ranks.settle(needs_scores=self._needs_scores)
        # At the current epoch of every rank they go on from the same position; a rank without a plan is at its beginning.
        position = self._running.begin_position if self._running is not None and epoch == self.epoch else 0
        if self._ranks.exchange or fault:
            self._ranks.agree({"epoch": epoch, "epoch before": self.epoch, "position": position} | self._settings(), fault)
        self._agreed = True

    def _checked_epoch(self, op: str, epoch: Any) -> int:
        return _check.integer(op, "epoch", epoch, 0, (self.num_epochs or 2**32) - 1, hint="; epochs count from 0")

    @property
    def _needs_scores(self) -> bool:
        return self.method.needs_scores or self._units.wants_scores

    def synchronize(self) -> None:
        """Exchange scores between ranks; `set_epoch` does it. A collective where torch.distributed spans the ranks.

        Call it on every rank before `state_dict()` of a distributed run, in the middle of an epoch or at its end: a state
        without it lacks the other ranks' scores of this epoch, and nothing says so.
        """
        if self._ranks.exchange or self.sharded:
            self.table.synchronize(self._ranks.group)
        if self._ranks.exchange:
            self.node_sampler.synchronize(self._ranks.group)

    def _warn(self, name: str, message: str) -> None:
        if name not in self._warned:
            self._warned |= {name}
            warnings.warn(f"stprune: {message}. Reported once.", RuntimeWarning, stacklevel=4)

    def _report_nonfinite(self) -> None:
        if count := self.table.num_nonfinite():
            self._warn(
                "nonfinite",
                f"{count} of {self.table.num_samples} samples were scored NaN or infinite. They are kept, with weight 1, and "
                "enter no mean; see sampler.table.num_nonfinite()",
            )

    # --- the epoch under way -----------------------------------------------------------------------------------------

    @property
    def running(self) -> Running:
        """The epoch under way; epoch 0 is planned at first use."""
        if self._running is not None:
            return self._running
        if torch.compiler.is_compiling():
            raise RuntimeError(f"{OP}: the epoch must be planned before a compiled step: call set_epoch, or iterate")
        self._ranks.settle(needs_scores=self._needs_scores)
        return self._begin(self._make_plan(self.schedule(self.epoch)))

    def _make_plan(self, scheduled: float) -> Plan:
        """The current epoch's plan, for which the schedule asks for this keep ratio."""
        # The last epoch's plan leaves its memory to this one, unless somebody still looks at it.
        self._running = None
        return self._planner.plan(self.table, self._memory, epoch=self.epoch, scheduled=scheduled)

    @torch.inference_mode(False)  # or no training step could use what is made here
    def _begin(self, plan: Plan, position: int = 0, *, finished: bool = False) -> Running:
        replicas, rank = self._ranks.both
        share = num_parts(len(plan), replicas, drop_last=self.drop_last)
        position = share * replicas if finished else position
        table, plan = self._planner.dealt(self.table, plan, position=position, share=share, drop_last=self.drop_last)
        self._running = Running(table, plan, share=share, num_replicas=replicas, rank=rank, position=position)
        return self._running

    @property
    def plan(self) -> Plan:
        """The current epoch's plan, on the device of its scores; epoch 0 is planned at first use. It never changes."""
        plan = self.running.plan
        self._memory.keep()
        return plan

    @property
    def next_epoch(self) -> int:
        """The epoch at which a loop begins or goes on: the current one, or the one after it once all of it was trained on."""
        return self.epoch + self.running.over

    # --- its passes --------------------------------------------------------------------------------------------------

    def begin_pass(self, position: int | None, order: torch.Tensor | None = None) -> tuple[Plan, int]:
        """The plan of a pass that begins now, and the position of its order at which it does.

        Args:
            position: where the pass goes on in the current epoch; None begins where the sampler says, and the next epoch where
                the state of a finished one was loaded.
            order: see `batches`.
        """
        if position is None and self.running.finished and self.epoch + 1 < (self.num_epochs or 2**32):
            self.set_epoch(self.epoch + 1)
        if not self._agreed:
            self._agree(self.epoch)
        running = self.running
        begin = running.begin_pass()
        self.last_pass = self.last_pass[0] + 1, begin if position is None else position, order
        return running.plan, self.last_pass[1]

    @property
    def begin_position(self) -> int:
        """Position of the epoch's order at which the next pass begins."""
        return self.running.begin_position

    def end_pass(self, plan: Plan, end: int) -> None:
        """A pass over this plan has delivered its last id, up to position `end`."""
        if self._running is not None and self._running.plan is plan:
            self._running.end_pass(end)

    def reading(self) -> AbstractContextManager[None]:
        """A stretch of code that reads the current plan, whose memory is not used again before its end."""
        return self._memory.reading()

    def resume_at(self, position: int) -> None:
        """Let the next pass begin at this position of the epoch's order, and count trained samples from there."""
        self.table.restart()
        self._begin(self.running.plan, position)

    # --- state -------------------------------------------------------------------------------------------------------

    def _settings(self) -> dict[str, Any]:
        """What must be the same on every rank, and in a sampler that continues; the number of ranks may differ."""
        own = {"num_samples": self.table.num_samples, "drop_last": self.drop_last, "sharded": self.sharded}
        return own | self._units.settings() | self._planner.settings()

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue bit for bit, also in the middle of an epoch and with another number of ranks.

        The position counts distinct samples whose scores came in (`PrunedLoss` or `update`), so batches that a loader has
        prefetched but nobody trained on are delivered again. Loads under torch.load(weights_only=True). As in the states of
        torch's modules the tensors are the sampler's own, so that a state costs nothing each batch: `copy.deepcopy` it to
        keep it beside a run that goes on. With several ranks call `synchronize` on each of them first. A pickle of the sampler
        is for copies and processes of one version of stprune; a state is for files.

        Raises:
            ValueError: a batch on a GPU held an id that is not in the plan; told once.
        """
        running = self.running
        running.refuse_wrong_ids()
        self._memory.keep()
        return {
            "version": _VERSION,
            "settings": self._settings(),
            "epoch": self.epoch,
            "position": running.position,
            "finished": running.over,
            "table": self.table.state_dict(),
            "node_sampler": self._units.state_dict(),
            "warned": sorted(self._warned),
            **self._planner.saved(running.plan),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`: the next pass over the epoch begins at the saved position; `len` counts all of it.

        A state whose epoch was over begins the next epoch, or the epoch that `set_epoch` then names, anew: a loop goes on
        with `next_epoch`.

        Raises:
            TypeError: `state` is no dictionary.
            ValueError: the state was saved with other settings, by name; nothing is changed.
        """
        op = f"{OP}.load_state_dict"
        version = state.get("version") if isinstance(state, dict) else None
        if version is not None and version != _VERSION:
            raise ValueError(f"{op}: version must be {_VERSION}, got {version}")
        _check.same_keys(op, state, _ENTRIES)
        _check.same_settings(op, "sampler", self._settings(), state["settings"])
        self.table.check_state(state["table"])
        epoch = self._checked_epoch(op, state["epoch"])
        position = _check.integer(op, "position", state["position"], 0)
        plan = self._planner.restored(op, self.table, state)
        self._ranks.settle(needs_scores=self._needs_scores)
        self._units.load_state_dict(op, state["node_sampler"])
        self.table.load_state_dict(state["table"])
        self.epoch = epoch
        self._warned = frozenset(state["warned"])
        self._agreed = False
        self._memory.keep()
        self.table.restart()
        self._begin(plan, position, finished=_check.flag(op, "finished", state["finished"]))


_ENTRIES = (
    "version", "settings", "epoch", "position", "finished", "count", "planned", "indices", "weights", "mean_weight", "table",
    "node_sampler", "warned",
)  # fmt: skip
