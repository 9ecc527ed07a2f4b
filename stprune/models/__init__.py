"""Reference forecasters that take drawn nodes: `STID`, `TSMixer`, `GraphWaveNet`, `STAEformer` and `GraphConv`.

They are what the study and the benchmarks train, and they show the one argument a model needs for node pruning: `node`. The
sizes by default are those of the models' papers, but for `GraphConv`, which is ours.
"""

from stprune.models.graph_conv import GraphConv
from stprune.models.graph_wavenet import GraphWaveNet
from stprune.models.staeformer import STAEformer
from stprune.models.stid import STID
from stprune.models.tsmixer import TSMixer

__all__ = ["STID", "GraphConv", "GraphWaveNet", "STAEformer", "TSMixer"]
