"""Data sets that carry the sample's id, and readers of the field's file formats."""

from __future__ import annotations

from stprune.data.indexed import IndexedDataset, indexed
from stprune.data.read import read_series
from stprune.data.series import Series

__all__ = ["IndexedDataset", "Series", "indexed", "read_series"]
