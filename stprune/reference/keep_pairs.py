"""Reference of keep_pairs: the scores of drawn nodes, kept until their epoch ends."""

from __future__ import annotations

import torch

from stprune.reference.table_update import standing_for


def keep_pairs(
    index: torch.Tensor,
    node: torch.Tensor,
    scores: torch.Tensor,
    kept_node: torch.Tensor,
    kept_score: torch.Tensor,
    fresh: torch.Tensor,
) -> None:
    """Write nodes, counted from 1, and scores [B, m] into those rows of windows [B] that hold none yet, and mark them fresh.

    Of equal windows in a batch the last counts. Ids outside of the table are left out.
    """
    if index.numel() == 0 or len(fresh) == 0:
        return
    index, last, some = standing_for(index, (index >= 0) & (index < len(fresh)))
    before = kept_node[index]
    first = (before[:, :1] == 0) & some
    kept_node[index] = torch.where(first, node[last].to(torch.int32) + 1, before)
    kept_score[index] = torch.where(first, scores[last], kept_score[index])
    fresh[index] |= first.squeeze(1)
