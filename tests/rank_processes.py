"""Real processes with torch.distributed on gloo: each runs a list of cases, and leaves what each case found in a file."""

import datetime
import importlib
import pathlib
import sys
import time

import torch
from torch import distributed, multiprocessing

TIMEOUT = datetime.timedelta(seconds=60)


def process(rank, folder, module, cases):
    """Run the cases of a module in which this rank takes part, each in a process group of its own."""
    torch.set_num_threads(1)
    known = importlib.import_module(module).CASES
    for name in cases:
        world, case = known[name]
        if rank >= world:
            continue

        def start(name=name, world=world):
            store = distributed.FileStore(f"{folder}/{name}", world)
            distributed.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=TIMEOUT)
            return pathlib.Path(folder)

        try:
            result = case(rank, start)
        except Exception as error:  # a case's fault is its own test's
            result = f"{type(error).__name__}: {error}"
        torch.save(result, f"{folder}/{name} on {rank}")
        if distributed.is_initialized():
            distributed.destroy_process_group()


def results(module, folder, world, limit=100):
    """What each rank found, by case; of a rank that did not end a case, "the process ended"."""
    cases = importlib.import_module(module).CASES
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=process, args=(rank, str(folder), module, list(cases))) for rank in range(world)]
    for each in processes:
        each.start()
    end = time.monotonic() + limit
    for each in processes:
        each.join(max(0.0, end - time.monotonic()))
        if each.is_alive():
            print("a process was still running", file=sys.stderr)
            each.kill()
    files = {name: [folder / f"{name} on {rank}" for rank in range(cases[name][0])] for name in cases}
    return {
        name: [torch.load(file, weights_only=True) if file.is_file() else "the process ended" for file in each]
        for name, each in files.items()
    }
