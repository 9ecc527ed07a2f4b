"""Headroom: what pruning can save on a model and its data, told before anyone spends a run."""

from stprune.headroom.choices import Choice
from stprune.headroom.measure import headroom
from stprune.headroom.result import Headroom

__all__ = ["Choice", "Headroom", "headroom"]
