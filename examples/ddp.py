"""STID on a synthetic series, on as many ranks as there are: `torchrun --nproc-per-node 2 examples/ddp.py`.

Nothing here but `set_epoch` knows of ranks: the sampler shares each epoch's plan among them and exchanges scores, torch's
DistributedDataParallel the gradients. `python examples/ddp.py` is one rank. Under Ray Train and Dask each worker calls `main`.
With --resume it goes on from the last checkpoint, on another number of ranks if you like; --stop-after ends in the middle of an
epoch.
"""

import argparse
import json
import os
import pathlib

import numpy as np
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import stprune

HISTORY, HORIZON, NODES, STEPS_PER_DAY = 12, 12, 12, 48


def arguments(given=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--days", type=int, default=40, help="length of the series, of 48 steps a day")
    parser.add_argument("--batch", type=int, default=64, help="windows of all ranks together in a step")
    parser.add_argument("--keep-ratio", type=float, default=0.5)
    parser.add_argument("--method", default="st-prune")
    parser.add_argument("--sharded", action="store_true", help="spread the scores over the ranks")
    parser.add_argument("--checkpoint", help="file for model, optimizer and sampler, written after each epoch; rank 0's name")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    parser.add_argument("--report", help="file for ids and losses as JSON; the rank is appended to its name")
    parser.add_argument("--stop-after", type=int, help="end after so many steps, with a checkpoint")
    return parser.parse_args(given)


def series(days):
    """Daily waves of NODES nodes with noise, and a burst now and then: [time, NODES, 3] with time of day and day of week."""
    random, time = np.random.default_rng(0), np.arange(days * STEPS_PER_DAY)
    phase = time[:, None] / STEPS_PER_DAY * 2 * np.pi + np.linspace(0, np.pi, NODES)
    wave = 10 + 5 * np.sin(phase) + 2 * np.sin(3 * phase) + random.normal(0, 0.3, phase.shape)
    wave += 6 * (random.random((len(time), 1)) < 0.03) * random.random(phase.shape)
    clock = np.broadcast_to(((time % STEPS_PER_DAY) / STEPS_PER_DAY)[:, None], wave.shape)
    day = np.broadcast_to((time // STEPS_PER_DAY % 7 / 7)[:, None], wave.shape)
    return np.stack([wave, clock, day], 2).astype(np.float32)


def state_of(model, optimizer, sampler):
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "sampler": sampler.state_dict()}


def main(given=None):
    """Train, print what happened, and return it: ids delivered and planned, losses, steps."""
    asked = arguments(given)
    own_group = not distributed.is_initialized() and "RANK" in os.environ  # torchrun's; Ray Train has begun one already
    if own_group:
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    world = distributed.get_world_size() if distributed.is_initialized() else 1
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    windows = stprune.WindowDataset(series(asked.days), history=HISTORY, horizon=HORIZON)
    options = {"num_epochs": asked.epochs, "keep_ratio": asked.keep_ratio, "method": asked.method, "sharded": asked.sharded}
    sampler = stprune.PruningSampler(len(windows), **options)
    criterion = stprune.PrunedLoss(sampler)
    loader = DataLoader(stprune.IndexedDataset(windows), batch_size=max(1, asked.batch // world), sampler=sampler)
    torch.manual_seed(0)
    model = stprune.models.STID(NODES, history=HISTORY, horizon=HORIZON, steps_per_day=STEPS_PER_DAY, dim=8).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    # A sharded sampler's state is that of its rank: each rank keeps its own, and `stprune.reshard` fits them to other ranks.
    path = f"{asked.checkpoint}.{sampler.rank}" if asked.sharded and asked.checkpoint else asked.checkpoint
    first = 0
    if asked.resume:
        state = stprune.checkpoint.load(path)
        first = state["sampler"]["epoch"] + state["sampler"]["finished"]  # the epoch that was under way, or the next
        for name, owner in (("model", model), ("optimizer", optimizer), ("sampler", sampler)):
            owner.load_state_dict(state[name])
    parallel = DistributedDataParallel(model) if world > 1 else model
    result = {"world": world, "rank": sampler.rank, "steps": 0, "epochs": []}
    for epoch in range(first, asked.epochs):
        sampler.set_epoch(epoch)
        ids, total, stopped = [], 0.0, False
        for index, (x, y) in loader:
            x, y = x.to(device), y[..., :1].to(device)
            loss = criterion(parallel(x), y, index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            ids += index.tolist()
            total, result["steps"] = total + float(loss.detach()) * len(index), result["steps"] + 1
            stopped = result["steps"] == asked.stop_after
            if stopped:
                break
        result["epochs"].append({"epoch": epoch, "ids": ids, "planned": len(sampler.plan), "loss": total / max(1, len(ids))})
        whole = "" if len(ids) == len(sampler) else f" of {len(sampler)}"
        line = f"epoch {epoch}: {len(ids)}{whole} windows of {len(sampler.plan)} planned for {world} ranks"
        print(f"[rank {sampler.rank}] {line}, mean loss {result['epochs'][-1]['loss']:.4f}", flush=True)
        sampler.synchronize()
        if asked.checkpoint and (sampler.rank == 0 or asked.sharded):
            stprune.checkpoint.save(state_of(model, optimizer, sampler), path)
        if stopped:
            break
    if asked.report:
        pathlib.Path(f"{asked.report}.{sampler.rank}").write_text(json.dumps(result))
    if own_group:
        distributed.barrier()  # no rank leaves before the others have what it sent
        distributed.destroy_process_group()
    return result


if __name__ == "__main__":
    main()
