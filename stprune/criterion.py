"""What PrunedLoss and PrunedMean share: when they train, which samples a batch holds, and what each of them counts for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from stprune.ops import _check
from stprune.ops.plan_lookup import plan_lookup
from stprune.ops.table_update import table_update
from stprune.sampler import PruningSampler

RESCALES = ("per_step", "epoch_sum")


class Criterion(torch.nn.Module):
    """Base of the losses of a pruned run.

    Attributes:
        op: what messages call it.
    """

    op = "Criterion"

    def __init__(self, sampler: PruningSampler, rescale: str, model: Any) -> None:
        super().__init__()
        if not isinstance(sampler, PruningSampler):
            raise TypeError(f"{self.op}: sampler must be a PruningSampler, got {type(sampler).__name__}")
        if model is not None and not isinstance(getattr(model, "training", None), bool):
            raise TypeError(f"{self.op}: model must have the flag `training` of a module, got {type(model).__name__}")
        self.sampler = sampler
        self.rescale = _check.choice(self.op, "rescale", rescale, RESCALES)
        # In a tuple: torch would take a module for a part of the criterion, with its parameters in the state dict.
        self._model = (model,)

    def trains(self, *sources: torch.Tensor) -> bool:
        """Whether this call is one of training: of what the loss is computed from, something requires a gradient."""
        (model,) = self._model
        wanted = self.training and torch.is_grad_enabled() and any(source.requires_grad for source in sources)
        return wanted and (model is None or model.training)

    def begin(self, index: Any, samples: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, tuple[Any, ...]]:
        """Begin a training step on the loss's device, to which the sampler's table moves, too.

        Returns:
            The checked ids [B]; `Running.places` of them and `Running.step_arguments`, which the ops take.

        Raises:
            TypeError, ValueError: `index` is missing, or is not one int64 id for each sample.
        """
        if index is None:
            raise TypeError(
                f"{self.op}: index must be given in training, got None; to evaluate, use torch.no_grad(), call "
                f"criterion.eval() (model.eval() does not reach it), or make it by {self.op}(sampler, model=model)"
            )
        index = _check.index(self.op, "index", index).contiguous()
        if index.numel() != samples:
            raise ValueError(f"{self.op}: index must hold one id for each of {samples} samples, got {index.numel()}")
        sampler = self.sampler
        if sampler.table.device != device:
            sampler.to(device)
        if index.device != device:
            _check.ids(self.op, "index", index, sampler.table.num_samples - 1)
            index = index.to(device, non_blocking=True)
        running = sampler.running
        return index, running.places(index), running.step_arguments(per_step=self.rescale == "per_step")

    def check_node(self, node: Any, shape: Sequence[int | None], of: str, whole: torch.Tensor, hint: str = "") -> None:
        """Refuse drawn nodes that are not int64 [B, m] of this shape, which `whole` has among its dimensions."""
        if node is None:
            return
        node = _check.tensor(self.op, "node", node)
        if node.dtype != torch.int64 or len(shape) != 2 or tuple(node.shape) != tuple(shape):
            raise ValueError(
                f"{self.op}: node must be int64 [B, m] matching {of} {tuple(whole.shape)}, got {node.dtype} {tuple(node.shape)}"
                + hint
            )

    def node_shares(self, index: torch.Tensor, node: torch.Tensor | None, node_weight: Any) -> torch.Tensor | None:
        """What each drawn node counts for beside its window's weight, [B, m]; None where all count 1.

        Raises:
            TypeError: the sampler draws nodes, and `node` is missing: weights and scores would be those of other nodes. Of
                samples that are pairs it may be missing, as all count 1 and have one node.
            ValueError: the weights are not those of the nodes, or the sampler cannot keep scores of such nodes.
        """
        if node is None and self.sampler.draws_some:
            raise TypeError(
                f"{self.op}: node must be given in training where the sampler draws nodes (node_ratio "
                f"{self.sampler.node_ratio:.3g}), got None; it is sampler.nodes(index), or what WindowLoader yields"
            )
        if node_weight is None:
            weight = None if node is None else self.sampler.node_weights(index, node)
        else:
            weight = _check.floating(self.op, "node_weight", node_weight)
            if node is None or weight.shape != node.shape:
                expected = "None without node" if node is None else f"of the shape of node {tuple(node.shape)}"
                raise ValueError(f"{self.op}: node_weight must be {expected}, got {tuple(weight.shape)}")
        # Where the sampler gave the weights it has looked at the nodes.
        if node is not None and weight is node_weight and self.sampler.wants_pair_scores:
            count = self.sampler.node_sampler.count
            if node.shape[1] != count:
                raise ValueError(f"{self.op}: node must hold {count} nodes of each window, as are drawn, got {node.shape[1]}")
            _check.ids(self.op, "node", node, self.sampler.node_sampler.num_nodes - 1)
        return weight

    def weights(self, index: torch.Tensor, arguments: tuple[Any, ...]) -> torch.Tensor:
        """The samples' weights [B] float32 in the current plan."""
        try:
            return plan_lookup(index, *arguments[:4])
        except RuntimeError:
            self.check_plan(index, arguments)
            raise

    def check_plan(self, index: torch.Tensor, arguments: tuple[Any, ...]) -> None:
        """Raise a ValueError that names an id on the host that is not in the plan.

        The ops look at the ids before they write; looking here too, before each step, would cost a tenth of a small one.
        """
        plan_ids, num_samples = arguments[0], arguments[3]
        if torch.compiler.is_compiling() or not index.is_cpu:
            return
        if plan_ids is None:
            _check.ids(self.op, "index", index, num_samples - 1)
        else:
            known = torch.isin(index, plan_ids)
            hint = "; the batch must come from a loader with this sampler (sampler=)"
            _check.members(self.op, "index", index, known, f"the plan of epoch {self.sampler.epoch}", hint=hint)

    def take_scores(
        self,
        arguments: tuple[Any, ...],
        index: torch.Tensor,
        scores: torch.Tensor,
        entries: torch.Tensor | None,
        weight: torch.Tensor,
    ) -> None:
        """Take the scores [B] of a training batch into the table.

        A sample with 0 entries [B] keeps the score it had. On a GPU so does one whose weight [B] is NaN, as its id is not in
        the plan; elsewhere looking the weights up has refused such an id.
        """
        known = None if weight.is_cpu else weight
        values = scores.detach().to(torch.float32).contiguous()
        table, marks, variance, count, beta = arguments[4:]
        table_update(table, marks, variance, count, index, values, entries=entries, weight=known, beta=beta, trained=True)

    def leading(self, name: str, value: torch.Tensor, of: str, whole: torch.Tensor) -> torch.Tensor:
        """A view of `value` that broadcasts against `whole`: its dimensions are the first ones of `whole`.

        Raises:
            ValueError: it does not begin with the samples, a size is neither 1 nor that of `whole`, or it is elsewhere.
        """
        shape, given = whole.shape, value.shape
        fits = 1 <= len(given) <= len(shape) and given[0] == shape[0]
        if not fits or any(size not in (1, wanted) for size, wanted in zip(given, shape, strict=False)):
            raise ValueError(
                f"{self.op}: {name} must be [{shape[0]}] or have the first dimensions of {of} {tuple(shape)}, each of its "
                f"size or, after the first, 1; got {tuple(given)}"
            )
        if value.device != whole.device:
            raise ValueError(f"{self.op}: {name} must live on the device of {of} {whole.device}, got {value.device}")
        return value.reshape(*given, *[1] * (len(shape) - len(given)))

    def own_score(self, score: Any, samples: int, node: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
        """The checked score [B] or, of drawn nodes, [B, m]; None where none is given."""
        if score is None:
            return None
        score = _check.floating(self.op, "score", score).detach()
        if score.shape != (samples,) and (node is None or score.shape != node.shape):
            expected = f"[{samples}]" + ("" if node is None else f" or of the shape of node {tuple(node.shape)}")
            raise ValueError(f"{self.op}: score must be {expected}, got {tuple(score.shape)}")
        if score.device != device:
            raise ValueError(f"{self.op}: score must live on the device of the loss {device}, got {score.device}")
        return score


def of_pairs(score: torch.Tensor, known: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of scores [B, m] of pairs: their means [B] over the pairs that are known, and the scores, NaN where not known."""
    pairs = torch.where(known, score, torch.nan)
    total = torch.where(known, score, 0.0).sum(1)
    return total / known.sum(1).clamp(min=1), pairs
