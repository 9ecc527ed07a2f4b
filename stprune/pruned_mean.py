"""PrunedMean: the weighted mean of per-sample losses of one's own, and their scores into the table."""

from __future__ import annotations

from typing import Any

import torch

from stprune.criterion import Criterion, of_pairs
from stprune.ops import _check
from stprune.sampler import PruningSampler


class PrunedMean(Criterion):
    """The mean of any loss in a pruned run: compute the loss without reduction, and call this in place of `mean()`.

    In training it multiplies every sample's share of the mean by its weight in the epoch's plan (eq. 10), and stores the
    sample's score. In evaluation it is the plain mean and touches nothing.

    A call is training where this module is in training mode, gradients are enabled, `values` requires a gradient and,
    if `model` is given, `model.training` is set. Loops that evaluate with gradients enabled need `model`. Inside of
    `checkpoint(use_reentrant=True)` the value is the plain mean, as it is made with gradients off; its gradient is weighted.

    The batch loss is the sum of plan weight x node's share x `weight` x value over the unmasked entries, divided by their
    number, which no weight changes. With weights of 1 and no mask it equals `values.mean()` bit for bit, in value and
    gradient, where values are stored without gaps; with a mask of every entry on the CPU `values[mask].mean()`
    (elsewhere, and compiled, to float rounding, as choosing entries would wait for the device). Without any unmasked entry it
    is 0. bfloat16 and float16 are taken as the float32 they are.

    A term that is added per sample (a KL divergence, a loss of frequencies) goes inside `values`. Added outside it has no
    weights: its mean over the kept samples is not its mean over all, and the gradient is biased. A regulariser of the model
    alone, such as weight decay, is not per sample and is added outside.

    A sample's first batch of an epoch is what counts: a second criterion on the same batch, SAM's second pass or a recomputed
    loss gets its value and gradient, and moves neither the sampler's position nor a score. A sample whose entries are all
    masked adds nothing to the loss and keeps the score it had. NaN and infinite values are not hidden: they reach the loss,
    and the table stores them until a finite score replaces them.

    Args:
        sampler: the run's sampler.
        rescale: "per_step" makes the mean weight of the epoch 1, so that the learning rate keeps its meaning;
            "epoch_sum" takes the weights as they are, so that an epoch's gradient sum keeps its size (InfoBatch's rule).
        model: a module whose flag `training` must be set, too, in training; it does not become a part of this module. None:
            the other three conditions decide.

    Shape:
        values [B] or [B, ...], or with node [B, m, ...]: losses [B, T, m, C] of steps are given as values.transpose(1, 2);
        index [B] int64; node [B, m] int64. Returns a scalar, float64 for float64 values and float32 otherwise.

    Raises:
        TypeError, ValueError: an argument breaks its rule; the message names it.

    Example:
        >>> import torch, stprune
        >>> from torch.nn.functional import cross_entropy
        >>> sampler = stprune.PruningSampler(4, num_epochs=2)
        >>> criterion = stprune.PrunedMean(sampler)
        >>> logits, classes = torch.zeros(2, 10, requires_grad=True), torch.tensor([3, 7])
        >>> criterion(cross_entropy(logits, classes, reduction="none"), torch.tensor([0, 3]))
        tensor(2.3026, grad_fn=<MeanBackward0>)
        >>> sampler.table.scores
        tensor([2.3026,    inf,    inf, 2.3026])

    Source:
        Eq. 10, 13, for any loss; InfoBatch's `update(loss)` is the case "epoch_sum" of values [B].
    """

    op = "PrunedMean"

    def __init__(self, sampler: PruningSampler, *, rescale: str = "per_step", model: Any = None) -> None:
        super().__init__(sampler, rescale, model)

    def extra_repr(self) -> str:
        return f"rescale={self.rescale!r}"

    def forward(
        self,
        values: torch.Tensor,
        index: torch.Tensor | None = None,
        node: torch.Tensor | None = None,
        *,
        mask: torch.Tensor | None = None,
        weight: torch.Tensor | None = None,
        score: torch.Tensor | None = None,
        node_weight: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The batch loss.

        Args:
            values: [B] or [B, ...] losses of any sign, float32, float64, bfloat16 or float16; with node laid out [B, m, ...],
                drawn nodes second. Not modified.
            index: [B] int64 ids of the samples, which must be in the epoch's plan; not needed in evaluation.
            node: [B, m] int64 drawn nodes, if the batch holds m nodes per window; needed in training where the sampler draws.
            mask: bool, False where an entry is to be left out: [B], or with more of the first dimensions of `values`, each of
                its size or 1.
            weight: your own weights, floating, shaped by the same rule. Of any sign; a gradient flows into them. They are a
                part of the loss, in evaluation too, and of no score.
            score: [B] floating, what the table stores in place of the sample's mean over its unmasked entries; or [B, m] with
                node: scores of pairs, whose mean is the sample's. No gradient flows into it. Give one where losses are
                negative: method "st-prune" takes a score below 0 as 0, and draws alike what is.
            node_weight: [B, m], what `sampler.draw_nodes` gave beside `node`; None asks the sampler, which knows them of
                the very tensor that it drew and draws again for others. A compiled step with drawn nodes should be given it:
                the draw is compiled anew for every epoch otherwise.

        Returns:
            A scalar.

        Raises:
            TypeError, ValueError: shapes or dtypes do not fit, `index` is missing in training, or holds an id that is not in
                the plan; nothing is changed. On a GPU, where looking at the ids would wait for it, the loss is NaN for such an
                id, nothing is stored for it, and the sampler's next `set_epoch`, `state_dict` or `finish` raises the
                ValueError. Under torch.compile it is a RuntimeError.
        """
        values = _check.floating(self.op, "values", values)
        if values.dim() == 0:
            raise ValueError(f'{self.op}: values must be [B] or [B, ...], a loss with reduction="none", got a scalar')
        if isinstance(index, torch.Tensor) and index.is_floating_point():
            raise TypeError(
                f"{self.op}: index must be int64 ids [B], got {index.dtype} {tuple(index.shape)}; the call is "
                "criterion(values, index, node), where values are losses without reduction, not prediction and target"
            )
        hint = "; values must be laid out [B, m, ...], as in values.transpose(1, 2) of [B, T, m, C]"
        self.check_node(node, values.shape[:2], "values", values, hint)
        if mask is not None:
            if _check.tensor(self.op, "mask", mask).dtype != torch.bool:
                raise TypeError(f"{self.op}: mask must be bool, got {mask.dtype}")
            mask = self.leading("mask", mask, "values", values).expand(values.shape)
        wide = values if values.dtype == torch.float64 else values.float()
        if weight is not None:
            weight = self.leading("weight", _check.floating(self.op, "weight", weight), "values", values).to(wide.dtype)
        score = self.own_score(score, values.shape[0], node, values.device)
        if not self.trains(values):
            return _mean(wide, weight, mask)

        index, place, arguments = self.begin(index, values.shape[0], values.device)
        shares = self.node_shares(index, node, node_weight)
        of_plan = self.weights(place, arguments)
        factor = of_plan.to(wide.dtype).view(-1, *[1] * (values.dim() - 1))
        if shares is not None:
            factor = factor * shares.to(wide).view(*shares.shape, *[1] * (values.dim() - 2))
        if weight is not None:
            factor = factor * weight
        value = _mean(wide, factor, mask)
        wanted = node is not None and self.sampler.wants_pair_scores
        scores, entries, pairs = _scores(wide.detach(), mask, score, wanted)
        self.take_scores(arguments, place, scores, entries, of_plan)
        self.sampler.take_in(index, node, pairs)
        return value


def _mean(values: torch.Tensor, weight: torch.Tensor | None, mask: torch.Tensor | None) -> torch.Tensor:
    """The sum of weight x value over the unmasked entries, divided by their number; 0 where there are none."""
    if weight is not None:
        # Neither a masked weight nor a masked value reaches anything, not even a gradient as 0 x NaN.
        values = values * (weight if mask is None else torch.where(mask, weight, 0.0))
    if mask is None:
        return values.mean() if values.numel() else values.sum()
    if values.is_cpu and not torch.compiler.is_compiling():
        kept = values.masked_select(mask)
        return kept.mean() if kept.numel() else kept.sum()
    # Elsewhere the number of entries would have to be waited for.
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


@torch.no_grad()
def _scores(
    values: torch.Tensor, mask: torch.Tensor | None, score: torch.Tensor | None, wanted: bool
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Scores [B] of samples; numbers [B] of their entries, None where none is left out; scores [B, m] of pairs if wanted."""
    pairs = None
    if mask is None and values.shape[1:].numel() == 0:
        mask = torch.ones_like(values, dtype=torch.bool)
    entries = None if mask is None else _flat(mask, 1).sum(1)
    if score is not None and score.dim() == 2:
        known = torch.ones_like(score, dtype=torch.bool) if mask is None else _flat(mask, 2).any(2)
        scores, pairs = of_pairs(score, known)
    else:
        scores = _means(values, mask, 1) if score is None else score
        pairs = _means(values, mask, 2) if wanted else None
    return scores, entries, pairs.float() if wanted and pairs is not None else None


def _means(values: torch.Tensor, mask: torch.Tensor | None, dim: int) -> torch.Tensor:
    """Means of the unmasked entries over the dimensions from `dim` on, NaN where there are none."""
    if mask is None:
        return values if values.dim() == dim else _flat(values, dim).mean(dim)
    return _flat(torch.where(mask, values, 0.0), dim).sum(dim) / _flat(mask, dim).sum(dim)


def _flat(values: torch.Tensor, dim: int) -> torch.Tensor:
    """Dimensions from `dim` on as one, of size 1 if there are none."""
    return values.unsqueeze(dim) if values.dim() == dim else values.reshape(*values.shape[:dim], values.shape[dim:].numel())
