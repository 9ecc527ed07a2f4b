"""What is timed of training steps with everything included: ids, draw of nodes, batch, forward, loss, backward and Adam."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from cases import Call, Case
from loss_cases import masked_mae
from torch import Tensor, nn
from window_cases import BATCH, HISTORY, HORIZON, TIMES, days

import stprune
from stprune.models import STID, GraphWaveNet
from stprune.windows.clock import clock_features

PER_DAY = 96
SHARES = (0.3, 0.1, 0.02)
"""Of the nodes, drawn for every window; the usual loop with as many pairs has batches of as many windows less."""
KINDS = (("STID", 8600), ("STID", 170), ("GraphWaveNet", 170), ("GraphWaveNet", 716), ("STID", 716), ("STID", 2352))
"""Models and numbers of nodes; on 8,600 nodes the graph model's supports of 8,600 x 8,600 take longer than all of these."""
COMPILED = KINDS[:2]
WARM_UPS = 3
"""Steps before a capture: kernels are compiled and the optimizer's state is made outside of it."""


def steps(device: torch.device, *, small: bool) -> Iterator[Case]:
    """All cases of this suite: every kind in float32, then under bfloat16 autocast; last, as it takes long, torch.compile."""
    kinds = tuple((model, 20) for model, _ in KINDS[1:3]) if small else KINDS
    times, batch = (200, 8) if small else (TIMES // 4, BATCH)
    for dtype in (torch.float32, torch.bfloat16):
        for model, nodes in kinds:
            yield _case(Training(model, nodes, dtype, False, device, times, batch))
    for model, nodes in kinds[:1] if small else COMPILED:
        yield _case(Training(model, nodes, torch.float32, True, device, times, batch))


@dataclass(frozen=True)
class Training:
    """A training to take steps of.

    Attributes:
        model: class of `stprune.models`.
        nodes: of the series.
        dtype: float32, or what autocast computes in.
        compiled: the model is compiled by torch.compile.
        device: of the series and the model.
        times: rows of the series.
        batch: windows in a step.
        share: of the nodes, for our loop; None is the usual one.
    """

    model: str
    nodes: int
    dtype: torch.dtype
    compiled: bool
    device: torch.device
    times: int
    batch: int
    share: float | None = None

    @property
    def job(self) -> str:
        """As the rows name it."""
        kind = f"{self.model} step, {self.nodes} nodes, {str(self.dtype).removeprefix('torch.')}"
        return f"{kind}, compiled" if self.compiled else kind

    def steps(self, series: Tensor, clock: Tensor, *, captured: bool) -> Call:
        """A call that takes one step: made with the call, as a model of its own takes time and memory."""
        make = _usual if self.share is None else _pruned
        made: list[Call] = []

        def call() -> None:
            if not made:
                made.append(make(self, series, clock, captured))
            made[0]()

        setattr(call, "compiles", True)  # noqa: B010 (a function has no such attribute)
        return call

    def network(self, series: Tensor) -> nn.Module:
        """The model, the same for every training on as many nodes."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            if self.model == "STID":
                model: nn.Module = STID(self.nodes, history=HISTORY, horizon=HORIZON, steps_per_day=PER_DAY)
            else:
                # Each node's neighbours on a ring: a road network has about as many.
                near = torch.ones(self.nodes, self.nodes).triu(-2).tril(2)
                model = GraphWaveNet(self.nodes, near, history=HISTORY, horizon=HORIZON)
        model.to(self.device)
        return torch.compile(model, dynamic=False) if self.compiled else model  # type: ignore[return-value]

    def learn(self, model: nn.Module, loss: Callable[..., Tensor]) -> Callable[..., None]:
        """What a step does with its batch: `loss` of the model's forecast and of what else it is given, backward, Adam."""
        on_gpu = self.device.type == "cuda"
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True, capturable=on_gpu)

        def step(x: Tensor, y: Tensor, index: Tensor, node: Tensor | None = None) -> None:
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32, cache_enabled=False):
                forecast = model(x) if node is None else model(x, node=node)
            value = loss(forecast.float(), y, index, node)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()

        return step


def _case(training: Training) -> Case:
    series = days(training.times, training.nodes, training.device)[..., None]
    clock = clock_features("steps", training.times, steps_per_day=PER_DAY, first_step=0, timestamps=None, dtype=torch.float32)
    clock = clock.to(training.device)
    ours = {f"{share:.0%} of nodes": replace(training, share=share) for share in SHARES}
    usual = {"usual loop": training}
    if training.compiled:
        # A compilation takes longer than all that is timed here.
        del ours["30% of nodes"], ours["2% of nodes"]
    else:
        for share in SHARES:
            few = max(1, round(share * training.batch))
            usual[f"usual loop, batch {few}"] = replace(training, batch=few)
    everything = replace(training, share=1.0)

    def both(contenders: dict[str, Training]) -> dict[str, Call]:
        return {
            name + (", captured" if captured else ""): each.steps(series, clock, captured=captured)
            for captured in (False, True)
            for name, each in contenders.items()
        }

    return Case(
        "window_loader",
        training.job,
        training.batch * training.nodes,
        training.batch * (HISTORY + HORIZON) * training.nodes * series.element_size(),
        everything.steps(series, clock, captured=False),
        both(usual),
        {**both(ours), "captured": everything.steps(series, clock, captured=True)},
    )


def _usual(training: Training, series: Tensor, clock: Tensor, captured: bool) -> Call:
    """The loop of the field's repositories, with the series on the device: value and time as channels, indexing, masked MAE."""
    data = torch.cat([series, clock[:, None].expand(-1, training.nodes, -1)], dim=-1)
    span = torch.arange(HISTORY + HORIZON, device=training.device)
    learn = training.learn(training.network(series), lambda forecast, y, index, node: masked_mae(forecast, y, 0.0))

    def step(start: Tensor) -> None:
        rows = start[:, None] + span
        learn(data[rows[:, :HISTORY]], data[rows[:, HISTORY:], :, :1], start)

    order = torch.randperm(training.times - HISTORY - HORIZON + 1, generator=torch.Generator().manual_seed(0))
    starts = itertools.cycle(order.to(training.device).split(training.batch)[:-1])
    return _captured(step, starts) if captured else lambda: step(next(starts))


def _pruned(training: Training, series: Tensor, clock: Tensor, captured: bool) -> Call:
    """Sampler, WindowLoader and PrunedLoss."""
    share = training.share if training.share != 1.0 else None
    sampler = stprune.PruningSampler(
        training.times - HISTORY - HORIZON + 1,
        num_epochs=10**6,
        keep_ratio=1.0,
        **({} if share is None else {"num_nodes": training.nodes, "node_ratio": share}),
    ).to(training.device)
    criterion = stprune.PrunedLoss(sampler, null_value=0.0)
    learn = training.learn(training.network(series), criterion)
    lengths = {"history": HISTORY, "horizon": HORIZON, "time_features": clock}

    def step(index: Tensor) -> None:
        node = None if share is None else sampler.nodes(index)
        learn(*stprune.gather_windows(series, index, node=node, **lengths), index, node)

    loader = stprune.WindowLoader(series, sampler, batch_size=training.batch, prefetch=0, drop_last=True, **lengths)

    def batches() -> Iterator[tuple[Tensor, ...]]:
        for epoch in itertools.count():
            loader.set_epoch(epoch)
            yield from loader

    if captured:
        sampler.set_epoch(0)
        ids = (torch.from_numpy(each.copy()).to(training.device) for each in sampler.batches(training.batch, drop_last=True))
        return _captured(step, itertools.cycle(ids))
    source = batches()

    def eager() -> None:
        index, *node, x, y = next(source)
        learn(x, y, index, *node)

    return eager


def _captured(step: Callable[[Tensor], None], ids: Iterator[Tensor]) -> Call:
    """Replays of a step as a CUDA graph, into which only the ids are copied; without a GPU the step itself."""
    index = next(ids).clone()
    if not index.is_cuda:
        return lambda: step(index.copy_(next(ids)))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            step(index)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(index)

    def replay() -> None:
        index.copy_(next(ids))
        graph.replay()

    return replay
