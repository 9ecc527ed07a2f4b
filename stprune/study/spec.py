"""What one training run of a study is asked to do."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any

MODELS = ("stid", "tsmixer", "graph-wavenet", "staeformer")
OPTIMIZERS = ("adam", "sgd", "muon")
RATE_SCHEDULES = ("cosine", "constant")


@dataclass(frozen=True)
class Spec:
    """Settings of a run; two runs of one spec on one machine give the same numbers, bit for bit.

    Attributes:
        data: series, as `stprune.study.series.load` reads it.
        model: one of `MODELS`.
        dim: width of the model, see `stprune.study.networks.build`.
        family: what decides which windows and nodes a step trains on, a name from `stprune.study.families`.
        batch_size: windows per step; for "pairs", so many times all nodes are the pairs per step.
        num_drawn: nodes drawn in every window; 0 for all nodes.
        keep_ratio: share of the windows that an epoch keeps; 1.0 where the family drops no windows.
        learning_rate: at the start of the run.
        rate_schedule: "cosine" to a hundredth of the learning rate over the run's budget, or "constant".
        optimizer: one of `OPTIMIZERS`.
        cost: budget: pairs trained on, as a multiple of the pairs of the training part.
        seed: of initial weights, orders and draws.
        device: name of the device that it runs on, as `stprune.study.machine.device_name` gives it: times and last bits of
            another device are another run's.
    """

    data: str
    model: str
    family: str
    batch_size: int
    learning_rate: float
    cost: float
    num_drawn: int = 0
    keep_ratio: float = 1.0
    dim: int = 16
    rate_schedule: str = "cosine"
    optimizer: str = "adam"
    seed: int = 0
    device: str = "cpu"

    @property
    def key(self) -> str:
        """Short name that tells this spec from every other one."""
        values = asdict(self)
        if self.device == "cpu":
            del values["device"]  # keys of the CPU are older than this field
        text = json.dumps(values, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    @classmethod
    def of(cls, values: dict[str, Any]) -> Spec:
        """The spec among the values of a row; a row without a device was made on the CPU."""
        values = {"device": "cpu"} | values
        return cls(**{field.name: values[field.name] for field in fields(cls)})
