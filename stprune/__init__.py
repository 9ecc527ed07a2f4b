"""Dynamic sample pruning for spatio-temporal training.

In a PyTorch loop, beside `set_epoch` and the ids in each batch:

    sampler = stprune.PruningSampler(len(train_set), num_epochs=100, keep_ratio=0.5)
    criterion = stprune.PrunedLoss(sampler, loss="mae", null_value=0.0)

Docstrings cite equations by number ("eq. 7"); methods/README.md, which is installed beside this file, states them.
"""

from stprune import _load, checkpoint, models
from stprune._load import LibraryStatus, implementations, library_status
from stprune.batch_queue import BatchQueue
from stprune.data import IndexedDataset, Series, indexed, read_series
from stprune.headroom import Headroom, headroom
from stprune.loader import WindowLoader
from stprune.loss import PrunedLoss
from stprune.methods import METHODS, Method
from stprune.nodes import NODE_SAMPLERS, Cluster, NodeSampler, Observed, Priority, Stratified, Uniform
from stprune.ops import (
    ResidualStats,
    WindowStats,
    draw,
    draw_nodes,
    draw_nodes_weighted,
    draw_spaced,
    draw_threshold,
    draw_weighted,
    gather_nodes,
    gather_windows,
    permute,
    residual_stats,
    score,
    select,
    shuffle,
    topk,
    window_stats,
)
from stprune.plan import EpochPlan, Plan, UniformPlan, plan_epoch
from stprune.pruned_mean import PrunedMean
from stprune.sampler import PruningSampler
from stprune.schedule import Schedule
from stprune.sharded.reshard import reshard
from stprune.table import ScoreTable
from stprune.windows import ChunkedSeries, WindowDataset, chunk_order, score_dataset, split_windows, stationarity, stratify

_load.load(__path__)

__version__ = "0.1.0"
__all__ = [
    "METHODS",
    "NODE_SAMPLERS",
    "BatchQueue",
    "ChunkedSeries",
    "Cluster",
    "EpochPlan",
    "Headroom",
    "IndexedDataset",
    "LibraryStatus",
    "Method",
    "NodeSampler",
    "Observed",
    "Plan",
    "Priority",
    "PrunedLoss",
    "PrunedMean",
    "PruningSampler",
    "ResidualStats",
    "Schedule",
    "ScoreTable",
    "Series",
    "Stratified",
    "Uniform",
    "UniformPlan",
    "WindowDataset",
    "WindowLoader",
    "WindowStats",
    "__version__",
    "checkpoint",
    "chunk_order",
    "draw",
    "draw_nodes",
    "draw_nodes_weighted",
    "draw_spaced",
    "draw_threshold",
    "draw_weighted",
    "gather_nodes",
    "gather_windows",
    "headroom",
    "implementations",
    "indexed",
    "library_status",
    "models",
    "permute",
    "plan_epoch",
    "read_series",
    "reshard",
    "residual_stats",
    "score",
    "score_dataset",
    "select",
    "shuffle",
    "split_windows",
    "stationarity",
    "stratify",
    "topk",
    "window_stats",
]
