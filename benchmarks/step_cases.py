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
EAGER, CAPTURED, BEHIND_LOADER = "", ", captured", ", captured behind WindowLoader"
"""How a step runs: as it is; with its batch as one CUDA graph, into which only ids are copied; or, as in
examples/captured_step.py, as a graph into which a loader's batch is copied."""
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

    def steps(self, series: Tensor, clock: Tensor, mode: str) -> Call:
        """A call that takes one step: made with the call, as a model of its own takes time and memory."""
        make = _usual if self.share is None else _pruned
        made: list[Call] = []

        def call() -> None:
            if not made:
                made.append(make(self, series, clock, mode))
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
        """What a step does with a loader's batch: forecast, `loss(forecast, y, index, node)`, backward, Adam."""
        on_gpu = self.device.type == "cuda"
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True, capturable=on_gpu)

        def step(index: Tensor, *rest: Tensor) -> None:
            *drawn, x, y = rest
            node = drawn[0] if drawn else None
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
    ours[""] = everything = replace(training, share=1.0)

    def every(contenders: dict[str, Training], *modes: str) -> dict[str, Call]:
        named = {
            (name + mode).removeprefix(", "): each.steps(series, clock, mode)
            for mode in modes
            for name, each in contenders.items()
        }
        return {name: call for name, call in named.items() if name}

    return Case(
        "window_loader",
        training.job,
        training.batch * training.nodes,
        training.batch * (HISTORY + HORIZON) * training.nodes * series.element_size(),
        everything.steps(series, clock, EAGER),
        every(usual, EAGER, CAPTURED),
        every(ours, EAGER, CAPTURED, BEHIND_LOADER),
    )


def _usual(training: Training, series: Tensor, clock: Tensor, mode: str) -> Call:
    """The loop of the field's repositories, with the series on the device: value and time as channels, indexing, masked MAE."""
    data = torch.cat([series, clock[:, None].expand(-1, training.nodes, -1)], dim=-1)
    span = torch.arange(HISTORY + HORIZON, device=training.device)
    learn = training.learn(training.network(series), lambda forecast, y, index, node: masked_mae(forecast, y, 0.0))

    def step(start: Tensor) -> None:
        rows = start[:, None] + span
        learn(start, data[rows[:, :HISTORY]], data[rows[:, HISTORY:], :, :1])

    order = torch.randperm(training.times - HISTORY - HORIZON + 1, generator=torch.Generator().manual_seed(0))
    starts = itertools.cycle((each,) for each in order.to(training.device).split(training.batch)[:-1])
    return _captured(step, starts) if mode == CAPTURED else lambda: step(*next(starts))


def _pruned(training: Training, series: Tensor, clock: Tensor, mode: str) -> Call:
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

    loader = stprune.WindowLoader(series, sampler, batch_size=training.batch, prefetch=0, drop_last=True, **lengths)
    loader.set_epoch(0)

    def whole(index: Tensor) -> None:
        node = None if share is None else sampler.nodes(index)
        learn(index, *(() if node is None else (node,)), *stprune.gather_windows(series, index, node=node, **lengths))

    if mode == CAPTURED:
        ids = (torch.from_numpy(each.copy()).to(training.device) for each in sampler.batches(training.batch, drop_last=True))
        return _captured(whole, itertools.cycle((each,) for each in ids))
    if mode == BEHIND_LOADER:
        # Of one epoch, whose plan the graph reads.
        return _captured(learn, itertools.chain.from_iterable(itertools.repeat(loader)))

    def batches() -> Iterator[tuple[Tensor, ...]]:
        for epoch in itertools.count(1):
            yield from loader
            loader.set_epoch(epoch)

    source = batches()
    return lambda: learn(*next(source))


def _captured(step: Callable[..., None], batches: Iterator[tuple[Tensor, ...]]) -> Call:
    """Replays of a step as a CUDA graph, into which the next batch is copied; without a GPU the step itself."""
    batch = [part.clone() for part in next(batches)]
    if not batch[0].is_cuda:
        return lambda: step(*next(batches))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            step(*batch)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(*batch)

    def replay() -> None:
        for held, part in zip(batch, next(batches), strict=True):
            held.copy_(part)
        graph.replay()

    return replay
