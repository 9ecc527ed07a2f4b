"""The only door to the ops: one file each with schema, fake kernel, registration, checks and docstring."""

from stprune.ops.select import select, topk

__all__ = ["select", "topk"]
