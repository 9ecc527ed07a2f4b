"""Headroom: what pruning can save on a model and its data, told before anyone spends a run."""

from stprune.headroom.law import Law
from stprune.headroom.measure import headroom
from stprune.headroom.result import Headroom

__all__ = ["Headroom", "Law", "headroom"]
