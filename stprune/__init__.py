"""Dynamic sample pruning for spatio-temporal training."""

from stprune import _load
from stprune._load import library_status
from stprune.ops import select, topk

_load.load(__path__)

__version__ = "0.1.0"
__all__ = ["library_status", "select", "topk"]
