"""keep_pairs: the scores of a batch's drawn nodes, kept until their epoch ends."""

from __future__ import annotations

from typing import Any

from stprune.ops._registry import by_triton, define, define_cuda
from stprune.reference import keep_pairs as reference


def _fake(*arguments: Any) -> None:
    """Nothing is returned."""


define(
    "keep_pairs(Tensor index, Tensor nodes, Tensor scores, Tensor(a!) kept_node, Tensor(b!) kept_score, "
    "Tensor(c!) fresh) -> ()",
    reference.keep_pairs,
    _fake,
)
define_cuda("keep_pairs", by_triton("keep_pairs", reference.keep_pairs))
