"""Whether memory stays what it is: every op and real training loops, in processes of their own with glibc's own settings.

    python benchmarks/soak.py                     # 30 minutes, the rows go to benchmarks/results/soak-cpu.jsonl
    python benchmarks/soak.py --minutes 5 --only loop
    python benchmarks/soak.py --child "op "       # one process, 5,000 steps a job, rows to the screen: what the tests run

After a warm-up, 5,000 steps may not add more than 8 MiB of resident memory.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import records
import torch

import stprune

ROOT = pathlib.Path(__file__).resolve().parents[1]
STEPS, WARM_UP, LIMIT_MIB = 5000, 500, 8.0
Steps = Iterator[None]
"""What a job is: an endless iterator, of which `next` takes a step."""


def always(*calls: Callable[[], object]) -> Steps:
    """A step makes every call once."""
    while True:
        for call in calls:
            call()
        yield


# --- ops -------------------------------------------------------------------------------------------------------------


def ops() -> dict[str, Callable[[], object]]:
    """A call of every public op, with its backward where it has one. 4,096 scores: blocks that glibc takes from its heap."""
    n = 4096
    scores = torch.rand(n) * 0.9 + 0.1
    index = torch.arange(64)
    series = torch.rand(300, 20, 1)
    prediction, target = torch.rand(16, 12, 20, 1, requires_grad=True), torch.rand(16, 12, 20, 1)
    node = torch.arange(5).expand(16, 5).contiguous()
    key = {"seed": 1, "epoch": 2}
    return {
        "draw": lambda: stprune.draw(scores, **key),
        "draw_nodes": lambda: stprune.draw_nodes(index, num_nodes=20, count=5, **key),
        "draw_nodes_weighted": lambda: stprune.draw_nodes_weighted(scores[: 64 * 20].view(64, 20), index, count=5, **key),
        "draw_spaced": lambda: stprune.draw_spaced(scores, spacing=3, threshold=0.5, **key),
        "draw_threshold": lambda: stprune.draw_threshold(scores, 0.5, **key),
        "draw_weighted": lambda: stprune.draw_weighted(scores, n // 2, **key),
        "gather_nodes": lambda: torch.autograd.grad(stprune.gather_nodes(prediction, node).sum(), prediction),
        "gather_windows": lambda: stprune.gather_windows(series, index, history=12, horizon=12),
        "permute": lambda: stprune.permute(n, **key),
        "residual_stats": lambda: stprune.residual_stats(prediction.detach(), target),
        "score": lambda: stprune.score(prediction.detach(), target),
        "select": lambda: stprune.select(scores, n // 2),
        "shuffle": lambda: stprune.shuffle(index, **key),
        "topk": lambda: stprune.topk(scores, n // 2),
        "window_stats": lambda: stprune.window_stats(series, history=12, horizon=12),
    }


# --- loops -----------------------------------------------------------------------------------------------------------


def plain(compiled: bool = False) -> Steps:
    """PyTorch alone, to see what it takes itself."""
    return _losses(torch.nn.L1Loss(), (256, 12, 50, 1), compiled)


def loss(compiled: bool = False) -> Steps:
    """The loss, forward and backward, on batches of 256 windows of 12 steps and 50 nodes."""
    criterion = stprune.PrunedLoss(stprune.PruningSampler(256, num_epochs=2))
    return _losses(criterion, (256, 12, 50, 1), compiled, torch.arange(256))


def _losses(criterion: torch.nn.Module, shape: tuple[int, ...], compiled: bool, *index: torch.Tensor) -> Steps:
    x, y = torch.randn(shape), torch.randn(shape)
    call = torch.compile(criterion) if compiled else criterion
    while True:
        # Kept until the next one is made, as a loop's variables are: only then do pinned blocks show.
        prediction = (x * 0.5).requires_grad_()
        call(prediction, y, *index).backward()
        yield


def every_loss(compiled: bool = False) -> Steps:
    """All losses, with everything a criterion can be told; with drawn nodes and their errors too."""
    samplers = [stprune.PruningSampler(32, num_epochs=2)]
    samplers += [stprune.PruningSampler(32, num_epochs=2, num_nodes=20, node_ratio=0.5, node_sampler="priority")]
    index = torch.arange(32)
    node = samplers[1].nodes(index)
    whole, drawn = torch.randn(32, 12, 20, 1), torch.randn(32, 12, 10, 1)
    settings = {"null_value": 0.0, "mean": 1.0, "std": 2.0, "horizon_weights": torch.ones(12)}
    names = ("mae", "mse", "huber", "mape", "quantile")
    criteria = [[stprune.PrunedLoss(each, loss=name, **settings) for each in samplers] for name in names]
    weight, score = torch.rand(32, 12), torch.rand(32)
    calls = [[torch.compile(each) if compiled else each for each in both] for both in criteria]
    for call, of_drawn in itertools.cycle(calls):
        all_nodes, some_nodes = ((each * 0.5).requires_grad_() for each in (whole, drawn))
        call(all_nodes, whole, index).backward()
        of_drawn(some_nodes, drawn, index, node).backward()
        call(all_nodes, whole, index, weight=weight, score=score).backward()
        yield


def any_loss(compiled: bool = False) -> Steps:
    """Losses of one's own, with masks, weights and scores, in runs of 8 epochs whose batches carry no ids."""
    classes = torch.arange(512) % 10
    x, layer = torch.randn(512, 20), torch.nn.Linear(20, 10)
    while True:
        sampler = stprune.PruningSampler(512, num_epochs=8)
        criterion = stprune.PrunedMean(sampler, model=layer)
        call = torch.compile(criterion) if compiled else criterion
        loader = torch.utils.data.DataLoader(torch.arange(512), sampler=sampler, batch_size=64)
        queue = stprune.BatchQueue(sampler, loader)
        for epoch in range(8):
            sampler.set_epoch(epoch)
            for batch in queue:
                logits = layer(x[batch])
                values = torch.nn.functional.cross_entropy(logits, classes[batch], reduction="none")
                index = queue.take(len(batch))
                call(values, index, weight=values.detach().exp(), score=values + 1, mask=batch > 5).backward(retain_graph=True)
                call(logits.square(), index, mask=logits > 0, weight=logits.detach()).backward()
                yield


def loader(compiled: bool = False) -> Steps:
    """A DataLoader, a model and an optimizer, in runs of 8 epochs."""
    data = stprune.IndexedDataset(stprune.WindowDataset(torch.randn(500, 20, 1)))
    return _runs(
        len(data), lambda sampler: torch.utils.data.DataLoader(data, batch_size=32, sampler=sampler), compiled, "st-prune"
    )


def windows(compiled: bool = False) -> Steps:
    """A WindowLoader that draws half of the nodes by their errors, in runs of 8 epochs."""
    series = torch.randn(500, 20, 1)
    nodes = {"num_nodes": 20, "node_ratio": 0.5, "node_sampler": "priority"}
    return _runs(
        500 - 24 + 1, lambda sampler: stprune.WindowLoader(series, sampler, batch_size=32), compiled, "infobatch", **nodes
    )


def _runs(size: int, make: Callable[..., object], compiled: bool, method: str, **options: object) -> Steps:
    model = torch.nn.Linear(12, 12)
    optimizer = torch.optim.AdamW(model.parameters())
    forward = torch.compile(model) if compiled else model
    while True:
        sampler = stprune.PruningSampler(size, num_epochs=8, method=method, **options)
        criterion = stprune.PrunedLoss(sampler, null_value=0.0)
        batches = make(sampler)
        for epoch in range(8):
            sampler.set_epoch(epoch)
            for index, *node, x, y in (_flat(batch) for batch in batches):
                optimizer.zero_grad()
                value = criterion(forward(x.transpose(1, 3)).transpose(1, 3), y, index, *node)
                value.backward()
                optimizer.step()
                yield


def _flat(batch: list[object]) -> list[object]:
    return [batch[0], *batch[1]] if len(batch) == 2 else list(batch)  # type: ignore[misc]


def planning(compiled: bool = False) -> Steps:
    """Every method: runs of 8 epochs of 10,000 samples. A step is an epoch."""
    del compiled  # nothing to compile
    n, index, strata = 10_000, torch.arange(10_000), torch.arange(10_000) % 24
    for method, labels in itertools.cycle(itertools.product(stprune.METHODS, (None, strata))):
        sampler = stprune.PruningSampler(n, num_epochs=8, method=method, strata=labels)
        for epoch in range(8):
            sampler.set_epoch(epoch)
            sampler.update(index, torch.rand(n) + 0.1)
            sum(len(ids) for ids in sampler.batches(64))
            sampler.state_dict()
            yield


LOOPS: dict[str, Callable[..., Steps]] = {
    "plain": plain, "loss": loss, "every_loss": every_loss, "any_loss": any_loss, "loader": loader, "windows": windows,
    "planning": planning,
}  # fmt: skip
COMPILED = ("loss", "windows")


def jobs() -> dict[str, Callable[[], Steps]]:
    """Every job by name: "op NAME", "loop NAME" and "compiled loop NAME"."""
    made: dict[str, Callable[[], Steps]] = {f"op {name}": functools.partial(always, call) for name, call in ops().items()}
    made |= {f"loop {name}": job for name, job in LOOPS.items()}
    return made | {f"compiled loop {name}": functools.partial(LOOPS[name], compiled=True) for name in COMPILED}


# --- measurement -----------------------------------------------------------------------------------------------------


def resident_bytes() -> int:
    """Memory of this process that is resident now."""
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure(steps: Steps, seconds: float) -> dict[str, float]:
    """Take 5,000 steps or more, for `seconds` at least, after a warm-up; how much resident memory they added."""
    end = time.perf_counter() + seconds
    for _ in itertools.islice(steps, WARM_UP):
        pass
    before, taken = resident_bytes(), 0
    while taken < STEPS or time.perf_counter() < end:
        next(steps)
        taken += 1
    after = resident_bytes()
    growth = (after - before) / 2**20
    return {
        "steps": taken,
        "before_mib": round(before / 2**20, 1),
        "after_mib": round(after / 2**20, 1),
        "mib_per_5000_steps": round(growth * STEPS / taken, 3),
    }


def default_settings() -> dict[str, str]:
    """The environment without anything that changes how glibc hands out memory; the package is the one imported here."""
    changed = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(changed)}
    return kept | {"PYTHONPATH": os.pathsep.join(sys.path)}


def in_a_process(*names: str, seconds: float = 0.0) -> list[dict[str, object]]:
    """The rows of jobs whose names begin with one of `names`, measured one after the other in one new process."""
    command = [sys.executable, __file__, "--child", *names, "--seconds", str(seconds)]
    result = subprocess.run(command, env=default_settings(), stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in result.stdout.splitlines()]


def main() -> int:
    """1 where a job grew by more than the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="of the whole run; every job takes 5,000 steps at least")
    parser.add_argument("--only", nargs="+", default=[""], help="jobs whose names begin with one of these")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "benchmarks" / "results" / "soak-cpu.jsonl")
    parser.add_argument("--child", nargs="+", help="measure these jobs in this process and print their rows")
    parser.add_argument("--seconds", type=float, default=0.0, help="that each job of --child takes at least")
    options = parser.parse_args()
    every = jobs()
    names = [name for name in every if name.startswith(tuple(options.child or options.only))]
    if options.child:
        for name in names:
            print(json.dumps({"job": name, **measure(every[name](), options.seconds)}), flush=True)
        return 0
    common = {"n": STEPS, "threads": torch.get_num_threads(), "contender": "stprune", "limit_mib": LIMIT_MIB}
    common |= records.machine(torch.device("cpu"), "default")
    rows: list[records.Row] = []
    for name in _progress(names):
        row = next(row for row in in_a_process(name, seconds=options.minutes * 60 / len(names)) if row["job"] == name)
        rows.append({**row, **common})
        print(
            f"{name:28} {row['steps']:>9} steps from {row['before_mib']:6} MiB {row['mib_per_5000_steps']:+9.3f} a 5,000 steps"
        )
    records.keep(options.out, rows)
    return int(any(float(str(row["mib_per_5000_steps"])) > LIMIT_MIB for row in rows))


def _progress(names: list[str]) -> Iterator[str]:
    try:
        from tqdm import tqdm
    except ImportError:
        return iter(names)
    return iter(tqdm(names, unit="job"))


if __name__ == "__main__":
    sys.exit(main())
