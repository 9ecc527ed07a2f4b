"""Families: rules that decide on which windows, and on which of their nodes, each optimizer step trains."""

from stprune.study.families.base import Draw, Family

__all__ = ["Draw", "Family"]
