"""Small reference forecasters that take drawn nodes: `STID`, `STAEformer` and `GraphConv`.

They are what the demo and the benchmarks train, and they show the one argument a model needs for node pruning: `node`.
"""

from stprune.models.graph_conv import GraphConv
from stprune.models.staeformer import STAEformer
from stprune.models.stid import STID

__all__ = ["STID", "GraphConv", "STAEformer"]
