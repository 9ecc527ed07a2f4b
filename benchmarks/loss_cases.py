"""What is timed of the loss: PrunedLoss, forward and backward, and the table's update, against their rivals."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from cases import Call, Case

import stprune

SHAPES = ((64, 12, 170), (64, 12, 8600), (16, 12, 2000, 3))
DTYPES = (torch.float32, torch.bfloat16)
COMPILERS: dict[str, dict[str, bool]] = {
    "torch.compile of eq. 1-4": {},
    "torch.compile, cooperative reductions": {"triton.cooperative_reductions": True},
}
"""Rivals by the options of torch's compiler."""
_TRAIN = 100_000


def suite(device: torch.device, *, small: bool) -> Iterator[Case]:
    """All cases of this suite; what takes compilers long comes late."""
    for batch in (64, 16384):
        yield from table_updates(batch, 10**5 if small else 10**7, device)
    shapes = ((4, 12, 20),) if small else SHAPES
    for shape in shapes[:2]:
        yield from residuals(shape, device)
    for shape in sorted(shapes, key=math.prod, reverse=True):
        for dtype in DTYPES:
            yield from losses(shape, dtype, device)


def losses(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """PrunedLoss on a batch of `shape`, a tenth of whose targets are 0 and masked, against eager, compiled and plain losses."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(shape, generator=generator) * 3 + 10
    prediction = (target + torch.randn(shape, generator=generator)).to(device, dtype).requires_grad_()
    target[torch.rand(shape, generator=generator) < 0.1] = 0.0
    target = target.to(device, dtype)
    sampler = stprune.PruningSampler(_TRAIN, num_epochs=2).to(device)
    sampler.set_epoch(0)
    index = torch.randperm(_TRAIN, generator=generator)[: shape[0]].to(device)
    read = 2 * prediction.numel() * prediction.element_size()
    label = f"{shape} {str(dtype).removeprefix('torch.')}"
    masked = stprune.PrunedLoss(sampler, null_value=0.0)
    plain = stprune.PrunedLoss(sampler)
    # Of earlier cases: beyond eight shapes and thread counts of one function torch.compile gives up and runs it eagerly.
    torch.compiler.reset()
    one = torch.ones(shape[0], device=device)

    def fields() -> torch.Tensor:
        return masked_mae(prediction, target, 0.0)

    def compiled_stats(options: dict[str, bool]) -> Call:
        compiled = torch.compile(eager_score_and_loss, dynamic=False, options=options or None)

        def call() -> torch.Tensor:
            return compiled(prediction, target, one)[0]

        setattr(call, "compiles", True)  # noqa: B010 (a function has no such attribute)
        return call

    def eager_stats() -> torch.Tensor:
        return eager_score_and_loss(prediction, target, one)[0]

    def simple() -> torch.Tensor:
        return (prediction - target).abs().mean()

    ours: Call
    for ours_is, criterion, rivals in (
        (
            "masked",
            masked,
            {
                "field's eager masked MAE": fields,
                # Cooperative reductions are of GPUs.
                **{name: compiled_stats(use) for name, use in COMPILERS.items() if not use or device.type == "cuda"},
                "eq. 1-4 in eager torch": eager_stats,
            },
        ),
        ("unmasked", plain, {"(prediction - target).abs().mean()": simple}),
    ):

        def ours(criterion: stprune.PrunedLoss = criterion) -> torch.Tensor:
            return criterion(prediction, target, index)

        yield Case("loss", f"PrunedLoss {ours_is} {label}", prediction.numel(), read, ours, dict(rivals))
        backwards = {name: _with_backward(call, prediction) for name, call in rivals.items()}
        job = f"PrunedLoss {ours_is} + backward {label}"
        yield Case("loss", job, prediction.numel(), read, _with_backward(ours, prediction), backwards)


def table_updates(size: int, num_samples: int, device: torch.device) -> Iterator[Case]:
    """ScoreTable.update of `size` ids against a bare index_copy_ of the scores alone."""
    generator = torch.Generator().manual_seed(0)
    index = torch.randperm(num_samples, generator=generator)[:size].to(device)
    scores = torch.rand(size, generator=generator).to(device)
    table = stprune.ScoreTable(num_samples, device=device)
    bare = torch.zeros(num_samples, device=device)
    yield Case(
        "table",
        f"ScoreTable.update B={size}",
        num_samples,
        12 * size,
        lambda: table.update(index, scores),
        {"index_copy_": lambda: bare.index_copy_(0, index, scores)},
    )


def masked_mae(prediction: torch.Tensor, target: torch.Tensor, null_value: float) -> torch.Tensor:
    """The masked MAE as the field's repositories compose it: a mask normalised by its mean, NaN replaced twice."""
    mask = ~torch.isnan(target) if null_value != null_value else target != null_value
    weight = mask.float()
    weight = weight / weight.mean()
    weight = torch.where(torch.isnan(weight), torch.zeros_like(weight), weight)
    loss = (prediction - target).abs() * weight
    return torch.where(torch.isnan(loss), torch.zeros_like(loss), loss).mean()


def eager_score_and_loss(
    prediction: torch.Tensor, target: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weighted masked loss and the scores (eq. 1-4, 13) as a user would write them."""
    prediction, target = (x.flatten(2).float() for x in (prediction, target))
    valid = target != 0.0
    u = torch.where(valid, prediction - target, 0.0).abs()
    count = valid.sum((1, 2))
    value = (u.sum((1, 2)) * weight).sum() / count.sum().clamp_min(1)
    with torch.no_grad():
        score = u.sum((1, 2)) / count.clamp_min(1)
        for axis in (1, 2):
            seen = valid.sum(axis)
            level = u.sum(axis) / seen.clamp_min(1)
            groups = (seen > 0).sum(1).clamp_min(1)
            centre = torch.where(seen > 0, level, 0.0).sum(1) / groups
            gap = torch.where(seen > 0, level - centre[:, None], 0.0)
            score = score + 0.5 * (gap.square().sum(1) / groups).sqrt()
    return value, score


def _with_backward(call: Call, prediction: torch.Tensor) -> Call:
    def both() -> None:
        prediction.grad = None
        call().backward()  # type: ignore[attr-defined]

    setattr(both, "compiles", getattr(call, "compiles", False))  # noqa: B010
    return both


def residuals(shape: tuple[int, ...], device: torch.device) -> Iterator[Case]:
    """residual_stats against the field's eager composition, [B, T, N]."""
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randn(shape, generator=generator).to(device)
    target = torch.randn(shape, generator=generator).to(device)
    target[torch.rand(shape, generator=generator).to(device) < 0.1] = 0.0
    read = 2 * prediction.numel() * prediction.element_size()
    for null_value, label in ((None, ""), (0.0, " masked")):
        yield Case(
            "residual_stats",
            f"residual_stats{label} {shape}",
            prediction.numel(),
            read,
            lambda null_value=null_value: stprune.residual_stats(prediction, target, null_value=null_value),
            {"torch eager": lambda null_value=null_value: eager_stats(prediction, target, null_value)},
        )


def eager_stats(prediction: torch.Tensor, target: torch.Tensor, null_value: float | None) -> tuple[torch.Tensor, ...]:
    """The same statistics as a user would write them in torch."""
    valid = torch.ones_like(target, dtype=torch.bool) if null_value is None else (target != null_value) & ~target.isnan()
    error = torch.where(valid, (prediction - target).abs(), 0.0)
    weight = valid.to(error.dtype)
    count = weight.sum((1, 2))
    mean = error.sum((1, 2)) / count.clamp_min(1)
    spread = []
    for axis in (1, 2):
        seen = weight.sum(axis)
        level = error.sum(axis) / seen.clamp_min(1)
        groups = (seen > 0).to(error.dtype)
        centre = (level * groups).sum(1, keepdim=True) / groups.sum(1, keepdim=True).clamp_min(1)
        spread.append((((level - centre) ** 2 * groups).sum(1) / groups.sum(1).clamp_min(1)).sqrt())
    return mean, *spread, count
