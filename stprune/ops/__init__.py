"""The only door to the ops: one file each with schema, fake kernel, registration, checks and docstring."""

from stprune.ops.draw import draw
from stprune.ops.draw_nodes import draw_nodes
from stprune.ops.draw_weighted import draw_weighted
from stprune.ops.select import select, topk
from stprune.ops.shuffle import permute, shuffle

__all__ = [
    "draw",
    "draw_nodes",
    "draw_weighted",
    "permute",
    "select",
    "shuffle",
    "topk",
]
