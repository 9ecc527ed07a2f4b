"""What a demo run is asked to do."""

from __future__ import annotations

import pathlib
from dataclasses import dataclass, replace

import torch

MODELS = ("stid", "staeformer")
# STID: about 45 ms a step on two cores, so 24 epochs of 66 steps keep the seven runs under 10 minutes. Attention over
# nodes costs some 30 times as much a step; 4 epochs show the same picture in a coffee break.
DEFAULT_EPOCHS = {"stid": 24, "staeformer": 4}
# Embedding width: the whole model is four times as wide. STID's paper uses 32; 16 trains three times as fast here.
MODEL_DIM = {"stid": 16, "staeformer": 8}

# What --quick leaves of a series.
QUICK_DAYS = 8
QUICK_NODES = 12

PRUNERS = ("soft-random", "infobatch", "st-prune", "rs2", "epsilon-greedy", "ucb", "seta", "top-k")
"""Methods that drop whole windows."""

RUNS = ("full", "full-short", *PRUNERS, "nodes", "nodes-priority", "nodes-long")
"""Every run by its name on the command line."""

DEFAULT_RUNS = ("full", "full-short", "soft-random", "infobatch", "st-prune", "nodes", "nodes-long")


@dataclass(frozen=True)
class DemoOptions:
    """Settings of the demo; `resolve` fills in what depends on other settings.

    Attributes:
        data: "simbench", "synthetic" or a path.
        model: one of `MODELS`.
        epochs: epochs of the full run; None takes the model's default.
        keep_ratio: share of the windows an epoch keeps before the annealing, in (0, 1].
        node_ratio: share of the nodes drawn in every window of the node-pruned runs, in (0, 1].
        runs: names from `RUNS`; "full" always runs, and "nodes-long" brings "nodes" along.
        device: "auto", "cpu", "cuda" or another torch device.
        seeds: how often everything is repeated, with seeds 0, 1, ...
        output: folder of report.html and results.json.
        batch_size: windows per optimizer step.
        quick: cut the series and the training down to a few seconds, to see that everything works.
        steps_per_day: of a series read from a path; None infers it.
        null_value: target value that means "missing", besides NaN; None for none.
    """

    data: str = "simbench"
    model: str = "stid"
    epochs: int | None = None
    keep_ratio: float = 0.5
    node_ratio: float = 0.3
    runs: tuple[str, ...] = DEFAULT_RUNS
    device: str = "auto"
    seeds: int = 1
    output: pathlib.Path = pathlib.Path("stprune-demo")
    batch_size: int = 64
    quick: bool = False
    steps_per_day: int | None = None
    null_value: float | None = None

    def resolve(self) -> DemoOptions:
        """Check every setting and fill in defaults.

        Returns:
            A copy with epochs, device and runs settled; runs in the order of `RUNS`.

        Raises:
            ValueError: a setting is outside its range, or the device cannot be used.
        """
        if self.model not in MODELS:
            raise ValueError(f"--model: must be one of {', '.join(MODELS)}, got {self.model}")
        for name in self.runs:
            if name not in RUNS:
                raise ValueError(f"--method: must be among {', '.join(RUNS)}, got {name}")
        counts = {"--seeds": self.seeds, "--batch-size": self.batch_size}
        if self.epochs is not None:
            counts["--epochs"] = self.epochs
        if self.steps_per_day is not None:
            counts["--steps-per-day"] = self.steps_per_day
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name}: must be at least 1, got {count}")
        for name, ratio in (("--keep-ratio", self.keep_ratio), ("--node-ratio", self.node_ratio)):
            if not 0 < ratio <= 1:
                raise ValueError(f"{name}: must lie in (0, 1], got {ratio}")
        wanted = {"full", *self.runs} | ({"nodes"} if "nodes-long" in self.runs else set())
        epochs = self.epochs if self.epochs is not None else (4 if self.quick else DEFAULT_EPOCHS[self.model])
        return replace(
            self,
            runs=tuple(name for name in RUNS if name in wanted),
            epochs=epochs,
            device=str(choose_device(self.device)),
        )


def choose_device(name: str) -> torch.device:
    """Turn a device name into a device that works here.

    Args:
        name: "auto" (CUDA where present, else the CPU) or a torch device name.

    Returns:
        The device.

    Raises:
        ValueError: torch does not know the name, or the device cannot be used here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device: {name} cannot be used here ({str(error).splitlines()[0]})") from None
    return device
