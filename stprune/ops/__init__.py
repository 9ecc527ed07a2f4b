"""All ops: one file each, with schema, fake kernel, registration, checks and docstring."""

from stprune.ops.draw import draw
from stprune.ops.draw_nodes import draw_nodes, draw_nodes_weighted
from stprune.ops.draw_threshold import draw_threshold
from stprune.ops.draw_weighted import draw_weighted
from stprune.ops.gather_nodes import gather_nodes
from stprune.ops.gather_windows import gather_windows
from stprune.ops.residual_stats import ResidualStats, residual_stats, score
from stprune.ops.select import select, topk
from stprune.ops.shuffle import permute, shuffle
from stprune.ops.spacing import draw_spaced
from stprune.ops.window_stats import WindowStats, window_stats

__all__ = [
    "ResidualStats",
    "WindowStats",
    "draw",
    "draw_nodes",
    "draw_nodes_weighted",
    "draw_spaced",
    "draw_threshold",
    "draw_weighted",
    "gather_nodes",
    "gather_windows",
    "permute",
    "residual_stats",
    "score",
    "select",
    "shuffle",
    "topk",
    "window_stats",
]
