"""STID on a synthetic series, on as many ranks as there are: `torchrun --nproc-per-node 2 examples/ddp.py`.

Nothing here but `set_epoch` knows of ranks: the sampler shares each epoch's plan among them and exchanges scores, torch's
DistributedDataParallel the gradients. `python examples/ddp.py` is one rank. Under Ray Train and Dask each worker calls `main`.
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
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint, also on another number of ranks")
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
    return np.stack([wave, clock, np.broadcast_to((time // STEPS_PER_DAY % 7 / 7)[:, None], wave.shape)], 2).astype(np.float32)


def last_path(paths, world):
    """Where the newest state of those moments lies of which all ranks have one: a killed run may have written a few only."""
    states = ((path, stprune.checkpoint.load(path)["sampler"]) for path in paths if os.path.exists(path))
    found = {(state["epoch"], state["position"]): path for path, state in states}
    everyone = [list(found)] * world
    if world > 1:
        distributed.all_gather_object(everyone, list(found))
    return found[max(set.intersection(*map(set, everyone)))] if all(everyone) else paths[0]


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
    parts = {"model": model, "optimizer": optimizer, "sampler": sampler}
    # A sharded state is that of its rank: each keeps its last two, and `stprune.reshard` fits them to other ranks.
    paths = [f"{asked.checkpoint}.{sampler.rank}.{last}" for last in "ab"] if asked.sharded else [asked.checkpoint]
    if asked.resume:
        paths.sort(key=last_path(paths, world).__eq__)  # it comes last: the other one is written first
        state = stprune.checkpoint.load(paths[-1])
        for name, owner in parts.items():
            owner.load_state_dict(state[name])
    parallel = DistributedDataParallel(model) if world > 1 else model
    result = {"world": world, "rank": sampler.rank, "steps": 0, "epochs": []}
    for epoch in range(sampler.next_epoch, asked.epochs):
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
            if stopped := result["steps"] == asked.stop_after:
                break
        result["epochs"].append({"epoch": epoch, "ids": ids, "planned": len(sampler.plan), "loss": total / max(1, len(ids))})
        whole = "" if len(ids) == len(sampler) else f" of {len(sampler)}"
        line = f"epoch {epoch}: {len(ids)}{whole} windows of {len(sampler.plan)} planned for {world} ranks"
        print(f"[rank {sampler.rank}] {line}, mean loss {result['epochs'][-1]['loss']:.4f}", flush=True)
        sampler.synchronize()
        if asked.checkpoint and (sampler.rank == 0 or asked.sharded):
            stprune.checkpoint.save({name: owner.state_dict() for name, owner in parts.items()}, paths[0])
            paths.reverse()
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
